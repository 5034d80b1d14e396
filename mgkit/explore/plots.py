"""Figures of the notebooks, in colours for colour-blind readers; right and wrong also differ in shape."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from mgkit.data.images import ImageList, evenly
from mgkit.data.loader import ImageDataset
from mgkit.explore.retrieval_plots import resolution_figure
from mgkit.explore.style import (
    COLOURS,
    LINES,
    MARKERS,
    TITLE,
    axes_grid,
    cycled,
    figure_legend,
    grey_tile,
    image_grid,
    integer_ticks,
    line_sizes,
    picture_tile,
    show_reason,
    size_ticks,
    style,
    wrapped_grid,
)
from mgkit.machine.printable import shortened

if TYPE_CHECKING:  # for annotations: do not load the stages
    from mgkit.benchmarks.retrieval_set import RetrievalSet
    from mgkit.explore.toys.svm import ToyRuns
    from mgkit.stages.results import Accuracy, Adaptation, PSearch

TINT = "#DCEBF5"
SHADE = 0.12  # opacity of intervals around several curves, which overlap
BEYOND = 1.2  # max pooling is drawn at this factor times the largest exponent


def undo_normalization(image, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Normalised tensor [3,H,W] -> picture [H,W,3] in 0..1."""
    picture = image.numpy().transpose(1, 2, 0) * np.array(std) + np.array(mean)
    return picture.clip(0, 1)


class Panel(NamedTuple):
    """Title, unit of y, lines ({key: label}) and the factor from stored values to the unit."""

    title: str
    unit: str
    names: dict[str, str]
    scale: float = 1


LOSSES = {"loss": "joint", "cross_entropy": "cross-entropy", "margin": "margin"}
EPOCH_PANELS = (
    Panel("Losses", "loss (nats, distance)", LOSSES),
    Panel("Accuracy", "top-1 (%)", {"top1": "training, augmented", "val_top1": "validation"}, 100),
    Panel("Boundary β", "distance", {"beta": "β"}),
)
STEP_PANELS = (
    EPOCH_PANELS[0],
    Panel("Speed", "images / s", {"images_per_second": ""}),
    Panel("Waiting for images", "share of the time (%)", {"data_wait": ""}, 100),
    Panel("Gradient share of cross-entropy", "share of the gradient (%)", {"gradient_share": ""}, 100),
)
COMPARED = (
    Panel("Joint loss", "loss (nats, distance)", {"loss": ""}),
    Panel("Cross-entropy", "loss (nats)", {"cross_entropy": ""}),
    Panel("Margin loss", "loss (distance)", {"margin": ""}),
    Panel("Training accuracy", "top-1, augmented (%)", {"top1": ""}, 100),
    Panel("Validation accuracy", "top-1 (%)", {"val_top1": ""}, 100),
    Panel("Boundary β", "distance", {"beta": ""}),
)


def training_curves(metrics: Sequence[dict]) -> Figure:
    """Losses, accuracy and β per epoch, from the lines of a run's metrics.jsonl."""
    return line_panels(EPOCH_PANELS, metrics, x="epoch", label="epoch", nothing="no epoch is finished")


def training_steps(steps: Sequence[dict]) -> Figure:
    """Losses, speed, data loading and gradient share per step, from the lines of a run's steps.jsonl."""
    return line_panels(
        STEP_PANELS, steps, x="step", label="optimizer step", nothing="no step was recorded", linewidth=1
    )


def line_panels(
    panels: Sequence[Panel], lines: Sequence[dict], *, x: str, label: str, nothing: str, **options
) -> Figure:
    """A panel per group of values in `lines` against the value x; options: of the drawn lines."""
    figure, axes = panel_grid(panels, lines, nothing=nothing)
    for axis, panel in axes.items():
        for k, (key, name) in enumerate(panel.names.items()):
            draw_line(axis, lines, x=x, y=key, scale=panel.scale, k=k, label=name, **options)
        style(axis, panel.title, label, panel.unit)
        several = len(panel.names) > 1
        is_share = panel.scale == 100 and not several
        axis.set_ylim(0, 104 if is_share else 1.15 * max(axis.get_ylim()[1], 1e-3))  # room for the legend
        integer_ticks(axis)
        if several:
            where = {"loc": "upper center", "ncols": len(panel.names)}
            axis.legend(**where, fontsize=8, frameon=False, columnspacing=1, handlelength=1.6)
    return figure


