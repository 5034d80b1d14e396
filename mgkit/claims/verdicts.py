"""A verdict on every claim, measure and budget: it holds, it does not, or it is undecided."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np

from mgkit.claims.arms import Claim, claims_of
from mgkit.claims.further import FurtherClaim
from mgkit.claims.measures import TITLES, UNITS
from mgkit.claims.run import Outcome, Trained
from mgkit.claims.statistics import Crossing, Paired, crossing, paired
from mgkit.explore.tables import aligned
from mgkit.retrieval.protocols import Difference, shown_difference, shown_value


@dataclass(frozen=True)
class Verdict:
    """A claim on one measure at one budget, or on networks that are trained already.

    paper: the paper's values before and after; None if it has none
    before, after: means over the seeds
    """

    claim: str
    measure: str
    samples: int
    paper: tuple[float, float] | None
    before: float
    after: float
    paired: Paired

    @property
    def seeds(self) -> int:
        return len(self.paired.of_seeds)

    @property
    def difference(self) -> Difference:
        return self.paired.difference

    @property
    def holds(self) -> bool | None:
        """Whether `after` is better; None if that is undecided, as with a single seed."""
        return self.difference.better


def verdicts(outcome: Outcome) -> list[Verdict]:
    """Every claim of which both arms are trained, on every measure, at every budget."""
    found = []
    for claim in claims_of(outcome.config.arms):
        for measure in outcome.groups:
            for budget in sorted(outcome.config.budgets):
                pairs = pairs_of(outcome, claim, budget)
                if pairs:
                    found.append(verdict(outcome, claim, measure, pairs))
    return found


def pairs_of(outcome: Outcome, claim: Claim, budget: int) -> list[tuple[Trained, Trained]]:
    """The trainings before and after of each seed that has both, at a budget."""
    of_budget = [one for one in outcome.trained if one.training.budget == budget]
    before, after = (
        {one.training.seed: one for one in of_budget if one.training.arm == arm}
        for arm in (claim.before, claim.after)
    )
    return [(before[seed], after[seed]) for seed in before if seed in after]


def verdict(
    outcome: Outcome, claim: Claim, measure: str, pairs: Sequence[tuple[Trained, Trained]]
) -> Verdict:
    """The verdict on a claim by pairs of trainings, one a seed."""
    before, after = (
        np.stack([pair[k].measured.arrays()[measure] for pair in pairs]) for k in (0, 1)
    )  # [S,Q]
    return Verdict(
        claim.text, measure, pairs[0][0].measured.samples, claim.paper.get(measure),
        float(np.nanmean(before)), float(np.nanmean(after)),
        paired(before, after, outcome.groups[measure]),
    )  # fmt: skip


def further_verdicts(outcome: Outcome) -> list[Verdict]:
    """The claims on p*, whitening and several scales, each on the networks of one arm and budget.

    The paper has no values for them: none at larger sizes with the training p, none without whitening.
    """
    return [one for _, one in tried_further(outcome)]


def whitening_gains(outcome: Outcome) -> list[tuple[int, str, Paired]]:
    """What a whitening adds: the number of images it is fitted on, a measure, and the differences."""
    return [
        (claim.whitening, one.measure, one.paired) for claim, one in tried_further(outcome) if claim.whitening
    ]


def tried_further(outcome: Outcome) -> Iterator[tuple[FurtherClaim, Verdict]]:
    """Each claim that was tried on all of the networks, with its verdict on each measure."""
    every = outcome.further
    tried = [one.claims() for one in every]
    for claim in tried[0] if tried else []:
        if not all(claim in of_network for of_network in tried):
            continue
        for measure in every[0].values[claim.before]:
            before, after = (
                np.stack([one.arrays(kind)[measure] for one in every]) for kind in (claim.before, claim.after)
            )  # [S,Q]
            yield claim, Verdict(
                claim.text, measure, every[0].samples, None,
                float(np.nanmean(before)), float(np.nanmean(after)),
                paired(before, after, outcome.groups[measure]),
            )  # fmt: skip


def crossings(found: Sequence[Verdict]) -> dict[tuple[str, str], Crossing]:
    """Where the curves of both arms of a claim cross, {(claim, measure): crossing}, given two budgets."""
    of_pair: dict[tuple[str, str], list[Verdict]] = {}
    for one in found:
        of_pair.setdefault((one.claim, one.measure), []).append(one)
    return {
        pair: crossing([one.samples for one in ones], [one.paired for one in ones])
        for pair, ones in of_pair.items()
        if len(ones) > 1
    }


# --- Text

WORDS = {True: "holds", False: "does not", None: "undecided"}


def table(found: Sequence[Verdict]) -> str:
    """The verdicts as aligned text, one claim after the other."""
    heading = ("", "samples", "seeds", "without", "with", "difference (95 %)", "paper", "", "")
    claims = [one.claim for one in found]
    by_claim = sorted(found, key=lambda one: claims.index(one.claim))
    lines = iter(aligned([heading, *map(row_of, by_claim)], left=(0, 7, 8)))
    text = [next(lines)]
    for claim, of_claim in groupby(by_claim, key=lambda one: one.claim):
        text += [claim, *islice(lines, len(list(of_claim)))]
    return "\n".join(text)


def row_of(one: Verdict) -> tuple[str, ...]:
    """A verdict's cells in `table`."""
    unit = UNITS[one.measure]
    values = (shown_value(unit, value) for value in (one.before, one.after))
    paper = f"{points(unit, one.paper[1] - one.paper[0])}" if one.paper else ""
    gain = shown_difference(unit, one.difference) if one.seeds > 1 else points(unit, one.difference.value)
    return (
        f"  {TITLES[one.measure]}", shown_samples(one.samples), str(one.seeds), *values, gain, paper,
        WORDS[one.holds], to_decide(one),
    )  # fmt: skip


