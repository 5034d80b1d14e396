"""The cost of passes over images relative to their forward passes: p*, sweeps over p, evaluation, embedding.

Images are tensors in memory, ResNet-18 on the CPU. The floor of a stage is a loop over batches in memory that
runs the backbone alone, without gradient.
"""

import tempfile
from collections.abc import Callable, Iterable
from itertools import count

import torch
from measuring import Photos, Row, compared, in_memory, photos
from torch import Tensor

from mgkit.engine.feature_store import stored_features
from mgkit.features import PIXELS_A_BATCH
from mgkit.finetune import finetune_p, set_p, sweep_p
from mgkit.machine.device import autocast, place
from mgkit.model import MultiGrain, get_multigrain
from mgkit.samplers import same_shape_batches
from mgkit.transforms import eval_transform, fitted_shape

CPU = torch.device("cpu")
BATCH = 32
PS = [1.0, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0]
SWEPT = [160, 224, 288, 352]  # px
PRECISIONS = ("float32", "bf16")


def network() -> MultiGrain:
    torch.manual_seed(0)
    return place(get_multigrain("resnet18", num_classes=1000), CPU).eval()


def forward_alone(net: MultiGrain, batches: Iterable[Tensor], precision: str) -> None:
    with torch.no_grad(), autocast(CPU, precision):  # around the loop: the weights are cast once
        for batch in batches:
            net.features(batch)


def square_batches(given: Photos, size: int) -> list[Tensor]:
    """The centres of the photos in whole batches, ready."""
    transform, batch = eval_transform(size, "square"), max(1, min(BATCH, PIXELS_A_BATCH // size**2))
    paths = given.images.paths[: max(1, len(given.images) // batch) * batch]
    images = [transform(given.pictures[path]) for path in paths]
    return [stacked(images[k : k + batch]) for k in range(0, len(images), batch)]


def stacked(images: list[Tensor]) -> Tensor:
    return torch.stack(images).to(memory_format=torch.channels_last)


def pixels(batches: Iterable[Tensor]) -> int:
    return sum(len(b) * b.shape[2] * b.shape[3] for b in batches)


def rect_pixels(given: Photos, size: int) -> int:
    shapes = [fitted_shape(*given.pictures[p].size, size, longest=True) for p in given.images.paths]
    return sum(h * w for h, w in shapes)


def p_star_row(net: MultiGrain, precision: str, rounds: int) -> Row:
    given, size = photos(900), 224  # the paper's pass has 50,000: rare shapes are rarer yet among those
    batches = square_batches(given.first(192), size)

    def ours() -> None:
        set_p(net, 3.0)
        finetune_p(net, given.images, size=size, crop="rect", batch_size=BATCH, precision=precision)

    with in_memory(given, [(size, "rect")]):
        return compared(
            f"p* fine-tuning, rect {size} px, {precision}",
            ours, lambda: forward_alone(net, batches, precision), rounds=rounds, wanted=0.8,
            work=rect_pixels(given, size) / 1e6, floor_work=pixels(batches) / 1e6, unit="Mpx/s",
        )  # fmt: skip


def rect_row(net: MultiGrain, precision: str, rounds: int) -> Row:
    given, size = photos(60), 500
    batches = square_batches(given.first(32), size)
    with in_memory(given, [(size, "rect")]):
        return compared(
            f"evaluation, rect {size} px, {precision}", sweep(net, given, [size], [3.0], precision),
            lambda: forward_alone(net, batches, precision), rounds=rounds, wanted=0.85,
            work=rect_pixels(given, size) / 1e6, floor_work=pixels(batches) / 1e6, unit="Mpx/s",
        )  # fmt: skip


def sweep(
    net: MultiGrain, given: Photos, sizes: list[int], ps: list[float], precision: str, crop: str = "rect"
) -> Callable[[], object]:
    return lambda: sweep_p(
        net, given.images, sizes=sizes, ps=ps, crop=crop, batch_size=BATCH, precision=precision,
        description=None,
    )  # fmt: skip


def sweep_rows(net: MultiGrain, precision: str, rounds: int) -> list[Row]:
    given, size = photos(128), 224
    with in_memory(given, [(size, "square")]):
        single = compared(
            f"sweep of {len(PS)} p, {size} px, {precision}: evaluation with one p",
            sweep(net, given, [size], PS, precision, "square"),
            sweep(net, given, [size], [3.0], precision, "square"),
            rounds=rounds, wanted=1.15,
        )  # fmt: skip
    given, batches = photos(48), []
    for size in SWEPT:
        shapes = [fitted_shape(*given.pictures[p].size, size, longest=True) for p in given.images.paths]
        transform = eval_transform(size, "rect")
        images = [transform(given.pictures[path]) for path in given.images.paths]
        batches += [stacked([images[i] for i in same]) for same in same_shape_batches(shapes, BATCH)]
    with in_memory(given, [(size, "rect") for size in SWEPT]):
        several = compared(
            f"sweep of {len(PS)} p × {len(SWEPT)} sizes, {precision}: forwards alone",
            sweep(net, given, SWEPT, PS, precision), lambda: forward_alone(net, batches, precision),
            rounds=rounds, wanted=1.15,
        )  # fmt: skip
    return [single, several]


def store_row(net: MultiGrain, precision: str, rounds: int) -> Row:
    given, size = photos(512), 224
    batches = square_batches(given, size)
    with in_memory(given, [(size, "square")]), tempfile.TemporaryDirectory() as folder:
        number = count()

        def ours() -> None:
            stored_features(
                net, given.images, size=size, ps=[3.0], crop="square", folder=f"{folder}/{next(number)}",
                batch_size=BATCH, precision=precision, description=None,
            )  # fmt: skip

        return compared(
            f"embedding to disk, {size} px, {precision}",
            ours, lambda: forward_alone(net, batches, precision),
            rounds=rounds, wanted=0.9, work=len(given.images),
        )  # fmt: skip


def rows(rounds: int = 3) -> list[Row]:
    net, found = network(), []
    for precision in PRECISIONS:
        found += [p_star_row(net, precision, rounds), rect_row(net, precision, rounds)]
        found += sweep_rows(net, precision, rounds)
        found.append(store_row(net, precision, rounds))
    return found
