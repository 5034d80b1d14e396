"""The training loader beside a plain one that anyone would write with torchvision: images a second, by turns.

    python tests/bench/bench_loader.py --data FOLDER

Run by `make bench`; writes outputs/bench/loader.json. The plain loader is an ImageFolder, decoded anew for every copy, and
torchvision's transforms on PIL images; both go through the same batches with as many workers.
"""

import argparse
import json
import os
import platform
from collections.abc import Iterable
from statistics import median
from time import perf_counter

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from mgkit.backbones import IMAGENET_MEAN, IMAGENET_STD
from mgkit.datasets import ImageDataset, SeededBatches, batch_loader, class_folders, dataset_root
from mgkit.experiment import data_root
from mgkit.files import atomic_write, project_root
from mgkit.imagenet import split_folder
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


def by_turns(folder: str, kind: str, repetitions: int, workers: int, rounds: int) -> dict:
    """Rates of both loaders over so many passes each, one after the other, the workers being up; the median of their ratios."""
    loaders = [make(folder, kind, repetitions, workers) for make in (own_loader, plain_loader)]
    for loader in loaders:
        rate(loader)  # starts the workers, and reads the files into memory
    rates = [[rate(loader) for loader in loaders] for _ in range(rounds)]
    own, plain = zip(*rates, strict=True)
    return {
        "images_per_second": own,
        "plain_images_per_second": plain,
        "ratio": median(a / b for a, b in rates),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--data",
        default=os.environ.get("MGKIT_PHOTOS") or "mini",
        help="a folder of class folders, or of train/ with them; default: MGKIT_PHOTOS, else the embedded set",
    )
    parser.add_argument("--workers", type=int, default=2, help="of each loader")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    root = dataset_root(data_root(options.data))
    folder, cores = str(split_folder(root, "train") or root), os.cpu_count() or 1
    print(
        f"{len(class_folders(folder))} images, {SIZE} px, batches of {BATCH}, {options.workers} workers each"
    )
    print("                images/s   plain   ratio  wanted")
    found = {}
    for kind, repetitions, wanted in SETTINGS:
        row = by_turns(folder, kind, repetitions, options.workers, options.rounds) | {"wanted": wanted}
        own, plain = (median(row[name]) for name in ("images_per_second", "plain_images_per_second"))
        found[f"{kind}, N={repetitions}"] = row
        print(f"{kind:5} N={repetitions}       {own:8.0f} {plain:7.0f} {row['ratio']:7.2f} {wanted:7.1f}")
    loader = own_loader(folder, "full", 3, cores)
    rate(loader)
    all_cores = median(rate(loader) for _ in range(options.rounds))
    print(f"full  N=3       {all_cores:8.0f}   alone, as many workers as cores ({cores})")
    result = {
        "machine": f"{platform.machine()}, {cores} cores, torch for {torch.backends.cpu.get_cpu_capability()}",
        "data": options.data,
        "size": SIZE,
        "workers": options.workers,
        "compared": found,
        "all_cores_images_per_second": all_cores,
    }
    with atomic_write(project_root() / "outputs" / "bench" / "loader.json") as path:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
