"""Figures of 07, in colours for colour-blind readers; verdicts also differ in shape."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from scipy.special import stdtrit

from mgkit.claims.arms import ARMS, CLAIMS
from mgkit.claims.measures import TITLES, UNITS
from mgkit.claims.run import Outcome, Trained
from mgkit.claims.statistics import LEVEL, Crossing, Paired
from mgkit.claims.verdicts import WORDS, Verdict, shown_samples
from mgkit.explore.style import (
    COLOURS,
    LINES,
    MARKERS,
    RIGHT,
    TICK_INCHES,
    WRONG,
    axes_grid,
    figure_legend,
    show_reason,
    style,
    wrapped_grid,
)

SHADE = 0.12  # opacity of intervals around several curves, which overlap
APART = 0.06  # factor between the points of arms at one number of samples, where there are no curves
MARGIN = 0.3  # of the range of the points, on either side; longer intervals are cut
LONGEST = 8  # times the largest difference: so far an axis reaches, longer intervals leave the panel
LOOKS = {  # of verdicts
    holds: {"marker": marker, "color": colour, "markersize": 7, "linestyle": "", "label": WORDS[holds]}
    for holds, marker, colour in ((True, ">", RIGHT), (False, "<", WRONG), (None, "o", "grey"))
}
PAPER = {
    "marker": "D", "markerfacecolor": "none", "markeredgecolor": "black", "markersize": 6, "linestyle": "",
    "label": "the paper's difference",
}  # fmt: skip


def scale_of(measure: str) -> int:
    """Per cent for shares; UKBench's score as it is."""
    return 1 if UNITS[measure] == "score" else 100


def unit_of(measure: str) -> str:
    return "score (of 4)" if UNITS[measure] == "score" else f"{UNITS[measure]} (%)"


def look_of(arm: str) -> dict:
    """Colour, marker, line style and label of an arm, the same in every figure."""
    k = list(ARMS).index(arm)
    return {"color": COLOURS[k], "marker": MARKERS[k], "linestyle": LINES[k], "label": ARMS[arm].label}


# --- Learning rates


def learning_rates(outcome: Outcome) -> Figure:
    """Validation top-1 against the learning rate, a line per arm; ★ is the rate that an arm takes."""
    figure, [[panel]] = axes_grid(1, 1, width=5.6, height=3.4)
    rates = sorted({one.training.lr for one in outcome.grid})
    for arm in outcome.config.arms:
        line = sorted(
            (rates.index(one.training.lr), 100 * one.measured.diagnosis["validation top-1"])
            for one in outcome.grid
            if one.training.arm == arm
        )
        if line:
            panel.plot(*zip(*line, strict=True), **look_of(arm))
            star = max(line, key=lambda point: point[1])
            panel.plot(*star, "*", color=look_of(arm)["color"], markersize=15, markeredgecolor="black")
    panel.plot([], [], "*", color="white", markeredgecolor="black", markersize=12, label="taken")
    style(panel, "The learning rate of each arm", "learning rate", "validation top-1 (%)")
    panel.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    panel.set_xlim(-0.3, len(rates) - 0.7)
    if not outcome.grid:
        show_reason(panel, "every arm has the same rate")
    figure_legend(figure, panel)
    return figure


# --- Curves


def budget_curves(outcome: Outcome, crossings: Mapping[tuple[str, str], Crossing]) -> Figure:
    """Each measure against the samples seen, a line per arm with a dot per seed; rings: crossings.

    Shaded: 95 % intervals of the mean over the seeds, where there are two or more. With one budget only, a
    point per arm with its interval. Intervals may leave a panel, points do not.

    crossings: of `mgkit.claims.verdicts.crossings`
    """
    figure, axes = wrapped_grid(len(outcome.groups), width=4.4, height=3.0)
    budgets = sorted({one.measured.samples for one in outcome.trained})
    for panel, measure in zip(axes, outcome.groups, strict=True):
        curves = {}
        for arm in outcome.config.arms:
            of_arm = [one for one in outcome.trained if one.training.arm == arm]
            if of_arm:
                curves[arm] = by_samples(of_arm, measure)
        for k, (arm, found) in enumerate(curves.items()):
            apart = 0 if len(budgets) > 1 else k - (len(curves) - 1) / 2
            draw_curve(panel, found, (1 + APART) ** apart, look_of(arm))
        mark_crossings(panel, measure, curves, crossings)
        style(panel, TITLES[measure], "samples seen", unit_of(measure))
        if curves:
            keep_points(panel, np.concatenate([v for found in curves.values() for v in found.values()]))
            number_ticks(panel, budgets, shown_samples)
        else:
            show_reason(panel, "nothing is measured yet")
    if outcome.trained:
        figure_legend(figure, *axes)
    return figure


