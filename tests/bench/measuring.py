"""Shared by the benchmarks: two calls in turn, peak memory, a row of the table, photos held in memory."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import inf
from os import environ
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from mgkit.data.images import ImageList
from mgkit.data.layouts import class_folders, dataset_root, split_folder
from mgkit.data.loader import ImageDataset
from mgkit.machine.device import has_fast_bf16
from mgkit.machine.files import project_root, write_text
from mgkit.stages.inputs import data_root
from mgkit.transforms import eval_transform

OUTPUT = project_root() / "outputs" / "bench"


@dataclass(frozen=True)
class Row:
    """A line of the table. measured, floor: medians, in `unit`; floor is None where nothing is beside it.

    value: compared with `wanted` as an upper or lower bound; a ratio by default.
    raw: all measurements.
    """

    stage: str
    measured: float
    floor: float | None
    unit: str
    value: float
    wanted: float
    at_most: bool
    of: str = "ratio"
    raw: dict = field(default_factory=dict)

    @property
    def met(self) -> bool:
        return self.value <= self.wanted if self.at_most else self.value >= self.wanted

    @property
    def margin(self) -> float:
        """How good it is relative to what is wanted: 1 and more is met."""
        return self.wanted / max(self.value, 1e-9) if self.at_most else self.value / self.wanted

    @property
    def spread(self) -> tuple[float, ...]:
        """The least and the largest ratio of a round; empty where nothing is beside it."""
        if self.of != "ratio" or "floor_seconds" not in self.raw:
            return ()
        of_rounds = ratios(self.raw)
        if not self.at_most:  # a ratio of rates
            of_rounds = [self.value * median(of_rounds) / each for each in of_rounds]
        return min(of_rounds), max(of_rounds)

    def cells(self) -> list[str]:
        floor = "-" if self.floor is None else f"{self.floor:.4g}"
        sign = "<=" if self.at_most else ">="
        value = f"{self.value:.3g}" + ("" if self.of == "ratio" else f" {self.of}")
        met = "yes" if self.met else "NO"
        cpu = self.raw.get("cpu_ratio")
        spread = " to ".join(f"{end:.3g}" for end in self.spread)
        return [
            self.stage, f"{self.measured:.4g} {self.unit}", floor, value, spread,
            "" if cpu is None else f"{cpu:.3g}", f"{sign} {self.wanted:.3g}", met,
        ]  # fmt: skip

    def plain(self) -> dict:
        return asdict(self) | {"met": self.met}


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    lines = [
        ["stage", "measured", "floor", "ratio", "of rounds", "of CPU time", "wanted", "met"],
        *(row.cells() for row in rows),
    ]
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def write_json(name: str, content: dict) -> None:
    """Write outputs/bench/<name>."""
    write_text(OUTPUT / name, json.dumps(content, indent=1) + "\n")


def seconds(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


def by_turns(ours: Callable, floor: Callable, rounds: int, longest: float = inf) -> dict[str, list[float]]:
    """Seconds of both calls per round, in alternating order, after a warm-up round that is not counted.

    On the clock, and of the processor: where other work has the cores too, the latter tells more.

    longest: seconds after which no round begins, nor one that would take longer; at least two are counted
    """
    taken = {"seconds": [], "floor_seconds": [], "cpu_seconds": [], "floor_cpu_seconds": []}
    end = perf_counter() + longest
    for k in range(rounds + 1):
        if k > 2 and perf_counter() + taken["seconds"][-1] + taken["floor_seconds"][-1] > end:
            break
        for name, call in (("", ours), ("floor_", floor))[:: 1 if k % 2 else -1]:
            began = process_time()
            on_the_clock = seconds(call)
            if k:
                taken[f"{name}seconds"].append(on_the_clock)
                taken[f"{name}cpu_seconds"].append(process_time() - began)
    return taken


def ratios(taken: dict[str, list[float]], of: str = "seconds") -> list[float]:
    """The ratio of each round."""
    return [a / b for a, b in zip(taken[of], taken[f"floor_{of}"], strict=True)]


def ratio(taken: dict[str, list[float]], of: str = "seconds") -> float:
    """The median of the rounds' ratios."""
    return median(ratios(taken, of))


