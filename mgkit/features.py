"""From images to feature maps and descriptors, one backbone pass per image."""

import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from mgkit.data.images import ImageList, image_shapes
from mgkit.data.loader import Batch, ImageDataset, SeededBatches, UnreadableImages, batch_loader, by_shape
from mgkit.machine.device import autocast, to_device
from mgkit.machine.distributed import all_reduce, is_initialized, is_main, rank, run_in_all, world_size
from mgkit.machine.frozen import for_cpu, frozen, shared_copy, side_by_side
from mgkit.machine.printable import shown_name
from mgkit.machine.progress import progress
from mgkit.machine.shared_memory import check_shared_memory
from mgkit.machine.timing import each_timed
from mgkit.model import MultiGrain, Whitening
from mgkit.pooling import l2_normalize
from mgkit.samplers import same_shape_batches
from mgkit.transforms import eval_transform, fitted_shape

if TYPE_CHECKING:
    from mgkit.config import StageConfig

PIXELS_A_BATCH = 2**21  # bounds the memory of a batch at any resolution: 8 images of 500 × 500
PIXELS_A_LANE = 2**19  # of a batch beside others on a CPU: 10 images of 224 × 224
MOST_LANES = 16  # Python's own work on a batch, a fiftieth of its time, is done for one at a time

NARROW = 32  # px, of a side

WHY_NOT_FINITE = "do the checkpoint's weights hold NaN, or does it want precision=float32?"


@dataclass(frozen=True, kw_only=True)
class Passes:
    """How images pass through the frozen backbone.

    crop: `rect`, the whole image with its longest side at the size, or `square`, a centre crop
    batch_size: largest number of images per batch; fewer at large sizes, and on a CPU
    workers: processes that load images; 0: none but this one
    precision: `auto`, `bf16` or `float32`
    unreadable: raises at the first unreadable image, or skips and lists them
    description: title of the progress bar; empty: crop and size; None: no bar
    backbone: `frozen_backbone` of the network, to share it among passes; None: made for each pass
    """

    crop: str = "rect"
    batch_size: int = 32
    workers: int = 0
    precision: str = "auto"
    unreadable: UnreadableImages = field(default_factory=UnreadableImages)
    description: str | None = ""
    backbone: nn.Module | None = field(default=None, repr=False)

    @classmethod
    def of(cls, config: "StageConfig", **changes) -> "Passes":
        """Those of a config; changes: values of fields that the config does not have, or that differ."""
        shared = ("crop", "batch_size", "workers", "precision")  # as far as the stage has them
        values = {name: value for name, value in vars(config).items() if name in shared}
        return cls(**{"unreadable": UnreadableImages(config.on_unreadable)} | values | changes)


