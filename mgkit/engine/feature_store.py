"""Pooled features on disk: computed once, reused while nothing changed, continued after an interruption.

An array has its own folder, named by size, crop, p and a hash of everything it depends on:

    features.npy      [N,C] float32 when complete; until then features.partial
    manifest.json     what it depends on, the versions and the machine, and the skipped images
    journal.jsonl     the shards in features.partial, one per line
    lock              held by the process that writes

A shard is SHARD consecutive images. Its line is written to the journal when its rows are on disk. So a shard
with a line is complete, even after a kill or a power failure; others are computed again. No batch spans two
shards: rows do not depend on which shards were there before.

A complete array is recomputed if its size or time of change differs from the manifest (copy folders with
their times: cp -a, rsync -a). Folders may be removed; that costs time only.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from mgkit.data.decoding import UnreadableImageError
from mgkit.data.images import ImageList, files_hash
from mgkit.data.loader import UnreadableImages
from mgkit.engine.provenance import provenance
from mgkit.engine.run import experiment_folder
from mgkit.features import Passes, by_window, pooled_batches, rows_of_all
from mgkit.machine.device import autocast
from mgkit.machine.distributed import all_gather_object, barrier, broadcast_object, is_main, run_in_all
from mgkit.machine.files import (
    RefusedError,
    exclusive,
    move_into_place,
    remove_partial,
    sync,
    why_refused,
    write_text,
)
from mgkit.model import MultiGrain
from mgkit.pooling import check_exponent
from mgkit.transforms import eval_transform

SHARD = 1024  # images, held in memory and lost by a kill
FORMAT = 3  # increased when the rows or their storage change; arrays of other formats are not used


def features_folder(experiment: str) -> Path:
    """The features shared by the stages of an experiment: outputs/<experiment>/features/."""
    return experiment_folder(experiment) / "features"


def stored_features(
    net: MultiGrain, images: ImageList, *, size: int, ps: Sequence[float], folder: str | Path,
    passes: Passes | None = None, **changes,
) -> list[np.memmap]:  # fmt: skip
    """GeM-pooled features before whitening and L2: a read-only [N,C] float32 memmap per exponent.

    An array is reused for the same files (`files_hash`), backbone weights, size, crop, p and precision.
    Missing arrays are computed in one backbone pass; if none is missing, no image is opened. An interrupted
    call is continued, bit for bit on the same machine with the same batch_size. Memory does not grow with N.
    Another process that needs the same array waits; distributed ranks share the work, and rank 0 writes.

    size: pixels.
    ps: exponents > 0, or inf.
    folder: where arrays are stored.
    passes, changes: as for `features.embed`; rows of skipped images are NaN, also when an array is reused.

    Raises UnreadableImageError unless `passes.unreadable` skips; ValueError for no images or a wrong size,
    crop, p or precision; OSError if the folder cannot be written, the disk is full, or images change.
    """
    if not len(images):
        raise ValueError(f"{images.root}: there are no images to embed")
    passes = replace(passes or Passes(), **changes)
    eval_transform(size, passes.crop)  # raises for wrong values before anything is written
    exponents = [float(check_exponent(p)) for p in ps]
    made_of = all_but_p(net, images, size=size, passes=passes)
    arrays = {p: StoredArray(Path(folder), made_of | {"p": str(p)}) for p in exponents}
    missing = broadcast_object([p for p in arrays if not arrays[p].is_whole()] if is_main() else None)
    if missing:
        with ExitStack() as locks:
            if is_main():
                for p in sorted(missing, key=lambda p: arrays[p].folder):  # one order: no deadlock
                    locks.enter_context(arrays[p].locked())
            write_missing(net, images, {p: arrays[p] for p in missing}, size=size, passes=passes)
        barrier()
    for array in arrays.values():
        manifest = array.manifest()
        if manifest is None:
            raise FileNotFoundError(
                f"{array.folder.resolve()} lacks the features that were written just now: all machines must "
                "work in one and the same folder, and nothing else may change its files"
            )
        tell(passes.unreadable, images, manifest["skipped"])
    return [np.load(arrays[p].path, mmap_mode="r") for p in exponents]


# --- What an array depends on


def all_but_p(net: MultiGrain, images: ImageList, *, size: int, passes: Passes) -> dict:
    """What arrays depend on, without the exponent; ValueError for an unknown precision."""
    return {
        "shard": SHARD,  # the unit of journals
        "images": {"count": len(images), "exif": images.exif, "sha256": files_hash(images)},
        **options_of(net, size=size, passes=passes),
    }


def features_of(net: MultiGrain, *, size: int, p: float, passes: Passes, folder: Path) -> Path:
    """A folder in `folder` for features of any images by one network, size, crop, p and precision.

    Raises ValueError for a wrong size, crop, p or precision.
    """
    eval_transform(size, passes.crop)
    made_of = options_of(net, size=size, passes=passes) | {"p": str(float(check_exponent(p)))}
    return folder / f"photos-{named(made_of)}"


def options_of(net: MultiGrain, *, size: int, passes: Passes) -> dict:
    """What features depend on besides the images and the exponent; ValueError for an unknown precision."""
    device = net.classifier.weight.device
    with autocast(device, passes.precision):
        bf16 = torch.is_autocast_enabled(device.type)
    return {
        "format": FORMAT,
        "network": identity_of_network(net),
        "size": int(size),
        "crop": passes.crop,
        "precision": "bf16" if bf16 else "float32",
    }


def identity_of_network(net: MultiGrain) -> dict:
    """The backbone: name, width, input normalisation, and a SHA-256 of its parameters and buffers.

    Also what else changes the rows, where it is not as in the paper: tokens, negative values, a neck.
    """
    digest = hashlib.sha256()
    twin = f"{net.twin}.last_linear."  # the NASNets' classifier, which does not affect feature maps
    for name, value in chain(net.features.named_parameters(), net.features.named_buffers()):
        if net.twin and name.startswith(twin):
            continue
        digest.update(f"{name} {value.dtype} {list(value.shape)}\0".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    normalisation = {"mean": list(net.mean), "std": list(net.std)}
    identity = {"backbone": net.name, "width": net.width} | normalisation | {"sha256": digest.hexdigest()}
    if net.tokens != "patches":
        identity["tokens"] = net.tokens
    if net.pool.signed:
        identity["signed"] = True
    if net.neck is not None:
        identity["neck"] = True
    return identity


def named(made_of: dict) -> str:
    """The name of a folder by what its features depend on."""
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    return f"{made_of['size']}-{made_of['crop']}-p{made_of['p']}-{key}"


# --- One array


@dataclass(frozen=True)
class StoredArray:
    """An array on disk, complete or not.

    root: holds the folders of all arrays.
    made_of: what the array depends on, see `all_but_p`.
    """

    root: Path
    made_of: dict

    @property
    def shape(self) -> tuple[int, int]:
        return self.made_of["images"]["count"], self.made_of["network"]["width"]

    @property
    def folder(self) -> Path:
        return self.root / named(self.made_of)

    @property
    def path(self) -> Path:
        return self.folder / "features.npy"

    @property
    def partial(self) -> Path:
        return self.folder / "features.partial"

    @property
    def journal(self) -> Path:
        return self.folder / "journal.jsonl"

    def manifest(self) -> dict | None:
        """The manifest; None if it is missing, damaged, or another array's."""
        try:
            manifest = json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))
            known = manifest["made_of"] == self.made_of and manifest["written_ns"]
            return manifest if known and are_rows(manifest["skipped"], self.shape[0]) else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def is_whole(self) -> bool:
        """Whether the array is complete on disk and unchanged since it was written."""
        manifest = self.manifest()
        if manifest is None or not self.path.is_file():
            return False
        status = self.path.stat()
        same_time = is_same_time(manifest["written_ns"], status.st_mtime_ns)
        return status.st_size == self.start(self.shape[0]) and same_time

    def start(self, row: int) -> int:
        """The offset of a row in the file, in bytes."""
        return len(npy_header(self.shape)) + row * self.shape[1] * 4

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the array for writing; waits for another process that does."""
        with ExitStack() as held:
            with self.explained():  # the lock only, not what is done under it
                self.folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(exclusive(self.folder / "lock", purpose=f"writing {self.folder}"))
            yield

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn an OSError of the block into a RefusedError that says that the call can be repeated."""
        try:
            yield
        except OSError as error:
            own = isinstance(error, RefusedError)
            why = error if own else f"{self.folder} cannot be written: {why_refused(error, self.path)}"
            raise RefusedError(
                f"{why}; the same call then goes on from the features that are there"
            ) from None

    def begin(self) -> dict[int, dict]:
        """Prepare the partial file and the journal; returns the shards they hold, {shard: {row: reason}}."""
        size = self.start(self.shape[0])
        with self.explained():
            remove_partial(self.folder)
            if self.path.exists():
                print(f"{self.path} or its manifest is damaged or was changed: computing it again")
                self.path.unlink()
            kept = self.partial.exists() and self.partial.stat().st_size == size
            shards = read_journal(self.journal, len(shards_of(self.shape[0]))) if kept else {}
            # Before the file has its size, so that no shard of an earlier file counts for the new one.
            write_text(self.journal, "".join(journal_line(*each) for each in shards.items()))
            self.partial.touch()
            with open(self.partial, "r+b") as file:
                file.write(npy_header(self.shape))
                file.truncate(size)
        return shards

    def write(self, shard: int, rows: np.ndarray, skipped: dict[int, str]) -> None:
        """Write the rows [n,C] of a shard and, when they are on disk, its line in the journal.

        skipped: {row: reason}.
        """
        with self.explained():
            with open(self.partial, "r+b") as file:
                file.seek(self.start(shard * SHARD))
                file.write(rows)
            sync(self.partial)
            with open(self.journal, "a", encoding="utf-8") as file:
                file.write(journal_line(shard, skipped))

    def finish(self, shards: dict[int, dict], source: Path) -> None:
        """Write the manifest, then rename the partial file: the array is complete."""
        manifest = {
            "made_of": self.made_of,
            "images_from": str(source),
            "provenance": provenance(),
            "written_ns": self.partial.stat().st_mtime_ns,
            "skipped": {row: reason for shard in sorted(shards) for row, reason in shards[shard].items()},
        }
        with self.explained():
            write_text(self.folder / "manifest.json", json.dumps(manifest, indent=1))
            move_into_place(self.partial, self.path)
            self.journal.unlink()


