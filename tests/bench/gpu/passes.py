"""Passes over images beside the folded network alone: rect evaluation, sweep over p, p*, embedding to disk.

The images are tensors in memory. A pass gets its batches from loading processes, as with files. The floor is
a loop over square batches of as many pixels that are on the device already.
"""

import tempfile
from collections.abc import Callable, Sequence
from itertools import count

import numpy as np
import torch
from gpu.inputs import picture_list
from gpu.lines import Line
from gpu.setting import Setting, line_of
from gpu.steps import flops_an_image
from measuring import Photos, in_memory, seconds
from torch import Tensor

from mgkit.data.images import ImageList
from mgkit.engine.feature_store import stored_features
from mgkit.features import PIXELS_A_BATCH, Passes, frozen_backbone
from mgkit.finetune import finetune_p, set_p, sweep_p
from mgkit.machine.device import autocast, place, synchronize
from mgkit.model import MultiGrain, get_multigrain
from mgkit.transforms import fitted_shape

PS = [1.0, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0]


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
    """The folded network alone, on random square batches.

    size: of the images (px).
    larger: how many times as many images a batch has as one of the kit.
    """

    def __init__(self, setting: Setting, net: MultiGrain, size: int, *, larger: int = 1):
        self.device, self.precision, self.size = setting.device, setting.sizes.precision, size
        self.backbone = frozen_backbone(net, self.precision)
        self.batch = larger * max(1, min(setting.sizes.at_once, PIXELS_A_BATCH // size**2))
        random = torch.Generator().manual_seed(0)
        images = torch.randn(self.batch, 3, size, size, generator=random)
        self.images: Tensor = images.to(self.device, memory_format=torch.channels_last)

    def call(self, images: int) -> Callable[[], None]:
        """A pass over at least so many images, and fewer than a batch more; waited for."""

        def forward_alone() -> None:
            with (
                torch.no_grad(), autocast(self.device, self.precision),
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

    times_the_floor: roughly how long the pass takes, from which the number of images follows.
    """
    net = network(setting)
    floor = Floor(setting, net, size)
    images = floor.images_in(setting.seconds / 4 / (1 + times_the_floor), setting.sizes.images)
    given = photos(setting, images)
    pixels = rect_pixels(given, size) if crop == "rect" else images * size**2
    with in_memory(given, [(size, crop)]):
        return line_of(
            setting, f"{name}, {setting.sizes.precision}: network alone", lambda: work(net, given),
            floor.call(images), wanted=wanted, flops=flops_of(setting, pixels), limit=setting.sizes.precision,
            remark=f"{images:,} images", work=pixels / 1e6, floor_work=floor.pixels(images) / 1e6,
            unit="Mpx/s",
        )  # fmt: skip


def flops_of(setting: Setting, pixels: float) -> float:
    """Operations of the forward passes of so many pixels."""
    at = 224
    return flops_an_image(setting.sizes.backbone, at, training=False) * pixels / at**2


def passes_of(setting: Setting, crop: str) -> Passes:
    """With loading processes where there are cores and shared memory for them."""
    sizes, workers = setting.sizes, setting.loaders(12 * PIXELS_A_BATCH)
    return Passes(
        crop=crop, precision=sizes.precision, batch_size=sizes.at_once, description=None,
        workers=workers if workers > 1 else 0,
    )  # fmt: skip


def evaluated(setting: Setting, ps: Sequence[float], size: int, crop: str) -> Callable:
    passes = passes_of(setting, crop)
    return lambda net, given: sweep_p(net, given.images, sizes=[size], ps=ps, passes=passes)


def rect_lines(setting: Setting) -> list[Line]:
    size, name = setting.sizes.rect, f"evaluation, rect {setting.sizes.rect} px"
    work = evaluated(setting, [3.0], size, "rect")
    return [pass_line(setting, name, work, size=size, crop="rect", wanted=0.85)]


def p_star_lines(setting: Setting) -> list[Line]:
    size, passes = setting.sizes.size, passes_of(setting, "rect")

    def work(net: MultiGrain, given: Photos) -> None:
        finetune_p(set_p(net, 3.0), given.images, size=size, passes=passes)

    name = f"p* fine-tuning, rect {size} px"
    return [pass_line(setting, name, work, size=size, crop="rect", wanted=0.8, times_the_floor=5)]


def store_lines(setting: Setting) -> list[Line]:
    size, passes, number = setting.sizes.size, passes_of(setting, "square"), count()
    with tempfile.TemporaryDirectory() as folder:

        def work(net: MultiGrain, given: Photos) -> None:
            of_call = f"{folder}/{next(number)}"
            stored_features(net, given.images, size=size, ps=[3.0], folder=of_call, passes=passes)

        name = f"embedding to disk, {size} px"
        return [pass_line(setting, name, work, size=size, crop="square", wanted=0.9)]


def sweep_lines(setting: Setting) -> list[Line]:
    """A sweep over p beside an evaluation with one p."""
    size, net, precision = setting.sizes.size, network(setting), setting.sizes.precision
    images = Floor(setting, net, size).images_in(setting.seconds / 20, setting.sizes.images)
    given = photos(setting, images)
    several, one = (evaluated(setting, ps, size, "square") for ps in (PS, [3.0]))
    with in_memory(given, [(size, "square")]):
        line = line_of(
            setting, f"sweep of {len(PS)} p, {size} px, {precision}: evaluation with one p",
            lambda: several(net, given), lambda: one(net, given), wanted=1.15,
            flops=flops_of(setting, images * size**2), limit=precision, remark=f"{images:,} images",
        )  # fmt: skip
    return [line]


def larger_lines(setting: Setting) -> list[Line]:
    """What the bound on the pixels of a batch costs: the network alone on batches of the kit, and larger."""
    size, net, precision = setting.sizes.rect, network(setting), setting.sizes.precision
    kit, larger = (Floor(setting, net, size, larger=times) for times in (1, setting.sizes.larger))
    images = larger.images_in(setting.seconds / 8, setting.sizes.images)
    line = line_of(
        setting, f"batches of {kit.batch}, {size} px, {precision}: batches of {larger.batch}",
        kit.call(images), larger.call(images), wanted=0.8, flops=flops_of(setting, kit.pixels(images)),
        limit=precision, remark="the network alone; what the bound on the pixels of a batch costs",
        work=kit.pixels(images) / 1e6, floor_work=larger.pixels(images) / 1e6, unit="Mpx/s",
    )  # fmt: skip
    return [line]
