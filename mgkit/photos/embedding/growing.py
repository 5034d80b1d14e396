"""Pooled features of a growing folder: the rows of known images are copied from an earlier array.

Arrays made here have one more file, images.npy: a fingerprint per image, [N] uint64.
"""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mgkit.data.images import ImageList, fingerprints
from mgkit.data.loader import UnreadableImages
from mgkit.engine.feature_store import StoredArray, all_but_p, complete, shards_of, stored_features
from mgkit.features import Passes
from mgkit.machine.distributed import barrier, broadcast_object, is_main
from mgkit.machine.files import atomic_write
from mgkit.model import MultiGrain


@dataclass(frozen=True)
class Known:
    """Rows of an earlier array that can be copied: row here[k] of the new is row there[k] of the earlier."""

    earlier: Path
    here: np.ndarray
    there: np.ndarray


def growing_features(
    net: MultiGrain,
    images: ImageList,
    *,
    size: int,
    p: float,
    folder: str | Path,
    passes: Passes | None = None,
    **changes,
) -> np.memmap:
    """`stored_features` [N,C] for one exponent; only new images are embedded.

    An image is known if an earlier array of this function has it, readable, with the same path, size and time
    of change; the array that knows most images is used. Rows from another batch are equal up to rounding.

    Other parameters and errors as `stored_features`; ValueError also for views or repeated files.
    """
    if images.views or len(set(images.paths)) < len(images):
        raise ValueError(f"images: of a folder that grows ({images.root}) each file is taken once, and whole")
    passes = replace(passes or Passes(), **changes)
    folder = Path(folder)
    array = array_of(net, images, size, p, folder, passes)
    options = {"size": size, "ps": [p], "folder": folder}
    known = broadcast_object(most_known(array, images) if is_main() and not array.is_whole() else None)
    if known:
        unknown = np.setdiff1d(np.arange(len(images)), known.here)
        if is_main():
            counts = f"{len(known.here):,} of {len(images):,} images are known from earlier"
            print(f"{counts}, {len(unknown):,} are new")
        # With a known one, as all new ones may be unreadable: a list without readable images is an error.
        rest = images.subset([*unknown, known.here[0]])
        skipping = UnreadableImages(passes.unreadable.on_unreadable)
        [rows] = stored_features(net, rest, passes=replace(passes, unreadable=skipping), **options)
        if is_main():
            join(array, images, known, unknown, rows, skipping.reasons)
            shutil.rmtree(array_of(net, rest, size, p, folder, passes).folder)
        barrier()
    [rows] = stored_features(net, images, passes=passes, **options)
    if is_main() and not fingerprints_file(array).exists():
        with atomic_write(fingerprints_file(array)) as temporary, open(temporary, "wb") as file:
            np.save(file, fingerprints(images))
    return rows


def array_of(
    net: MultiGrain, images: ImageList, size: int, p: float, folder: Path, passes: Passes
) -> StoredArray:
    return StoredArray(folder, all_but_p(net, images, size=size, passes=passes) | {"p": str(float(p))})


def fingerprints_file(array: StoredArray) -> Path:
    return array.folder / "images.npy"


def most_known(array: StoredArray, images: ImageList) -> Known | None:
    """The rows of the earlier array that has most of the images; None if no array has any."""
    ours, best = fingerprints(images), None
    for earlier in earlier_arrays(array):
        try:
            theirs = np.load(fingerprints_file(earlier), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            continue  # a damaged file is not used
        if (theirs.shape, theirs.dtype) != ((earlier.shape[0],), ours.dtype):
            continue
        _, here, there = np.intersect1d(ours, theirs, return_indices=True)
        readable = np.isfinite(np.load(earlier.path, mmap_mode="r")[there, 0])
        if readable.sum() > (0 if best is None else len(best.here)):
            best = Known(earlier.path, here[readable], there[readable])
    return best


def earlier_arrays(array: StoredArray) -> list[StoredArray]:
    """The complete arrays of other images, made with the same options, that have fingerprints."""
    found = []
    for path in array.root.glob("*/images.npy"):
        try:
            made_of = json.loads((path.parent / "manifest.json").read_text(encoding="utf-8"))["made_of"]
            made_alike = made_of | {"images": None} == array.made_of | {"images": None}
            earlier = StoredArray(array.root, made_of)
            if made_alike and earlier.folder == path.parent and earlier.is_whole():
                found.append(earlier)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a damaged array is not used
    return found


def join(
    array: StoredArray,
    images: ImageList,
    known: Known,
    unknown: np.ndarray,
    rows: np.ndarray,
    reasons: dict[str, str],
) -> None:
    """Write the array from the known rows and those of the other images.

    unknown: [U] indices of the other images.
    rows: theirs, [U,C]; further rows are ignored.
    reasons: {path: reason} of skipped images.

    Raises OSError if it cannot be written, or if images have changed since.
    """
    earlier = np.load(known.earlier, mmap_mode="r")
    source = np.empty(len(images), dtype=np.int64)  # a row of `earlier`, or past it one of `rows`
    source[known.here], source[unknown] = known.there, len(earlier) + np.arange(len(unknown))
    with array.locked():
        if array.is_whole():  # by another process
            return
        shards = array.begin()
        for shard, of_shard in enumerate(shards_of(len(images))):
            if shard in shards:
                continue
            here = source[of_shard.start : of_shard.stop]
            is_known = here < len(earlier)
            content = np.empty((len(here), earlier.shape[1]), dtype=np.float32)
            content[is_known] = earlier[here[is_known]]
            content[~is_known] = rows[here[~is_known] - len(earlier)]
            shards[shard] = {i: reasons[images.paths[i]] for i in of_shard if images.paths[i] in reasons}
            array.write(shard, content, shards[shard])
        complete(images, [(array, shards)])
