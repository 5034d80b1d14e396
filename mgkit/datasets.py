"""Image lists -> (image, class, instance): ImageNet's layout, any class-folder tree, plain folders and lists."""

import hashlib
import os
import re
import signal
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from mgkit.imagenet import SPLIT_FOLDERS, devkit_wnids, split_folder, validation_labels
from mgkit.index import FolderIndex, image_files, image_index
from mgkit.machine.distributed import everyones, is_joined, is_main

UNLABELLED = -1
ROTATION_TAG = 0x0112  # of EXIF data
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by the values of the rotation tag
SECONDS_FOR_A_BATCH = (
    900  # after which a reading process counts as hung: an error, which has a training start again
)
SECONDS_TO_SAVE = 30  # that a loader's process goes on after SIGTERM

OnUnreadable = Literal["raise", "skip"]


class UnreadableImageError(OSError):
    """An image file that cannot be decoded; the message names it and says why."""


@dataclass(frozen=True)
class View:
    """What of an image file is taken: the whole, or else turned, then cropped.

    turned: degrees clockwise, 0, 90, 180 or 270, which moves pixels and loses none. box: (x1, y1, x2, y2) in pixels of the turned
    image, rounded to whole ones; what of it lies outside the image is black, as PIL crops.
    """

    turned: Literal[0, 90, 180, 270] = 0
    box: tuple[float, float, float, float] | None = None

    def of(self, image: Image.Image) -> Image.Image:
        """The view of an image; ValueError for a box without a pixel of it."""
        if self.turned:
            image = image.rotate(-self.turned, expand=True)
        return image.crop(self.bounds(image.size)) if self.box else image

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) of the view of an image of that (width, height); raises as `of`."""
        if self.turned in (90, 270):
            size = size[::-1]
        if not self.box:
            return size
        left, top, right, bottom = self.bounds(size)
        return right - left, bottom - top

    def bounds(self, size: tuple[int, int]) -> tuple[int, ...]:
        """The box in whole pixels; ValueError unless it holds one of an image of that (width, height)."""
        left, top, right, bottom = bounds = tuple(map(round, self.box))
        if min(right, size[0]) <= max(left, 0) or min(bottom, size[1]) <= max(top, 0):
            raise ValueError(f"the box {self.box} holds no pixel of {size[0]} x {size[1]}")
        return bounds


WHOLE = View()


@dataclass(frozen=True)
class ImageList:
    """N images with their classes.

    root: the folder they come from. paths: N absolute paths. labels: [N] int64, index into `classes`, or -1 throughout.
    exif: whether the camera's rotation tag is applied (a user's own photos) or not (benchmark sets); a TIFF's always is.
    views: by index, of the images that are not taken as they are; one file may be there whole and cropped.
    """

    root: Path
    paths: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...] = ()
    exif: bool = False
    views: Mapping[int, View] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int, *, least: int | None = None) -> Image.Image:
        """Image `index` as RGB, rotated and cropped as the list says; least, and what is raised: as for `load_image`."""
        view = self.views.get(int(index), WHOLE)
        return load_image(self.paths[index], exif=self.exif, view=view, least=least)

    def subset(self, indices: Iterable[int]) -> "ImageList":
        """The images of those indices, in their order."""
        indices = np.fromiter(indices, dtype=np.int64)
        old = indices.tolist()
        views = {new: self.views[i] for new, i in enumerate(old) if i in self.views} if self.views else {}
        return replace(
            self, paths=tuple(self.paths[i] for i in old), labels=self.labels[indices], views=views
        )

    def first_per_class(self, count: int) -> "ImageList":
        """The first `count` images of every class (all, where a class has fewer)."""
        order = np.argsort(self.labels, kind="stable")
        taken = order[place_in_class(self.labels[order]) < count]
        return self.subset(np.sort(taken))

    def with_exif(self, exif: Literal["auto", "apply", "ignore"]) -> "ImageList":
        """`apply` or `ignore` the rotation tag; `auto` leaves what the layout suggests."""
        return self if exif == "auto" else replace(self, exif=exif == "apply")


def list_hash(images: ImageList) -> str:
    """SHA-256 over the paths below `root` and the labels, in their order; no image is opened.

    Two copies of a dataset, wherever they lie, have the same. Of an image elsewhere than below root, as a text file may list
    it, the whole path counts.
    """
    root = images.root.resolve()
    below = os.path.join(root.parent if root.is_file() else root, "")
    names = "\0".join(path.removeprefix(below) for path in images.paths)
    digest = hashlib.sha256(os.fsencode(names) + b"\0")
    digest.update(images.labels.astype("<i8").tobytes())
    return digest.hexdigest()


def check_folder(folder: str | Path, purpose: str) -> Path:
    """The folder as a path; FileNotFoundError, NotADirectoryError or PermissionError that names it and its purpose."""
    folder = Path(folder)
    try:
        exists = folder.exists()
    except OSError as error:  # a folder around it may not be entered
        raise type(error)(f"{purpose}: the folder {folder} cannot be read ({error.strerror})") from None
    if not exists:
        raise FileNotFoundError(f"{purpose}: the folder {folder} does not exist")
    if not folder.is_dir():
        raise NotADirectoryError(f"{purpose}: {folder} is not a folder")
    return folder


def class_folders(folder: str | Path, *, purpose: str = "images") -> ImageList:
    """One class a sub-folder, sorted by name; images anywhere below it.

    Raises FileNotFoundError for a missing folder, ValueError for one without sub-folders or a class without images.
    """
    folder = check_folder(folder, purpose)
    return by_sub_folder(folder, image_index(folder), purpose)


def by_sub_folder(folder: Path, index: FolderIndex, purpose: str) -> ImageList:
    """The indexed images of a folder, one class a sub-folder; ValueError where that gives no classes, or an empty one."""
    classes = tuple(index.sub_folders())
    if not classes:
        raise ValueError(f"{purpose}: {folder} has no class folders (expected {folder}/<class>/<image>.jpg)")
    runs = [index.below(name) for name in classes]
    counts = [run.stop - run.start for run in runs]
    if 0 in counts:
        raise ValueError(f"{purpose}: the class folder {folder / classes[counts.index(0)]} holds no images")
    everything = index.paths()
    paths = tuple(chain.from_iterable(everything[run] for run in runs))
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), counts)
    # ImageNet's classes are WordNet ids; other trees are taken for the user's own photos.
    wordnet = all(re.fullmatch(r"n\d{8}", name) for name in classes)
    return ImageList(folder, paths, labels, classes, exif=not wordnet)


def plain_images(source: str | Path, *, purpose: str = "images") -> ImageList:
    """Unlabelled images: everything below a folder, or a text file that lists one path a line.

    Paths in a list are relative to the list's folder; blank lines and lines that start with # are skipped. Raises
    FileNotFoundError for a missing source or listed file (naming the first), ValueError for an empty one.
    """
    source = Path(source)
    paths = read_list(source, purpose) if source.is_file() else image_files(check_folder(source, purpose))
    if not paths:
        raise ValueError(f"{purpose}: {source} holds no images")
    return ImageList(source, tuple(paths), np.full(len(paths), UNLABELLED, dtype=np.int64), exif=True)


def read_list(listing: Path, purpose: str) -> list[str]:
    """The absolute paths that a text file lists; FileNotFoundError names the first that is missing."""
    try:
        lines = [line.strip() for line in listing.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError:
        raise ValueError(
            f"{purpose}: {listing} is neither a folder nor a text file that lists images"
        ) from None
    paths = [str((listing.parent / line).resolve()) for line in lines if line and not line.startswith("#")]
    repeated = [path for path, times in Counter(paths).items() if times > 1]
    if repeated:
        raise ValueError(
            f"{purpose}: {listing} lists {len(repeated)} files more than once, the first is {repeated[0]}"
        )
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise FileNotFoundError(
            f"{purpose}: {listing} lists {len(missing)} missing files, the first is {missing[0]}"
        )
    return paths


def labelled_images(root: str | Path, *, val_fraction: float = 0.1) -> tuple[ImageList, ImageList]:
    """Training and validation images of an ImageNet-layout tree, or of any class-folder tree.

    With `imagenet/` below root, that is taken for root. With `train/` and `val/` below root, those; `val/` may be flat, as
    ImageNet's original is, with the devkit beside it. Otherwise root's own sub-folders are the classes, and about
    `val_fraction` of each class, chosen by a hash of the file's path, is held out for validation. Raises ValueError for a
    split without the other, and for validation classes that training lacks.
    """
    root = dataset_root(root)
    train_folder, val_folder = split_folder(root, "train"), split_folder(root, "val")
    if train_folder is None and val_folder is None:
        return hold_out(class_folders(root, purpose="data"), val_fraction)
    if train_folder is None or val_folder is None:
        lacking = "train" if train_folder is None else "val"
        raise ValueError(
            f"data: {root} has no {' or '.join(SPLIT_FOLDERS[lacking])} folder beside the other split"
        )
    train = class_folders(train_folder, purpose="training images")
    val = val_images(val_folder, root)
    return train, relabelled(val, train.classes, f"those of {train_folder}")


def validation_images(root: str | Path, *, val_fraction: float = 0.1) -> ImageList:
    """The validation images of `labelled_images`. A `val/` without `train/` will do if ImageNet's devkit lies beside it.

    Raises FileNotFoundError for a missing devkit, and what `labelled_images` raises.
    """
    tree = dataset_root(root)
    val_folder = split_folder(tree, "val")
    if val_folder is None or split_folder(tree, "train") is not None:
        return labelled_images(root, val_fraction=val_fraction)[1]
    classes = tuple(sorted(devkit_wnids(tree).values()))
    return relabelled(val_images(val_folder, tree), classes, "the devkit's classes")


def dataset_root(root: str | Path) -> Path:
    """`root/imagenet` where that exists, else root; FileNotFoundError or NotADirectoryError names a wrong root."""
    root = check_folder(root, "data")
    return root / "imagenet" if (root / "imagenet").is_dir() else root


def val_images(folder: Path, root: Path) -> ImageList:
    """The images of a val/ folder: one class a sub-folder, or all in the folder itself and the devkit below root.

    Raises ValueError for a mixture of both.
    """
    purpose = "validation images"
    index = image_index(check_folder(folder, purpose))
    loose = [image for image in index.images if os.sep not in image]
    if not loose:
        return by_sub_folder(folder, index, purpose)
    if index.sub_folders():
        raise ValueError(
            f"{purpose}: {folder} holds both folders ({index.sub_folders()[0]}) and images ({loose[0]}): "
            "expected class folders only, or ImageNet's flat original"
        )
    classes, labels = validation_labels(loose, root)
    return ImageList(folder, tuple(index.paths()), labels, classes)


def relabelled(images: ImageList, classes: tuple[str, ...], whose: str) -> ImageList:
    """The same images with labels that index `classes`; ValueError names one of their classes that is not `whose`."""
    used = [images.classes[label] for label in np.unique(images.labels)]
    unknown = sorted(set(used) - set(classes))
    if unknown:
        raise ValueError(f"data: the class {unknown[0]} of {images.root} is not among {whose}")
    position = {name: label for label, name in enumerate(classes)}
    to_label = np.array([position.get(name, UNLABELLED) for name in images.classes])
    return replace(images, labels=to_label[images.labels], classes=classes)


def hold_out(images: ImageList, fraction: float) -> tuple[ImageList, ImageList]:
    """Split each class by a hash of the path below root: at least one image on either side.

    Raises ValueError for a class of one image, or a fraction outside (0,1).
    """
    if not 0 < fraction < 1:
        raise ValueError(f"val_fraction must lie between 0 and 1, got {fraction}")
    counts = np.bincount(images.labels, minlength=len(images.classes))  # [K]
    if counts.min() < 2:
        name = images.classes[counts.argmin()]
        raise ValueError(
            f"data: the class {name} of {images.root} has one image; two are needed to hold one out"
        )
    prefix = os.path.join(images.root.resolve(), "")
    hashes = [zlib.crc32(os.fsencode(path[len(prefix) :])) for path in images.paths]
    held_out = np.clip(np.rint(fraction * counts), 1, counts - 1)
    order = np.lexsort((hashes, images.labels))  # by class, by hash within a class
    val = np.zeros(len(images), dtype=bool)
    val[order] = place_in_class(images.labels[order]) < held_out[images.labels[order]]
    return images.subset(np.flatnonzero(~val)), images.subset(np.flatnonzero(val))


def evenly(total: int, count: int) -> np.ndarray:
    """Indices of at most `count` of so many things, evenly spread over them, the first and the last among them."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).astype(int))


