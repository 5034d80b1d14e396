"""What is known of each picture besides its descriptor: facts of its file, and how it looks when small.

Both are kept in `Table`s in a folder of their own, and made for new and changed pictures only:

    facts.rows    from the files' headers, before pictures are embedded
    looks.rows    from the pictures, as they are loaded in order to be embedded
"""

import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from mgkit.data.decoder_process import header_apart
from mgkit.data.decoding import UnreadableImageError
from mgkit.data.images import ImageList, fingerprints
from mgkit.data.loader import leave_stopping_to_the_parent
from mgkit.engine.feature_store import features_folder
from mgkit.machine.distributed import main_first
from mgkit.machine.files import writing
from mgkit.machine.progress import progress
from mgkit.photos.comparisons import Comparisons
from mgkit.photos.copies.small import SIDE, content_box, share_of, squashed
from mgkit.photos.embedding.table import Table

FORMAT = 2  # increased when a table's rows or what they mean change
REMARK = 150  # characters of a remark that are kept: all that `headers.remarks` can say
LEAST = 256  # px, of the shorter side of a picture that is loaded for its look alone
FEW = 64  # pictures that are not worth starting workers for

FACTS = np.dtype([
    ("width", "<i4"), ("height", "<i4"), ("size", "<i8"), ("changed", "<f8"), ("taken", "<f8"),
    ("camera", "?"), ("turned", "?"), ("remark", f"<U{REMARK}"),
])  # fmt: skip
LOOK = np.dtype([("aspect", "<f8"), ("content", "<f4"), ("grey", "u1", (SIDE, SIDE))])


@dataclass(frozen=True)
class Facts:
    """What is known of a picture's file.

    width, height: as shown (px).
    size: of the file (bytes).
    changed: its time of change (s since 1970).
    taken: when it was photographed (s since 1970), by the camera's data; None if it has none.
    camera: whether it names the camera.
    turned: whether a rotation tag turns it.
    remark: what was done to it while it was read, as text; empty: nothing.
    content: share of its area without bars and borders.
    """

    width: int
    height: int
    size: int
    changed: float
    taken: float | None = None
    camera: bool = False
    turned: bool = False
    remark: str = ""
    content: float = 1.0


@dataclass(frozen=True)
class Looks:
    """Of N pictures, mapped from the disk.

    grey: small, without bars and borders, squashed to a square ([N,64,64] uint8).
    aspects: width / height of what is in `grey` ([N]); NaN if the picture could not be read.
    content: share of each one's area without bars and borders ([N]).
    table: their facts ([N], fields as of `Facts`).
    """

    grey: np.ndarray
    aspects: np.ndarray
    content: np.ndarray
    table: np.ndarray

    @property
    def readable(self) -> np.ndarray:
        """Whether each picture could be read ([N])."""
        return np.isfinite(self.aspects)

    def facts(self, i: int) -> Facts:
        values = dict(zip(FACTS.names, self.table[i].item(), strict=True))
        taken = None if np.isnan(values["taken"]) else values["taken"]
        return Facts(**values | {"taken": taken, "content": float(self.content[i])})


class WithLooks:
    """What a task knows of its pictures without a network; found at first use."""

    @cached_property
    def keys(self) -> np.ndarray:
        """What each picture is known by: its path, size and time of change ([N] uint64)."""
        return fingerprints(self.folder.images)

    @cached_property
    def facts(self) -> np.ndarray:
        """The facts of the pictures' files ([N], fields as of `Facts`)."""
        return photo_facts(self.folder.images, self.keys, folder=self.seen_in, workers=self.config.workers)

    @property
    def remarks(self) -> dict[str, str]:
        """{path: remark} of the pictures that are not shown as they are stored."""
        pairs = zip(self.folder.images.paths, self.facts["remark"].tolist(), strict=True)
        return {path: remark for path, remark in pairs if remark}

    @cached_property
    def looks(self) -> Looks:
        """How the pictures look."""
        options = {"folder": self.seen_in, "workers": self.config.workers}
        return photo_looks(self.folder.images, self.keys, self.facts, **options)

    @cached_property
    def comparisons(self) -> Comparisons:
        """Comparisons of the pictures, each of which is made once."""
        return Comparisons(self.looks.grey, self.looks.aspects, self.keys, self.seen_in)

    @property
    def seen_in(self) -> Path:
        """The folder that keeps all of that."""
        return features_folder(self.config.experiment) / "seen"


# --- From the header


def read_facts(path: str, exif: bool = True) -> Facts:
    """The facts of a picture's file, from its header; 1 × 1 px if it cannot be read.

    exif: whether the rotation tag is applied.
    """
    try:
        status = os.stat(path)
    except OSError:
        return Facts(1, 1, 0, 0.0)
    (width, height), taken, camera, turned, remark = header_apart(path, exif)
    return Facts(width, height, status.st_size, status.st_mtime, taken, camera, exif and turned, remark)


