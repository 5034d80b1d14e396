"""NASNet-A-Mobile and PNASNet-5-Large up to their last cell, as the PyTorch ports of 2018 compute them.

Both stack cells (Zoph et al. 2018, arXiv 1707.07012; Liu et al. 2018, arXiv 1712.00559). A cell sees the outputs of the
two cells before it, `previous` and `current`, and takes five steps, each the sum of two branches; a step may read
earlier steps. The tables below are the architectures, `Cell` reads them. Names of modules are those of the released files.

At sizes that the strides do not divide, maps that meet in a sum or a concatenation differ by a pixel or two: all are cropped
to their common top-left part, as MultiGrain's code does. Where that crop falls depends on the padding, which is
therefore that of the ports (symmetric, or shifted by a pixel in some cells) and not TensorFlow's SAME.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Branch = tuple[int | str, int | str]  # (operation, what it reads)


@dataclass(frozen=True)
class Steps:
    """The five steps of a cell, and what it puts out.

    steps: two branches each. Operations: a number k is two separable convolutions k × k, `max` and `avg` are 3 × 3 pools, `same`
    passes on. What a branch reads, and what is joined: `previous`, `current`, or the number of an earlier step.
    """

    steps: tuple[tuple[Branch, Branch], ...]
    joined: tuple[int | str, ...]


NASNET_NORMAL = Steps(
    (
        ((5, "current"), (3, "previous")),
        ((5, "previous"), (3, "previous")),
        (("avg", "current"), ("same", "previous")),
        (("avg", "previous"), ("avg", "previous")),
        ((3, "current"), ("same", "current")),
    ),
    joined=("previous", 0, 1, 2, 3, 4),
)
NASNET_REDUCTION = Steps(
    (
        ((5, "current"), (7, "previous")),
        (("max", "current"), (7, "previous")),
        (("avg", "current"), (5, "previous")),
        (("same", 1), ("avg", 0)),
        ((3, 0), ("max", "current")),
    ),
    joined=(1, 2, 3, 4),
)
PNASNET = Steps(
    (
        ((5, "previous"), ("max", "previous")),
        ((7, "current"), ("max", "current")),
        ((5, "current"), (3, "current")),
        ((3, 2), ("max", "current")),
        ((3, "previous"), ("same", "current")),
    ),
    joined=(0, 1, 2, 3, 4),
)


@dataclass(frozen=True)
class CellPlan:
    """One cell: its steps, the channels of each, and how it halves the map, if it does.

    reduction: branches that read `previous` or `current` have stride 2. shifted: these start a pixel later.
    """

    name: str
    steps: Steps
    width: int
    reduction: bool = False
    shifted: bool = False


def nasnet_a_mobile() -> "CellNetwork":
    """NASNet-A (4 @ 1056): images [B,3,H,W] -> [B,1056,h,w], h ≈ H/32, before the last ReLU."""
    plans = [
        CellPlan("cell_stem_0", NASNET_REDUCTION, 11, reduction=True),
        CellPlan("cell_stem_1", NASNET_REDUCTION, 22, reduction=True, shifted=True),
        *(CellPlan(f"cell_{i}", NASNET_NORMAL, 44) for i in range(4)),
        CellPlan("reduction_cell_0", NASNET_REDUCTION, 88, reduction=True, shifted=True),
        *(CellPlan(f"cell_{i}", NASNET_NORMAL, 88) for i in range(6, 10)),
        CellPlan("reduction_cell_1", NASNET_REDUCTION, 176, reduction=True, shifted=True),
        *(CellPlan(f"cell_{i}", NASNET_NORMAL, 176) for i in range(12, 16)),
    ]
    return CellNetwork("conv0", 32, plans, cells_hold_halving=True, smallest=31)


def pnasnet5_large() -> "CellNetwork":
    """PNASNet-5 (4 @ 4320): images [B,3,H,W] -> [B,4320,h,w], h ≈ H/32, before the last ReLU."""
    plans = [
        CellPlan("cell_stem_0", PNASNET, 54, reduction=True),
        CellPlan("cell_stem_1", PNASNET, 108, reduction=True),
        *(CellPlan(f"cell_{i}", PNASNET, 216) for i in range(4)),
        CellPlan("cell_4", PNASNET, 432, reduction=True, shifted=True),
        *(CellPlan(f"cell_{i}", PNASNET, 432) for i in range(5, 8)),
        CellPlan("cell_8", PNASNET, 864, reduction=True),
        *(CellPlan(f"cell_{i}", PNASNET, 864) for i in range(9, 12)),
    ]
    return CellNetwork("conv_0", 96, plans, cells_hold_halving=False, smallest=11)


class CellNetwork(nn.Module):
    """A convolution of stride 2, then cells. Attribute width: channels it puts out.

    stem, stem_width: name and channels of the convolution. cells_hold_halving: see `Cell`. smallest: px, the side of an
    image of which a pixel is left; ValueError for smaller ones.
    """

    def __init__(
        self,
        stem: str,
        stem_width: int,
        plans: Sequence[CellPlan],
        *,
        cells_hold_halving: bool,
        smallest: int,
    ):
        super().__init__()
        self.smallest = smallest
        convolution = nn.Conv2d(3, stem_width, 3, stride=2, bias=False)
        self.add_module(stem, named(conv=convolution, bn=batch_norm(stem_width)))
        self.layers = [stem]  # names, in order: the network may come to hold other modules
        previous = current = stem_width
        halved = None  # whether `current` is half as large as `previous`; None: they are one and the same
        for plan in plans:
            cell = Cell(plan, previous, current, halve_previous=halved, holds_halving=cells_hold_halving)
            self.add_module(plan.name, cell)
            self.layers.append(plan.name)
            previous, current, halved = current, cell.width, plan.reduction
        self.width = current

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if min(height, width) < self.smallest:
            raise ValueError(
                f"this network needs images of at least {self.smallest} px a side, got {height} x {width}"
            )
        stem, *cells = (self.get_submodule(name) for name in self.layers)
        previous = current = stem(images)
        for cell in cells:
            previous, current = current, cell(previous, current)
        return current


class Cell(nn.Module):
    """previous [B,P,·,·], current [B,C,h,w] -> [B,width,·,·], half as large where the plan is a reduction.

    halve_previous: fit `previous` to current by `Halving` (True) or by a 1 × 1 convolution (False), or leave it raw (None).
    holds_halving: NASNet's files name the parts of the halving as the cell's own, PNASNet's as those of conv_prev_1x1.
    """

    def __init__(
        self, plan: CellPlan, previous: int, current: int, *, halve_previous: bool | None, holds_halving: bool
    ):
        super().__init__()
        self.plan, self.holds_halving = plan, bool(halve_previous and holds_halving)
        width = plan.width
        if self.holds_halving:
            add_halving(self, previous, width)
        elif halve_previous:
            self.conv_prev_1x1 = Halving(previous, width)
        elif halve_previous is None:
            self.conv_prev_1x1 = nn.Identity()
        else:
            self.conv_prev_1x1 = relu_conv_bn(previous, width)
        self.conv_1x1 = relu_conv_bn(current, width)

        channels = {"previous": previous if halve_previous is None else width, "current": width}
        for i, branches in enumerate(plan.steps.steps):
            for side, (operation, source) in zip(("left", "right"), branches, strict=True):
                reduces = plan.reduction and source in channels
                branch = build_branch(
                    operation,
                    channels.get(source, width),
                    width,
                    stride=2 if reduces else 1,
                    shifted=reduces and plan.shifted,
                )
                self.add_module(f"comb_iter_{i}_{side}", branch)
        self.width = sum(channels.get(source, width) for source in plan.steps.joined)

    def forward(self, previous: Tensor, current: Tensor) -> Tensor:
        fitted = halve(self, previous) if self.holds_halving else self.conv_prev_1x1(previous)
        maps = {"previous": fitted, "current": self.conv_1x1(current)}
        for i, ((_, left), (_, right)) in enumerate(self.plan.steps.steps):
            a = self.get_submodule(f"comb_iter_{i}_left")(maps[left])
            b = self.get_submodule(f"comb_iter_{i}_right")(maps[right])
            a, b = cropped([a, b])
            maps[i] = a + b
        return torch.cat(cropped([maps[source] for source in self.plan.steps.joined]), dim=1)


def cropped(maps: Sequence[Tensor]) -> list[Tensor]:
    """The maps [B,·,h_i,w_i], each cut to its top-left [B,·,min h_i,min w_i]."""
    height, width = (min(x.shape[axis] for x in maps) for axis in (-2, -1))
    return [x[..., :height, :width] for x in maps]


def build_branch(operation: int | str, channels: int, width: int, *, stride: int, shifted: bool) -> nn.Module:
    """The module of one operation, [B,channels,h,w] -> [B,width,h/stride,w/stride]."""
    if isinstance(operation, int):
        return Separable(channels, width, operation, stride=stride, shifted=shifted)
    if operation == "same":
        return nn.Identity() if stride == 1 else relu_conv_bn(channels, width, stride=stride)
    # Shifted windows start at the first pixel; ceil_mode keeps the last one, which may overhang by a pixel.
    padding = 0 if shifted else 1
    if operation == "max":
        pool = nn.MaxPool2d(3, stride, padding, ceil_mode=shifted)
    else:
        pool = nn.AvgPool2d(3, stride, padding, ceil_mode=shifted, count_include_pad=False)
    if channels == width:
        return pool
    return named(pool=pool, conv=nn.Conv2d(channels, width, 1, bias=False), bn=batch_norm(width))


class Separable(nn.Module):
    """Twice ReLU, depthwise k × k, pointwise, batch norm; the first time with the stride and the change of channels."""

    def __init__(self, channels: int, width: int, kernel: int, *, stride: int, shifted: bool):
        super().__init__()
        around = kernel // 2
        self.separable_1 = separable(channels, width, kernel, stride, padding=0 if shifted else around)
        self.bn_sep_1 = batch_norm(width)
        self.separable_2 = separable(width, width, kernel, 1, padding=around)
        self.bn_sep_2 = batch_norm(width)
        # Left, right, top, bottom: a pixel less in front, so that the windows start a pixel later.
        self.pad = (around - 1, around, around - 1, around) if shifted else (0, 0, 0, 0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn_sep_1(self.separable_1(F.pad(F.relu(x), self.pad)))
        return self.bn_sep_2(self.separable_2(F.relu(x)))


class Halving(nn.Module):
    """[B,channels,h,w] -> [B,width,⌈h/2⌉,⌈w/2⌉]: see `halve`."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        add_halving(self, channels, width)

    def forward(self, x: Tensor) -> Tensor:
        return halve(self, x)


