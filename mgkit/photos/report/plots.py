"""Figures of 06: the similarity threshold, groups of near-duplicates, classes."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mgkit.data.images import ImageList
from mgkit.explore.style import COLOURS, axes_grid, picture_tile, show_image, style
from mgkit.machine.printable import shortened
from mgkit.photos.copies.thresholds import Threshold
from mgkit.photos.found import FoundPhotos


def threshold_figure(threshold: Threshold) -> Figure:
    """Histograms of the similarities of nearest neighbours and of edited copies, with the threshold."""
    figure, [[panel]] = axes_grid(1, 1, width=6.0, height=2.8)
    groups = {
        "nearest other image": (threshold.nearest, COLOURS[0], "-"),
        "edited copy and original": (threshold.copies.ravel(), COLOURS[1], "--"),
    }
    groups = {name: (values[np.isfinite(values)], *rest) for name, (values, *rest) in groups.items()}
    lowest = min((values.min() for values, _, _ in groups.values() if values.size), default=0.0)
    bins = np.linspace(min(lowest, threshold.value) - 0.02, 1.0, 41)
    for name, (values, colour, line) in groups.items():
        if values.size:
            share = np.full(values.size, 100 / values.size)
            panel.hist(
                values.clip(max=1), bins, weights=share, label=name,
                histtype="step", linewidth=1.8, color=colour, linestyle=line,
            )  # fmt: skip
    panel.axvline(threshold.value, color="black", linestyle=":", label=f"threshold {threshold.value:.2f}")
    style(panel, "Similarity of unrelated images and copies", "cosine similarity", "share (%)")
    panel.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def duplicate_groups(found: FoundPhotos, *, groups: int = 6, k: int = 7) -> Figure:
    """Groups of near-duplicates, one per row, with each picture's similarity to the nearest of its group."""
    chosen = found.groups[:groups]
    columns = min(k, max(len(group.members) for group in chosen))
    figure, axes = axes_grid(len(chosen), max(columns, 2), width=1.15, height=1.25)
    for row, group in zip(axes, chosen, strict=True):
        titles = [f"{similarity:.2f}" for similarity in group.similarities]
        show_row(row, found.images, group.members, titles)
        row[0].set_ylabel(f"{len(group.members)} pictures ", rotation=0, ha="right", va="center", fontsize=9)
    return figure


def classes_of_photos(found: FoundPhotos, *, classes: int = 6, each: int = 7) -> Figure:
    """The most frequent predicted classes, one per row, with their most probable pictures."""
    rows = found.by_class(classes=classes, each=each)
    figure, axes = axes_grid(len(rows), each, width=1.15, height=1.25)
    for row, (name, count, surest) in zip(axes, rows, strict=True):
        show_row(row, found.images, surest, [f"{100 * found.probabilities[i, 0]:.0f} %" for i in surest])
        label = f"{shortened(name)}\n{count:,} pictures "
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    return figure


def show_row(row: Sequence[Axes], images: ImageList, shown: Sequence[int], titles: Sequence[str]) -> None:
    """Show the first images with their titles in a row of panels; hide the panels that are left."""
    for panel in row[len(shown) :]:
        panel.axis("off")
    for panel, i, title in zip(row, shown, titles, strict=False):
        show_image(panel, picture_tile(images, i), title)
