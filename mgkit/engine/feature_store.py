"""Pooled features on disk: made once, reused while nothing changed, continued where a run was cut off.

An array has a folder of its own, named by size, crop, p and a hash of all that it is made of:

    features.npy      [N,C] float32, once it is whole; until then features.partial
    manifest.json     what it is made of, by which versions on which machine, and which images were skipped
    journal.jsonl     the shards that features.partial holds, a line each
    lock              held by the process that writes, and by none after its death

A shard is a run of SHARD images. Its line is written to the journal once its rows are on the disk: a shard with
a line is whole, also after a kill or a power cut, and one without a line is made again. No batch mixes shards;
hence its rows do not depend on which shards were there before.

A whole array is made again if its size or time of change is not that of the manifest (so copy folders with their
times: cp -a, rsync -a). Removing a folder costs time only.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from mgkit.data.decoding import UnreadableImageError
from mgkit.data.images import ImageList, files_hash
from mgkit.data.loader import UnreadableImages
from mgkit.engine.provenance import provenance
from mgkit.engine.run import stage_folder
from mgkit.features import by_window, pooled_batches, rows_of_all
from mgkit.machine.device import autocast
from mgkit.machine.distributed import all_gather_object, barrier, broadcast_object, is_main
from mgkit.machine.files import exclusive, move_into_place, remove_partial, sync, write_text
from mgkit.model import MultiGrain
from mgkit.pooling import check_exponent
from mgkit.transforms import eval_transform

SHARD = 1024  # images; what a kill can cost, and what is held in memory
FORMAT = 3  # another number, other folders: for changes of what a row is or how it is stored


def features_folder(experiment: str) -> Path:
    """Where the stages of an experiment share their features: outputs/<experiment>/features/."""
    return stage_folder(experiment, "features")


def stored_features(
    net: MultiGrain,
    images: ImageList,
    *,
    size: int,
    ps: Sequence[float],
    folder: str | Path,
    crop: str = "rect",
    batch_size: int = 32,
    workers: int = 0,
    precision: str = "auto",
    unreadable: UnreadableImages | None = None,
    description: str | None = "",
) -> list[np.memmap]:
    """GeM-pooled features before whitening and L2, a read-only [N,C] float32 memmap for each exponent.

    size: pixels. ps: exponents > 0, inf too; those that are not below `folder` yet share one backbone pass, and where none is
    missing no image is opened. An array is reused for the same files (names below the root, sizes, times of change), turned and
    cut alike, the same backbone weights, size, crop, p and precision. A run that was cut off is continued, with the result,
    bit for bit, of one that was not, on the same machine with the same batch_size. Memory does not grow with N. Other options:
    as for `embed.feature_maps`. A second process that wants the same array waits for the first; those of `mgkit.machine.distributed`
    share the work, and the main one writes.

    Rows of images that `unreadable` skips are NaN; it is told of them again whenever the array is reused. Raises
    UnreadableImageError unless it says skip; ValueError for no images or a size, crop, p or precision that cannot be; OSError,
    naming the folder, where it cannot be written or the disk is full, and where images change meanwhile.
    """
    if not len(images):
        raise ValueError(f"{images.root}: there are no images to embed")
    eval_transform(size, crop)  # raises what is wrong with them before anything is written
    exponents = [float(check_exponent(p)) for p in ps]
    made_of = all_but_p(net, images, size=size, crop=crop, precision=precision)
    arrays = {p: StoredArray(Path(folder), made_of | {"p": str(p)}) for p in exponents}
    unreadable = unreadable or UnreadableImages()
    missing = broadcast_object(
        [p for p, array in arrays.items() if not array.is_whole()] if is_main() else None
    )
    if missing:
        with ExitStack() as locks:
            if is_main():
                for p in sorted(missing, key=lambda p: arrays[p].folder):  # one order: no deadlock
                    locks.enter_context(arrays[p].locked())
            write_missing(
                net, images, {p: arrays[p] for p in missing}, unreadable=unreadable, size=size, crop=crop,
                batch_size=batch_size, workers=workers, precision=precision, description=description,
            )  # fmt: skip
        barrier()
    for array in arrays.values():
        tell(unreadable, images, array.manifest()["skipped"])
    return [np.load(arrays[p].path, mmap_mode="r") for p in exponents]


# --- What an array is made of


def all_but_p(net: MultiGrain, images: ImageList, *, size: int, crop: str, precision: str) -> dict:
    """What arrays are made of, but for the exponent; ValueError for an unknown precision."""
    device = net.classifier.weight.device
    with autocast(device, precision):
        bf16 = torch.is_autocast_enabled(device.type)
    return {
        "format": FORMAT,
        "shard": SHARD,  # in which a journal counts
        "images": {"count": len(images), "exif": images.exif, "sha256": files_hash(images)},
        "network": identity_of_network(net),
        "size": int(size),
        "crop": crop,
        "precision": "bf16" if bf16 else "float32",
    }


def identity_of_network(net: MultiGrain) -> dict:
    """The backbone: its name, width, input normalisation, and a SHA-256 of its parameters and buffers."""
    digest = hashlib.sha256()
    twin = f"{net.twin}.last_linear."  # the NASNets' classifier, on which no feature map depends
    for name, value in chain(net.features.named_parameters(), net.features.named_buffers()):
        if net.twin and name.startswith(twin):
            continue
        digest.update(f"{name} {value.dtype} {list(value.shape)}\0".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    normalisation = {"mean": list(net.mean), "std": list(net.std)}
    return {"backbone": net.name, "width": net.width} | normalisation | {"sha256": digest.hexdigest()}


# --- One array


@dataclass(frozen=True)
class StoredArray:
    """An array on disk, whole or in the making. root: where the folders of arrays are. made_of: what tells it from others."""

    root: Path
    made_of: dict

    @property
    def shape(self) -> tuple[int, int]:
        return self.made_of["images"]["count"], self.made_of["network"]["width"]

    @property
    def folder(self) -> Path:
        made_of = self.made_of
        key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
        return self.root / f"{made_of['size']}-{made_of['crop']}-p{made_of['p']}-{key}"

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
        """The manifest; None where there is none of this array, or a damaged one."""
        try:
            manifest = json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))
            known = manifest["made_of"] == self.made_of and manifest["written_ns"]
            return manifest if known and isinstance(manifest["skipped"], dict) else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def is_whole(self) -> bool:
        """Whether the array is on disk, untouched since it was written."""
        manifest = self.manifest()
        if manifest is None or not self.path.is_file():
            return False
        status = self.path.stat()
        return (status.st_size, status.st_mtime_ns) == (self.start(self.shape[0]), manifest["written_ns"])

    def start(self, row: int) -> int:
        """Where in the file a row starts, in bytes."""
        return len(npy_header(self.shape)) + row * self.shape[1] * 4

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The array is this process's to write; waits while it is another's."""

        def say() -> None:
            print(f"waiting for another process, which is writing {self.folder}")

        with ExitStack() as held:
            with self.explained():  # the making, not what is done under the lock
                self.folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(exclusive(self.folder / "lock", on_wait=say))
            yield

    @contextmanager
    def explained(self) -> Iterator[None]:
        """An OSError in the block says what was being tried, and what becomes of the rows so far."""
        try:
            yield
        except OSError as error:
            raise OSError(
                error.errno,
                f"features cannot be written to {self.folder}: {error.strerror} "
                "(what is there already is kept, and the same call continues it)",
            ) from None

    def begin(self) -> dict[int, dict]:
        """Have a partial file and a clean journal; returns the shards that they hold, {shard: {row: reason}}."""
        size = self.start(self.shape[0])
        with self.explained():
            remove_partial(self.folder)
            if self.path.exists():
                print(f"{self.path} or its manifest is damaged or was changed: it is made again")
                self.path.unlink()
            kept = self.partial.exists() and self.partial.stat().st_size == size
            shards = read_journal(self.journal, len(shards_of(self.shape[0]))) if kept else {}
            # Before the file has its size, so that no shard of an earlier file counts for a new one.
            write_text(self.journal, "".join(journal_line(*each) for each in shards.items()))
            self.partial.touch()
            with open(self.partial, "r+b") as file:
                file.write(npy_header(self.shape))
                file.truncate(size)
        return shards

    def write(self, shard: int, rows: np.ndarray, skipped: dict[int, str]) -> None:
        """Write the rows [n,C] of a shard, then, once they are on the disk, its line in the journal.

        skipped: {row: reason}.
        """
        with self.explained():
            with open(self.partial, "r+b") as file:
                file.seek(self.start(shard * SHARD))
                file.write(rows)
                sync(file)
            with open(self.journal, "a", encoding="utf-8") as file:
                file.write(journal_line(shard, skipped))

    def finish(self, shards: dict[int, dict], source: Path) -> None:
        """The manifest, then the array under its name: from that moment on it is whole."""
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

    def discard(self) -> None:
        """Remove what is in the making."""
        self.partial.unlink()
        self.journal.unlink()


