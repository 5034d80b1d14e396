"""The explorers of `mgkit.explore.widgets` as figures, for runs without a browser."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from PIL import Image

from mgkit.explore.browse import Classes, Collection
from mgkit.explore.repooling import Repooling, SetMaps
from mgkit.explore.style import (
    COLOURS,
    LINES,
    MARKERS,
    axes_grid,
    picture_tile,
    show_found,
    show_image,
    style,
)
from mgkit.explore.toys.batch import ToyBatch
from mgkit.machine.printable import shortened

HEAT = "inferno"  # a colour map whose lightness rises


def repooled(repooling: Repooling, *, ps: Sequence[float] = (), k: int = 7) -> Figure:
    """A query's neighbours for several exponents, one per row, with top-1 and the set's measure.

    ps: exponents; by default 1, the training exponent, 10 and max pooling.

    The query is the one whose number of right neighbours changes most with p.
    """
    ps = ps or list(dict.fromkeys([1.0, repooling.training_p, 10.0, math.inf]))
    held = repooling.searched
    descriptors = [held.descriptors(p) for p in ps]
    queries = list(held.titles(repooling.training_p))
    found = {q: [held.neighbours(q, rows, k) for rows in descriptors] for q in queries}

    def change(q: int) -> int:
        right = [sum(bool(of_image) for _, _, of_image in of_p) for of_p in found[q]]
        return max(right) - min(right)

    q = max(queries, key=change)
    figure, axes = axes_grid(len(ps), k + 1, width=1.15, height=1.3)
    for row, p, rows, of_p in zip(axes, ps, descriptors, found[q], strict=True):
        show_found(row, held.set.images, held.set.queries[q], of_p, judged=held.set.measure != "none")
        text = repooling.summary(p, rows).replace(": ", "\n", 1).replace("; ", "\n")
        row[0].set_ylabel(text, rotation=0, ha="right", va="center", fontsize=8)
    return figure


def query_answers(collection: Collection, *, queries: int = 3, k: int = 6) -> Figure:
    """Queries of a collection, one per row, with class probabilities and nearest images.

    With ground truth, they are in order, from the worst to the best.
    """
    chosen = collection.examples(queries)
    figure, axes = axes_grid(len(chosen), k + 2, width=1.2, height=1.4)
    for (classes, *row), (query, title) in zip(axes, chosen.items(), strict=True):
        answers = collection.answers(query, k)
        found = zip(answers.neighbours, answers.scores, answers.right, strict=True)
        show_found(row, collection.images, query, found, judged=collection.truth is not None, title=title)
        class_bars(classes, answers.classes)
    return figure


def class_bars(axes: Axes, classes: Classes) -> None:
    """Bars of class probabilities (%), the most probable on top; empty without classes."""
    if not classes:
        axes.axis("off")
        return
    names, values = zip(*classes, strict=True)
    bars = axes.barh(range(len(names)), [100 * value for value in values], color=COLOURS[0])
    axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=7)
    axes.set_yticks(range(len(names)), [shortened(name) for name in names], fontsize=7)
    axes.set(xlim=(0, 135), xticks=(0, 100))
    axes.set_xlabel("probability (%)", fontsize=7, labelpad=0)
    axes.tick_params(axis="x", labelsize=7)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


def heat_overlay(picture: Image.Image, heat: np.ndarray) -> np.ndarray:
    """A grey picture overlaid with heat [h,w], [H,W,3] in 0..1: dark violet for 0, yellow for the maximum."""
    grey = np.asarray(picture.convert("L"), dtype=np.float32)[..., None] / 255
    scaled = Image.fromarray(heat.astype(np.float32) / heat.max())
    smooth = scaled.resize(picture.size, Image.Resampling.BILINEAR)
    return 0.4 * grey + 0.6 * colormaps[HEAT](np.asarray(smooth).clip(0, 1))[..., :3]


def matching_regions(held: SetMaps, *, ps: Sequence[float] = (1.0, 3.0, 10.0), pairs: int = 3) -> Figure:
    """Queries, their first neighbours and the matching regions for several exponents (`repooling.Match`).

    The queries are in order, from the worst to the best.
    """
    own = held.maps.net.pool.p.item()
    descriptors, chosen = held.descriptors(own), held.examples(own, pairs)
    figure, axes = axes_grid(len(chosen), 2 * (1 + len(ps)), width=1.25, height=1.5)
    for row, (q, query) in zip(axes, chosen.items(), strict=True):
        found = held.neighbours(q, descriptors, 1)
        pair = (int(held.set.queries[q]), found[0][0])
        halves = row[: 1 + len(ps)], row[1 + len(ps) :]
        judged = held.set.measure != "none"
        both = [halves[0][0], halves[1][0]]
        show_found(both, held.set.images, pair[0], found, judged=judged, title=query)
        for j, p in enumerate(ps, 1):
            matched = held.maps.match(*pair, p)
            for half, index, heat in zip(halves, pair, (matched.first, matched.second), strict=True):
                title = f"p = {p:g}, cosine {matched.similarity:.2f}"
                show_image(half[j], heat_overlay(picture_tile(held.set.images, index), heat), title)
    bar = figure.colorbar(ScalarMappable(cmap=HEAT), ax=axes, ticks=(0, 1), shrink=0.8)
    bar.ax.set_yticklabels(["0", "most"], fontsize=8)
    bar.set_label("share of the similarity", fontsize=8)
    return figure


def toy_batches(batches: Sequence[ToyBatch]) -> Figure:
    """Batches for several N, one image per row, and cross-entropy's gradient share against λ (figure 5)."""
    figure, [[*pictures, curve]] = axes_grid(1, len(batches) + 1, width=3.0, height=3.2)
    lambdas = np.linspace(0, 1, 21)
    for k, (panel, batch) in enumerate(zip(pictures, batches, strict=True)):
        title = f"N = {batch.copies}: {batch.pairs} positive pairs, {batch.triplets} triplets"
        show_image(panel, side_by_side(batch), title)
        curve.plot(
            lambdas, [100 * batch.share(value) for value in lambdas], color=COLOURS[k], linestyle=LINES[k],
            marker=MARKERS[k], markevery=5, label=f"N = {batch.copies}",
        )  # fmt: skip
    y = "share of the gradient (%)"
    style(curve, "Gradient share of cross-entropy", "λ, weight of cross-entropy", y)
    curve.legend(fontsize=8, frameon=False)
    return figure


def side_by_side(batch: ToyBatch, gap: int = 4) -> np.ndarray:
    """The pictures of a batch as one, [H,W,3] in 0..1: the copies of an image in each row."""
    framed = np.pad(batch.pictures, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=1.0)  # [B,h,w,3]
    _, height, width, _ = framed.shape
    rows = framed.reshape(-1, batch.copies, height, width, 3).swapaxes(1, 2)  # [B/N,h,N,w,3]
    return rows.reshape(-1, batch.copies * width, 3)[:-gap, :-gap]
