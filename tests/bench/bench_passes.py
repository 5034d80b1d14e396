"""The cost of passes over images relative to their forward passes: p*, sweeps over p, evaluation, embedding.

Images are tensors in memory, of photographs with their many shapes. The floor of a stage is a loop over
square batches in memory: the folded backbone alone, without gradient, in the faster memory layout.
"""

import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from itertools import count

import torch
from measuring import Photos, Row, compared, in_memory, photos, precisions, seconds
from torch import Tensor, nn

from mgkit.engine.feature_store import stored_features
from mgkit.features import PIXELS_A_BATCH, frozen_backbone
from mgkit.finetune import finetune_p, set_p, sweep_p
from mgkit.machine.device import autocast, place
from mgkit.model import MultiGrain, get_multigrain
from mgkit.transforms import eval_transform, fitted_shape

CPU = torch.device("cpu")
BATCH = 32
IMAGES = 512  # photographs; at 224 px they have 107 shapes, 63 of them once
PS = [1.0, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0]
SWEPT = [128, 160, 224]  # px
NETWORKS = ("resnet18", "efficientnet_lite0", "timm/vit_tiny_patch16_224")
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def network(name: str) -> MultiGrain:
    torch.manual_seed(0)
    return place(get_multigrain(name, num_classes=1000), CPU).eval()


def forward_alone(backbone: nn.Module, batches: Iterable[Tensor], precision: str) -> None:
    with torch.no_grad(), autocast(CPU, precision):  # around the loop: the weights are cast once
        for batch in batches:
            backbone(batch)


def bare_loop(net: MultiGrain, batches: list[Tensor], precision: str) -> Callable[[], None]:
    """The floor: the folded backbone over batches in the layout in which it is faster."""
    backbone, loops = frozen_backbone(net, precision), []
    for layout in LAYOUTS:
        ready = [batch.contiguous(memory_format=layout) for batch in batches]
        loop = partial(forward_alone, backbone, ready, precision)
        loop()
        loops.append((min(seconds(loop) for _ in range(2)), loop))
    return min(loops, key=lambda timed: timed[0])[1]


def square_batches(given: Photos, size: int) -> list[Tensor]:
    """The centres of the photos in whole batches, ready."""
    transform, batch = eval_transform(size, "square"), max(1, min(BATCH, PIXELS_A_BATCH // size**2))
    paths = given.images.paths[: max(1, len(given.images) // batch) * batch]
    images = [transform(given.pictures[path]) for path in paths]
    return [torch.stack(images[k : k + batch]) for k in range(0, len(images), batch)]


def pixels(batches: Iterable[Tensor]) -> int:
    return sum(len(b) * b.shape[2] * b.shape[3] for b in batches)


def rect_pixels(given: Photos, size: int) -> int:
    shapes = [fitted_shape(*given.pictures[p].size, size, longest=True) for p in given.images.paths]
    return sum(h * w for h, w in shapes)


def rect_row(
    stage: str, ours: Callable[[], object], net: MultiGrain, given: Photos, sizes: list[int], precision: str,
    *, rounds: int, wanted: float,
) -> Row:  # fmt: skip
    """A pass over whole photos beside the floor on as many pixels: a ratio of pixels per second."""
    fewer = given.first(max(BATCH, len(given.images) // 8))  # an eighth passes at the same rate
    batches = [batch for size in sizes for batch in square_batches(fewer, size)]
    with in_memory(given, [(size, "rect") for size in sizes]):
        return compared(
            f"{stage}, {net.name}, {precision}", ours, bare_loop(net, batches, precision),
            rounds=rounds, wanted=wanted, unit="Mpx/s",
            work=sum(rect_pixels(given, size) for size in sizes) / 1e6, floor_work=pixels(batches) / 1e6,
        )  # fmt: skip


def p_star_row(net: MultiGrain, precision: str, rounds: int) -> Row:
    given, size = photos(IMAGES), 224  # the paper's pass has 50,000: rare shapes are rarer yet among those

    def ours() -> None:
        set_p(net, 3.0)
        finetune_p(net, given.images, size=size, crop="rect", batch_size=BATCH, precision=precision)

    stage = f"p* fine-tuning, rect {size} px"
    return rect_row(stage, ours, net, given, [size], precision, rounds=rounds, wanted=0.8)


def evaluation_row(net: MultiGrain, precision: str, rounds: int, *, size: int, images: int) -> Row:
    given = photos(images)
    ours = sweep(net, given, [size], [3.0], precision)
    stage = f"evaluation, rect {size} px"
    return rect_row(stage, ours, net, given, [size], precision, rounds=rounds, wanted=0.85)


def sweep(
    net: MultiGrain, given: Photos, sizes: list[int], ps: list[float], precision: str, crop: str = "rect"
) -> Callable[[], object]:
    return lambda: sweep_p(
        net, given.images, sizes=sizes, ps=ps, crop=crop, batch_size=BATCH, precision=precision,
        description=None,
    )  # fmt: skip


def sweep_rows(net: MultiGrain, precision: str, rounds: int) -> list[Row]:
    given, size = photos(160), 224
    with in_memory(given, [(size, "square")]):
        single = compared(
            f"sweep of {len(PS)} p, {size} px: evaluation with one p, {net.name}, {precision}",
            sweep(net, given, [size], PS, precision, "square"),
            sweep(net, given, [size], [3.0], precision, "square"),
            rounds=rounds, wanted=1.15,
        )  # fmt: skip
    stage, given = f"sweep of {len(PS)} p × {len(SWEPT)} sizes, rect", photos(IMAGES)
    ours = sweep(net, given, SWEPT, PS, precision)
    several = rect_row(stage, ours, net, given, SWEPT, precision, rounds=rounds, wanted=1 / 1.15)
    return [single, several]


def store_row(net: MultiGrain, precision: str, rounds: int) -> Row:
    given, size = photos(IMAGES), 224
    with tempfile.TemporaryDirectory() as folder:
        number = count()

        def ours() -> None:
            stored_features(
                net, given.images, size=size, ps=[3.0], crop="rect", folder=f"{folder}/{next(number)}",
                batch_size=BATCH, precision=precision, description=None,
            )  # fmt: skip

        stage = f"embedding to disk, rect {size} px"
        return rect_row(stage, ours, net, given, [size], precision, rounds=rounds, wanted=0.9)


def rows(rounds: int = 5) -> list[Row]:
    """All rows of each network, in float32, and in bf16 where that is fast."""
    found = []
    for precision in precisions(CPU):
        for net in map(network, NETWORKS):
            found += [
                evaluation_row(net, precision, rounds, size=224, images=IMAGES),
                evaluation_row(net, precision, rounds, size=500, images=32),
                p_star_row(net, precision, rounds),
                *sweep_rows(net, precision, rounds),
                store_row(net, precision, rounds),
            ]
    return found
