"""Verdicts on claims, and what their table says."""

import numpy as np
import pytest
from claims_outcomes import QUERIES, noisy_outcome

from mgkit.claims.verdicts import crossing_lines, crossings, shown_samples, table, to_decide, verdicts

ARMS = ["plain", "repeated", "joint"]
REPEATED, MARGIN = (
    "repeated augmentation at λ=1 (N=3 against N=1)",
    "the margin loss at N=3 (λ=0.5 against λ=1)",
)
GAINS = {("repeated", 1): -0.1, ("joint", 1): -0.1, ("repeated", 4): 0.1, ("joint", 4): 0.2}


def found(**values):
    return verdicts(noisy_outcome(ARMS, gains=GAINS, **values))


def of(verdicts, claim, measure, samples):
    [one] = [v for v in verdicts if (v.claim, v.measure, v.samples) == (claim, measure, samples)]
    return one


def test_every_claim_is_tried_on_every_measure_at_every_budget():
    assert len(found()) == 3 * len(QUERIES) * 2
    assert len(verdicts(noisy_outcome(["plain", "repeated"]))) == len(QUERIES) * 2
    assert verdicts(noisy_outcome(["joint"])) == []


def test_the_two_effects_are_told_apart():
    every = found()
    assert of(every, REPEATED, "top-1", 1000).holds is False
    assert of(every, MARGIN, "top-1", 1000).holds is None  # no difference
    assert of(every, REPEATED, "top-1", 4000).holds is True
    assert of(every, MARGIN, "top-1", 4000).holds is True
    assert of(every, MARGIN, "ukbench", 4000).difference.value == pytest.approx(0.1, abs=0.02)


def test_the_papers_values_stand_beside():
    assert of(found(), REPEATED, "top-1", 1000).paper == (0.762, 0.769)
    assert of(found(), MARGIN, "holidays", 1000).paper == (0.918, 0.915)


def test_only_seeds_that_both_arms_have_are_compared():
    outcome = noisy_outcome(ARMS, gains=GAINS)
    missing = [one for one in outcome.trained if (one.training.arm, one.training.seed) != ("joint", 2)]
    fewer = verdicts(type(outcome)(**vars(outcome) | {"trained": missing}))
    assert of(fewer, MARGIN, "top-1", 4000).seeds == 2
    assert of(fewer, REPEATED, "top-1", 4000).seeds == 3


def test_a_line_says_what_would_decide():
    single = found(seeds=(0,))
    assert {one.holds for one in single} == {None}
    assert to_decide(single[0]) == "one seed tells nothing about others"
    decided = of(found(), REPEATED, "top-1", 4000)
    assert to_decide(decided) == ""
    open_ = of(found(), MARGIN, "top-1", 1000)
    assert "seeds would decide" in to_decide(open_) or "no number of seeds" in to_decide(open_)


def test_the_table_has_a_line_for_each_and_is_aligned():
    every = found()
    heading, *lines = table(every).splitlines()
    assert len(lines) == 3 + len(every)
    of_verdicts = [line for line in lines if line.startswith("  ")]
    ends = {
        line.index(word)
        for line in of_verdicts
        for word in ("holds", "does not", "undecided")
        if word in line
    }
    assert len(ends) == 1
    assert heading.index("paper") < ends.pop()
    assert "+0.7" in table(every)  # of the paper, top-1 by repeated augmentation


def test_curves_cross_between_the_budgets():
    at = crossings(found())[REPEATED, "top-1"]
    assert 1000 < at.low <= at.value <= at.high < 4000
    assert at.value == pytest.approx(2000, rel=0.1)
    [line] = [line for line in crossing_lines(found()) if line.startswith(f"{REPEATED}, top-1")]
    assert "ahead at 2" in line and "95 %" in line


def test_one_budget_has_no_crossing():
    assert crossings(found(budgets=(1,))) == {}
    assert crossing_lines(found(budgets=(1,))) == []


@pytest.mark.parametrize(("samples", "text"), [(950, "0.95k"), (75_000, "75k"), (1_250_000, "1.25M")])
def test_samples_are_short(samples, text):
    assert shown_samples(samples) == text


def test_values_may_be_missing():
    outcome = noisy_outcome(["plain", "repeated"])
    outcome.trained[0].measured.values["top-1"][3] = None
    assert np.isfinite(verdicts(outcome)[0].difference.value)
