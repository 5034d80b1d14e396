"""Pooled features of a growing folder: only new and changed pictures are embedded.

The pictures pass in windows, each spread over the whole folder: so the time that the first ones take tells
how long all will take, and a kill costs one window. A folder of features holds

    NAME.rows      a `Table` of features; NaN for what could not be read
    NAME.jsonl     why, a line each
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from mgkit.data.decoding import UnreadableImageError
from mgkit.data.images import ImageList, fingerprints
from mgkit.data.loader import UnreadableImages
from mgkit.engine.feature_store import features_of
from mgkit.features import Passes, by_window, pooled_batches, rows_of_all, whole_shapes
from mgkit.machine.distributed import (
    all_gather_object,
    barrier,
    broadcast_object,
    from_main,
    is_main,
    run_in_all,
)
from mgkit.machine.files import writing
from mgkit.machine.printable import shown_name
from mgkit.model import MultiGrain
from mgkit.photos.embedding.table import Table, distinct

WINDOW = 256  # pictures, held in memory and lost by a kill

Seen = Callable[[int, Image.Image], None]


@dataclass(frozen=True)
class InOrder(ImageList):
    """Images of another list, in another order.

    whole: the list.
    at: index in it of each image ([N]).
    seen: is called with that index and the picture, where it is loaded; None: nothing is.
    """

    whole: ImageList | None = None
    at: np.ndarray | None = None
    seen: Seen | None = None

    def load(self, index: int, *, least: int | None = None) -> Image.Image:
        """The image as the list loads it."""
        place = int(self.at[index])
        picture = self.whole.load(place, least=least)
        if self.seen:
            self.seen(place, picture)
        return picture

    def shape(self, index: int) -> tuple[int, int]:
        """(width, height) of the image as the list loads it."""
        return self.whole.shape(int(self.at[index]))


@dataclass(frozen=True)
class GrowingFeatures:
    """Features of pictures on disk, and why some could not be read.

    folder: holds what was made by one network with one set of options.
    name: of the files.
    width: channels C.
    """

    folder: Path
    name: str
    width: int

    @cached_property
    def table(self) -> Table:
        return Table(self.folder / f"{self.name}.rows", np.dtype(("<f4", self.width)))

    @property
    def lines(self) -> Path:
        return self.folder / f"{self.name}.jsonl"

    def unknown(self, keys: np.ndarray) -> np.ndarray:
        """Indices of the pictures without features; if one is new, also of those that could not be read."""
        at = self.table.find(keys)
        new = at < 0
        if new.any() and not new.all():
            counts = f"{(~new).sum():,} of {len(keys):,} {self.name} are known from earlier"
            print(f"{counts}, {new.sum():,} new")
            first = self.table.records()["row"][:, 0]
            new[~new] = np.isnan(first[at[~new]])
        return np.flatnonzero(new)

    def add(self, keys: np.ndarray, rows: np.ndarray, reasons: dict[int, str]) -> None:
        """Append features [n,C] of pictures; reasons: {row: why it could not be read}."""
        if reasons:
            with writing(self.lines), open(self.lines, "a", encoding="utf-8") as file:
                file.writelines(json.dumps([int(keys[row]), why]) + "\n" for row, why in reasons.items())
        self.table.append(keys, rows)

    def told(self, images: ImageList, keys: np.ndarray, unreadable: UnreadableImages) -> np.ndarray:
        """The features [N,C] of images whose records come first; notes what could not be read.

        Raises UnreadableImageError if nothing could, or if nothing may be skipped.
        """
        rows = self.table.rows(len(keys))
        lacking = np.flatnonzero(np.isnan(rows[:, 0])).tolist()
        why = dict(read_lines(self.lines)) if lacking else {}
        reasons = [(images.paths[i], why.get(int(keys[i]), "it could not be read")) for i in lacking]
        unreadable.note(reasons)
        if len(lacking) == len(keys):
            raise unreadable.none_readable()
        return rows


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(key, reason) of the lines; a damaged or cut one is left out."""
    for text in path.read_bytes().splitlines() if path.exists() else []:
        try:
            key, reason = json.loads(text)
        except (ValueError, TypeError):
            continue
        if isinstance(key, int) and isinstance(reason, str):
            yield key, reason


