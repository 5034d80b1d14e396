"""06's embedding of photos of 12 megapixels from files, relative to its network, and to network and decoder.

Most of a decoder's time goes into the entropy code of all pixels, whatever the resolution wanted. Where it
takes as long as the network, 06 cannot have the network's rate on cores that both keep busy.
"""

import os
import tempfile
from collections.abc import Callable
from itertools import count
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from measuring import Row, compared, photo_folder
from PIL import Image
from torch import Tensor

from mgkit.config import PHOTO_BACKBONE, PHOTO_P, PHOTO_SIZE
from mgkit.data.images import UNLABELLED
from mgkit.data.layouts import class_folders
from mgkit.features import Passes, frozen_backbone
from mgkit.machine.device import autocast
from mgkit.model import get_multigrain
from mgkit.photos.embedding.growing import growing_features
from mgkit.photos.folder import PhotoList
from mgkit.pooling import gem

LARGE = 4000, 3000  # px
WORKERS = 2
FILES, NAMES = 24, 5  # different files, names of each: 120 photos
NOISE = 4.0  # standard deviation, grey levels: of 2 MB each at quality 88


def large_photos(folder: Path) -> PhotoList:
    """Photos enlarged to 12 megapixels, with noise; one in four upright."""
    of_disk, random = class_folders(str(photo_folder())), np.random.default_rng(0)
    noise = random.normal(0, NOISE, (LARGE[1], LARGE[0], 1)).astype(np.float32)
    paths = []
    for k in range(FILES):
        levels = np.asarray(of_disk.load(k % len(of_disk)).resize(LARGE, Image.Resampling.BICUBIC))
        noisy = Image.fromarray((levels + np.roll(noise, 997 * k, axis=1)).clip(0, 255).astype(np.uint8))
        first = folder / f"{k:03d}.jpg"
        (noisy if k % 4 else noisy.rotate(90, expand=True)).save(first, quality=88)
        for number in range(1, NAMES):
            os.link(first, folder / f"{k:03d}-{number}.jpg")
        paths += [str(first), *(str(folder / f"{k:03d}-{number}.jpg") for number in range(1, NAMES))]
    return PhotoList(folder, tuple(paths), np.full(len(paths), UNLABELLED), exif=True, side=PHOTO_SIZE)


def batches_of(images: PhotoList, batch: int) -> list[Tensor]:
    """Batches [B,3,H,W] of random pixels, of the photos' shapes."""
    sizes = [images.fitted_size(i) for i in range(len(images))]
    found = []
    for width, height in dict.fromkeys(sizes):
        rest = sizes.count((width, height))
        for start in range(0, rest, batch):
            shape = min(batch, rest - start), 3, height, width
            found.append(torch.randn(shape).to(memory_format=torch.channels_last))
    return found


def decode(path: str) -> None:
    """A JPEG at the lowest resolution that the network needs."""
    with Image.open(path) as image:
        image.draft(None, (PHOTO_SIZE, PHOTO_SIZE))
        image.load()


def passes_of(folder: Path) -> tuple[Callable, Callable, PhotoList]:
    """06's embedding of all photos, the network on as many preloaded images, and the photos."""
    net = get_multigrain(PHOTO_BACKBONE, p=PHOTO_P, pretrained_backbone=True).eval()
    images, number = large_photos(folder), count()
    backbone, batches = frozen_backbone(net), batches_of(images, batch=20)

    def ours() -> None:
        growing_features(
            net, images, size=PHOTO_SIZE, p=PHOTO_P, folder=folder / f"features-{next(number)}",
            passes=Passes(workers=WORKERS, description=None),
        )  # fmt: skip

    def alone() -> None:
        with torch.no_grad(), autocast(torch.device("cpu"), "auto"):
            for batch in batches:
                gem(backbone(batch), PHOTO_P)

    return ours, alone, images


def rows(rounds: int = 5) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder, get_context("spawn").Pool(WORKERS) as pool:
        ours, alone, images = passes_of(Path(folder))

        def both() -> None:
            pool.map(decode, images.paths, chunksize=4)
            alone()

        pool.map(decode, images.paths)  # the workers are up
        stage = f"06: photos of 12 megapixels to features, {PHOTO_SIZE} px"
        beside = {"network": alone, "decoder, then network": both}
        found = [
            compared(f"{stage}: {name}", ours, floor, rounds=rounds, wanted=0.8, work=len(images))
            for name, floor in beside.items()
        ]
    for row in found:
        del row.raw["cpu_ratio"]  # it is the workers who decode
    return found
