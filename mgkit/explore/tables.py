"""Results as text: aligned columns, and the tables of 02 and 05."""

from collections.abc import Container, Sequence
from itertools import groupby

import numpy as np

from mgkit.retrieval.protocols import shown, shown_difference, shown_interval, shown_other, shown_value
from mgkit.stages.results import Adaptation, Retrieval

VERDICT = {True: "better", False: "worse", None: "undecided"}


def aligned(rows: Sequence[Sequence[str]], *, left: Container[int] = (0,)) -> list[str]:
    """Rows of equal length as lines; left: columns that are aligned to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = ["<" if k in left else ">" for k in range(len(widths))]
    return [
        "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def adaptation_table(rows: list[Adaptation]) -> str:
    """Aligned text: top-1 of p*, FixRes and both at each size, gain over the training p, and cost."""
    width = max(len(row.method) for row in rows)
    lines = [
        f"{'':{width}}  {'p':>5}  {'top-1':>6}  {'95 % interval':>13}  {'gain':>21}  {'':9}  "
        f"{'passes':>6}  {'learned':>9}"
    ]
    for size, of_size in groupby(rows, key=lambda row: row.size):
        lines.append(f"{size} px")
        for row in of_size:
            gain, verdict = "", ""
            if row.learned:
                gain, verdict = shown_difference("top-1", row.gain), VERDICT[row.gain.better]
            interval = shown_interval("top-1", *row.interval)
            lines.append(
                f"{row.method:{width}}  {row.p:5.2f}  {100 * row.top1:4.1f} %  {interval:>13}  {gain:>21}  "
                f"{verdict:9}  {row.passes:6d}  {row.learned:9,d}"
            )
    return "\n".join(lines)


def table(found: list[Retrieval]) -> str:
    """Aligned text: value, 95 % interval, and gain over another descriptor with its interval.

    The levels of Copydays have one line per descriptor.
    """
    width = max(len(r.descriptor) for r in found)
    lines = []
    without_levels = [r for r in found if r.retrieval_set.level is None]
    for _, of_set in groupby(without_levels, key=lambda r: r.result.name):
        lines += [*set_lines(list(of_set), width), ""]
    for edit, title in (("crops", "copydays, per cent cut away"), ("jpegqual", "copydays, JPEG quality")):
        of_edit = [r for r in found if r.retrieval_set.level and r.retrieval_set.level[0] == edit]
        if of_edit:
            lines += [f"{title}: mAP (%)", *level_lines(of_edit, width), ""]
    return "\n".join(lines[:-1])


def set_lines(of_set: list[Retrieval], width: int) -> list[str]:
    """The lines of one set, one per descriptor, and the other measures of the best."""
    measure = of_set[0].result.measure
    lines = [of_set[0].retrieval_set.describe()]
    if measure == "none":
        return lines
    lines.append(f"  {'':{width}}  {'p':>5}  {measure:>10}  {'95 % interval':>15}  gain")
    for r in of_set:
        interval = shown_interval(measure, *r.result.interval)
        shown_p = "" if r.p is None else f"{r.p:.2f}"
        line = f"  {r.descriptor:{width}}  {shown_p:>5}  {shown(r.result):>10}  {interval:>15}"
        if r.gain:
            line += f"  {shown_difference(measure, r.gain)} over {r.over}: {VERDICT[r.gain.better]}"
        lines.append(line)
    best = max(of_set, key=lambda r: r.result.value)
    if best.result.others:
        further = ", ".join(shown_other(*other) for other in best.result.others.items())
        lines.append(f"  {best.descriptor}: {further}")
    return lines


def rejection_table(found: list[Retrieval]) -> str:
    """Aligned text: how well each descriptor tells queries with an answer from those without.

    found: results, of which those with a `rejection` are shown
    """
    lines = []
    found = [r for r in found if r.result.rejection]
    width = max((len(r.descriptor) for r in found), default=0)
    for name, of_set in groupby(found, key=lambda r: r.result.name):
        of_set = list(of_set)
        one = of_set[0].result.rejection
        wrong = int((~one.answered).sum())
        counts = f"{int(one.answered.sum())} queries with an answer, {wrong} without"
        few = f" ({wrong} are too few: about {100 * one.attainable_rate:.1f} % will be)"
        lines += [
            f"{name}: {counts}; about {100 * one.false_rate:g} % of these are to be accepted"
            + (few if one.attainable_rate > one.false_rate else ""),
            f"  {'':{width}}  {'ROC area':>8}  {'threshold':>9}  {'95 % interval':>13}  "
            f"{'no answer, accepted':>24}  {'accepted, right first':>24}",
        ]
        for r in of_set:
            one = r.result.rejection
            interval = "{:.3f} … {:.3f}".format(*one.threshold_interval)
            lines.append(
                f"  {r.descriptor:{width}}  {one.area:8.3f}  {one.threshold:9.3f}  {interval:>13}  "
                f"{shown_rate(one.found_rate, one.found_interval):>24}  "
                f"{shown_rate(one.right_rate, one.right_interval):>24}"
            )
        lines.append("")
    return "\n".join(lines[:-1])


def shown_rate(value: float, interval: tuple[float, float]) -> str:
    """Format a rate and its interval in per cent; - if it is not known."""
    return "-" if np.isnan(value) else f"{100 * value:.1f} % ({shown_interval('rate', *interval)})"


def level_lines(of_edit: list[Retrieval], width: int) -> list[str]:
    """mAP (%) for each level of an edit, one column per level, one line per descriptor."""
    levels = list(dict.fromkeys(r.retrieval_set.level[1] for r in of_edit))
    value = {(r.descriptor, r.retrieval_set.level[1]): 100 * r.result.value for r in of_edit}
    lines = [f"  {'':{width}}" + "".join(f"{level:>7}" for level in levels)]
    for kind in dict.fromkeys(r.descriptor for r in of_edit):
        lines.append(f"  {kind:{width}}" + "".join(f"{value[kind, level]:7.1f}" for level in levels))
    return lines


def precision_at_half_recall(best: dict[str, Retrieval]) -> str:
    """One sentence per set: precision at a recall of 0.5. best: of `best_of_each_set`."""
    lines = []
    for name, r in best.items():
        if len(r.result.recall):
            precision = 100 * np.interp(0.5, r.result.recall, r.result.precision)
            lines.append(f"{name}: at a recall of 50 %, the precision is {precision:.0f} %.")
    return "\n".join(lines)


def perfect_queries(best: dict[str, Retrieval]) -> str:
    """One sentence per set: the number of queries whose answers all rank first. best: as above."""
    lines = []
    for name, r in best.items():
        values = r.result.per_query[np.isfinite(r.result.per_query)]
        if r.result.measure not in ("none", "Recall@1") and len(values):
            perfect = int((values >= (4 if r.result.measure == "score" else 1)).sum())
            unit = "score" if r.result.measure == "score" else "mAP"
            lines.append(
                f"{name}, {r.descriptor}: for {perfect} of {len(values)} queries all answers rank first; "
                f"the worst query has {shown_value(unit, values.min())}."
            )
    return "\n".join(lines)


def weakest_and_strongest_copies(found: list[Retrieval]) -> str:
    """One sentence per edit of Copydays: mAP at its weakest and strongest level, for the best descriptor."""
    lines = []
    for edit, words, harder in (("crops", "{} % cut away", 1), ("jpegqual", "JPEG quality {}", -1)):
        of_edit = [r for r in found if r.retrieval_set.level and r.retrieval_set.level[0] == edit]
        of_edit.sort(key=lambda r: harder * r.retrieval_set.level[1])
        kinds = {r.descriptor: [of for of in of_edit if of.descriptor == r.descriptor] for r in of_edit}
        if kinds:
            best = max(kinds.values(), key=lambda rs: np.mean([r.result.value for r in rs]))
            ends = [
                f"{100 * r.result.value:.1f} % at {words.format(r.retrieval_set.level[1])}"
                for r in (best[0], best[-1])
            ]
            lines.append(f"{best[0].descriptor}: mAP {', '.join(ends)}.")
    return "\n".join(lines)