def compare_runs(runs: Mapping[str, Sequence[dict]]) -> Figure:
    """Losses, accuracies and β per epoch, one line per run; runs: {label: lines of its metrics.jsonl}."""
    everything = [line for lines in runs.values() for line in lines]
    figure, axes = panel_grid(COMPARED, everything, nothing="no run finished an epoch")
    for axis, panel in axes.items():
        [key] = panel.names
        for k, (label, lines) in enumerate(runs.items()):
            dashes, label = cycled(LINES, k), shortened(label, TITLE)
            draw_line(axis, lines, x="epoch", y=key, scale=panel.scale, k=k, label=label, linestyle=dashes)
        style(axis, panel.title, "epoch", panel.unit)
        integer_ticks(axis)
    if axes:
        figure_legend(figure, *axes)
    return figure


def gradient_shares(shares: Mapping[float, Sequence[tuple[float, float]]]) -> Figure:
    """Share of cross-entropy in the gradient with respect to the embedding, against λ (figure 5).

    shares: {λ: [(step or epoch, share in 0..1), ...]} in temporal order; the first and the last are drawn.
    """
    measured = sorted((lambda_, [s for _, s in line]) for lambda_, line in shares.items() if len(line))
    figure, [[panel]] = axes_grid(1, 1, width=5.6, height=3.4)
    for k, (place, label) in enumerate({0: "first measurement", -1: "last measurement"}.items()):
        panel.plot(
            [lambda_ for lambda_, _ in measured], [100 * line[place] for _, line in measured],
            color=COLOURS[k], marker=MARKERS[k], linestyle=LINES[k], label=label,
        )  # fmt: skip
    panel.axhline(50, color="grey", linestyle=":", label="equal shares")
    style(panel, "Gradient share of cross-entropy", "λ", "share of the gradient (%)")
    panel.set(xlim=(-0.03, 1.03), ylim=(-3, 104))
    if not measured:
        show_reason(panel, "no gradient was measured")
    figure_legend(figure, panel)
    return figure


def panel_grid(
    panels: Sequence[Panel], lines: Sequence[dict], *, nothing: str
) -> tuple[Figure, dict[Axes, Panel]]:
    """A figure and {axes: panel} for the panels with values in `lines`; nothing: its text without any."""
    there = [panel for panel in panels if any(key in line for line in lines for key in panel.names)]
    if not there:
        figure, [[axis]] = axes_grid(1, 1)
        show_reason(axis, nothing)
        axis.axis("off")
        return figure, {}
    figure, axes = wrapped_grid(len(there))
    return figure, dict(zip(axes, there, strict=True))