def npy_header(shape: tuple[int, int]) -> bytes:
    """What a .npy file of float32 rows [N,C] starts with."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": tuple(shape)}
    )
    return header.getvalue()


def shards_of(rows: int) -> list[range]:
    """The rows of each shard; the last may be short."""
    return [range(start, min(start + SHARD, rows)) for start in range(0, rows, SHARD)]


def journal_line(shard: int, skipped: dict) -> str:
    return json.dumps({"shard": shard, "skipped": skipped}) + "\n"


def read_journal(path: Path, count: int) -> dict[int, dict]:
    """The shards in a journal of so many at most, {shard: {row: reason}}, without lines that were cut off."""
    shards = {}
    for text in path.read_bytes().splitlines() if path.exists() else []:
        with suppress(ValueError, KeyError, TypeError):
            line = json.loads(text)
            if line["shard"] in range(count):
                shards[line["shard"]] = dict(line["skipped"])
    return shards


# --- From images to arrays


def write_missing(
    net: MultiGrain,
    images: ImageList,
    arrays: dict[float, StoredArray],
    *,
    unreadable: UnreadableImages,
    **options,
) -> None:
    """One backbone pass over every shard that any of the arrays {p: array} lacks; all are whole afterwards."""
    # While this process waited for its turn, another one may have written some.
    there = {p: array.begin() for p, array in arrays.items() if not array.is_whole()} if is_main() else None
    there = broadcast_object(there)  # {p: {shard: {row: why it was skipped}}}
    if not there:
        return
    known = [of_shard for of_p in there.values() for of_shard in of_p.items()]
    for _, skipped in known:
        tell(unreadable, images, skipped)  # before the work, where it raises
    parts = shards_of(len(images))
    lacking = [shard for shard in range(len(parts)) if any(shard not in of_p for of_p in there.values())]
    if 0 < len(lacking) < len(parts):
        print(f"features: {len(parts) - len(lacking)} of {len(parts)} shards are on disk, the others follow")
    readable = any(len(skipped) < len(parts[shard]) for shard, skipped in known)
    skipping = UnreadableImages(unreadable.on_unreadable)
    options |= {"ps": list(there), "unreadable": skipping}
    for shard, rows, skipped in pooled_shards(net, images, lacking, **options):
        readable |= len(skipped) < len(parts[shard])
        for of_p, (p, shards) in zip(rows, there.items(), strict=True):
            if is_main() and shard not in shards:
                arrays[p].write(shard, of_p, skipped)
                shards[shard] = skipped
    error = None if readable else skipping.none_readable()
    if not is_main():
        if error:
            raise error
        return
    complete(images, [(arrays[p], shards) for p, shards in there.items()], error)


def complete(
    images: ImageList, arrays: Sequence[tuple[StoredArray, dict[int, dict]]], error: OSError | None = None
) -> None:
    """Finish arrays, given with their shards; with an error, or if images have changed, discard them and raise."""
    now = files_hash(images)
    if any(array.made_of["images"]["sha256"] != now for array, _ in arrays):
        error = error or OSError(
            f"images of {images.root} changed while they were being embedded: embed them again"
        )
    for array, shards in arrays:
        if error:
            array.discard()  # it is unknown which shards show which state
        else:
            array.finish(shards, images.root)
    if error:
        raise error


def pooled_shards(
    net: MultiGrain,
    images: ImageList,
    shards: Sequence[int],
    *,
    ps: Sequence[float],
    unreadable: UnreadableImages,
    **options,
) -> Iterator[tuple[int, np.ndarray, dict[int, str]]]:
    """(shard, rows [P,n,C], {row: why it was skipped and is NaN}) of these shards, in one pass, of all processes together.

    All images may be skipped.
    """
    if not shards:
        return
    parts = shards_of(len(images))
    rest = images.subset(chain.from_iterable(parts[shard] for shard in shards))

    def pass_over_rest():
        try:
            yield from pooled_batches(net, rest, ps=ps, window=SHARD, unreadable=unreadable, **options)
        except UnreadableImageError:
            if unreadable.on_unreadable == "raise":
                raise

    windows = by_window(pass_over_rest(), SHARD, len(rest))
    for place, (shard, batches) in enumerate(zip(shards, windows, strict=True)):
        rows = np.full((len(ps), len(parts[shard]), net.width), np.nan, dtype=np.float32)
        for of_batch, indices in batches:
            rows[:, indices - place * SHARD] = of_batch
        reasons = {i: unreadable.reasons.get(images.paths[i]) for i in parts[shard]}
        mine = {i: reason for i, reason in reasons.items() if reason}
        yield (
            shard,
            rows_of_all(rows),
            dict(chain.from_iterable(of_rank.items() for of_rank in all_gather_object(mine))),
        )


def tell(unreadable: UnreadableImages, images: ImageList, skipped: dict[int | str, str]) -> None:
    """What was skipped, {row: reason}, when the rows were made is unreadable now too: listed, or raised."""
    unreadable.note((images.paths[int(i)], reason) for i, reason in skipped.items())