def add_halving(module: nn.Module, channels: int, width: int) -> None:
    """Give the module the parts that `halve` uses."""
    module.path_1 = named(conv=nn.Conv2d(channels, width // 2, 1, bias=False))
    module.path_2 = named(conv=nn.Conv2d(channels, width // 2, 1, bias=False))
    module.final_path_bn = batch_norm(width)


def halve(module: nn.Module, x: Tensor) -> Tensor:
    """Half the channels from the pixels at even places, half from those at odd ones, where past the edge is zero."""
    x = F.relu(x)
    odd = F.pad(x, (-1, 1, -1, 1))
    halves = [module.path_1(x[..., ::2, ::2]), module.path_2(odd[..., ::2, ::2])]
    return module.final_path_bn(torch.cat(halves, dim=1))


def relu_conv_bn(channels: int, width: int, *, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels, width, 1, stride=stride, bias=False)
    return named(relu=nn.ReLU(), conv=convolution, bn=batch_norm(width))


def separable(channels: int, width: int, kernel: int, stride: int, *, padding: int) -> nn.Sequential:
    depthwise = nn.Conv2d(channels, channels, kernel, stride, padding, groups=channels, bias=False)
    return named(depthwise_conv2d=depthwise, pointwise_conv2d=nn.Conv2d(channels, width, 1, bias=False))


def batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def named(**modules: nn.Module) -> nn.Sequential:
    """The modules in a row, under their names."""
    return nn.Sequential(OrderedDict(modules))