def by_samples(trained: Sequence[Trained], measure: str) -> dict[int, np.ndarray]:
    """{samples seen: the mean of a measure for each seed [S]}, ascending, in the measure's unit."""
    found: dict[int, list[float]] = {}
    for one in trained:
        value = float(np.nanmean(one.measured.arrays()[measure]))
        found.setdefault(one.measured.samples, []).append(scale_of(measure) * value)
    return {samples: np.array(found[samples]) for samples in sorted(found)}


def half_interval(values: np.ndarray) -> float:
    """Half the 95 % interval of the mean of values [S], by Student's t; NaN for a single one."""
    if len(values) < 2:
        return math.nan
    t = stdtrit(len(values) - 1, (1 + LEVEL) / 2)
    return float(t * values.std(ddof=1) / math.sqrt(len(values)))


def draw_curve(panel: Axes, found: Mapping[int, np.ndarray], factor: float, look: dict) -> None:
    """Draw dots, mean line and interval of one arm; found: of `by_samples`, drawn at `factor` times these."""
    places = np.array([factor * samples for samples in found])
    means, halves = (np.array([of(values) for values in found.values()]) for of in (np.mean, half_interval))
    for place, values in zip(places, found.values(), strict=True):
        dots = {"color": look["color"], "marker": look["marker"], "markersize": 3.5, "alpha": 0.5}
        panel.plot([place] * len(values), values, linestyle="", **dots)
    panel.plot(places, means, markersize=6, **look)
    if len(places) > 1:
        area = {"color": look["color"], "alpha": SHADE, "linewidth": 0}
        panel.fill_between(places, means - halves, means + halves, **area)
    elif math.isfinite(halves[0]):
        panel.errorbar(places, means, yerr=halves, color=look["color"], capsize=3, fmt="none")


def mark_crossings(
    panel: Axes, measure: str, curves: Mapping[str, Mapping[int, np.ndarray]],
    crossings: Mapping[tuple[str, str], Crossing],
) -> None:  # fmt: skip
    """A ring where the mean line of an arm overtakes that of another for the last time."""
    ring = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "markeredgecolor": "black"}
    for claim in CLAIMS:
        at = crossings.get((claim.text, measure))
        if at and 0 < at.value < math.inf:
            curve = curves[claim.after]
            means = [values.mean() for values in curve.values()]
            height = np.interp(math.log(at.value), np.log(list(curve)), means)
            panel.plot(at.value, height, linestyle="", label="ahead from here on", **ring)


def keep_points(panel: Axes, values: np.ndarray) -> None:
    """Limit y to the range of the points and a margin: an interval of two seeds may be many times as long."""
    low, high = values.min(), values.max()
    margin = MARGIN * ((high - low) or 1)
    panel.set_ylim(low - margin, high + margin)


def number_ticks(panel: Axes, numbers: Sequence[int], shown: Callable[[int], str] = str) -> None:
    """A logarithmic axis x with a tick at each of the ascending numbers, labelled where there is room."""
    panel.set_xscale("log")
    low, high = numbers[0], numbers[-1]
    beyond = (high / low) ** 0.06 if high > low else 1.5
    panel.set_xlim(low / beyond, high * beyond)
    inches = panel.get_position().width * panel.figure.get_figwidth()
    room = math.log(high / low * beyond**2) * TICK_INCHES / inches
    named = [low]
    for place in numbers[1:]:
        if place == high or min(math.log(place / named[-1]), math.log(high / place)) >= room:
            named.append(place)
    panel.set_xticks(named, [shown(place) for place in named])
    panel.xaxis.set_minor_locator(NullLocator())


# --- Differences


@dataclass(frozen=True)
class Row:
    """A row of a figure of differences, in every panel; a heading without verdicts.

    verdicts: one per measure at most
    paper: whether the paper's differences are drawn, not those of the verdicts
    """

    label: str
    verdicts: Sequence[Verdict] = ()
    paper: bool = False


def differences(found: Sequence[Verdict]) -> Figure:
    """The difference of every claim at each budget, with its 95 % interval; a panel per measure.

    Shape and colour tell the verdict. Rhombs: the paper's differences, of other networks and images.
    Intervals may leave a panel, differences do not.
    """
    rows = []
    for claim, of_claim in groupby(found, key=lambda one: one.claim):
        of_claim = list(of_claim)
        rows.append(Row(claim))
        for samples in sorted({one.samples for one in of_claim}):
            rows.append(Row(shown_samples(samples), [one for one in of_claim if one.samples == samples]))
        last = [one for one in of_claim if one.paper and one.samples == max(o.samples for o in of_claim)]
        if last:
            rows.append(Row("paper", last, paper=True))
    return forest(rows, "samples seen")


