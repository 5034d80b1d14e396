"""Photographs of a realistic size, and the training input from their files against what the step eats."""

from os import environ
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
from bench_loader import rate
from gpu.lines import Line
from gpu.setting import Setting
from measuring import Row, photo_folder
from PIL import Image

from mgkit.data.images import ImageList, evenly
from mgkit.data.layouts import class_folders
from mgkit.data.loader import ImageDataset, SeededBatches, batch_loader, end_workers
from mgkit.mini.photographs import ALONE, GROUPS, SECOND_VIEWS, packaged
from mgkit.samplers import RepeatedAugmentationSampler
from mgkit.transforms import train_transform

CLASSES = tuple("0123456789")
SHAPES = (
    [(1, 0.75)] * 8 + [(0.75, 1)] * 4 + [(1, 0.67)] * 3 + [(0.67, 1), (1, 1), (1, 0.8), (0.8, 1), (1, 0.6)]
)
QUALITY = 90
MOST = 128  # images of a batch: loading processes hold 2.5 GB of 224 px, 16 of them
SETTINGS = [("full", 3), ("AA", 1)]  # augmentation, copies of an image


def write_pictures(folder: Path, count: int, side: int) -> None:
    """JPEG files of `side` px: parts of photographs, those in MGKIT_PHOTOS or else of the packages."""
    random = np.random.default_rng(0)
    whole = photographs()
    for k in range(count):
        picture = whole[k % len(whole)]
        width, height = (max(8, round(side * part)) for part in SHAPES[random.integers(len(SHAPES))])
        scale = random.uniform(0.6, 1) * min(picture.width / width, picture.height / height)
        w, h = scale * width, scale * height
        x, y = random.uniform(0, picture.width - w), random.uniform(0, picture.height - h)
        part = picture.resize((width, height), Image.Resampling.BICUBIC, box=(x, y, x + w, y + h))
        part.save(folder / f"{k:05d}.jpg", quality=QUALITY)


def photographs() -> list[Image.Image]:
    """At most 100 photographs of MGKIT_PHOTOS, evenly spread, or those of the packages."""
    if environ.get("MGKIT_PHOTOS"):
        given = class_folders(photo_folder())
        return [given.load(i) for i in evenly(len(given), 100)]
    every = [*GROUPS.values(), *SECOND_VIEWS.values(), *ALONE.values()]
    found = []
    for photograph in every:
        with Image.open(packaged(photograph)) as image:
            found.append(image.convert("RGB"))
    return found


def picture_list(folder: Path) -> ImageList:
    """The files of `write_pictures`, with made-up classes."""
    paths = tuple(map(str, sorted(folder.glob("*.jpg"))))
    return ImageList(folder, paths, np.arange(len(paths)) % len(CLASSES), CLASSES)


def input_line(setting: Setting, kind: str, repetitions: int) -> Line:
    """Images a second from files to batches, beside those of the training step.

    At the limit, every file is decoded once for all its copies, and nothing else takes time.
    """
    sizes = setting.sizes
    batch = min(sizes.batch, MOST)
    workers = setting.loaders(12 * batch * sizes.size**2)
    images = picture_list(setting.pictures)
    samples = 8 * max(1, workers) * batch  # eight batches for every process
    batches = list(
        RepeatedAugmentationSampler(len(images), batch, repetitions, len_factor=samples / len(images))
    )
    loader = batch_loader(
        ImageDataset(images, train_transform(sizes.size, kind)), SeededBatches(batches), workers=workers,
        device=setting.device,
    )  # fmt: skip
    rate(loader)  # starts the processes
    found, began = [], perf_counter()
    while len(found) < 2 or (len(found) < sizes.rounds and perf_counter() - began < setting.seconds / 4):
        found.append(rate(loader))
    end_workers(loader)
    images_a_second, name = median(found), f"training input, {sizes.size} px, {kind}, N={repetitions}"
    share = setting.of_limit(images_a_second / repetitions, 1, "decoding")
    remark = f"processes: {workers}; the floor is the step's rate, measured before"
    if "step" not in setting.known:
        text = f"{images_a_second:.4g} images/s"
        return Line(name, text=text, limit="decoding", share=share, remark="the step was not measured")
    step = setting.known["step"]
    raw = {"seconds": [1 / each for each in found], "floor_seconds": [1 / step] * len(found)}
    row = Row(name, images_a_second, step, "images/s", images_a_second / step, 1.0, False, raw=raw)
    return Line(name, row, limit="decoding", share=share, remark=remark)


def lines(setting: Setting) -> list[Line]:
    return [input_line(setting, *each) for each in SETTINGS]
