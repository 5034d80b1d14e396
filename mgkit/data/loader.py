"""Datasets and loaders of image lists; policy for unreadable images."""

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from mgkit.data.decoding import UnreadableImageError
from mgkit.data.images import ImageList
from mgkit.machine.device import GPUS
from mgkit.machine.distributed import all_gather_object, is_initialized, is_main
from mgkit.machine.printable import shown_name
from mgkit.machine.shared_memory import limits_named, shared_memory_named

SECONDS_FOR_A_BATCH = 900  # then a worker counts as hung: an error, after which a training restarts
SECONDS_TO_SAVE = 30  # that a worker goes on after SIGTERM

OnUnreadable = Literal["raise", "skip"]


class Batch(NamedTuple):
    """Decoded images.

    image: [B,3,H,W], or a list of [3,h,w] if shapes differ.
    label, instance: [B].
    unreadable: (path, reason) of each image left out.
    """

    image: Tensor | list[Tensor]
    label: Tensor
    instance: Tensor
    unreadable: list[tuple[str, str]]


class ImageDataset(Dataset):
    """An `ImageList` and a transform; items are (image, label, instance), instance being the index.

    `__getitems__` takes a batch of (index, seed) pairs. Each sample is augmented with its own seed, so the
    number of workers has no effect. Adjacent copies of an image are decoded once.
    """

    def __init__(self, images: ImageList, transform: Callable[[Image.Image], Tensor]):
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self.transform(self.images.load(index)), int(self.images.labels[index]), index

    def __getitems__(self, pairs: Sequence[tuple[int, int]]) -> list:
        samples, decoded, last = [], None, None
        with torch.random.fork_rng(devices=[]):
            for index, seed in pairs:
                if index != last:
                    decoded, last = self.decode(index), index
                if isinstance(decoded, UnreadableImageError):
                    samples.append((self.images.paths[index], str(decoded)))
                    continue
                # torch.manual_seed would look for accelerators too, a tenth of a millisecond each time.
                torch.default_generator.manual_seed(seed)
                samples.append((self.transform(decoded), int(self.images.labels[index]), index))
        return samples

    def first_readable(self) -> Tensor:
        """The first readable image, [3,H,W], with seed 0; UnreadableImageError if there is none."""
        for index in range(len(self)):
            [sample] = self.__getitems__([(index, 0)])
            if len(sample) == 3:
                return sample[0]
        raise UnreadableImageError(
            f"none of {len(self)} images below {shown_name(self.images.root)} is readable"
        )

    def decode(self, index: int) -> Image.Image | UnreadableImageError:
        """The image, or the error as a value: workers report errors, the main process raises them."""
        try:
            return self.images.load(index)
        except UnreadableImageError as error:
            return error


def collate(samples: list) -> Batch:
    """Items of `ImageDataset.__getitems__` -> Batch; images are stacked if they have one shape."""
    readable = [s for s in samples if len(s) == 3]
    images = [s[0] for s in readable]
    if len({image.shape for image in images}) == 1:
        images = default_collate(images)  # in a worker: into memory shared with the main process
    label, instance = (torch.tensor([s[k] for s in readable], dtype=torch.int64) for k in (1, 2))
    if get_worker_info():  # here, where an error reaches the main process; later it would wait in vain
        for tensor in (label, instance, *(images if isinstance(images, list) else ())):
            tensor.share_memory_()
    return Batch(images, label, instance, [s for s in samples if len(s) == 2])


def by_shape(batch: Batch) -> Iterator[Batch]:
    """Split a batch of unequal shapes into batches of one; the unreadable images stay with none of them."""
    if isinstance(batch.image, Tensor):
        yield batch
        return
    shapes = [image.shape for image in batch.image]
    for shape in dict.fromkeys(shapes):
        same = [i for i, of_image in enumerate(shapes) if of_image == shape]
        yield Batch(torch.stack([batch.image[i] for i in same]), batch.label[same], batch.instance[same], [])


