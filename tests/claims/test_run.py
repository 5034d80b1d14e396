"""07's trainings: every one trained and measured once, resumed after a stop, kept for other budgets."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from mgkit.claims import run as module
from mgkit.claims.measures import Measured
from mgkit.claims.plan import GRID_SEED, Training
from mgkit.claims.run import (
    Trained,
    further_trainings,
    is_complete,
    outcome,
    rates_of,
    run_claims,
    try_claims,
)
from mgkit.engine.launch import StoppedError
from mgkit.machine.records import read_json

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def trained(monkeypatch):
    """The names of the trainings that are run, as they are."""
    names = []
    run = module.run_training

    def noted(config, **options):
        names.append(config.experiment.removeprefix("t-"))
        return run(config, **options)

    monkeypatch.setattr(module, "run_training", noted)
    return names


def test_every_arm_is_trained_and_measured_and_nothing_is_done_twice(config, trained):
    run_claims(config())
    assert trained == ["plain-1epochs-seed0", "joint-1epochs-seed0"]
    found = outcome(config())
    assert [one.training.arm for one in found.trained] == ["plain", "joint"]
    for one in found.trained:
        arrays = one.measured.arrays()
        assert {name: len(values) for name, values in arrays.items()} == {
            name: len(groups) for name, groups in found.groups.items()
        }
        assert set(np.unique(arrays["top-1"])) <= {0.0, 1.0}
        assert ((arrays["ukbench"] >= 0) & (arrays["ukbench"] <= 4)).all()
    assert is_complete(config())
    run_claims(config())
    assert len(trained) == 2


def test_another_budget_or_seed_trains_only_what_is_missing(config, trained):
    run_claims(config(arms=["plain"]))
    run_claims(config(arms=["plain"], budgets=[1, 2], seeds=[0, 1]))
    assert trained == [
        "plain-1epochs-seed0", "plain-1epochs-seed1", "plain-2epochs-seed0", "plain-2epochs-seed1",
    ]  # fmt: skip


def test_measured_values_are_enough_without_the_networks(config, trained):
    """As of the reference run, whose networks are not in git."""
    run_claims(config(arms=["plain"]))
    for folder in Path("outputs").glob("t-plain*"):
        shutil.rmtree(folder)
    run_claims(config(arms=["plain"], seeds=[0, 1]))
    assert trained == ["plain-1epochs-seed0", "plain-1epochs-seed1"]


@pytest.mark.parametrize("changed", [{"eval_size": 40}, {"crop_scale": 0.5}])
def test_other_parameters_are_measured_anew(config, trained, changed):
    run_claims(config(arms=["plain"]))
    before = read_json(Path("outputs/t/measured/plain-1epochs-seed0.json"))
    run_claims(config(arms=["plain"], **changed))
    after = read_json(Path("outputs/t/measured/plain-1epochs-seed0.json"))
    assert (before["evaluation"] != after["evaluation"]) == ("crop_scale" not in changed)
    assert len(trained) == 1 + ("crop_scale" in changed)  # the network is trained anew only then


def test_a_stop_saves_and_the_next_run_goes_on(config, trained):
    def asked(step):
        return len(trained) == 2 and step == 1

    with pytest.raises(StoppedError):
        run_claims(config(), asked_to_stop=asked)
    assert [one.training.arm for one in outcome(config()).trained] == ["plain"]
    assert not is_complete(config())
    run_claims(config())
    assert trained == ["plain-1epochs-seed0", "joint-1epochs-seed0", "joint-1epochs-seed0"]
    assert is_complete(config())


def test_after_so_many_hours_no_training_starts(config, trained, monkeypatch, capsys):
    clock = iter(range(0, 10**6, 1800))  # half an hour passes between two looks
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    run_claims(config(budgets=[1, 2], hours=1.0))
    assert 0 < len(trained) < 4
    assert "hours: 1" in capsys.readouterr().out
    assert not is_complete(config(budgets=[1, 2], hours=1.0))
    run_claims(config(budgets=[1, 2]))  # the same run, which goes on
    assert len(trained) == 4 and not Path("outputs/t/claims.1").exists()


def test_the_grid_chooses_a_rate_for_each_arm_and_its_trainings_are_no_seeds(config, trained):
    wanted = config(lrs=[0.02, 0.0001])
    run_claims(wanted)
    found = outcome(wanted)
    assert [one.training.seed for one in found.grid] == [GRID_SEED] * 4
    assert found.rates == rates_of(wanted, found.grid)
    assert [one.training.lr for one in found.trained] == [found.rates[arm] for arm in wanted.arms]
    assert len(trained) == 6


def stand_in(arm, lr, top1, budget=1, seed=GRID_SEED):
    measured = Measured.model_construct(diagnosis={"validation top-1": top1})
    return Trained(Training(arm, budget, seed, lr, of_grid=seed == GRID_SEED), measured)


def test_the_rate_of_an_arm_is_the_one_with_the_best_validation_accuracy(config):
    grid = [stand_in("plain", 0.1, 0.5), stand_in("plain", 0.2, 0.6), stand_in("joint", 0.1, 0.7)]
    assert rates_of(config(lrs=[0.1, 0.2]), grid) == {"plain": 0.2, "joint": 0.1}
    assert rates_of(config(lrs=[0.3]), []) == {"plain": 0.3, "joint": 0.3}


def test_further_claims_are_tried_on_the_largest_budget_with_most_seeds():
    every = [
        stand_in("joint", 0.1, 0, budget, seed) for budget, seed in ((1, 0), (1, 1), (3, 0), (3, 1), (9, 0))
    ]
    chosen = further_trainings([*every, stand_in("plain", 0.1, 0, 9, 1)])
    assert [(one.budget, one.seed) for one in chosen] == [(3, 0), (3, 1)]
    assert further_trainings([]) == []


def test_try_claims_trains_in_worker_processes(config):
    found = try_claims(config(arms=["plain"]))
    assert [one.training.name for one in found.trained] == ["plain-1epochs-seed0"]
    assert read_json(Path("outputs/t/claims/results.json"))["complete"]