def place_in_class(labels: np.ndarray) -> np.ndarray:
    """How many equal labels stand before each of the sorted labels, [N] -> [N]."""
    return np.arange(len(labels)) - np.searchsorted(labels, labels)


def load_image(
    path: str | Path, *, exif: bool = False, view: View = WHOLE, least: int | None = None
) -> Image.Image:
    """The image as RGB: grey, palette, CMYK, 16-bit and transparent ones are converted (transparent on white).

    exif: first of all, the rotation tag is applied; a TIFF's always is, by PIL. view: what is taken of the image. least: for a
    thumbnail, sides of so many pixels will do; a whole JPEG is then decoded at 1/2, 1/4 or 1/8, in a fraction of time and memory.
    Raises UnreadableImageError, naming the file, for a missing, truncated or non-image one, and for a view that shows nothing of it.
    """
    with decoding(lambda error: cannot_read(path, error)), Image.open(path) as image:
        if least is not None and view == WHOLE:
            image.draft(None, (least, least))
        image.load()
        return view.of(turned(to_rgb(image), rotation(image) if exif else 1))


@contextmanager
def decoding(message: Callable[[Exception], str]) -> Iterator[None]:
    """Whatever error PIL raises in the block becomes an UnreadableImageError with its message: a damaged file may raise anything.

    Too little memory is not the file's fault, and stays a MemoryError.
    """
    try:
        yield
    except (MemoryError, UnreadableImageError):
        raise
    except Exception as error:
        raise UnreadableImageError(message(error)) from None