def is_same_time(noted: int, found: int) -> bool:
    """Whether a file's time of change (ns) is the noted one, or that in whole or even seconds.

    Some file systems, as FAT, show the exact time only until they are mounted again.
    """
    return noted == found or (found % 10**9 == 0 and abs(noted - found) < 2 * 10**9)


def npy_header(shape: tuple[int, int]) -> bytes:
    """The header of a .npy file of float32 rows [N,C]."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return header.getvalue()


def shards_of(rows: int) -> list[range]:
    """The rows of each shard; the last may be short."""
    return [range(start, min(start + SHARD, rows)) for start in range(0, rows, SHARD)]


def journal_line(shard: int, skipped: dict) -> str:
    return json.dumps({"shard": shard, "skipped": skipped}) + "\n"


def are_rows(skipped: object, rows: int) -> bool:
    """Whether that is {row: reason} for rows of an array, as JSON holds them."""
    return isinstance(skipped, dict) and all(
        row.isdecimal() and int(row) < rows and isinstance(reason, str) for row, reason in skipped.items()
    )


def read_journal(path: Path, count: int) -> dict[int, dict]:
    """The shards in a journal, {shard: {row: reason}}; cut lines and numbers from `count` on are ignored."""
    shards = {}
    for text in path.read_bytes().splitlines() if path.exists() else []:
        with suppress(ValueError, KeyError, TypeError):
            line = json.loads(text)
            if line["shard"] in range(count) and are_rows(line["skipped"], count * SHARD):
                shards[line["shard"]] = dict(line["skipped"])
    return shards


# --- From images to arrays


def write_missing(
    net: MultiGrain, images: ImageList, arrays: dict[float, StoredArray], *, size: int, passes: Passes
) -> None:
    """Complete the arrays {p: array} by one backbone pass over every shard that one of them lacks."""
    # Another process may have written some while this one waited.
    there = {p: array.begin() for p, array in arrays.items() if not array.is_whole()} if is_main() else None
    there = broadcast_object(there)  # {p: {shard: {row: reason}}}
    if not there:
        return
    known = [of_shard for of_p in there.values() for of_shard in of_p.items()]
    for _, skipped in known:
        tell(passes.unreadable, images, skipped)  # raises before the work, if it does
    parts = shards_of(len(images))
    lacking = [shard for shard in range(len(parts)) if any(shard not in of_p for of_p in there.values())]
    if 0 < len(lacking) < len(parts):
        print(f"features: {len(parts) - len(lacking)} of {len(parts)} shards are on disk already")
    readable = any(len(skipped) < len(parts[shard]) for shard, skipped in known)
    passes = replace(passes, unreadable=UnreadableImages(passes.unreadable.on_unreadable))
    pooled = pooled_shards(net, images, lacking, size=size, ps=list(there), passes=passes)
    for shard, rows, skipped in pooled:
        readable |= len(skipped) < len(parts[shard])
        for of_p, (p, shards) in zip(rows, there.items(), strict=True):
            if is_main() and shard not in shards:
                arrays[p].write(shard, of_p, skipped)
                shards[shard] = skipped
    error = None if readable else passes.unreadable.none_readable()
    if is_main():
        complete(images, [(arrays[p], shards) for p, shards in there.items()], error)
    elif error:
        raise error


def complete(
    images: ImageList, arrays: Sequence[tuple[StoredArray, dict[int, dict]]], error: OSError | None = None
) -> None:
    """Finish arrays, given with their shards; after an error or changed images, discard them and raise."""
    now = files_hash(images)
    if not error and any(array.made_of["images"]["sha256"] != now for array, _ in arrays):
        error = OSError(f"images of {images.root} changed while they were being embedded: embed them again")
    for array, shards in arrays:
        if error:  # it is unknown which shards show which state
            array.partial.unlink()
            array.journal.unlink()
        else:
            array.finish(shards, images.root)
    if error:
        raise error


def pooled_shards(
    net: MultiGrain,
    images: ImageList,
    shards: Sequence[int],
    *,
    size: int,
    ps: Sequence[float],
    passes: Passes,
) -> Iterator[tuple[int, np.ndarray, dict[int, str]]]:
    """Yield (shard, rows [P,n,C], {row: reason} of skipped rows, which are NaN); all ranks, in one pass.

    No image needs to be readable.
    """
    if not shards:
        return
    parts, unreadable = shards_of(len(images)), passes.unreadable
    rest = images.subset(chain.from_iterable(parts[shard] for shard in shards))

    def pass_over_rest():
        try:
            yield from pooled_batches(net, rest, size=size, ps=ps, passes=passes, window=SHARD)
        except UnreadableImageError:
            if unreadable.on_unreadable == "raise":
                raise

    windows = by_window(pass_over_rest(), SHARD, len(rest))
    for place, shard in enumerate(shards):
        batches = run_in_all(lambda: next(windows))  # an unreadable image is named on all machines
        rows = np.full((len(ps), len(parts[shard]), net.width), np.nan, dtype=np.float32)
        for of_batch, indices in batches:
            rows[:, indices - place * SHARD] = of_batch
        reasons = {i: unreadable.reasons.get(images.paths[i]) for i in parts[shard]}
        mine = {i: reason for i, reason in reasons.items() if reason}
        skipped = dict(chain.from_iterable(of_rank.items() for of_rank in all_gather_object(mine)))
        yield shard, rows_of_all(rows), skipped


def tell(unreadable: UnreadableImages, images: ImageList, skipped: dict[int | str, str]) -> None:
    """Record the images that were skipped, {row: reason}, when an array was computed; may raise."""
    unreadable.note((images.paths[int(i)], reason) for i, reason in skipped.items())