def further_differences(found: Sequence[Verdict]) -> Figure:
    """The differences of claims that are tried on trained networks, a row per claim; as `differences`."""
    of_claim = {claim: list(ones) for claim, ones in groupby(found, key=lambda one: one.claim)}
    return forest([Row(claim, ones) for claim, ones in of_claim.items()], "")


def forest(rows: Sequence[Row], label: str) -> Figure:
    """Differences with their 95 % intervals, a row below the other; label: of the rows."""
    measures = [name for name in TITLES if any(one.measure == name for row in rows for one in row.verdicts)]
    if not measures:
        figure, [[panel]] = axes_grid(1, 1)
        show_reason(panel, "no claim was tried")
        return figure
    figure, [axes] = axes_grid(1, len(measures), width=2.7, height=1.2 + 0.24 * len(rows))
    for look in (*LOOKS.values(), *([PAPER] if any(row.paper for row in rows) else [])):
        axes[0].plot([], [], **look)  # for the legend, in this order
    for panel, measure in zip(axes, measures, strict=True):
        drawn = {y: one for y, row in enumerate(rows) for one in row.verdicts if one.measure == measure}
        draw_differences(panel, drawn, {y for y in drawn if rows[y].paper}, scale_of(measure))
        unit = "of 4" if scale_of(measure) == 1 else "points"
        style(panel, TITLES[measure], f"difference ({unit})", label if panel is axes[0] else "")
        panel.set_ylim(len(rows) - 0.4, -0.6)
        named = {y: row.label for y, row in enumerate(rows) if row.verdicts}
        panel.set_yticks(list(named), list(named.values()) if panel is axes[0] else [""] * len(named))
    axes[0].set_zorder(1)  # its headings reach into the other panels
    for y, row in enumerate(rows):
        if not row.verdicts:
            place = {"transform": axes[0].get_yaxis_transform(), "va": "center", "fontsize": 9}
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            axes[0].text(0.02, y, row.label, in_layout=False, bbox=box, **place)
    figure_legend(figure, axes[0])
    return figure


def draw_differences(panel: Axes, drawn: Mapping[int, Verdict], papers: set[int], scale: int) -> None:
    """Draw the difference of each row {row: verdict}, and its interval; papers: rows of the paper's."""
    panel.axvline(0, color="grey", linestyle=":")
    values = {
        y: scale * (one.paper[1] - one.paper[0] if y in papers else one.difference.value)
        for y, one in drawn.items()
    }
    reach = most = max(map(abs, values.values()), default=0) or 1
    for y, one in drawn.items():
        panel.plot(values[y], y, **(PAPER if y in papers else LOOKS[one.holds]))
        ends = scale * np.array([one.difference.low, one.difference.high])
        if y not in papers and np.isfinite(ends).all():
            panel.plot(ends, [y, y], color=LOOKS[one.holds]["color"], linewidth=1.5)
            reach = max(reach, *np.abs(ends))
    limit = min(1.12 * reach, LONGEST * most)
    panel.set_xlim(-limit, limit)


def whitening_curves(gains: Sequence[tuple[int, str, Paired]]) -> Figure:
    """What a whitening adds against the number of images it is fitted on, with 95 % intervals.

    gains: of `mgkit.claims.verdicts.whitening_gains`
    """
    measures = list(dict.fromkeys(measure for _, measure, _ in gains))
    if not measures:
        figure, [[panel]] = axes_grid(1, 1)
        show_reason(panel, "no whitening was measured")
        return figure
    figure, axes = wrapped_grid(len(measures), width=3.3, height=2.6)
    for panel, measure in zip(axes, measures, strict=True):
        of_measure = sorted((count, one) for count, name, one in gains if name == measure)
        counts = [count for count, _ in of_measure]
        found = [one.difference for _, one in of_measure]
        values, low, high = scale_of(measure) * np.array([(one.value, one.low, one.high) for one in found]).T
        ends = np.where(np.isfinite([low, high]), np.abs([values - low, high - values]), np.nan)  # [2,N]
        panel.errorbar(counts, values, yerr=ends, color=COLOURS[0], marker=MARKERS[0], capsize=3)
        panel.axhline(0, color="grey", linestyle=":")
        unit = "of 4" if scale_of(measure) == 1 else "points"
        style(panel, TITLES[measure], "images of the whitening", f"difference ({unit})")
        number_ticks(panel, counts)
    return figure