def cannot_read(path: str | Path, error: Exception) -> str:
    return f"cannot read the image {path}: {reason(path, error)}"


def reason(path: str | Path, error: Exception) -> str:
    """Why a file cannot be read, for a person, on one line."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image" if os.path.getsize(path) else "the file is empty"
    return getattr(error, "strerror", None) or in_words(error)


def in_words(error: Exception) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def rotation(image: Image.Image) -> int:
    """The value 1 to 8 of an opened image's rotation tag; 1, which leaves it as it is, where there is none or it cannot be made out.

    A TIFF that is loaded is turned, and has no such tag any more.
    """
    try:
        tag = image.getexif().get(ROTATION_TAG)
        return tag if tag in TURNS else 1
    except MemoryError:
        raise
    except Exception:  # malformed EXIF data may raise anything
        return 1


def turned(image: Image.Image, rotation: int) -> Image.Image:
    """The image turned as a rotation tag of that value says, with no tags left that would have it turned again.

    PIL's own `exif_transpose` writes the other tags anew, which fails where one is malformed.
    """
    if rotation not in TURNS:
        return image
    image = image.transpose(TURNS[rotation])
    image.info = {}
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL mode -> RGB."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):  # 16-bit grey: PIL would clip instead of scale
        return Image.fromarray((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def image_shapes(images: ImageList) -> list[tuple[int, int]]:
    """(width, height) of every image as it is loaded, from the file headers; an unreadable one counts as (1, 1)."""
    return [image_shape(path, images.exif, images.views.get(i, WHOLE)) for i, path in enumerate(images.paths)]


def image_shape(path: str, exif: bool, view: View) -> tuple[int, int]:
    """`image_shapes` of one file."""
    try:
        with Image.open(path) as image:
            size = image.size
            if image.format == "TIFF":  # PIL turns it in any case, and may say so in `size` beforehand
                size, exif = (image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH]), True
            swapped = exif and rotation(image) in (5, 6, 7, 8)
            return view.size(size[::-1] if swapped else size)
    except MemoryError:
        raise
    except Exception:  # a damaged file may raise anything
        return 1, 1


class Batch(NamedTuple):
    """image: [B,3,H,W], or a list of [3,h,w] where shapes differ. label, instance: [B]. unreadable: (path, reason) of each image left out."""

    image: Tensor | list[Tensor]
    label: Tensor
    instance: Tensor
    unreadable: list[tuple[str, str]]


class ImageDataset(Dataset):
    """An `ImageList` and a transform. An item is (image, label, instance): the instance is the image's own index.

    `__getitems__` takes a batch of (index, seed) pairs: each sample's augmentation is drawn from its own seed, so it does
    not depend on the number of workers, and copies that stand side by side share one decoding.
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

    def decode(self, index: int) -> Image.Image | UnreadableImageError:
        """The image, or the error, as a value: raising is the main process's business, workers only report."""
        try:
            return self.images.load(index)
        except UnreadableImageError as error:
            return error