def points(unit: str, difference: float) -> str:
    """Format a difference without an interval, as `shown_difference`."""
    return shown_difference(unit, Difference(difference, 0, 0)).partition(" (")[0]


def to_decide(one: Verdict) -> str:
    """How an undecided claim could be decided; empty for a decided one."""
    if one.holds is not None:
        return ""
    if one.seeds < 2:
        return "one seed tells nothing about others"
    needed = one.paired.seeds_needed()
    if needed is None:
        return "no number of seeds decides a difference this small on these images"
    return f"{max(needed, one.seeds + 1)} seeds would decide a difference this large"


def crossing_lines(found: Sequence[Verdict]) -> list[str]:
    """A line for each claim and measure: from how many samples on `after` is ahead."""
    return [
        f"{claim}, {TITLES[measure]}: {shown_crossing(at, *ends_of(found, claim, measure))}"
        for (claim, measure), at in crossings(found).items()
    ]


def ends_of(found: Sequence[Verdict], claim: str, measure: str) -> tuple[int, int]:
    """The smallest and the largest number of samples at which a claim was tried."""
    tried = [one.samples for one in found if (one.claim, one.measure) == (claim, measure)]
    return min(tried), max(tried)


def shown_crossing(at: Crossing, least: int, most: int) -> str:
    """Format a crossing and its interval."""

    def place(samples: float) -> str:
        if samples == 0:
            return f"before {shown_samples(least)}"
        return f"not by {shown_samples(most)}" if samples == math.inf else f"at {shown_samples(samples)}"

    interval = "" if math.isnan(at.low) else f" (95 %: {place(at.low)} … {place(at.high)})"
    return f"ahead {place(at.value)}{interval}"


def shown_samples(samples: float) -> str:
    """Format a number of samples, as 75k."""
    return f"{samples / 1000:.3g}k" if samples < 1e6 else f"{samples / 1e6:.3g}M"