@each_timed("passes")
def feature_maps(
    net: MultiGrain, images: ImageList, *, size: int, passes: Passes | None = None,
    window: int | None = None, shapes: Sequence[tuple[int, int]] | None = None,
    read: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:  # fmt: skip
    """Pass every image once through the backbone, in batches of one shape; the network is put in eval mode.

    Yields maps [b,C,h,w] and labels [b] on the network's device, and the indices [b] of the images. Each
    process gets its share of the batches. On a CPU, several batches pass at once.

    size: resolution (px)
    window: number of consecutive images that batches do not mix with others; None: all images
    shapes: `whole_shapes` of the images, to share them among passes; None: read for this pass
    read: what is yielded of the maps instead, computed beside other batches; None: the maps

    An image that is too narrow to pass through the network counts as unreadable. Raises UnreadableImageError
    for an unreadable image that is not skipped, ValueError for a wrong number of shapes.
    """
    net.eval()
    passes = passes or Passes()
    device = net.classifier.weight.device
    dataset = ImageDataset(images, eval_transform(size, passes.crop, mean=net.mean, std=net.std))
    fitted = fitted_shapes(images, size, passes.crop, shapes)
    lanes = min(torch.get_num_threads(), MOST_LANES) if device.type == "cpu" else 1
    pixels = PIXELS_A_BATCH if lanes == 1 else PIXELS_A_LANE
    at_most = max(1, min(passes.batch_size, pixels // size**2))
    backbone = passes.backbone or frozen_backbone(net, passes.precision)
    batches = windowed_batches(fitted, at_most, window or max(1, len(images)))[rank() :: world_size()]
    largest = max((12 * len(batch) * math.prod(fitted[batch[0]]) for batch in batches), default=0)  # float32
    check_shared_memory(workers=passes.workers, batch=largest)
    loader = batch_loader(dataset, SeededBatches(batches), workers=passes.workers, device=device)
    if passes.description is not None and is_main():
        loader = with_bar(loader, passes.description or f"{passes.crop} {size} px", sum(map(len, batches)))
    loaded = chain.from_iterable(map(by_shape, passes.unreadable.watch(loader)))
    work = partial(
        maps_or_reason, net, size=size, precision=passes.precision, read=read or (lambda maps: maps)
    )
    passed = False
    lanes = max(1, min(lanes, len(batches)))
    for found, label, instance in side_by_side(backbone, work, loaded, lanes=lanes):
        if isinstance(found, str):
            paths = [images.paths[i] for i in instance.tolist()]
            passes.unreadable.note(
                (path, f"cannot use the image {shown_name(path)}: {found}") for path in paths
            )
            continue
        passed = True
        yield found, label.to(device), instance
    passes.unreadable.check(passed)


def maps_or_reason(
    net: MultiGrain, backbone: nn.Module, batch: Batch, *, size: int, precision: str,
    read: Callable[[Tensor], Tensor],
) -> tuple[Tensor | str, Tensor, Tensor]:  # fmt: skip
    """What is read of a batch's feature maps, or why its images do not pass; its labels and indices."""
    device = net.classifier.weight.device
    inputs = to_device(batch.image, device)
    with autocast(device, precision):
        maps = maps_of(backbone, inputs)  # [b,3,H,W] -> [b,C,h,w]
    if maps is None:
        return too_narrow(net, inputs, size), batch.label, batch.instance
    if min(inputs.shape[2:]) < NARROW and not is_sound(maps):
        # On some processors, bf16 convolutions of maps a few pixels wide read memory they did not write.
        maps = shared_copy(net.features)(inputs)
    return read(maps.float()), batch.label, batch.instance


def with_bar(loader: Iterable[Batch], description: str, images: int) -> Iterator[Batch]:
    """Yield a loader's batches with a bar of the images that have passed."""
    with progress(None, description, total=images, unit="images") as bar:
        for batch in loader:
            yield batch
            bar.update(len(batch.label) + len(batch.unreadable))


def maps_of(backbone: nn.Module, inputs: Tensor) -> Tensor | None:
    """Feature maps of a batch, [b,3,H,W] -> [b,C,h,w]; None if the images are too narrow for the backbone.

    They are if a blank image of their shape does not pass, but one of their longer side that is square, or
    almost, does. Otherwise empty maps and those that are not finite are returned, and its error is raised.

    Raises ValueError for a size at which no image passes, though larger ones do.
    """
    maps = error = None
    try:
        maps = backbone(inputs)
    except (RuntimeError, ValueError) as raised:
        error = raised
    square = inputs.shape[2] == inputs.shape[3]
    if not square and not is_sound(maps) and is_narrow(backbone, inputs):
        return None
    long = max(inputs.shape[2:])
    if (
        error
        and not passes(backbone, inputs, long, long)
        and passes(backbone, inputs, long + 128, long + 127)
    ):
        reason = " ".join(str(error).split())
        raise ValueError(f"size: {long} px (size × scale) is too small for the network: {reason}") from None
    if error:
        raise error
    return maps


def is_sound(maps: Tensor | None) -> bool:
    """Whether there are feature maps with positions, all of them finite."""
    return maps is not None and maps.numel() > 0 and bool(maps.isfinite().all())


def passes(backbone: nn.Module, inputs: Tensor, height: int, width: int) -> bool:
    """Whether a blank image of that shape passes, on the device of the inputs."""
    try:
        return is_sound(backbone(inputs.new_zeros(1, 3, height, width)))
    except (RuntimeError, ValueError):
        return False


def is_narrow(backbone: nn.Module, inputs: Tensor) -> bool:
    """Whether images [b,3,H,W] do not pass for their shape alone."""

    def passes_almost_square(long: int) -> bool:  # some backbones take images of one square size only
        return passes(backbone, inputs, *((long, long - 1) if height > width else (long - 1, long)))

    height, width = inputs.shape[2:]
    long = max(height, width)
    if passes(backbone, inputs, height, width):
        return False
    # A backbone that halves the sides may take 32 x 32 and 64 x 63, but not 32 x 31.
    return passes_almost_square(long) or (
        passes(backbone, inputs, long, long) and passes_almost_square(2 * long)
    )


def too_narrow(net: MultiGrain, inputs: Tensor, size: int) -> str:
    """Why images [b,3,H,W] do not pass."""
    height, width = inputs.shape[2:]
    return f"{width} x {height} px at size {size} is too narrow for {net.name}"


def fitted_shapes(
    images: ImageList, size: int, crop: str, shapes: Sequence[tuple[int, int]] | None
) -> list[tuple[int, int]]:
    """(height, width) of every image as the backbone sees it."""
    if crop != "rect":
        return [(size, size)] * len(images)
    whole = image_shapes(images) if shapes is None else shapes
    if len(whole) != len(images):
        raise ValueError(f"shapes: {len(whole)} are given for {len(images)} images, one per image is needed")
    return [fitted_shape(*shape, size, longest=True) for shape in whole]


def frozen_backbone(net: MultiGrain, precision: str = "auto") -> nn.Module:
    """A copy of the network's backbone for inference; the network is put in eval mode."""
    device = net.classifier.weight.device
    backbone = frozen(net.eval().features, device, precision)
    return for_cpu(backbone) if device.type == "cpu" else backbone


def whole_shapes(images: ImageList, crop: str) -> list[tuple[int, int]] | None:
    """(width, height) of every image, read from the file headers, for `rect`; None for `square`."""
    return image_shapes(images) if crop == "rect" else None


def windowed_batches(shapes: Sequence[tuple[int, int]], batch_size: int, window: int) -> list[list[int]]:
    """Indices of batches of one shape, window by window."""
    return [
        [start + i for i in batch]
        for start in range(0, len(shapes), window)
        for batch in same_shape_batches(shapes[start : start + window], batch_size)
    ]


def by_window(batches: Iterator[tuple], window: int, images: int) -> Iterator[list[tuple]]:
    """Group batches (…, indices [b]), as of `feature_maps`, by window.

    Every process gets a list for every window, empty if it has no batch of it.
    """
    waiting = next(batches, None)
    for end in range(window, images + window, window):
        found = []
        while waiting is not None and waiting[-1][0] < end:
            found.append(waiting)
            waiting = next(batches, None)
        yield found


def rows_of_all(rows: np.ndarray) -> np.ndarray:
    """Combine the rows [P,n,C] of all processes; a row that a process does not have is NaN in its own."""
    if not is_initialized():
        return rows
    here = ~np.isnan(rows[0, :, 0])
    total = all_reduce(torch.from_numpy(np.where(here[:, None], rows, 0))).numpy()
    total[:, all_reduce(torch.from_numpy(here.astype(np.int64))).numpy() == 0] = np.nan
    return total


def rows_of_batches(
    batches: Iterator[tuple[np.ndarray, np.ndarray]], shape: tuple[int, int, int]
) -> np.ndarray:
    """Collect the batches (rows [P,b,D], indices [b]) of all processes into rows [P,N,D] float32.

    A row without a batch is NaN. An error of one process is raised in all.
    """
    rows = np.full(shape, np.nan, dtype=np.float32)

    def fill() -> None:
        for of_batch, indices in batches:
            rows[:, indices] = of_batch

    run_in_all(fill)
    return rows_of_all(rows)


def embed(
    net: MultiGrain, images: ImageList, *, size: int, ps: Sequence[float] | None = None,
    passes: Passes | None = None, **changes,
) -> np.ndarray:  # fmt: skip
    """L2-normalised descriptors of all images, [N,D] float32, or [P,N,D] for several exponents, in one pass.

    size: resolution (px)
    ps: pooling exponents [P]; None: the network's own
    passes, changes: a `Passes`, and values of its fields to change, such as workers=2

    The row of a skipped image is NaN.
    """
    passes = replace(passes or Passes(), **changes)
    exponents = [net.pool.p.item()] if ps is None else list(ps)
    describe = plain if net.whitening is None else partial(whitened, net)
    # By batch, so that neither all pooled features nor any logits are held in memory.
    batches = (
        (np.stack([describe(of_p) for of_p in of_batch]), indices)
        for of_batch, indices in pooled_batches(net, images, size=size, ps=exponents, passes=passes)
    )
    dimensions = net.width + (net.whitening is not None)
    descriptors = rows_of_batches(batches, (len(exponents), len(images), dimensions))
    return descriptors[0] if ps is None else descriptors


def pooled(
    net: MultiGrain, images: ImageList, *, size: int, ps: Sequence[float],
    passes: Passes | None = None, **changes,
) -> np.ndarray:  # fmt: skip
    """GeM-pooled features before whitening, [P,N,C] float32, for all exponents from one pass; see `embed`.

    In memory; `mgkit.engine.feature_store.stored_features` keeps them on disk.
    """
    passes = replace(passes or Passes(), **changes)
    batches = pooled_batches(net, images, size=size, ps=ps, passes=passes)
    return rows_of_batches(batches, (len(ps), len(images), net.width))


def classifier_inputs(
    net: MultiGrain, images: ImageList, *, size: int, ps: Sequence[float],
    passes: Passes | None = None, **changes,
) -> np.ndarray:  # fmt: skip
    """The embeddings that the classifier reads, [P,N,D] float32, for all exponents from one pass.

    As of `pooled`, behind the whitening if there is one. They are not L2-normalised.
    """
    device = net.classifier.weight.device

    def embedding(rows: Tensor) -> Tensor:
        return net.head(rows.to(device))["embedding"].cpu()

    every = pooled(net, images, size=size, ps=ps, passes=passes, **changes)
    return np.stack([in_blocks(embedding, [of_p], dimensions=net.classifier.in_features) for of_p in every])


def pooled_batches(
    net: MultiGrain, images: ImageList, *, size: int, ps: Sequence[float], passes: Passes,
    window: int | None = None, shapes: Sequence[tuple[int, int]] | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:  # fmt: skip
    """Pooled features [P,b,C] float32 and indices [b] of every batch of `feature_maps`.

    Raises ValueError, naming an image, for features that are not finite: NaN rows stand for skipped images.
    """
    options = dict(size=size, passes=passes, window=window, shapes=shapes)
    for rows, _, indices in feature_maps(net, images, read=partial(pool_by_all, net, ps), **options):
        rows = rows.cpu()
        check_finite(rows.transpose(0, 1), images, indices)
        yield rows.numpy(), indices.numpy()


def pool_by_all(net: MultiGrain, ps: Sequence[float], maps: Tensor) -> Tensor:
    """Pool maps with each of P exponents, [b,C,h,w] -> [P,b,C]."""
    return torch.stack([net.pooled_maps(maps, p) for p in ps])


def check_finite(rows: Tensor, images: ImageList, indices: Tensor, *, what: str = "features") -> None:
    """Raise ValueError, naming an image, unless the rows [b,...] of the images at indices [b] are finite."""
    finite = rows.isfinite().flatten(1).all(1).cpu()
    if not finite.all():
        path = shown_name(images.paths[indices[~finite][0]])
        raise ValueError(f"the {what} of {path} are not finite: {WHY_NOT_FINITE}")


def classify(
    net: MultiGrain, images: ImageList, *, size: int, p: float | None = None,
    passes: Passes | None = None, **changes,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Logits [N,K] and labels [N] of the readable images, in order, on the CPU (section 4.2).

    size: resolution (px)
    p: pooling exponent; None: the network's own
    passes, changes: as for `embed`

    Of several processes, each gets the images of its share.
    """
    passes = replace(passes or Passes(), **changes)
    p = net.pool.p.item() if p is None else p

    def scores_of(maps: Tensor) -> Tensor:
        return net.head(net.pooled_maps(maps, p))["classifier_output"]

    parts = []
    for scores, labels, indices in feature_maps(net, images, size=size, passes=passes, read=scores_of):
        parts.append((scores.cpu(), labels.cpu(), indices))
    if not parts:
        return torch.empty(0, net.classifier.out_features), torch.empty(0, dtype=torch.int64)
    logits, labels, indices = (torch.cat(column) for column in zip(*parts, strict=True))
    order = indices.argsort()
    return logits[order], labels[order]


ROWS = 8192  # per block: bounds the memory beside the result
MOST_IN_MEMORY = 2**28  # bytes of rows


def plain(pooled: np.ndarray) -> np.ndarray:
    """L2-normalised GeM embeddings, [N,C] -> [N,C] float32."""
    return to_descriptors(pooled, None)


def whitened(net: MultiGrain, pooled: np.ndarray, *, dims: int | None = None) -> np.ndarray:
    """Whitened descriptors of a whitened network, [N,C] -> [N,D] float32, L2-normalised (section 3.6).

    dims: number of components to keep, those of largest variance; None: all C + 1

    Raises ValueError for a network without whitening, and for dims outside 1..C+1.
    """
    if net.whitening is None:
        raise ValueError(f"the {net.name} network has no whitening: make one with 03_whiten")
    size = net.width + 1
    if dims is not None and not 1 <= dims <= size:
        raise ValueError(f"dims must lie between 1 and the {size} dimensions of the descriptor, got {dims}")
    return to_descriptors(pooled, net.whitening, dims=dims)


def to_descriptors(pooled: np.ndarray, whitening: Whitening | None, *, dims: int | None = None) -> np.ndarray:
    """L2-normalised descriptors, [N,C] -> [N,D] float32; whitening: None for none; dims: as in `whitened`."""
    if whitening is None:
        return in_blocks(l2_normalize, [pooled], dimensions=pooled.shape[1])
    device = whitening.pca.pca_m.device

    def describe(rows: Tensor) -> Tensor:
        return l2_normalize(whitening(rows.to(device))[:, :dims]).cpu()  # components fall in variance

    return in_blocks(describe, [pooled], dimensions=dims or pooled.shape[1] + 1)


def multi_scale(descriptors: Sequence[np.ndarray]) -> np.ndarray:
    """Multi-scale descriptors: the L2-normalised sum of those of S scales, S × [N,D] -> [N,D] float32."""
    return in_blocks(
        lambda *of_scales: l2_normalize(sum(of_scales)), descriptors, dimensions=descriptors[0].shape[1]
    )


def in_blocks(
    function: Callable[..., Tensor], arrays: Sequence[np.ndarray], *, dimensions: int
) -> np.ndarray:
    """Apply a function to the rows of arrays, block by block: [N,...] -> [N,dimensions] float32.

    The result is beside the first array, see `empty_rows`.
    """
    count = len(arrays[0])
    found = empty_rows((count, dimensions), beside=arrays[0])
    with torch.no_grad():
        for start in range(0, count, ROWS):
            rows = slice(start, start + ROWS)
            # np.array reads the block from disk, into writable memory as torch requires.
            found[rows] = function(*(torch.from_numpy(np.array(array[rows])) for array in arrays)).numpy()
    return found


@dataclass(frozen=True)
class JoinedRows:
    """Arrays [n,C] one below the other, [N,C], without a copy; slices of rows, and columns, can be read."""

    parts: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.parts[0].shape[1]

    def __getitem__(self, wanted: slice | tuple) -> np.ndarray:
        rows, *columns = wanted if isinstance(wanted, tuple) else (wanted,)
        start, stop, _ = rows.indices(len(self))
        pieces, first = [], 0
        for part in self.parts:
            inside = slice(max(start - first, 0), max(stop - first, 0))
            pieces.append(part[(inside, *columns)])
            first += len(part)
        return np.concatenate(pieces)


def rows_at(rows: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """The rows [N,D] at indices [n], -> [n,D]: a view of consecutive ones, else a copy; see `empty_rows`."""
    if len(indices) and (np.diff(indices) == 1).all():
        return rows[indices[0] : indices[-1] + 1]
    found = empty_rows((len(indices), rows.shape[1]), beside=rows)
    for start in range(0, len(indices), ROWS):
        found[start : start + ROWS] = rows[indices[start : start + ROWS]]
    return found


def empty_rows(shape: tuple[int, int], *, beside: np.ndarray | JoinedRows | None = None) -> np.ndarray:
    """A float32 array to be filled: in memory, or, if it is large, in a file that is deleted with it.

    beside: rows; the file is in the folder of theirs, or of temporary files if they are in memory
    """
    if 4 * math.prod(shape) <= MOST_IN_MEMORY:
        return np.empty(shape, np.float32)
    first = beside.parts[0] if isinstance(beside, JoinedRows) else beside
    folder = os.path.dirname(first.filename) if isinstance(first, np.memmap) and first.filename else None
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".rows-") as file:  # the array holds it open
        return np.memmap(file, np.float32, "w+", shape=shape)
