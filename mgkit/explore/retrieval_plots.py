"""Figures of retrieval (05): measures, curves, and queries with their answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from mgkit.data.images import evenly
from mgkit.explore.style import (
    COLOURS,
    LINES,
    MARKERS,
    TITLE,
    axes_grid,
    cycled,
    figure_legend,
    line_sizes,
    show_found,
    show_reason,
    size_ticks,
    style,
    wrapped_grid,
)
from mgkit.machine.printable import shortened
from mgkit.retrieval.protocols import examples, shown

if TYPE_CHECKING:  # for annotations: do not load the stages
    from mgkit.stages.results import ResolutionCurves, Retrieval

FADED = 0.35  # opacity of the answers of rejected queries


def retrieval_bars(found: Sequence[Retrieval]) -> Figure:
    """A group of bars per set, one bar per descriptor, with 95 % intervals; UKBench's score in % of 4.

    Without sets that have no ground truth, and the levels of Copydays (`level_curves`).
    """
    found = [r for r in found if r.result.measure != "none" and r.retrieval_set.level is None]
    sets = list(dict.fromkeys(r.result.name for r in found))
    kinds = list(dict.fromkeys(r.descriptor for r in found))
    width = 0.85 / max(len(kinds), 1)
    names = [shortened(name, TITLE) for name in sets]
    inches = max([0.55 * len(kinds), *(0.2 + 0.085 * len(name) for name in names)])
    figure, [[panel]] = axes_grid(1, 1, width=max(6.0, inches * len(sets)), height=3.8)
    hatches = ("", "//", "xx", "..", "\\\\", "++", "--")
    for r in found:
        k, result = kinds.index(r.descriptor), r.result
        scale = 100 / (4 if result.measure == "score" else 1)
        x = sets.index(result.name) + (k - (len(kinds) - 1) / 2) * width
        value, (low, high) = scale * result.value, (scale * np.array(result.interval))
        panel.bar(
            x, value, 0.92 * width, color=COLOURS[k % len(COLOURS)], hatch=cycled(hatches, k),
            edgecolor="white", label=r.descriptor,
        )  # fmt: skip
        whiskers = [[max(value - low, 0)], [max(high - value, 0)]]
        panel.errorbar(x, value, yerr=whiskers, color="black", linewidth=1, capsize=2)
        panel.text(x, max(high, value) + 1, shown(result).split()[0], ha="center", fontsize=7)
    measures = dict.fromkeys(r.result.measure for r in found)
    unit = f"{' or '.join('score / 4' if one == 'score' else one for one in measures)} (%)"
    style(panel, "Retrieval, with 95 % confidence intervals", "", unit)
    panel.set_xticks(range(len(sets)), names, fontsize=9)
    panel.set_ylim(0, 112)
    if not found:
        show_reason(panel)
        return figure
    figure_legend(figure, panel)
    return figure


def precision_recall(found: Sequence[Retrieval]) -> Figure:
    """Precision against recall, one panel per set, one line per descriptor."""
    found = [r for r in found if len(r.result.recall) and r.retrieval_set.level is None]
    sets = list(dict.fromkeys(r.result.name for r in found))
    kinds = list(dict.fromkeys(r.descriptor for r in found))
    figure, axes = axes_grid(1, max(len(sets), 1), width=3.1, height=2.9)
    for panel, name in zip(axes[0], sets, strict=False):
        for r in found:
            if r.result.name == name:
                k = kinds.index(r.descriptor)
                panel.plot(
                    100 * r.result.recall, 100 * r.result.precision, color=COLOURS[k % len(COLOURS)],
                    linestyle=cycled(LINES, k), label=r.descriptor, **line_sizes(k, len(kinds)),
                )  # fmt: skip
        curve = next(r.result.curve for r in found if r.result.name == name)
        style(panel, shortened(name, TITLE), f"recall (%), {curve}", "precision (%)")
        panel.set(xlim=(0, 102), ylim=(0, 104))
    if not sets:
        show_reason(axes[0, 0])
        return figure
    figure_legend(figure, *axes[0])
    return figure


def level_curves(found: Sequence[Retrieval]) -> Figure:
    """mAP on copies against the area cropped and the JPEG quality, one line per descriptor."""
    found = [r for r in found if r.retrieval_set.level is not None]
    figure, axes = axes_grid(1, 2, width=4.2, height=3.2)
    titles = {
        "crops": ("Cropped copies", "area cut away (%)"),
        "jpegqual": ("Compressed copies", "JPEG quality"),
    }
    kinds = list(dict.fromkeys(r.descriptor for r in found))
    for panel, (edit, (title, unit)) in zip(axes[0], titles.items(), strict=True):
        for k, kind in enumerate(kinds):
            line = [r for r in found if r.descriptor == kind and r.retrieval_set.level[0] == edit]
            panel.plot(
                [r.retrieval_set.level[1] for r in line], [100 * r.result.value for r in line],
                color=COLOURS[k % len(COLOURS)], marker=cycled(MARKERS, k), linestyle=cycled(LINES, k),
                label=kind, **line_sizes(k, len(kinds)),
            )  # fmt: skip
        style(panel, title, unit, "mAP (%)")
        panel.set_ylim(0, 104)
    axes[0, 1].invert_xaxis()  # harder to the right in both panels
    figure_legend(figure, axes[0, 0])
    return figure


def resolution_figure(curves: ResolutionCurves) -> Figure:
    """Measures against resolution, one panel each, one line per pooling exponent (figure 4)."""
    names = list(curves.values)
    if not names:
        figure, [[panel]] = axes_grid(1, 1)
        show_reason(panel)
        return figure
    figure, axes = wrapped_grid(len(names), width=3.6 if len(names) > 1 else 5.6, height=3.0)
    for panel, name in zip(axes, names, strict=True):
        scale = 1 if curves.measures[name] == "score" else 100
        for j, label in enumerate(curves.exponents):
            panel.plot(
                curves.sizes, scale * curves.values[name][:, j], color=COLOURS[j % len(COLOURS)],
                marker=cycled(MARKERS, j), linestyle=cycled(LINES, j), label=label,
                **line_sizes(j, len(curves.exponents)),
            )  # fmt: skip
        unit = "score (of 4)" if scale == 1 else f"{curves.measures[name]} (%)"
        style(panel, shortened(name, TITLE), "resolution (px)", unit)
        panel.ticklabel_format(axis="y", useOffset=False)
        size_ticks(panel, curves.sizes)
    figure_legend(figure, axes[0])
    return figure


def retrieval_grid(retrieval: Retrieval, *, queries: int = 3, k: int = 6) -> Figure:
    """Queries from the worst to the best, and their k nearest images with cosine similarity.

    Right answers have ✓ and a solid frame, wrong ones ✗ and a dashed frame, junk – and a dotted frame.
    """
    each, result = retrieval.retrieval_set, retrieval.result
    chosen = examples(result.per_query[result.shown], result.measure, queries)
    k = min(k, result.neighbours.shape[1])
    figure, axes = axes_grid(len(chosen), k + 1, width=1.15, height=1.3)
    for row, (s, title) in zip(axes, chosen.items(), strict=True):
        q = result.shown[s]
        found = [
            (image, score, each.right(q, image))
            for image, score in zip(result.neighbours[s].tolist(), result.scores[s], strict=True)
        ]
        show_found(row, each.images, each.queries[q], found, judged=each.measure != "none", title=title)
    value = shown(result) if result.measure == "none" else f"{result.measure} {shown(result)}"
    figure.suptitle(f"{shortened(result.name, TITLE)}, {retrieval.descriptor}: {value}", fontsize=10)
    return figure


def reranking_gains(found: Sequence[Retrieval]) -> Figure:
    """Gain of each re-ranking over the plain ranking, with 95 % intervals; one panel per set.

    found: of `evaluate_reranking`
    """
    sets = list(dict.fromkeys(r.result.name for r in found))
    bases = list(dict.fromkeys(r.over for r in found if r.gain))
    methods = list(dict.fromkeys(r.descriptor.removeprefix(f"{r.over} + ") for r in found if r.gain))
    if not sets:
        figure, [[panel]] = axes_grid(1, 1)
        show_reason(panel)
        return figure
    figure, axes = wrapped_grid(len(sets), width=3.4, height=1.1 + 0.3 * len(methods))
    for panel, name in zip(axes, sets, strict=True):
        of_set = [r for r in found if r.result.name == name and r.gain]
        scale = 1 if of_set[0].result.measure == "score" else 100
        for r in of_set:
            b, gain = bases.index(r.over), r.gain
            y = methods.index(r.descriptor.removeprefix(f"{r.over} + ")) + 0.25 * (b - (len(bases) - 1) / 2)
            whiskers = [[scale * max(gain.value - gain.low, 0)], [scale * max(gain.high - gain.value, 0)]]
            panel.errorbar(
                scale * gain.value, y, xerr=whiskers, fmt=cycled(MARKERS, b), markersize=5, capsize=2,
                color=COLOURS[b % len(COLOURS)], label=r.over,
            )  # fmt: skip
        panel.axvline(0, color="grey", linestyle=":")
        unit = "points of 4" if scale == 1 else "percentage points"
        style(panel, shortened(name, TITLE), f"gain in {of_set[0].result.measure} ({unit})", "")
        panel.set_yticks(range(len(methods)), methods)
        panel.set_ylim(len(methods) - 0.5, -0.5)
    figure_legend(figure, axes[0])
    return figure


def rejection_curves(found: Sequence[Retrieval]) -> Figure:
    """Queries with an answer that are accepted against those without that are; one panel per set.

    found: results with a `rejection`; ★ is the threshold's
    """
    figure, axes = wrapped_grid(len(found), width=4.0, height=3.2)
    for panel, r in zip(axes, found, strict=True):
        one = r.result.rejection
        false, accepted, right = (100 * rate for rate in one.roc())
        for k, (rate, label) in enumerate([(accepted, "accepted"), (right, "accepted, right image first")]):
            panel.step(false, rate, where="post", color=COLOURS[k], linestyle=LINES[k], label=label)
        star = 100 * one.accepted[~one.answered].mean(), 100 * one.right_rate
        look = {"color": COLOURS[1], "markersize": 14, "markeredgecolor": "black", "linestyle": ""}
        panel.plot(*star, marker="*", label="the learned threshold", **look)
        label = f"{100 * one.false_rate:g} % asked for"
        panel.axvline(100 * one.false_rate, color="grey", linestyle=":", label=label)
        style(
            panel, shortened(r.result.name, TITLE), "of queries without an answer, accepted (%)",
            "of queries with an answer (%)",
        )  # fmt: skip
        panel.set(xlim=(-2, 102), ylim=(0, 104))
    figure_legend(figure, axes[0])
    return figure


def rejection_grid(retrieval: Retrieval, *, queries: int = 3, k: int = 4) -> Figure:
    """Queries with an answer, then queries without, each with its nearest images; rejected ones are marked.

    The queries with an answer are those with the lowest, a middle and the highest similarity of those shown
    by `retrieval_grid`; of those without, the highest comes first.
    """
    each, result = retrieval.retrieval_set, retrieval.result
    one, places = result.rejection, np.arange(len(result.shown))
    answered = one.answered[result.shown]
    known = places[answered][np.argsort(one.best[result.shown[answered]], kind="stable")]
    rows = [*known[evenly(len(known), queries)], *places[~answered][evenly((~answered).sum(), queries)]]
    k = min(k, result.neighbours.shape[1])
    figure, axes = axes_grid(len(rows), k + 1, width=1.3, height=1.45)
    for row, s in zip(axes, rows, strict=True):
        q = result.shown[s]
        found = [
            (image, score, each.right(q, image))
            for image, score in zip(result.neighbours[s].tolist(), result.scores[s], strict=True)
        ]
        title = f"{'with' if one.answered[q] else 'no'} answer:\n"
        title += "accepted" if one.accepted[q] else "rejected"
        show_found(row, each.images, each.queries[q], found, judged=True, title=title)
        if not one.accepted[q]:
            for axes_of_answer in row[1:]:
                axes_of_answer.images[0].set_alpha(FADED)
    name = shortened(result.name, TITLE)
    figure.suptitle(f"{name}, {retrieval.descriptor}: accepted from {one.threshold:.3f} on", fontsize=10)
    return figure
