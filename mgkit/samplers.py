"""Which images make a batch: repeated augmentation for training, one shape a batch for `rect` evaluation."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class RepeatedAugmentationSampler(Sampler[list[int]]):
    """Batches of indices in which every image stands `repetitions` times, side by side (section 3.4).

    An epoch has `int(len_factor * dataset_len)` samples: one image after the other, each `repetitions` times, in a fresh
    permutation whenever the last is used up. Corner cases: copies run on across the border of two batches where
    batch_size is no multiple of repetitions; the last batch may be short (`drop_last` leaves it out); the epoch may
    end in the middle of an image's copies; more copies than the epoch has samples is allowed.

    dataset_len: images. batch_size: samples a global batch, of which rank `rank` of `world_size` gets its contiguous
    share. seed: with `set_epoch`, the whole order; it is the same on every rank. Raises ValueError for counts below one,
    a batch smaller than `repetitions` or than `world_size`.
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
        for name, value in [
            ("dataset_len", dataset_len),
            ("batch_size", batch_size),
            ("repetitions", repetitions),
        ]:
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if int(len_factor * dataset_len) < 1:
            raise ValueError(f"len_factor {len_factor} leaves no sample of {dataset_len} images in an epoch")
        if batch_size < repetitions:
            raise ValueError(f"batch_size {batch_size} is smaller than repetitions {repetitions}")
        if not 0 <= rank < world_size <= batch_size:
            raise ValueError(
                f"need 0 <= rank < world_size <= batch_size, got {rank}, {world_size}, {batch_size}"
            )
        self.dataset_len, self.batch_size, self.repetitions = dataset_len, batch_size, repetitions
        self.samples = int(len_factor * dataset_len)
        self.shuffle, self.drop_last, self.seed = shuffle, drop_last, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order `__iter__` gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return (
            self.samples // self.batch_size if self.drop_last else math.ceil(self.samples / self.batch_size)
        )

    def __iter__(self) -> Iterator[list[int]]:
        order = self.order()
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            batch = order[start : start + self.batch_size]
            yield batch[share(len(batch), self.rank, self.world_size)]

    def order(self) -> list[int]:
        """The epoch's samples in order, all ranks together: `int(len_factor * dataset_len)` indices."""
        images = math.ceil(self.samples / self.repetitions)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        passes = math.ceil(images / self.dataset_len)
        if self.shuffle:
            order = torch.cat([torch.randperm(self.dataset_len, generator=generator) for _ in range(passes)])
        else:
            order = torch.arange(self.dataset_len).repeat(passes)
        return order[:images].repeat_interleave(self.repetitions)[: self.samples].tolist()


def share(length: int, part: int, parts: int) -> slice:
    """The part's contiguous share of so many samples; shares differ by one sample at most, and together are all."""
    return slice(length * part // parts, length * (part + 1) // parts)


def same_shape_batches(shapes: Sequence[tuple[int, int]], batch_size: int) -> list[list[int]]:
    """Indices in batches of equal (height, width), each of `batch_size` or fewer; every index once.

    Batches are ordered by their first image, so that a sequential read of a folder stays nearly sequential.
    """
    by_shape: dict[tuple[int, int], list[int]] = {}
    for i, shape in enumerate(shapes):
        by_shape.setdefault(tuple(shape), []).append(i)
    batches = [
        same[start : start + batch_size]
        for same in by_shape.values()
        for start in range(0, len(same), batch_size)
    ]
    return sorted(batches)
