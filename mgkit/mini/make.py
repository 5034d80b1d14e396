"""The embedded data set: a drawn world in which class, instance and copy are all well defined.

A *class* is a family of shapes. An *instance* fixes the shape's parameters, its colours and its texture. A
*scene* fixes where the instance stands, how it is lit, what lies behind it and before it; a *view* nudges all
of that, as a photographer who takes a second picture does. A *copy* is an edit of one picture. `make_mini`
writes such pictures as JPEG files in the layouts of ImageNet, Holidays, UKBench and Copydays.

Every picture is a pure function of (seed, its names): no state is shared, so neither the order of drawing
nor the number of processes nor the size of the other sets can change a byte (for one NumPy and Pillow).
"""

import json
import multiprocessing
import os
import shutil
import uuid
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from mgkit.machine.progress import progress as watched
from mgkit.mini.pictures import GREY, cropped, draw_picture, generator_of, strong_edit
from mgkit.mini.shapes import CLASS_NAMES

VERSION = 2  # raise it whenever a picture changes: an older set on disk is then refused
CHUNK = 24  # pictures that a process draws before it reports
CROPS = (10, 15, 20, 30, 40, 50, 60, 70, 80)  # per cent of the area cut away
QUALITIES = (3, 5, 8, 10, 15, 20, 30, 50, 75)  # of the JPEG copies


@dataclass(frozen=True)
class MiniSizes:
    """How many of each `make_mini` draws: images, except for groups, objects and originals."""

    train_per_class: int = 130
    val_per_class: int = 26
    holidays_groups: int = 60
    ukbench_objects: int = 50
    copydays_originals: int = 40
    whiten: int = 800
    distractors: int = 300


# What the digits of the file names can number.
_MOST = MiniSizes(99_999, 999_999, 900, 25_000, 1_000, 1_000_000, 1_000_000)


# --- Files


class _Job(NamedTuple):
    """One picture to write; `strong` > 0 asks for a Copydays original's copies too, that many strong ones."""

    path: str
    class_index: int
    instance: str
    family: str
    scene: str
    strong: int = 0

    @property
    def files(self):
        return 1 + (len(CROPS) + len(QUALITIES) + self.strong if self.strong else 0)


def _single(path, class_index, strong=0):
    """A picture whose instance and scene occur nowhere else."""
    return _Job(path, class_index, path, path, path, strong)