def draw_line(axes: Axes, lines: Sequence[dict], *, x: str, y: str, scale: float, k: int, **options) -> None:
    """Draw scale · y against x from the lines that hold y, in the k-th style, with at most 20 markers."""
    points = [(line[x], scale * line[y]) for line in lines if y in line]
    if points:
        axes.plot(
            *zip(*points, strict=True), color=COLOURS[k % len(COLOURS)], marker=cycled(MARKERS, k),
            markersize=4, markevery=-(-len(points) // 20), **options,
        )  # fmt: skip


def right_legend(axes: Axes) -> None:
    """Draw a legend to the right of the axes."""
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def p_search(found: PSearch) -> Figure:
    """Accuracy against p for each resolution with p*, and p* against resolution (figure 4).

    Shaded: the 95 % confidence intervals of the accuracies.
    """
    figure, [[left, right]] = axes_grid(1, 2, width=4.5, height=3.4)
    largest = max(p for p in [*found.ps, *found.p_star, found.training_p] if math.isfinite(p))
    ps = [min(p, BEYOND * largest) for p in found.ps]
    for s, size in enumerate(found.sizes):
        colour, marker = COLOURS[s % len(COLOURS)], cycled(MARKERS, s)
        curve = 100 * found.top1[s]
        left.plot(ps, curve, color=colour, marker=marker, markersize=4, label=f"{size} px")
        low, high = 100 * found.intervals[s].T  # [P,2] -> [2,P]
        left.fill_between(ps, low, high, color=colour, alpha=SHADE, linewidth=0)
        star = {"marker": "*", "markersize": 15, "markeredgecolor": "black"}
        left.plot(found.p_star[s], 100 * found.top1_at_p_star[s], color=colour, **star)
    left.plot([], [], "*", markersize=12, color="white", markeredgecolor="black", label="p* by SGD")
    left.axvline(found.training_p, color="grey", linestyle=":", label=f"training p = {found.training_p:g}")
    style(left, f"Accuracy against p, {found.crop}", "pooling exponent p", "validation top-1 (%)")
    right_legend(left)

    best = [ps[int(row.argmax())] for row in found.top1]
    label = "p* by SGD,\ntraining images"
    right.plot(found.sizes, found.p_star, color=COLOURS[0], marker="*", markersize=12, label=label)
    label = "best p of the\nsweep, validation"
    right.plot(found.sizes, best, color=COLOURS[1], marker="o", linestyle="--", label=label)
    right.axhline(found.training_p, color="grey", linestyle=":", label="training p")
    style(right, "p* against resolution", "evaluation size (px)", "p*")
    size_ticks(right, found.sizes)
    right_legend(right)
    for axis, drawn in ((left.xaxis, ps), (right.yaxis, best)):
        if max(drawn) > largest:
            tick_max(axis, largest)
    return figure


def tick_max(axis: Axis, largest: float) -> None:
    """Set ticks up to the largest finite exponent, and `max` where max pooling is drawn."""
    low, _ = sorted(axis.get_view_interval())
    ticks = [tick for tick in axis.get_majorticklocs() if low <= tick <= largest]
    axis.set_ticks([*ticks, BEYOND * largest], [*(f"{tick:g}" for tick in ticks), "max"])


def search_by_resolution(found: PSearch) -> Figure:
    """Accuracy against resolution, one line per exponent (figure 4).

    Exponents are the integers of the sweep and max pooling; all if there is no integer.
    """
    from mgkit.stages.results import ResolutionCurves  # here: other figures need no retrieval

    whole = [j for j, p in enumerate(found.ps) if float(p).is_integer()]
    whole += [j for j, p in enumerate(found.ps) if math.isinf(p)] if whole else range(len(found.ps))
    exponents = {pooling_name(found.ps[j]): found.ps[j] for j in whole}
    name = f"Accuracy, {found.crop}"
    values, measures = {name: found.top1[:, whole]}, {name: "validation top-1"}
    return resolution_figure(ResolutionCurves(found.sizes, exponents, values, measures))


def pooling_name(p: float) -> str:
    return "max pooling" if math.isinf(p) else f"p = {p:g}"


def p_paths(found: PSearch) -> Figure:
    """p after each step of SGD, for each resolution."""
    figure, axes = axes_grid(1, 1, width=5.6, height=3.0)
    for s, (size, path) in enumerate(zip(found.sizes, found.paths, strict=True)):
        axes[0, 0].plot(
            np.arange(1, len(path) + 1), path[:, 1], color=COLOURS[s % len(COLOURS)],
            marker=cycled(MARKERS, s), markersize=4, markevery=-(-len(path) // 12), label=f"{size} px",
        )  # fmt: skip
    style(axes[0, 0], "SGD on p alone", "step", "p")
    right_legend(axes[0, 0])
    return figure


def spectrum(variances: np.ndarray, shrinkage: float) -> Figure:
    """Variance of each principal component before whitening, as measured and with shrinkage."""
    figure, [[panel]] = axes_grid(1, 1, width=5.6, height=3.2)
    rank = np.arange(1, len(variances) + 1)
    shrunk = (1 - shrinkage) * variances + shrinkage * variances.mean()
    floor = variances[0] * 1e-8  # the axis is logarithmic
    panel.loglog(rank, np.maximum(variances, floor), color=COLOURS[0], label="measured")
    if shrinkage:
        panel.loglog(rank, shrunk, color=COLOURS[1], linestyle="--", label=f"shrunk by {shrinkage:g}, used")
    y = "variance (of unit-length embeddings)"
    style(panel, "Spectrum of the embeddings", "principal component (rank)", y)
    panel.legend(fontsize=8, frameon=False)
    return figure


def accuracy_by_size(rows: Sequence[Accuracy]) -> Figure:
    """Top-1 against evaluation size, one line per crop and exponent; shaded: 95 % confidence intervals."""
    figure, axes = axes_grid(1, 1, width=5.6, height=3.4)
    lines = list(dict.fromkeys((row.crop, row.exponent) for row in rows))
    for k, (crop, exponent) in enumerate(lines):
        of_line = [row for row in rows if (row.crop, row.exponent) == (crop, exponent)]
        trained = exponent == "trained"
        label = f"{crop}, {'training p' if trained else exponent}"
        look = {"linestyle": "-" if trained else "--"} | line_sizes(k, len(lines))
        top1_line(axes[0, 0], of_line, k, label=label, **look)
    style(axes[0, 0], "Top-1 against resolution", "evaluation size (px)", "validation top-1 (%)")
    size_ticks(axes[0, 0], [row.size for row in rows])
    axes[0, 0].legend(fontsize=8, frameon=False)
    return figure


def top1_line(axes: Axes, rows: Sequence[Accuracy | Adaptation], k: int, **look) -> None:
    """The k-th line of top-1 against evaluation size; shaded: its 95 % confidence intervals."""
    sizes = [row.size for row in rows]
    axes.plot(sizes, [100 * row.top1 for row in rows], color=COLOURS[k], marker=MARKERS[k], **look)
    low, high = 100 * np.transpose([row.interval for row in rows])  # [S,2] -> [2,S]
    axes.fill_between(sizes, low, high, color=COLOURS[k], alpha=SHADE, linewidth=0)


def adaptations_by_size(rows: Sequence[Adaptation]) -> Figure:
    """Top-1 against evaluation size with p*, FixRes and both, and their gains over the training p.

    Shaded, and bars: 95 % confidence intervals.
    """
    figure, [[left, right]] = axes_grid(1, 2, width=4.5, height=3.4)
    methods, sizes = (list(dict.fromkeys(getattr(row, name) for row in rows)) for name in ("method", "size"))
    apart = 0.015 * max(sizes)  # px between the bars of a size
    for k, method in enumerate(methods):
        of_method = [row for row in rows if row.method == method]
        look = {"linestyle": cycled(LINES, k)} | line_sizes(k, len(methods))
        top1_line(left, of_method, k, label=method, **look)
        if k:  # the first is what the others are compared with
            low, value, high = 100 * np.array([(r.gain.low, r.gain.value, r.gain.high) for r in of_method]).T
            places = [row.size + (k - len(methods) / 2) * apart for row in of_method]
            bars = {"yerr": [value - low, high - value], "capsize": 2, "linewidth": 1.2}
            right.errorbar(places, value, fmt=MARKERS[k], color=COLOURS[k], label=method, **bars)
    right.axhline(0, color="grey", linestyle=":")
    style(left, "Top-1 against resolution", "evaluation size (px)", "validation top-1 (%)")
    style(right, "Gain over the training p", "evaluation size (px)", "points, same images")
    for axes in (left, right):
        size_ticks(axes, sizes)
    figure_legend(figure, left)
    return figure


def class_grid(images: ImageList, *, classes: int = 6, per_class: int = 8) -> Figure:
    """Images of the first classes, one class per row."""
    shown_classes = range(min(classes, len(images.classes)))
    members = [np.flatnonzero(images.labels == label)[:per_class] for label in shown_classes]
    rows = [[picture_tile(images, i) for i in row] for row in members]
    names = [f"{shortened(images.classes[label], TITLE)} " for label in shown_classes]
    return image_grid(rows, row_titles=names)


def group_grid(retrieval_set: RetrievalSet, *, groups: int = 3) -> Figure:
    """Queries of a set with their answers, one query per row."""
    chosen = evenly(len(retrieval_set.queries), groups)
    rows = [[retrieval_set.queries[q], *retrieval_set.positives[q][:7]] for q in chosen]
    figure = image_grid([[picture_tile(retrieval_set.images, i) for i in row] for row in rows])
    figure.axes[0].set_title("query", fontsize=9)
    figure.axes[1].set_title("answers", fontsize=9)
    name = shortened(retrieval_set.name, TITLE)
    figure.suptitle(f"{name}: a query and its answers in each row", fontsize=10)
    return figure


def repeated_batch(
    dataset: ImageDataset, batch: Sequence[tuple[int, int]], *, repetitions: int, mean, std
) -> Figure:
    """A training batch: the augmented copies of an image in each row."""
    samples = dataset.__getitems__(batch)  # of an unreadable image: path and reason
    side = next((sample[0].shape[-1] for sample in samples if len(sample) == 3), 64)
    grey = np.asarray(grey_tile(side))
    pictures = [undo_normalization(s[0], mean, std) if len(s) == 3 else grey for s in samples]
    rows = [pictures[start : start + repetitions] for start in range(0, len(pictures), repetitions)]
    figure = image_grid(rows, row_titles=[f"image {index} " for index, _ in batch[::repetitions]])
    for k, axes in enumerate(figure.axes[: len(rows[0])]):
        axes.set_title(f"copy {k + 1}", fontsize=9)
    return figure


def samplings(runs: ToyRuns) -> Figure:
    """Accuracy per step of SGD, mean of the runs ± 2 standard errors, one line per sampling (figure A.3)."""
    figure, [[panel]] = axes_grid(1, 1, width=5.6, height=3.4)
    for k, (sampling, accuracy) in enumerate(runs.accuracy.items()):  # [runs, steps]
        steps = np.arange(1, accuracy.shape[1] + 1)
        mean = 100 * accuracy.mean(axis=0)
        error = 100 * accuracy.std(axis=0) / len(accuracy) ** 0.5
        low, high = mean - 2 * error, mean + 2 * error
        panel.fill_between(steps, low, high, color=COLOURS[k], alpha=0.25, linewidth=0)
        panel.plot(
            steps, mean, color=COLOURS[k], linestyle=LINES[k], marker=MARKERS[k], markersize=4,
            markevery=-(-len(steps) // 20), label=sampling,
        )  # fmt: skip
    panel.axhline(100 * runs.limit, color="grey", linestyle=":", label="SVM fitted to all points")
    count = len(next(iter(runs.accuracy.values())))
    style(panel, f"A linear SVM by SGD, mean of {count} runs", "step (batches of two)", "accuracy (%)")
    figure_legend(figure, panel)
    return figure


def toy_batches(points: np.ndarray, labels: np.ndarray, batches: Mapping[str, np.ndarray]) -> Figure:
    """Points [n,2] of classes -1 and 1 and a batch [2,2] of each sampling, one panel per sampling."""
    figure, axes = axes_grid(1, len(batches), width=3.4, height=2.8)
    for panel, (name, batch) in zip(axes[0], batches.items(), strict=True):
        for k, label in enumerate((-1, 1)):
            panel.plot(
                *points[labels == label].T, MARKERS[k], color=COLOURS[k], markersize=3, alpha=0.5,
                label=f"class {label:+d}",
            )  # fmt: skip
        circle = {"markerfacecolor": "none", "markeredgecolor": "black", "markeredgewidth": 2}
        panel.plot(*batch.T, "o", markersize=11, label="batch", **circle)
        panel.axvline(0, color="grey", linestyle=":", linewidth=1)
        style(panel, name, "first coordinate (mirrored)", "second coordinate")
    figure_legend(figure, axes[0, 0])
    return figure


def architecture(name: str, p: float, shapes: Mapping[str, Sequence[int]]) -> Figure:
    """Diagram of the network: layers tinted, tensors with their shapes.

    shapes: of `image`, `feature map`, `embedding`, `classifier_output` and `normalized_embedding`.
    """
    figure, [[axes]] = axes_grid(1, 1, width=9.6, height=2.3)
    axes.set(xlim=(0, 9.6), ylim=(0, 2.3))
    axes.axis("off")
    upper, middle, lower = 1.8, 1.15, 0.5
    chain = ["image", f"backbone\n{name}", "feature map", f"GeM\np = {p:g}", "embedding"]
    branches = {upper: ["classifier", "classifier_output"], lower: ["L2", "normalized_embedding"]}
    places = {text: (0.65 + 1.3 * k, middle) for k, text in enumerate(chain)}
    places |= {text: (7.2 + 1.55 * k, y) for y, texts in branches.items() for k, text in enumerate(texts)}
    meanings = {
        "classifier_output": "logits: which class?",
        "normalized_embedding": "descriptor: which thing,\nwhich picture?",
    }
    boxes = {}
    for text, (x, y) in places.items():
        words = f"{meanings.get(text, text)}\n{'×'.join(map(str, shapes[text]))}" if text in shapes else text
        face, edge = ("white", "grey") if text in shapes else (TINT, COLOURS[0])
        box = {"boxstyle": "round,pad=0.4", "facecolor": face, "edgecolor": edge}
        label = axes.text(x, y, words, ha="center", va="center", fontsize=8.5, linespacing=1.4, bbox=box)
        boxes[text] = label.get_bbox_patch()
    for texts in (chain, ["embedding", *branches[upper]], ["embedding", *branches[lower]]):
        for start, end in pairwise(texts):
            between = {"patchA": boxes[start], "patchB": boxes[end], "shrinkA": 0, "shrinkB": 2}
            axes.annotate("", xy=places[end], xytext=places[start], arrowprops={"arrowstyle": "->"} | between)
    return figure