class SeededBatches:
    """Batches of indices -> batches of (index, seed), a seed for every sample of the epoch.

    `skip` batches at the start of an epoch are left out.
    """

    def __init__(self, batches: Iterable[Sequence[int]], seed: int = 0):
        self.batches, self.seed, self.epoch, self.skip = batches, seed, 0, 0

    def __len__(self) -> int:
        return len(self.batches) - self.skip

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        start = int(np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)[0]) >> 2
        sample = 0
        for number, batch in enumerate(self.batches):
            first = self.first_sample(number, sample)
            if number >= self.skip:
                yield [(int(index), start + first + k) for k, index in enumerate(batch)]
            sample += len(batch)

    def first_sample(self, number: int, sample: int) -> int:
        """The position in the epoch of the first sample of batch `number`; on one rank it is `sample`."""
        return sample


class SharedLoader(DataLoader):
    """A DataLoader whose errors about shared memory and limits are a RefusedError that says what to do."""

    def __iter__(self) -> Iterator[Batch]:
        with limits_named(), shared_memory_named():
            yield from super().__iter__()


def batch_loader(
    dataset: ImageDataset, batches: SeededBatches, *, workers: int = 0, device: torch.device | None = None
) -> DataLoader:
    """A DataLoader of `Batch` over the given batches, in pinned memory for CUDA and XPU."""
    return SharedLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=device is not None and device.type in GPUS,
        persistent_workers=workers > 0,
        timeout=SECONDS_FOR_A_BATCH if workers else 0,
        worker_init_fn=leave_stopping_to_the_parent,
    )


def leave_stopping_to_the_parent(worker: int) -> None:
    """Delay SIGTERM in a worker: a scheduler sends it to all processes, but a training needs workers to save.

    It is not ignored, because torch and multiprocessing use it to end workers that hang.
    """
    if hasattr(signal, "alarm"):  # ends the process
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(SECONDS_TO_SAVE))


def end_workers(loader: DataLoader) -> None:
    """End a loader's workers now.

    If the garbage collector ends them, as part of a cycle such as a traceback's, torch closes their queues
    first and then waits five seconds for each.
    """
    end = getattr(getattr(loader, "_iterator", None), "_shutdown_workers", None)  # there is no public name
    if end is not None:
        end()


class UnreadableImages:
    """Policy for unreadable images: `raise` an UnreadableImageError at the first, or `skip` and list them."""

    def __init__(self, on_unreadable: OnUnreadable = "raise"):
        self.on_unreadable = on_unreadable
        self.reasons: dict[str, str] = {}

    def watch(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the loader's batches that hold a readable image; UnreadableImageError if there is none.

        With several processes, each of which sees a part of the images, this is the caller's check.
        """
        readable = False
        for batch in loader:
            self.note(batch.unreadable)
            if len(batch.label):
                readable = True
                yield batch
        self.check(readable)

    def check(self, readable: bool) -> None:
        """Raise UnreadableImageError if no image was readable, in a single process."""
        if not readable and self.reasons and not is_initialized():
            raise self.none_readable()

    def none_readable(self) -> UnreadableImageError:
        """The error if no image could be read; all processes must call it."""
        self.share()
        reason = next(iter(self.reasons.values()), "there are none")
        return UnreadableImageError(f"none of {len(self.reasons)} images is readable: {reason}")

    def share(self) -> None:
        """Gather what was noted by all processes."""
        for reasons in all_gather_object(self.reasons):
            self.reasons |= reasons

    def note(self, unreadable: Iterable[tuple[str, str]]) -> None:
        """Record (path, reason) of unreadable images; UnreadableImageError unless they are skipped."""
        for path, reason in ((path, shown_name(reason)) for path, reason in unreadable):
            if self.on_unreadable == "raise":
                raise UnreadableImageError(f"{reason} (on_unreadable='skip' leaves such files out)")
            self.reasons[path] = reason

    def report(self) -> None:
        """Print the number and the list of the images skipped by any process, if any."""
        self.share()
        if self.reasons and is_main():
            print(f"skipped {len(self.reasons)} unreadable images:")
            for reason in self.reasons.values():
                print(f"  {reason}")
