"""Figures of 06: the thresholds, groups of near-duplicates, a map, classes."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from mgkit.data.images import ImageList
from mgkit.engine.feature_store import features_folder
from mgkit.explore.style import COLOURS, axes_grid, frame, picture_tile, show_image, style
from mgkit.machine.printable import shortened
from mgkit.photos.copies.pairs import GRADES, SAME_FILE, SAME_MOMENT
from mgkit.photos.copies.thresholds import Threshold, Thresholds
from mgkit.photos.found import FoundPhotos
from mgkit.photos.report.listing import Listing
from mgkit.photos.report.map import on_a_grid
from mgkit.photos.report.sections import first_upper
from mgkit.photos.report.thumbnails import Thumbnails, square

SIDE = 48  # of a picture on the map, px


def threshold_figure(thresholds: Thresholds) -> Figure:
    """Histograms of the similarities of nearest neighbours and of copies, with each grade's threshold."""
    figure, [panels] = axes_grid(1, 2, width=4.2, height=2.8)
    # Pictures of the same file are laid over each other.
    measures = {SAME_FILE: "correlation of aligned pictures", SAME_MOMENT: "cosine similarity"}
    for panel, grade, threshold in zip(panels, GRADES, (thresholds.file, thresholds.moment), strict=True):
        show_threshold(panel, threshold)
        style(panel, first_upper(GRADES[grade]), measures[grade], "share (%)")
        panel.legend(fontsize=7, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.1))
    return figure


def show_threshold(panel: Axes, threshold: Threshold) -> None:
    """Draw the histograms and the threshold of one grade."""
    groups = {
        "nearest unrelated picture": (threshold.nearest, COLOURS[0], "-"),
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


def duplicate_groups(found: FoundPhotos, grade: int, *, groups: int = 6, k: int = 7) -> Figure:
    """Groups of a grade, one per row, the picture that is proposed to stay first and framed.

    The others have their similarity to the nearest of the group. Raises ValueError where there are no groups.
    """
    chosen = [group for group in found.groups if group.grade == grade][:groups]
    if not chosen:
        raise ValueError(f"there are no groups of {GRADES[grade]}")
    columns = min(k, max(len(group.members) for group in chosen))
    figure, axes = axes_grid(len(chosen), max(columns, 2), width=1.15, height=1.25)
    for row, group in zip(axes, chosen, strict=True):
        order = [group.kept, *(m for m in range(len(group.members)) if m != group.kept)]
        titles = ["keep", *(f"{group.similarities[m]:.2f}" for m in order[1:])]
        show_row(row, found.images, [group.members[m] for m in order], titles)
        frame(row[0], "black", "-")
        row[0].set_ylabel(f"{len(group.members)} pictures ", rotation=0, ha="right", va="center", fontsize=9)
    return figure


def map_of_photos(found: FoundPhotos, *, columns: int = 26, rows: int = 15) -> Figure:
    """A map of the collection: similar pictures near each other, one in each cell of a grid.

    Raises ValueError where there are too few different pictures.
    """
    folder = features_folder(found.task.config.experiment)
    listing = Listing.of(found, folder)
    if listing.places is None:
        raise ValueError("there are too few different pictures for a map")
    thumbnails, pictures = Thumbnails(found.images, folder), listing.tile_pictures()
    mosaic = Image.new("RGB", (columns * SIDE, rows * SIDE), "white")
    for (column, row), n in on_a_grid(listing.places.positions[listing.tiles], columns, rows).items():
        mosaic.paste(square(thumbnails.jpeg(pictures[n]), SIDE), (column * SIDE, row * SIDE))
    thumbnails.save()
    figure, [[panel]] = axes_grid(1, 1, width=9.0, height=9.0 * rows / columns)
    show_image(panel, mosaic)
    panel.set_axis_off()
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
