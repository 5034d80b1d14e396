"""Passes over images beside the folded network alone: rect evaluation, sweep over p, p*, embedding to disk.

The images are tensors in memory. A pass gets its batches from loading processes, as with files. The floor is
a loop over square batches of as many pixels that are on the device already.
"""

import tempfile
from collections.abc import Callable, Sequence
from itertools import count
from statistics import median

import numpy as np
import torch
from gpu.inputs import picture_list
from gpu.lines import Line
from gpu.setting import Peak, Setting
from gpu.steps import flops_an_image
from measuring import Photos, compared, in_memory, seconds
from torch import Tensor, nn

from mgkit.data.images import ImageList
from mgkit.engine.feature_store import stored_features
from mgkit.features import PIXELS_A_BATCH, Passes, frozen_backbone
from mgkit.finetune import finetune_p, set_p, sweep_p
from mgkit.machine.device import autocast, place, synchronize
from mgkit.model import MultiGrain, get_multigrain
from mgkit.transforms import fitted_shape

PRECISION = "bf16"
ROUNDS = 5
PS = [1.0, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0]
BATCH = Passes().batch_size


def network(setting: Setting) -> MultiGrain:
    torch.manual_seed(0)
    return place(get_multigrain(setting.sizes.backbone, num_classes=1000), setting.device).eval()


def photos(setting: Setting, count: int) -> Photos:
    """So many images, which take turns at being one of the pictures."""
    files = picture_list(setting.pictures)
    whole = [files.load(i) for i in range(len(files))]
    paths = tuple(f"/made up/{k:06d}.jpg" for k in range(count))
    images = ImageList(files.root, paths, np.arange(count) % len(files.classes), files.classes)
    return Photos(images, {path: whole[k % len(whole)] for k, path in enumerate(paths)})