def plan(sizes):
    """Every picture of a set of those sizes, as a list of `_Job`."""
    classes, jobs = len(CLASS_NAMES), []
    for c in range(classes):
        wnid = f"n{1000001 + c:08d}"
        jobs += [
            _single(f"imagenet/train/{wnid}/{wnid}_{n}.JPEG", c) for n in range(1, sizes.train_per_class + 1)
        ]
        numbers = [n * classes + c + 1 for n in range(sizes.val_per_class)]
        jobs += [_single(f"imagenet/val/{wnid}/ILSVRC2012_val_{n:08d}.JPEG", c) for n in numbers]
    for g in range(sizes.holidays_groups):  # two by two siblings: paint alone does not find the group
        kin, name = f"holidays/family/{g // 2}", f"holidays/{g}"
        files = [f"holidays/jpg/{100000 + 100 * g + n}.jpg" for n in range(2 + g % 4)]
        jobs += [_Job(path, g // 2 % classes, name, kin, name) for path in files]
    for o in range(sizes.ukbench_objects):
        files = [f"ukbench/full/ukbench{4 * o + n:05d}.jpg" for n in range(4)]
        jobs += [_Job(path, o % classes, f"ukbench/{o}", f"ukbench/{o}", path) for path in files]
    originals = range(sizes.copydays_originals)
    jobs += [_single(f"copydays/original/{200000 + 100 * g}.jpg", g % classes, 1 + g % 3) for g in originals]
    for part in ("whiten", "distractors"):
        count = range(getattr(sizes, part))
        jobs += [_single(f"unlabelled/{part}/{n // 100:02d}/{n:06d}.jpg", n * 5 % classes) for n in count]
    return jobs


def _save(image, path, quality):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "JPEG", quality=quality)


def _write(folder, seed, job):
    """Draw and save the picture of a job, and its copies."""
    path, rng = Path(folder, job.path), generator_of(seed, "file " + job.path)
    image = draw_picture(seed, job.class_index, job.instance, job.family, job.scene, job.path)
    if rng.uniform() < GREY:
        image = image.convert("L")
    _save(image, path, int(rng.integers(80, 93)))
    if not job.strong:
        return
    with Image.open(path, formats=["JPEG"]) as file:  # a copy starts from the file, as the real ones did
        image = file.convert("RGB")
    home, name = path.parents[1], path.name
    for percent in CROPS:
        _save(cropped(image, percent), home / f"crops/{percent}" / name, 90)
    for quality in QUALITIES:
        _save(image, home / f"jpegqual/{quality}" / name, quality)
    for n in range(1, job.strong + 1):
        _save(strong_edit(image, rng), home / f"strong/{int(path.stem) + n}.jpg", 85)


def _write_all(folder, seed, jobs):
    """Write the files of the jobs; returns how many they are."""
    for job in jobs:
        _write(folder, seed, job)
    return sum(job.files for job in jobs)


def _written(folder, seed, jobs, workers):
    """Write the files of the jobs with that many processes; yields the number of files chunk by chunk."""
    chunks = [jobs[i : i + CHUNK] for i in range(0, len(jobs), CHUNK)]
    if workers == 1:
        yield from (_write_all(folder, seed, chunk) for chunk in chunks)
        return
    context = multiprocessing.get_context(
        "spawn"
    )  # a fork of a process with threads (torch, Jupyter) may hang
    pool = ProcessPoolExecutor(min(workers, len(chunks)), mp_context=context)
    try:
        for future in as_completed([pool.submit(_write_all, folder, seed, chunk) for chunk in chunks]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _checked(sizes, seed, workers):
    """Raise ValueError, naming the field, for a number that cannot be."""
    limits = {f"sizes.{f.name}": (getattr(sizes, f.name), 1, getattr(_MOST, f.name)) for f in fields(sizes)}
    limits |= {"seed": (seed, 0, 2**63), "workers": (workers, 1, 1024)}
    for name, (value, least, most) in limits.items():
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"{name} must be a whole number from {least} to {most}, not {value!r}")


def _complete(root, record):
    """Whether the set of that record is at root; raises if something else is there."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    if not (root / "mini.json").is_file():
        raise FileExistsError(f"{root} exists and is not a drawn set (no mini.json): choose another folder")
    found = json.loads((root / "mini.json").read_text())
    unlike = [
        f"{key} {found.get(key)!r} instead of {record[key]!r}"
        for key in record
        if found.get(key) != record[key]
    ]
    if unlike:
        raise ValueError(
            f"{root} holds another set ({'; '.join(unlike)}): delete the folder or choose another"
        )
    return True


def make_mini(root, *, seed=0, sizes=None, workers=None, progress=False) -> Path:
    """Draw the set under `root` and return its path; at once if that very set is there already.

    `sizes` is a `MiniSizes` (None: the default one). `workers` processes draw (None: one for each core; 1:
    this one): a script that calls this with more than one needs the usual `if __name__ == "__main__":`.
    `progress` shows a bar. The set appears under `root` only when whole: an interrupted call leaves nothing
    and may be repeated.

    Raises ValueError for sizes, a seed or workers that cannot be, or if `root` holds a set of another seed,
    sizes or version; FileExistsError if it holds anything else.
    """
    root, sizes = Path(root).absolute(), MiniSizes() if sizes is None else sizes
    workers = (os.cpu_count() or 1) if workers is None else workers
    _checked(sizes, seed, workers)
    jobs = plan(sizes)
    record = {"version": VERSION, "seed": seed, "sizes": asdict(sizes)}
    if _complete(root, record):
        return root
    partial = root.with_name(f"{root.name}.partial-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        partial.mkdir(parents=True)
        done = _written(partial, seed, jobs, workers)
        if progress:
            chunks = -(-len(jobs) // CHUNK)
            done = watched(done, "drawing the embedded dataset", total=chunks, unit="chunk")
        total = sum(done)
        names = "".join(f"n{1000001 + c:08d} {name}\n" for c, name in enumerate(CLASS_NAMES))
        (partial / "imagenet/classes.txt").write_text(names)
        (partial / "mini.json").write_text(json.dumps(record | {"files": total}, indent=1) + "\n")
        try:
            os.rename(partial, root)
        except OSError:
            if not _complete(root, record):  # else another process was faster, and its set is the same
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root
