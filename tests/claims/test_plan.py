"""The arms and the trainings of 07: equal samples, the same seeds, budgets in order."""

import typing

import pytest
from support import one_line_error

from mgkit.claims.arms import ARMS, CLAIMS, claims_of
from mgkit.claims.plan import GRID_SEED, Training, drops, grid, samples, trainings
from mgkit.config import Arm, ClaimsConfig, make

RATES = {"plain": 0.01, "repeated": 0.02, "joint": 0.03}


def config(**values):
    return make(ClaimsConfig, {"experiment": "t"} | values)


def test_the_config_knows_the_arms():
    assert typing.get_args(Arm) == tuple(ARMS)


def test_a_claim_compares_arms_that_differ_in_one_thing():
    assert {claim.before for claim in CLAIMS} | {claim.after for claim in CLAIMS} <= set(ARMS)
    changed = {
        claim.text: sorted(
            key
            for key in ARMS[claim.before].settings | ARMS[claim.after].settings
            if ARMS[claim.before].settings.get(key) != ARMS[claim.after].settings.get(key)
        )
        for claim in CLAIMS
    }
    both = [text for text, keys in changed.items() if len(keys) > 1]
    assert both == ["both together (λ=0.5, N=3 against λ=1, N=1)"]


def test_only_claims_with_both_arms_are_tried():
    assert [claim.text for claim in claims_of(["plain", "repeated"])] == [
        "repeated augmentation at λ=1 (N=3 against N=1)"
    ]
    assert claims_of(["joint"]) == []


def test_all_arms_see_equal_samples_with_the_same_seeds():
    wanted = config(budgets=[4, 2], seeds=[5, 7], len_factor=1.5)
    every = list(trainings(wanted, RATES))
    assert len(every) == 3 * 2 * 2
    for budget in (2, 4):
        for seed in (5, 7):
            same = [one for one in every if (one.budget, one.seed) == (budget, seed)]
            assert [one.arm for one in same] == ["plain", "repeated", "joint"]
            configs = [one.config(wanted) for one in same]
            assert {(c.epochs, c.seed, c.len_factor, c.augmentation, c.batch_size) for c in configs} == {
                (budget, seed, 1.5, "full", wanted.batch_size)
            }
            assert {samples(one, wanted, 101) for one in same} == {budget * 151}
            assert [c.lr for c in configs] == [0.01, 0.02, 0.03]


def test_small_budgets_come_first_and_a_seed_has_all_its_arms_in_a_row():
    order = [(one.budget, one.seed) for one in trainings(config(budgets=[9, 1], seeds=[1, 0]), RATES)]
    assert order == [(1, 1)] * 3 + [(1, 0)] * 3 + [(9, 1)] * 3 + [(9, 0)] * 3


def test_the_grid_is_the_same_for_every_arm_on_another_seed():
    chosen = grid(config(lrs=[0.1, 0.2], budgets=[6, 2], seeds=[0, 1]))
    assert [(one.arm, one.lr) for one in chosen] == [(arm, lr) for arm in RATES for lr in (0.1, 0.2)]
    assert {one.seed for one in chosen} == {GRID_SEED}
    assert {one.budget for one in chosen} == {2}
    assert grid(config(lrs=[0.1])) == []


def test_seeds_of_the_grid_cannot_be_used_otherwise():
    with one_line_error(ValueError, "seeds", GRID_SEED - 1):
        config(seeds=[GRID_SEED])


RATES_OF_EPOCHS = [(1, [1]), (2, [1, 2]), (5, [1, 1, 1, 2, 3]), (8, [1, 1, 1, 1, 2, 2, 3, 3])]


@pytest.mark.parametrize(("budget", "rates"), RATES_OF_EPOCHS)
def test_the_rate_drops_after_a_share_of_every_budget(budget, rates):
    """The drops of 01 are 0-based epochs after which the rate falls; the last epoch has no drop after it."""
    after = drops([0.5, 0.75], budget)
    assert [1 + sum(epoch > drop for drop in after) for epoch in range(budget)] == rates


def test_names_tell_trainings_apart_and_make_folders():
    one = Training("joint", 5, 0, 0.04)
    of_grid = Training("joint", 5, GRID_SEED, 0.04, of_grid=True)
    assert one.config(config()).experiment == "t-joint-5epochs-seed0"
    assert of_grid.config(config()).experiment == "t-joint-5epochs-lr0.04-seed1000"


def test_unknown_arms_and_empty_lists_are_refused():
    with one_line_error(ValueError, "arms"):
        config(arms=["margin"])
    with one_line_error(ValueError, "budgets"):
        config(budgets=[])