class Floor:
    """The folded network on random square batches.

    pixels: of all images of a call, at most; there is at least one batch.
    larger: how many times as many images a batch has as one of the kit.
    """

    def __init__(self, backbone: nn.Module, device: torch.device, size: int, *, larger: int = 1):
        self.backbone, self.device, self.size = backbone, device, size
        self.batch = larger * max(1, min(BATCH, PIXELS_A_BATCH // size**2))
        random = torch.Generator().manual_seed(0)
        images = torch.randn(self.batch, 3, size, size, generator=random)
        self.images: Tensor = images.to(device, memory_format=torch.channels_last)

    def call(self, images: int) -> Callable[[], None]:
        """A pass over at least so many images, and fewer than a batch more; waited for."""

        def forward_alone() -> None:
            with (
                torch.no_grad(), autocast(self.device, PRECISION),
                torch.backends.cudnn.flags(enabled=True, benchmark=True),
            ):  # fmt: skip
                for _ in range(self.batches(images)):
                    self.backbone(self.images)
            synchronize(self.device)

        return forward_alone

    def batches(self, images: int) -> int:
        return -(-images // self.batch)

    def pixels(self, images: int) -> int:
        return self.batches(images) * self.batch * self.size**2

    def images_in(self, span: float, most: int) -> int:
        """The images that pass in so many seconds: whole batches, at least one, `most` at most."""
        few = self.call(2 * self.batch)
        few()  # warm-up
        taken = seconds(few)
        return max(self.batch, min(most, int(2 * self.batch * span / taken) // self.batch * self.batch))


def rect_pixels(given: Photos, size: int) -> int:
    shapes = [fitted_shape(*given.pictures[p].size, size, longest=True) for p in given.images.paths]
    return sum(h * w for h, w in shapes)


def pass_line(
    setting: Setting, name: str, work: Callable[[MultiGrain, Photos], object], *, size: int, crop: str,
    wanted: float, times_the_floor: float = 2.0,
) -> Line:  # fmt: skip
    """Megapixels a second of a pass, and of the network alone.

    times_the_floor: roughly how long the pass takes, from which the number of images follows
    """
    net = network(setting)
    floor = Floor(frozen_backbone(net, PRECISION), setting.device, size)
    images = floor.images_in(setting.seconds / 4 / (1 + times_the_floor), setting.sizes.images)
    given, peak = photos(setting, images), Peak(setting.device)
    pixels = rect_pixels(given, size) if crop == "rect" else images * size**2
    with in_memory(given, [(size, crop)]):
        row = compared(
            f"{name}: network alone", peak.of(lambda: work(net, given)), floor.call(images), rounds=ROUNDS,
            longest=setting.seconds, wanted=wanted, work=pixels / 1e6, floor_work=floor.pixels(images) / 1e6,
            unit="Mpx/s",
        )  # fmt: skip
    share = setting.of_limit(flops_of(setting, pixels), median(row.raw["seconds"]), PRECISION)
    return Line(
        row.stage, row, limit="matrix rate", share=share, memory=peak.gib, remark=f"{images:,} images"
    )


def flops_of(setting: Setting, pixels: float) -> float:
    """Operations of the forward passes of so many pixels."""
    at = 224
    return flops_an_image(setting.sizes.backbone, at, training=False) * pixels / at**2


def passes_of(setting: Setting, crop: str) -> Passes:
    """With loading processes where there are cores for them."""
    workers = setting.sizes.workers if setting.sizes.workers > 1 else 0
    return Passes(crop=crop, precision=PRECISION, batch_size=BATCH, workers=workers, description=None)


def evaluated(setting: Setting, ps: Sequence[float], size: int, crop: str) -> Callable:
    passes = passes_of(setting, crop)
    return lambda net, given: sweep_p(net, given.images, sizes=[size], ps=ps, passes=passes)


def rect_lines(setting: Setting) -> list[Line]:
    size, name = setting.sizes.rect, f"evaluation, rect {setting.sizes.rect} px, {PRECISION}"
    work = evaluated(setting, [3.0], size, "rect")
    return [pass_line(setting, name, work, size=size, crop="rect", wanted=0.85)]


def p_star_lines(setting: Setting) -> list[Line]:
    size, passes = setting.sizes.size, passes_of(setting, "rect")

    def work(net: MultiGrain, given: Photos) -> None:
        finetune_p(set_p(net, 3.0), given.images, size=size, passes=passes)

    name = f"p* fine-tuning, rect {size} px, {PRECISION}"
    return [pass_line(setting, name, work, size=size, crop="rect", wanted=0.8, times_the_floor=5)]


def store_lines(setting: Setting) -> list[Line]:
    size, passes, number = setting.sizes.size, passes_of(setting, "square"), count()
    with tempfile.TemporaryDirectory() as folder:

        def work(net: MultiGrain, given: Photos) -> None:
            of_call = f"{folder}/{next(number)}"
            stored_features(net, given.images, size=size, ps=[3.0], folder=of_call, passes=passes)

        name = f"embedding to disk, {size} px, {PRECISION}"
        return [pass_line(setting, name, work, size=size, crop="square", wanted=0.9)]


def sweep_lines(setting: Setting) -> list[Line]:
    """A sweep over p beside an evaluation with one p."""
    size, net, peak = setting.sizes.size, network(setting), Peak(setting.device)
    floor = Floor(frozen_backbone(net, PRECISION), setting.device, size)
    images = floor.images_in(setting.seconds / 20, setting.sizes.images)
    given = photos(setting, images)
    with in_memory(given, [(size, "square")]):
        several, one = (
            peak.of(lambda ps=ps: evaluated(setting, ps, size, "square")(net, given)) for ps in (PS, [3.0])
        )
        row = compared(
            f"sweep of {len(PS)} p, {size} px, {PRECISION}: evaluation with one p", several, one,
            rounds=ROUNDS, longest=setting.seconds, wanted=1.15,
        )  # fmt: skip
    flops = flops_of(setting, images * size**2)
    share = setting.of_limit(flops, median(row.raw["seconds"]), PRECISION)
    return [
        Line(row.stage, row, limit="matrix rate", share=share, memory=peak.gib, remark=f"{images:,} images")
    ]


def larger_lines(setting: Setting) -> list[Line]:
    """What the bound on the pixels of a batch costs: the network alone on batches of the kit, and larger."""
    size, net, peak = setting.sizes.rect, network(setting), Peak(setting.device)
    backbone = frozen_backbone(net, PRECISION)
    kit, larger = (Floor(backbone, setting.device, size, larger=times) for times in (1, setting.sizes.larger))
    images = larger.images_in(setting.seconds / 8, setting.sizes.images)
    row = compared(
        f"batches of {kit.batch}, {size} px, {PRECISION}: batches of {larger.batch}",
        peak.of(kit.call(images)), larger.call(images), rounds=ROUNDS, longest=setting.seconds, wanted=0.8,
        work=kit.pixels(images) / 1e6, floor_work=larger.pixels(images) / 1e6, unit="Mpx/s",
    )  # fmt: skip
    flops = flops_of(setting, kit.pixels(images))
    share = setting.of_limit(flops, median(row.raw["seconds"]), PRECISION)
    remark = "the network alone; what the bound on the pixels of a batch costs"
    return [Line(row.stage, row, limit="matrix rate", share=share, memory=peak.gib, remark=remark)]