def compared(
    stage: str, ours: Callable, floor: Callable, *, rounds: int, wanted: float, work: float | None = None,
    floor_work: float | None = None, unit: str = "images/s", longest: float = inf,
) -> Row:  # fmt: skip
    """Compare both in turn: ratio of seconds, at most wanted; with `work`, of rates (work/s), at least.

    rounds, longest: as for `by_turns`
    """
    taken = by_turns(ours, floor, rounds, longest)
    a, b = median(taken["seconds"]), median(taken["floor_seconds"])
    if work is None:
        raw = taken | {"cpu_ratio": ratio(taken, "cpu_seconds")}
        return Row(stage, a, b, "s", ratio(taken), wanted, True, raw=raw)
    floor_work = work if floor_work is None else floor_work
    more = work / floor_work
    raw = taken | {"cpu_ratio": more / ratio(taken, "cpu_seconds")}
    return Row(stage, work / a, floor_work / b, unit, more / ratio(taken), wanted, False, raw=raw)


def extra_memory(call: Callable) -> int | None:
    """Bytes by which the process grows at most during a call; None where the system does not tell."""
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    reset.write_text("5", encoding="utf-8")  # the peak is counted from here
    before = memory("VmRSS")
    call()
    return memory("VmHWM") - before


def memory(of: str) -> int:
    """A line of the process's status in bytes: VmRSS, what it has; VmHWM, what it had at most."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(of))


# --- Photos in memory


def precisions(device: torch.device) -> list[str]:
    """float32, and bf16 where it is fast: elsewhere the row of a step takes half an hour."""
    return ["float32", "bf16"][: 1 + has_fast_bf16(device)]


def photo_folder(data: str = "") -> Path:
    """A folder of class folders: of data, else of MGKIT_PHOTOS, else of the embedded set."""
    root = dataset_root(data_root(data or environ.get("MGKIT_PHOTOS") or "mini"))
    return split_folder(root, "train") or root


@dataclass(frozen=True)
class Photos:
    """A list of images that are not on disk but in memory, as PIL decodes them."""

    images: ImageList
    pictures: dict[str, Image.Image]

    def first(self, count: int) -> "Photos":
        return Photos(self.images.subset(range(count)), self.pictures)


def photos(count: int) -> Photos:
    """Photos in random order, with the shapes of photographs: those of MGKIT_REAL, else of `photo_folder`."""
    if environ.get("MGKIT_REAL"):
        return real_photos(count)
    of_disk = class_folders(str(photo_folder()))
    whole = [of_disk.load(i) for i in range(len(of_disk))]
    frequent = {p.size for p in whole if sum(q.size == p.size for q in whole) > max(2, len(whole) // 25)}
    pictures = {}
    for k in range(count):  # copies lose rows unless their shape is frequent
        picture, copy = whole[k % len(whole)], k // len(whole)
        if copy and picture.size not in frequent:
            picture = picture.crop((0, 0, picture.width, picture.height - 2 * copy))
        pictures[f"/made up/{k:05d}.jpg"] = picture
    order = np.random.default_rng(0).permutation(count)
    return as_photos({path: pictures[path] for path in (list(pictures)[k] for k in order)})


def real_photos(count: int) -> Photos:
    """Some of the 1,000 photographs of MGKIT_REAL, drawn at random."""
    images = class_folders(str(Path(environ["MGKIT_REAL"]) / "imagenet-sample" / "val"))
    drawn = np.random.default_rng(0).permutation(len(images))[:count]
    return as_photos({images.paths[k]: images.load(k) for k in drawn})


def as_photos(pictures: dict[str, Image.Image]) -> Photos:
    """Pictures by path, with made-up labels."""
    labels = np.arange(len(pictures)) % 10
    return Photos(ImageList(Path("/made up"), tuple(pictures), labels, tuple("0123456789")), pictures)


@contextmanager
def in_memory(given: Photos, settings: Sequence[tuple[int, str]]) -> Iterator[None]:
    """In the block, stages get these photos' tensors for (size, crop) without decoding or transforming."""
    tensors = {}
    for size, crop in settings:
        transform, ready = eval_transform(size, crop), {}
        for picture in (given.pictures[path] for path in given.images.paths):
            if id(picture) not in ready:  # paths may share one
                ready[id(picture)] = transform(picture)
        tensors[size, crop] = {path: ready[id(given.pictures[path])] for path in given.images.paths}
    with (
        patch.object(ImageDataset, "decode", lambda dataset, index: dataset.images.paths[index]),
        patch("mgkit.features.eval_transform", lambda size, crop, **_: tensors[size, crop].__getitem__),
        patch("mgkit.features.image_shapes", lambda images: [given.pictures[p].size for p in images.paths]),
    ):
        yield
