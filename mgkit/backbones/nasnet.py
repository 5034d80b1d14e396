"""NASNet-A-Mobile and PNASNet-5-Large up to their last cell, equal to the PyTorch ports of 2018.

Both stack cells (Zoph et al. 2018, arXiv 1707.07012; Liu et al. 2018, arXiv 1712.00559). A cell reads the
outputs of the two cells before it, `previous` and `current`, and has five steps, each the sum of two
branches; a step may read earlier steps. The tables below define the architectures; modules are named as in
the released files.

At sizes that the strides do not divide, maps in a sum or concatenation differ by a pixel or two and are
cropped to their common top-left part, as in MultiGrain's code. The padding is therefore that of the ports
(symmetric, or shifted by a pixel in some cells), not TensorFlow's SAME.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Branch = tuple[int | str, int | str]  # (operation, source)


@dataclass(frozen=True)
class Steps:
    """The five steps of a cell and its output.

    steps: two branches each; operation k is two separable convolutions k × k, `max` and `avg` are 3 × 3
    pools, `same` is the identity
    joined: sources that are concatenated: `previous`, `current` or the number of an earlier step
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
    """Configuration of a cell.

    name: of its module
    steps, width: its steps, and the channels of each
    reduction: whether branches that read `previous` or `current` have stride 2
    shifted: whether their windows start a pixel later
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
    """A convolution of stride 2, then cells. Attribute width: number of output channels.

    stem, stem_width: name and channels of the convolution
    plans: the cells
    cells_hold_halving: see `Cell`
    smallest: smallest side of an image (px); ValueError for smaller ones
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
        self.layers = [stem]  # names in order, since other modules may be added to the network
        previous = current = stem_width
        halved = None  # whether `current` is half as large as `previous`; None: they are the same
        for plan in plans:
            cell = Cell(plan, previous, current, halve_previous=halved, holds_halving=cells_hold_halving)
            self.add_module(plan.name, cell)
            self.layers.append(plan.name)
            previous, current, halved = current, cell.width, plan.reduction
        self.width = current

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if min(height, width) < self.smallest:
            raise ValueError(f"images need at least {self.smallest} px a side, got {height} x {width}")
        stem, *cells = (self.get_submodule(name) for name in self.layers)
        previous = current = stem(images)
        for cell in cells:
            previous, current = current, cell(previous, current)
        return current


class Cell(nn.Module):
    """previous [B,P,·,·], current [B,C,h,w] -> [B,width,·,·], half as large for a reduction.

    halve_previous: fit `previous` to `current` by `Halving` (True), a 1 × 1 convolution (False), or not
    (None)
    holds_halving: whether the parts of the halving are the cell's own (NASNet) or conv_prev_1x1's (PNASNet)
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
                reduces, source_width = plan.reduction and source in channels, channels.get(source, width)
                options = {"stride": 2 if reduces else 1, "shifted": reduces and plan.shifted}
                branch = build_branch(operation, source_width, width, **options)
                self.add_module(f"comb_iter_{i}_{side}", branch)
        self.width = sum(channels.get(source, width) for source in plan.steps.joined)

    def forward(self, previous: Tensor, current: Tensor) -> Tensor:
        fitted = halve(self, previous) if self.holds_halving else self.conv_prev_1x1(previous)
        maps = {"previous": fitted, "current": self.conv_1x1(current)}
        for i, ((_, left), (_, right)) in enumerate(self.plan.steps.steps):
            a = self.get_submodule(f"comb_iter_{i}_left")(maps[left])
            b = self.get_submodule(f"comb_iter_{i}_right")(maps[right])
            maps[i] = sum(cropped([a, b]))
        return torch.cat(cropped([maps[source] for source in self.plan.steps.joined]), dim=1)


def cropped(maps: Sequence[Tensor]) -> list[Tensor]:
    """Crop maps [B,·,h_i,w_i] to their common top-left part [B,·,min h_i,min w_i]."""
    height, width = (min(x.shape[axis] for x in maps) for axis in (-2, -1))
    return [x[..., :height, :width] for x in maps]


def build_branch(operation: int | str, channels: int, width: int, *, stride: int, shifted: bool) -> nn.Module:
    """Build the module of one operation, [B,channels,h,w] -> [B,width,h/stride,w/stride]."""
    if isinstance(operation, int):
        return Separable(channels, width, operation, stride=stride, shifted=shifted)
    if operation == "same":
        return nn.Identity() if stride == 1 else relu_conv_bn(channels, width, stride=stride)
    # Shifted windows start at the first pixel; with ceil_mode, the last may overhang by a pixel.
    padding = 0 if shifted else 1
    if operation == "max":
        pool = nn.MaxPool2d(3, stride, padding, ceil_mode=shifted)
    else:
        pool = nn.AvgPool2d(3, stride, padding, ceil_mode=shifted, count_include_pad=False)
    if channels == width:
        return pool
    return named(pool=pool, conv=nn.Conv2d(channels, width, 1, bias=False), bn=batch_norm(width))


class Separable(nn.Module):
    """Twice ReLU, separable k × k convolution, batch norm; the first has the stride and new width."""

    def __init__(self, channels: int, width: int, kernel: int, *, stride: int, shifted: bool):
        super().__init__()
        around = kernel // 2
        self.separable_1 = separable(channels, width, kernel, stride, padding=0 if shifted else around)
        self.bn_sep_1 = batch_norm(width)
        self.separable_2 = separable(width, width, kernel, 1, padding=around)
        self.bn_sep_2 = batch_norm(width)
        # Left, right, top, bottom: one pixel less before the map shifts the windows.
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
    """Add the submodules that `halve` uses."""
    module.path_1 = named(conv=nn.Conv2d(channels, width // 2, 1, bias=False))
    module.path_2 = named(conv=nn.Conv2d(channels, width // 2, 1, bias=False))
    module.final_path_bn = batch_norm(width)


def halve(module: nn.Module, x: Tensor) -> Tensor:
    """Concatenate half the channels from even pixels and half from odd pixels (zero beyond the border)."""
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
    """Return the modules as a sequence, under their names."""
    return nn.Sequential(OrderedDict(modules))
