"""The training loader beside a plain one that anyone would write with torchvision: images a second, by turns.

    python tests/bench/bench_loader.py --data FOLDER

Part of `make bench` (`rows`). By itself it writes outputs/bench/loader.json. The plain loader is an
ImageFolder that decodes every copy anew and applies torchvision's transforms to PIL images; both use the same
batches and number of workers.
"""

import argparse
import os
import platform
from collections.abc import Iterable
from statistics import median
from time import perf_counter

import torch
from measuring import Row, compared, photo_folder, table, write_json
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from mgkit.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD
from mgkit.data.layouts import class_folders
from mgkit.data.loader import ImageDataset, SeededBatches, batch_loader
from mgkit.samplers import RepeatedAugmentationSampler
from mgkit.transforms import EIGENVALUES, EIGENVECTORS, train_transform

SIZE, BATCH, SAMPLES = 224, 96, 1152  # pixels; samples a batch; at least so many samples an epoch
SETTINGS = [("full", 3, 1.6), ("AA", 1, 1.0)]  # augmentation, copies of an image, how much faster is wanted


def plain_lighting(image: torch.Tensor) -> torch.Tensor:
    """The lighting jitter by its formula, on [3,H,W] in 0..1."""
    shift = EIGENVECTORS @ (EIGENVALUES * torch.randn(3) * 0.1)
    return ((image + shift[:, None, None]) / 1.1).clamp(0, 1)


def plain_transform(size: int, kind: str, crop_scale: float = 0.08) -> v2.Compose:
    """`train_transform` of torchvision's parts, on PIL images as far as it goes."""
    to_tensor = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    colour = {
        "torch": to_tensor,
        "full": [v2.ColorJitter(0.3, 0.3, 0.3), *to_tensor, plain_lighting],
        "senet": [v2.ColorJitter(0.2, 0.2, 0.2), *to_tensor, plain_lighting],
        "AA": [v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET, fill=128), *to_tensor],
    }
    crop = [v2.RandomResizedCrop(size, scale=(crop_scale, 1.0)), v2.RandomHorizontalFlip()]
    return v2.Compose([*crop, *colour[kind], v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)])


def rate(loader: Iterable) -> float:
    """Images a second over one pass, from asking for the first batch to the last one's arrival."""
    start, count = perf_counter(), 0
    for images, *_ in loader:
        count += len(images)
    return count / (perf_counter() - start)


def sampled(count: int, repetitions: int) -> list[list[int]]:
    """An epoch's batches over so many images, of at least SAMPLES samples."""
    factor = max(1.0, SAMPLES / count)
    return list(RepeatedAugmentationSampler(count, BATCH, repetitions, len_factor=factor))


def own_loader(folder: str, kind: str, repetitions: int, workers: int) -> DataLoader:
    """The loader as a training builds it."""
    images = class_folders(folder)
    batches = SeededBatches(sampled(len(images), repetitions))
    return batch_loader(ImageDataset(images, train_transform(SIZE, kind)), batches, workers=workers)


def plain_loader(folder: str, kind: str, repetitions: int, workers: int) -> DataLoader:
    """The same batches of the same files, in torchvision's way."""
    images = ImageFolder(folder, plain_transform(SIZE, kind))
    batches = sampled(len(images), repetitions)
    return DataLoader(images, batch_sampler=batches, num_workers=workers, persistent_workers=workers > 0)


def row(folder: str, kind: str, repetitions: int, wanted: float, *, workers: int, rounds: int) -> Row:
    """Images a second of both loaders, passes by turns, the workers being up and the files in memory."""
    own, plain = (make(folder, kind, repetitions, workers) for make in (own_loader, plain_loader))
    samples = sum(map(len, sampled(len(class_folders(folder)), repetitions)))
    found = compared(
        f"training input, {SIZE} px, {kind}, N={repetitions}", lambda: rate(own), lambda: rate(plain),
        rounds=rounds, wanted=wanted, work=samples,
    )  # fmt: skip
    del found.raw["cpu_ratio"]  # it is the workers who work
    return found


def rows(data: str = "", *, workers: int = 2, rounds: int = 5) -> list[Row]:
    folder = str(photo_folder(data))
    return [row(folder, *setting, workers=workers, rounds=rounds) for setting in SETTINGS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--data",
        default="",
        help="folder of class folders, or of train/ with them; default: MGKIT_PHOTOS, else the embedded set",
    )
    parser.add_argument("--workers", type=int, default=2, help="of each loader")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    folder, cores = str(photo_folder(options.data)), os.cpu_count() or 1
    print(f"{len(class_folders(folder))} images, batches of {BATCH}, {options.workers} workers each")
    found = rows(options.data, workers=options.workers, rounds=options.rounds)
    print(table(found))
    loader = own_loader(folder, "full", 3, cores)
    rate(loader)
    all_cores = median(rate(loader) for _ in range(options.rounds))
    print(f"full  N=3       {all_cores:8.0f}   alone, as many workers as cores ({cores})")
    capability = torch.backends.cpu.get_cpu_capability()
    result = {
        "machine": f"{platform.machine()}, {cores} cores, torch for {capability}",
        "data": options.data,
        "size": SIZE,
        "workers": options.workers,
        "rows": [each.plain() for each in found],
        "all_cores_images_per_second": all_cores,
    }
    write_json("loader.json", result)


if __name__ == "__main__":
    main()
