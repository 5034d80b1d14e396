"""Images -> feature maps -> descriptors: the only route from files to arrays, one backbone pass an image."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from mgkit.data.images import ImageList, image_shapes
from mgkit.data.loader import ImageDataset, SeededBatches, UnreadableImages, batch_loader
from mgkit.machine.device import autocast, frozen
from mgkit.machine.distributed import all_reduce, is_initialized, is_main, rank, run_in_all, world_size
from mgkit.machine.progress import progress
from mgkit.model import MultiGrain, Whitening
from mgkit.pooling import gem, l2_normalize
from mgkit.samplers import same_shape_batches
from mgkit.transforms import eval_transform, fitted_shape

PIXELS_A_BATCH = 2**21  # bounds a batch's memory whatever the resolution: 8 images of 500 × 500

WHY_NOT_FINITE = "do the checkpoint's weights hold NaN, or does it want precision=float32?"


def feature_maps(
    net: MultiGrain,
    images: ImageList,
    *,
    size: int,
    crop: str = "rect",
    batch_size: int = 32,
    workers: int = 0,
    precision: str = "auto",
    unreadable: UnreadableImages | None = None,
    window: int | None = None,
    description: str | None = "",
    backbone: nn.Module | None = None,
    shapes: Sequence[tuple[int, int]] | None = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Every image once through the frozen backbone, in batches of one shape; of several processes, each has its share.

    size: pixels. crop: `square` or `rect`. Yields (maps [b,C,h,w], labels [b], indices [b]) on the network's device; the
    indices say which images they are, and all images come, to one process or another. window: batches never mix images of different windows, runs
    of so many images, which come in order. description: of the progress bar, None for none. backbone, shapes: `frozen_backbone` of
    the net and `whole_shapes` of the images, where several passes share them; None: made for this pass. net is put in eval mode.
    Raises UnreadableImageError at the first unreadable file, unless `unreadable` says skip; ValueError for another number of shapes.
    """
    net.eval()
    device = net.classifier.weight.device
    unreadable = unreadable or UnreadableImages()
    dataset = ImageDataset(images, eval_transform(size, crop, mean=net.mean, std=net.std))
    if crop == "rect":
        whole = image_shapes(images) if shapes is None else shapes
        if len(whole) != len(images):
            raise ValueError(f"shapes: {len(whole)} are given for {len(images)} images, one each is needed")
        fitted = [fitted_shape(*shape, size, longest=True) for shape in whole]
    else:
        fitted = [(size, size)] * len(images)
    at_most = max(1, min(batch_size, PIXELS_A_BATCH // size**2))
    backbone = backbone or frozen_backbone(net, precision)
    batches = windowed_batches(fitted, at_most, window or max(1, len(images)))[rank() :: world_size()]
    loader = batch_loader(dataset, SeededBatches(batches), workers=workers, device=device)
    if description is not None and is_main():
        loader = progress(loader, description or f"{crop} {size} px", total=len(batches))
    for batch in unreadable.watch(loader):
        inputs = batch.image.to(device, non_blocking=True, memory_format=torch.channels_last)
        # Not around the yield: there it would switch off the gradients of whoever reads the maps.
        with torch.no_grad(), autocast(device, precision):
            maps = backbone(inputs)  # [b,3,H,W] -> [b,C,h,w]
        yield maps.float(), batch.label.to(device), batch.instance


def frozen_backbone(net: MultiGrain, precision: str = "auto") -> nn.Module:
    """What `feature_maps` runs in place of the network's backbone as it is now. net is put in eval mode."""
    return frozen(net.eval().features, net.classifier.weight.device, precision)


def whole_shapes(images: ImageList, crop: str) -> list[tuple[int, int]] | None:
    """(width, height) of every image, from the file headers, if `crop` leaves images whole; None for squares, which need none."""
    return image_shapes(images) if crop == "rect" else None


def windowed_batches(shapes: Sequence[tuple[int, int]], batch_size: int, window: int) -> list[list[int]]:
    """Batches of one shape, window by window."""
    return [
        [start + i for i in batch]
        for start in range(0, len(shapes), window)
        for batch in same_shape_batches(shapes[start : start + window], batch_size)
    ]


def by_window(batches: Iterator[tuple], window: int, images: int) -> Iterator[list[tuple]]:
    """The batches of `feature_maps`, or others whose last part are the indices, window by window.

    Every window of the images comes, so that all processes meet at it; the list is empty where this one has nothing of it.
    """
    waiting = next(batches, None)
    for end in range(window, images + window, window):
        found = []
        while waiting is not None and waiting[-1][0] < end:
            found.append(waiting)
            waiting = next(batches, None)
        yield found


def rows_of_all(rows: np.ndarray) -> np.ndarray:
    """Rows [P,n,C], NaN where another process has them or none -> those that any process has, for all."""
    if not is_initialized():
        return rows
    here = ~np.isnan(rows[0, :, 0])
    total = all_reduce(torch.from_numpy(np.where(here[:, None], rows, 0))).numpy()
    total[:, all_reduce(torch.from_numpy(here.astype(np.int64))).numpy() == 0] = np.nan
    return total


def rows_of_batches(
    batches: Iterator[tuple[np.ndarray, np.ndarray]], shape: tuple[int, int, int]
) -> np.ndarray:
    """(rows [P,b,D], indices [b]) of the batches of all processes -> rows [P,N,D] float32 of that shape, for all.

    A row that no batch has is NaN. What the batches raise in one process, all raise.
    """
    rows = np.full(shape, np.nan, dtype=np.float32)

    def fill() -> None:
        for of_batch, indices in batches:
            rows[:, indices] = of_batch

    run_in_all(fill)
    return rows_of_all(rows)


def embed(
    net: MultiGrain, images: ImageList, *, size: int, ps: Sequence[float] | None = None, **options
) -> np.ndarray:
    """Descriptors of all images, one backbone pass, for one or several pooling exponents.

    size: pixels. ps: exponents; None: the network's own. options: as for `feature_maps`. Returns L2-normalised float32
    descriptors [N,D], or [P,N,D] where ps is given; the row of a skipped image is NaN.
    """
    exponents = [net.pool.p.item()] if ps is None else list(ps)
    describe = plain if net.whitening is None else partial(whitened, net)
    # A batch at a time: neither all pooled features nor any logits are held beside the result.
    batches = (
        (np.stack([describe(of_p) for of_p in of_batch]), indices)
        for of_batch, indices in pooled_batches(net, images, size=size, ps=exponents, **options)
    )
    dimensions = net.width + (net.whitening is not None)
    descriptors = rows_of_batches(batches, (len(exponents), len(images), dimensions))
    return descriptors[0] if ps is None else descriptors


def pooled(net: MultiGrain, images: ImageList, *, size: int, ps: Sequence[float], **options) -> np.ndarray:
    """GeM-pooled features before whitening, [P,N,C] float32, all exponents from one backbone pass.

    In memory; `mgkit.engine.feature_store.stored_features` keeps them on disk. The row of a skipped image is NaN.
    """
    batches = pooled_batches(net, images, size=size, ps=ps, **options)
    return rows_of_batches(batches, (len(ps), len(images), net.width))


def pooled_batches(
    net: MultiGrain, images: ImageList, *, size: int, ps: Sequence[float], **options
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(pooled features [P,b,C] float32, indices [b]) of every batch of `feature_maps`, which has the options.

    Raises ValueError, naming an image, for features that are not finite: NaN is left to mean an image that was skipped.
    """
    for maps, _, indices in feature_maps(net, images, size=size, **options):
        rows = torch.stack([gem(maps, p) for p in ps]).cpu()
        check_finite(rows.transpose(0, 1), images, indices)
        yield rows.numpy(), indices.numpy()


def check_finite(rows: Tensor, images: ImageList, indices: Tensor, *, what: str = "features") -> None:
    """ValueError, naming one of the images of those indices [b], unless their rows [b,...] are finite."""
    finite = rows.isfinite().flatten(1).all(1).cpu()
    if not finite.all():
        path = images.paths[indices[~finite][0]]
        raise ValueError(f"the {what} of {path} are not finite: {WHY_NOT_FINITE}")


def classify(
    net: MultiGrain, images: ImageList, *, size: int, crop: str = "square", p: float | None = None, **options
) -> tuple[Tensor, Tensor]:
    """Logits [N,K] and labels [N] of the readable images, in their order, on the CPU (section 4.2).

    Of several processes, each gets those of its share. size: pixels. p: pooling exponent, None for the network's own. options: as for `embed.feature_maps`.
    """
    p = net.pool.p.item() if p is None else p
    parts = []
    for maps, labels, indices in feature_maps(net, images, size=size, crop=crop, **options):
        with torch.no_grad():
            parts.append((net.head(gem(maps, p))["classifier_output"].cpu(), labels.cpu(), indices))
    if not parts:
        return torch.empty(0, net.classifier.out_features), torch.empty(0, dtype=torch.int64)
    logits, labels, indices = (torch.cat(column) for column in zip(*parts, strict=True))
    order = indices.argsort()
    return logits[order], labels[order]


ROWS = 8192  # at a time: bounds what is held beside the result


def plain(pooled: np.ndarray) -> np.ndarray:
    """L2-normalised GeM embeddings, [N,C] -> [N,C] float32."""
    return to_descriptors(pooled, None)


def whitened(net: MultiGrain, pooled: np.ndarray, *, dims: int | None = None) -> np.ndarray:
    """Whitened descriptors of a whitened network, [N,C] -> [N,D] float32, L2-normalised (section 3.6).

    dims: keep that many components, those of largest variance; None: all C + 1. Raises ValueError for a network without
    whitening, or dims outside 1..C+1.
    """
    if net.whitening is None:
        raise ValueError(f"the {net.name} network has no whitening: make one with 03_whiten")
    size = net.width + 1
    if dims is not None and not 1 <= dims <= size:
        raise ValueError(
            f"dims must lie between 1 and the {size} dimensions of the whitened descriptor, got {dims}"
        )
    return to_descriptors(pooled, net.whitening, dims=dims)


def to_descriptors(
    pooled: np.ndarray, whitening: Whitening | None, *, dims: int | None = None
) -> np.ndarray:
    """L2-normalised descriptors, [N,C] -> [N,D] float32; whitening: None for none; dims: as in `whitened`."""
    if whitening is None:
        return in_blocks(l2_normalize, [pooled], dimensions=pooled.shape[1])
    device = whitening.pca.pca_m.device

    def describe(rows: Tensor) -> Tensor:
        return l2_normalize(whitening(rows.to(device))[:, :dims]).cpu()  # components fall in variance

    return in_blocks(describe, [pooled], dimensions=dims or pooled.shape[1] + 1)


def multi_scale(descriptors: Sequence[np.ndarray]) -> np.ndarray:
    """One descriptor from those at several scales: the L2-normalised sum, S × [N,D] -> [N,D] float32."""
    return in_blocks(
        lambda *of_scales: l2_normalize(sum(of_scales)), descriptors, dimensions=descriptors[0].shape[1]
    )


def in_blocks(
    function: Callable[..., Tensor], arrays: Sequence[np.ndarray], *, dimensions: int
) -> np.ndarray:
    """function over the rows of arrays that lie on disk or in memory, a block at a time."""
    count = len(arrays[0])
    found = np.empty((count, dimensions), dtype=np.float32)
    with torch.no_grad():
        for start in range(0, count, ROWS):
            rows = slice(start, start + ROWS)
            # np.array: of what lies on disk the block alone is read, and is writable, as torch wants it
            found[rows] = function(*(torch.from_numpy(np.array(array[rows])) for array in arrays)).numpy()
    return found