def collate(samples: list) -> Batch:
    """What `ImageDataset.__getitems__` gives -> Batch; images are stacked if all have one shape."""
    readable = [s for s in samples if len(s) == 3]
    images = [s[0] for s in readable]
    if len({image.shape for image in images}) == 1:
        images = default_collate(images)  # in a worker into memory that is shared with the main process
    label, instance = (torch.tensor([s[k] for s in readable], dtype=torch.int64) for k in (1, 2))
    return Batch(images, label, instance, [s for s in samples if len(s) == 2])


class SeededBatches:
    """Batches of indices -> batches of (index, seed), a seed for every sample of the epoch.

    `skip` batches at the front of an epoch are passed over.
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
        """Which sample of the epoch batch `number` starts with, `sample` others having come before it here."""
        return sample


def batch_loader(
    dataset: ImageDataset, batches: SeededBatches, *, workers: int = 0, device: torch.device | None = None
) -> DataLoader:
    """A DataLoader of `Batch` over the given batches; memory is pinned where a GPU waits for it."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=device is not None and device.type == "cuda",
        persistent_workers=workers > 0,
        timeout=SECONDS_FOR_A_BATCH if workers else 0,
        worker_init_fn=leave_stopping_to_the_parent,
    )


def leave_stopping_to_the_parent(worker: int) -> None:
    """A scheduler's SIGTERM goes to every process: the one that trains needs its loaders until it has saved.

    They end a while later, and not never: torch and multiprocessing send it to those that do not end by themselves.
    """
    if hasattr(signal, "alarm"):  # which ends the process
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(SECONDS_TO_SAVE))