def describe_remarks(remarks: dict[str, str]) -> str:
    """One line: how many pictures have which remark; empty without any."""
    counts = Counter(part for remark in remarks.values() for part in remark.split("; "))
    return "; ".join(f"{part}: {count:,} pictures" for part, count in counts.most_common())


def photo_facts(images: ImageList, keys: np.ndarray, *, folder: Path, workers: int = 0) -> np.ndarray:
    """The facts of pictures ([N], fields as of `Facts`); only files that are new or changed are opened.

    So are those that could not be read the last time.

    keys: what they are known by ([N])
    folder: holds the table
    workers: processes that read headers
    """
    table = Table(folder / f"facts-{FORMAT}.rows", FACTS)

    def complete() -> np.ndarray:
        with table.locked():
            at = table.find(keys)
            known = table.records()["row"][at.clip(min=0)] if len(table) else np.zeros(len(keys), FACTS)
            new = np.flatnonzero((at < 0) | (known["width"] * known["height"] <= 1))
            note = partial(note_facts, table, images, keys)
            visit(note, new, workers=workers, description="reading the files' headers")
            table.arrange(keys)
            return table.rows(len(keys))

    return main_first(complete)


def note_facts(table: Table, images: ImageList, keys: np.ndarray, i: int) -> None:
    facts = read_facts(images.paths[i], images.exif)
    table.append(keys[i : i + 1], np.array([as_row(facts)], FACTS), lasting=False)


def as_row(facts: Facts) -> tuple:
    values = vars(facts) | {"taken": np.nan if facts.taken is None else facts.taken}
    return tuple(values[name] for name in FACTS.names)


# --- From the picture


def noting(keys: np.ndarray, *, folder: Path) -> Callable[[int, Image.Image], None]:
    """A function that keeps how picture i looks; to be called in the processes that load pictures.

    Where it cannot be written, `photo_looks` makes it again.
    """
    table = looks_table(folder)
    with writing(table.path):
        folder.mkdir(parents=True, exist_ok=True)
    return partial(try_to_note, table, keys)


def try_to_note(table: Table, keys: np.ndarray, i: int, picture: Image.Image) -> None:
    with suppress(OSError):
        note_look(table, keys, i, picture)


def note_look(table: Table, keys: np.ndarray, i: int, picture: Image.Image) -> None:
    box = content_box(picture)
    grey, aspect = squashed(picture, box)
    row = (aspect, share_of(picture, box), grey)
    table.append(keys[i : i + 1], np.array([row], LOOK), lasting=False)


def photo_looks(
    images: ImageList, keys: np.ndarray, facts: np.ndarray, *, folder: Path, workers: int = 0
) -> Looks:
    """How pictures look; those that were not noted while they were embedded are loaded.

    facts: from `photo_facts`

    Other parameters as of `photo_facts`.
    """
    table = looks_table(folder)

    def complete() -> Looks:
        with table.locked():
            new = np.flatnonzero(table.find(keys) < 0)
            look = partial(look_at, table, images, keys)
            visit(look, new, workers=workers, description="looking at pictures")
            table.arrange(keys)
            rows = table.rows(len(keys))
        return Looks(rows["grey"], np.array(rows["aspect"]), np.array(rows["content"]), facts)

    return main_first(complete)


def look_at(table: Table, images: ImageList, keys: np.ndarray, i: int) -> None:
    try:
        note_look(table, keys, i, images.load(i, least=LEAST))
    except UnreadableImageError:
        table.append(keys[i : i + 1], np.array([(np.nan, 1, 0)], LOOK), lasting=False)


def looks_table(folder: Path) -> Table:
    return Table(folder / f"looks-{FORMAT}.rows", LOOK)


# --- In all workers


class Visits(Dataset):
    """Calls a function with an index; an item is its OSError, as workers cannot raise one in one line."""

    def __init__(self, call: Callable[[int], None], indices: np.ndarray):
        self.call, self.indices = call, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> OSError | None:
        try:
            self.call(int(self.indices[place]))
        except OSError as error:
            return error


def visit(call: Callable[[int], None], indices: np.ndarray, *, workers: int, description: str) -> None:
    """Call a function with each index, in worker processes if there are many; raises its OSErrors."""
    visits = Visits(call, indices)
    loader = DataLoader(
        visits, batch_size=FEW, collate_fn=list, num_workers=workers if len(visits) > FEW else 0,
        worker_init_fn=leave_stopping_to_the_parent,
    )  # fmt: skip
    with progress(None, description, total=len(visits), unit="pictures") as bar:
        for errors in loader:
            for error in filter(None, errors):
                raise error
            bar.update(len(errors))