def growing_features(
    net: MultiGrain,
    images: ImageList,
    *,
    size: int,
    p: float,
    folder: str | Path,
    name: str = "photos",
    prints: np.ndarray | None = None,
    shapes: Callable[[], Sequence[tuple[int, int]]] | None = None,
    seen: Seen | None = None,
    passed: Callable[[int, int], None] = lambda images, of: None,
    passes: Passes | None = None,
    **changes,
) -> np.ndarray:
    """GeM-pooled features [N,C] before whitening, mapped from the disk; only new images are embedded.

    An image is known by its path, size and time of change. If some are new, those that could not be read
    are tried again. An image that changes or vanishes meanwhile counts as unreadable.

    name: of the files in the features' folder
    prints: `fingerprints` of the images, if they are there already
    shapes: gives the images' `whole_shapes`; None: they are read from the files if some are new
    seen: is called with index and picture of each image that is loaded, by the process that loads it
    passed: is called with the number of images that have passed, and of all that are opened

    Other parameters and errors as `stored_features`; ValueError also for views.
    """
    check_whole(images)
    passes = replace(passes or Passes(), **changes)
    prints = from_main(lambda: fingerprints(images) if prints is None else prints)
    of_options = features_of(net, size=size, p=p, passes=passes, folder=Path(folder))
    keys, store = distinct(prints), GrowingFeatures(of_options, name, net.width)
    with ExitStack() as held:
        if is_main():
            held.enter_context(store.table.locked())
        new = broadcast_object(store.unknown(keys) if is_main() else None)
        order = new[spread(len(new))]
        of_order = shapes_of(images, order, passes.crop, shapes)
        options = {"size": size, "p": p, "passes": passes, "shapes": of_order}
        for part, rows, why in embed_new(net, in_order(images, order, seen), prints[order], **options):
            if is_main():
                store.add(keys[order[part]], rows, why)
            passed(part.stop, len(order))
        if is_main():
            store.table.arrange(keys)
        barrier()
        found = store.told(images, keys, passes.unreadable)
        barrier()  # the lock is held until all have mapped the file in this order
    return found


def check_whole(images: ImageList) -> None:
    """Raise ValueError for views, and for no images."""
    if images.views:
        raise ValueError(f"images: of a folder that grows ({images.root}) each file is taken whole")
    if not len(images):
        raise ValueError(f"{images.root}: there are no images to embed")


def shapes_of(
    images: ImageList, order: np.ndarray, crop: str, shapes: Callable[[], Sequence] | None
) -> list[tuple[int, int]] | None:
    """`whole_shapes` of the images at indices `order`; shapes: as of `growing_features`."""
    if crop != "rect" or not len(order):
        return None
    whole = whole_shapes(images, crop) if shapes is None else shapes()
    return [whole[i] for i in order]


def in_order(images: ImageList, order: np.ndarray, seen: Seen | None) -> InOrder:
    """The images at indices `order`; seen: as of `growing_features`."""
    part = images.subset(order)
    options = {"whole": images, "at": order, "seen": seen}
    return InOrder(images.root, part.paths, part.labels, images.classes, images.exif, **options)


def spread(count: int) -> np.ndarray:
    """An order of `count` images in which every WINDOW of them are spread evenly over all."""
    stride = max(1, -(-count // WINDOW))
    return np.concatenate([np.arange(start, count, stride) for start in range(stride)])


def embed_new(
    net: MultiGrain,
    images: InOrder,
    prints: np.ndarray,
    *,
    size: int,
    p: float,
    passes: Passes,
    shapes: Sequence[tuple[int, int]] | None,
) -> Iterator[tuple[slice, np.ndarray, dict[int, str]]]:
    """Yield windows (slice of the images, features [n,C], {row: why it is NaN}); all ranks, in one pass.

    prints: `fingerprints` of the images before.
    """
    passes = replace(passes, unreadable=UnreadableImages(passes.unreadable.on_unreadable))

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        try:
            yield from pooled_batches(
                net, images, size=size, ps=[p], passes=passes, window=WINDOW, shapes=shapes
            )
        except UnreadableImageError:  # none is readable, of those that are new
            if passes.unreadable.on_unreadable == "raise":
                raise

    windows = by_window(batches(), WINDOW, len(images))
    for start in range(0, len(images), WINDOW):
        found = run_in_all(lambda: next(windows))  # an unreadable image is named on all machines
        part = slice(start, min(start + WINDOW, len(images)))
        rows = np.full((1, part.stop - start, net.width), np.nan, dtype=np.float32)
        for of_batch, indices in found:
            rows[:, indices - start] = of_batch
        [rows] = rows_of_all(rows)
        lacking = np.flatnonzero(np.isnan(rows[:, 0])).tolist()  # a path may stand for several images
        noted = {row: passes.unreadable.reasons.get(images.paths[part][row]) for row in lacking}
        gathered = all_gather_object({row: why for row, why in noted.items() if why})
        why = {row: reason for of_rank in gathered for row, reason in of_rank.items()}
        why |= from_main(lambda: changed_since(images, prints, part))  # noqa: B023
        rows[list(why)] = np.nan
        yield part, rows, why


def changed_since(images: InOrder, prints: np.ndarray, part: slice) -> dict[int, str]:
    """{row: why} of the images of a part that have changed or vanished since their fingerprints were made."""
    now = fingerprints(images.whole.subset(images.at[part]))
    changed = np.flatnonzero(now != prints[part]).tolist()
    return {
        row: f"cannot use the image {shown_name(images.paths[part][row])}: it has changed or vanished since "
        "the run began"
        for row in changed
    }