def end_workers(loader: DataLoader) -> None:
    """End a loader's processes now.

    If they are left to the garbage collector, in a cycle such as an error's traceback makes, torch closes their queues before
    it tells them to end, and then waits five seconds for each.
    """
    end = getattr(getattr(loader, "_iterator", None), "_shutdown_workers", None)  # there is no public name
    if end is not None:
        end()


class UnreadableImages:
    """What to do with unreadable images: `raise` an UnreadableImageError at the first, or `skip`, count and list them."""

    def __init__(self, on_unreadable: OnUnreadable = "raise"):
        self.on_unreadable = on_unreadable
        self.reasons: dict[str, str] = {}

    def watch(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """The loader's batches, without those of which nothing was readable; UnreadableImageError if that is all of them.

        One of several processes has a share of the images only, and leaves that to whoever sees all (`none_readable`).
        """
        readable = False
        for batch in loader:
            self.note(batch.unreadable)
            if len(batch.label):
                readable = True
                yield batch
        if not readable and self.reasons and not is_joined():
            raise self.none_readable()

    def none_readable(self) -> UnreadableImageError:
        """The error for images of which not one could be read; to be made by all processes together."""
        self.share()
        reason = next(iter(self.reasons.values()), "there are none")
        return UnreadableImageError(f"none of {len(self.reasons)} images is readable: {reason}")

    def share(self) -> None:
        """What was noted by any process is known to all."""
        for reasons in everyones(self.reasons):
            self.reasons |= reasons

    def note(self, unreadable: Iterable[tuple[str, str]]) -> None:
        """Count and list (path, reason) of unreadable images; UnreadableImageError for the first unless they are skipped."""
        for path, reason in unreadable:
            if self.on_unreadable == "raise":
                raise UnreadableImageError(f"{reason} (on_unreadable='skip' leaves such files out)")
            self.reasons[path] = reason

    def report(self) -> None:
        """Print the count and the list of what was skipped by any process, if anything was."""
        self.share()
        if self.reasons and is_main():
            print(f"skipped {len(self.reasons)} unreadable images:")
            for reason in self.reasons.values():
                print(f"  {reason}")
