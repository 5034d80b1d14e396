"""Batch samplers: repeated augmentation for training, batches of equal image shape for evaluation."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class RepeatedAugmentationSampler(Sampler[list[int]]):
    """Sample batches that hold each image `repetitions` times, side by side (section 3.4).

    An epoch has `int(len_factor * dataset_len)` samples. Images follow a random permutation; a new one starts
    when the last is used up. Copies continue in the next batch if batch_size is no multiple of repetitions.
    The epoch may end within the copies of an image. The last batch may be smaller.

    dataset_len: number of images
    batch_size: size of the global batch (samples); rank `rank` of `world_size` gets a contiguous share of it
    repetitions: samples per image; may exceed the samples of an epoch
    len_factor: length of an epoch (multiple of dataset_len)
    shuffle: permute the images; otherwise they are in order
    drop_last: leave out an incomplete last batch
    seed: with `set_epoch`, determines the order on all ranks

    Raises ValueError for counts < 1, and for a batch_size < repetitions or < world_size.
    """

    def __init__(
        self,
        dataset_len: int,
        batch_size: int,
        repetitions: int = 3,
        len_factor: float = 1.0,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        counts = {"dataset_len": dataset_len, "batch_size": batch_size, "repetitions": repetitions}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if int(len_factor * dataset_len) < 1:
            raise ValueError(f"len_factor {len_factor} of {dataset_len} images gives an empty epoch")
        if batch_size < repetitions:
            raise ValueError(f"batch_size {batch_size} is smaller than repetitions {repetitions}")
        if not 0 <= rank < world_size <= batch_size:
            got = f"{rank}, {world_size}, {batch_size}"
            raise ValueError(f"need 0 <= rank < world_size <= batch_size, got {got}")
        self.dataset_len, self.batch_size, self.repetitions = dataset_len, batch_size, repetitions
        self.samples = int(len_factor * dataset_len)
        self.shuffle, self.drop_last, self.seed = shuffle, drop_last, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which with the seed determines the order."""
        self.epoch = epoch

    def __len__(self) -> int:
        batches = self.samples / self.batch_size
        return math.floor(batches) if self.drop_last else math.ceil(batches)

    def __iter__(self) -> Iterator[list[int]]:
        order = self.order()
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            batch = order[start : start + self.batch_size]
            yield batch[share(len(batch), self.rank, self.world_size)]

    def order(self) -> list[int]:
        """Return the indices of the epoch for all ranks, `int(len_factor * dataset_len)` of them."""
        images = math.ceil(self.samples / self.repetitions)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        passes = math.ceil(images / self.dataset_len)
        if self.shuffle:
            order = torch.cat([torch.randperm(self.dataset_len, generator=generator) for _ in range(passes)])
        else:
            order = torch.arange(self.dataset_len).repeat(passes)
        return order[:images].repeat_interleave(self.repetitions)[: self.samples].tolist()


def share(length: int, part: int, parts: int) -> slice:
    """Return the contiguous slice of `length` samples for one of `parts`; sizes differ by at most one."""
    return slice(length * part // parts, length * (part + 1) // parts)


def same_shape_batches(shapes: Sequence[tuple[int, int]], batch_size: int) -> list[list[int]]:
    """Group indices into batches of equal shape.

    shapes: height and width of each image (px)
    batch_size: largest size of a batch

    Batches are ordered by their first image, so that files are still read nearly in order.
    """
    by_shape: dict[tuple[int, int], list[int]] = {}
    for i, shape in enumerate(shapes):
        by_shape.setdefault(tuple(shape), []).append(i)
    batches = [
        same[i : i + batch_size] for same in by_shape.values() for i in range(0, len(same), batch_size)
    ]
    return sorted(batches)
