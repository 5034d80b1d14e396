"""What 07 says of an outcome, by small outcomes of which the answer is plain."""

import pytest
from claims_outcomes import outcome

from mgkit.claims import tables
from mgkit.claims.verdicts import verdicts
from mgkit.config import ClaimsConfig, make

THREE = {arm: {1: [0.3, 0.32], 4: [0.5, 0.54]} for arm in ("plain", "repeated", "joint")}


def test_the_claims_of_the_arms_with_the_paper_s_values():
    text = tables.claims_table(make(ClaimsConfig, {"arms": ["plain", "repeated"]}))
    header, *rows = text.splitlines()
    assert header.split() == ["top-1", "Holidays", "UKBench", "copies"]
    assert len(rows) == 1 and "76.2 → 76.9" in rows[0] and "3.87 → 3.89" in rows[0]


def test_a_single_arm_makes_no_claim():
    assert "arms (plain): no two make a claim" in tables.claims_table(make(ClaimsConfig, {"arms": ["plain"]}))


def test_nothing_is_missing_of_a_whole_outcome():
    measures = ["top-1", "holidays", "ukbench", "copies"]
    assert tables.missing_lines(outcome(THREE, measures=measures)) == []


def test_what_is_missing_is_said():
    means = {"plain": {1: [0.3]}, "repeated": {}}
    found = outcome(means, benchmarks="/there", lrs=[0.1, 0.2], rates={"plain": {0.1: 0.3}})
    assert tables.missing_lines(found) == [
        "2 of 6 trainings are measured: the same command goes on",
        "Holidays, UKBench: not in /there (parameter benchmarks), so not measured",
        "seeds: with one, every verdict is undecided, as it does not tell what another would give",
        "budgets: with one, there are points instead of curves, and no crossings",
    ]


def test_rates_at_an_end_of_the_grid_are_said():
    rates = {"plain": {0.1: 0.3, 0.2: 0.5, 0.4: 0.4}, "joint": {0.1: 0.5, 0.2: 0.4}}
    found = outcome({"plain": {1: [0.3]}, "joint": {1: [0.3]}}, rates=rates, lrs=[0.1, 0.2, 0.4])
    inner, end = tables.rate_lines(found)
    assert inner == "λ=1, N=1: 0.2 of 0.1, 0.2, 0.4 (validation top-1 50.0 % after 0.1k samples, seed 1000)"
    assert end.startswith("λ=0.5, N=3: 0.1 of 0.1, 0.2 (") and end.endswith("one beyond may be better")


def test_an_arm_whose_rate_is_not_chosen_yet():
    found = outcome(
        {"plain": {1: [0.3]}, "joint": {}}, rates={"plain": {0.1: 0.3, 0.2: 0.5}}, lrs=[0.1, 0.2]
    )  # fmt: skip
    assert tables.rate_lines(found)[1] == "λ=0.5, N=3: no learning rate has been tried yet"


def test_one_rate_for_all():
    assert "0.02" in tables.rate_lines(outcome(THREE))[0]


def test_the_best_arm_at_both_ends():
    means = {"plain": {1: [0.4, 0.42], 4: [0.5]}, "joint": {1: [0.3, 0.3], 4: [0.6]}}
    assert tables.curve_lines(outcome(means, measures=["ukbench"])) == [
        "UKBench: best is λ=1, N=1 at 0.1k samples (0.41 of 4), then λ=0.5, N=3 at 0.4k samples (0.60 of 4)"
    ]
    one = outcome({"plain": {4: [0.5]}}, measures=["top-1"])
    assert tables.curve_lines(one) == ["top-1: best is λ=1, N=1 at 0.4k samples (50.0 %)"]


def test_diagnoses_by_arm_and_budget():
    header, *rows = tables.diagnosis_table(outcome(THREE)).splitlines()
    assert "β" in header and "effective rank" in header and len(rows) == 6
    joint, plain = ([cell for cell in row.split() if cell != "%"] for row in (rows[-1], rows[0]))
    assert joint == ["λ=0.5,", "N=3", "0.4k", "2", "1.00", "25", "50", "0", "0.50", "1.20", "1.10", "30.0"]
    assert plain == ["λ=1,", "N=1", "0.1k", "2", "0", "0.50", "1.20", "1.10", "30.0"]  # without a β


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "no collapse"),
        ({"distance": 0.01}, "it collapses"),
        ({"effective rank": 1.2}, "it collapses"),
        ({"beta": 0.9}, "β = 0.90 lies between"),
        ({"beta": 0.4}, "β = 0.40 does not lie between"),
        ({"beta": 1.3}, "β = 1.30 does not lie between"),
        ({"positives that cost": 0.0}, "0 % of the positives and 50 % of the negatives still cost"),
    ],
)
def test_a_diagnosis_is_read(changed, said):
    lines = tables.diagnosis_lines(outcome({"plain": {}, "joint": {4: [0.5]}}, diagnosis=changed))
    assert said in "\n".join(lines) and len(lines) == 2  # nothing of an arm without a training


def test_the_cost_is_that_of_all_trainings():
    assert tables.cost_line(outcome(THREE)) == "trainings measured: 12, of 3k samples in 6.0 hours"
    assert tables.cost_line(outcome({"plain": {1: [0.3]}})).endswith("0.1k samples in 30.0 minutes")


def test_verdicts_are_counted_and_what_would_decide_is_said():
    means = {"plain": {1: [0.3, 0.3, 0.31], 4: [0.5, 0.5, 0.52]}}
    means["repeated"] = {1: [0.1, 0.11, 0.1], 4: [0.54, 0.52, 0.51]}
    counts, left = tables.undecided_lines(verdicts(outcome(means, measures=["top-1"])))
    assert counts == "of 2 verdicts, 0 hold, 1 do not, 1 are undecided"
    assert left.startswith("at 0.4k samples, 1 are undecided; of these, ") and "seeds would decide 1" in left


def test_one_seed_decides_nothing():
    found = verdicts(outcome({"plain": {1: [0.3]}, "repeated": {1: [0.5]}}))
    assert tables.undecided_lines(found)[1] == "a second seed would tell how many are needed"
    assert tables.undecided_lines([]) == ["no claim was tried"]


def test_the_report_holds_all_of_it(here):
    found = outcome(THREE)
    text = tables.report(found, verdicts(found), [])
    for part in (tables.diagnosis_table(found), tables.cost_line(found), *tables.rate_lines(found)):
        assert part in text
    assert "the margin loss at N=3" in text and text.endswith("\n") and "\n\n\n" not in text


def test_a_report_without_claims():
    found = outcome({"plain": {1: [0.3]}})
    text = tables.report(found, [], [])
    assert "no claim was tried" in text and "difference (95 %)" not in text
