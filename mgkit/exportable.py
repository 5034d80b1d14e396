"""Parts of backbones in a form that torch.export can follow for images of any size, with the same results.

torch.export keeps sizes as formulas. A padding or a crop that is chosen by comparing sizes would be kept for
the size of the example only; here each is a formula of the size before it.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mgkit.backbones.nasnet import Cell, CellNetwork
from mgkit.backbones.timm_models import TimmFeatures

SAME, PATCHES = "Conv2dSame", "PatchEmbed"  # by name, since timm takes seconds to import


def exportable(features: nn.Module) -> nn.Module:
    """The features with such parts replaced, in place; returned."""
    if isinstance(features, TimmFeatures) and not takes_one_size(features):
        features.own_size = ()  # images are cut to whole patches alike at all sizes
    for name, module in list(features.named_modules()):
        if is_same(module):
            features.set_submodule(name, SameConvolution(module))
        elif isinstance(module, CellNetwork):
            features.set_submodule(name, SizedCells(module))
        elif type(module).__name__ == PATCHES:
            module.img_size = None  # images are cut before: their sides need not be checked
        elif getattr(module, "inplace", False):
            module.inplace = False  # takes torch.export a multiple of the time
    return features


def takes_one_size(features: nn.Module) -> bool:
    """Whether a backbone takes only its own size, or takes that one otherwise than others."""
    if not isinstance(features, TimmFeatures):
        return False
    return features.is_fixed or any(side % features.patch for side in features.own_size if features.patch > 1)


class SameConvolution(nn.Module):
    """A convolution of stride 2 and odd kernel with TensorFlow's SAME padding, -> [B,D,⌈h/2⌉,⌈w/2⌉]."""

    def __init__(self, convolution: nn.Conv2d):
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        layer = self.convolution
        height, width = x.shape[-2:]
        (top, left), (rows, columns) = ([side // 2 for side in layer.kernel_size], layer.kernel_size)
        x = F.pad(x, (left, left + 1, top, top + 1))
        # Of an even side, windows start a pixel later. What is behind the last window is not read.
        x = x.narrow(-2, 1 - height % 2, height + rows - 1).narrow(-1, 1 - width % 2, width + columns - 1)
        return F.conv2d(x, layer.weight, layer.bias, layer.stride, groups=layer.groups)


def is_same(module: nn.Module) -> bool:
    """Whether a module is a convolution that `SameConvolution` replaces."""
    return (
        type(module).__name__ == SAME
        and module.stride == (2, 2)
        and module.dilation == (1, 1)
        and all(side % 2 for side in module.kernel_size)
    )


class SizedCells(nn.Module):
    """A CellNetwork whose cells crop to sizes that are known from the size of `current`."""

    def __init__(self, network: CellNetwork):
        super().__init__()
        stem, *names = network.layers
        cells = [network.get_submodule(name) for name in names]
        shifts = [cell.plan.reduction and cell.plan.shifted for cell in cells]
        self.stem = network.get_submodule(stem)
        self.cells = nn.ModuleList(
            SizedCell(cell, overhangs=shift) for cell, shift in zip(cells, [False, *shifts], strict=False)
        )

    def forward(self, images: Tensor) -> Tensor:
        previous = current = self.stem(images)
        for cell in self.cells:
            previous, current = current, cell(previous, current)
        return current


class SizedCell(nn.Module):
    """A cell that crops `previous`, if that overhangs, to the size of `current`, as `cropped` would.

    overhangs: whether the cell before halved with shifted windows, to ⌊n/2⌋; `previous` is halved to ⌈n/2⌉
    """

    def __init__(self, cell: Cell, *, overhangs: bool):
        super().__init__()
        self.cell, self.overhangs = cell, overhangs and not cell.plan.reduction
        self.shifted = cell.plan.reduction and cell.plan.shifted

    def forward(self, previous: Tensor, current: Tensor) -> Tensor:
        cell, plan = self.cell, self.cell.plan.steps
        fitted = halved(cell, previous) if cell.holds_halving else self.fitted(previous)
        maps: dict[int | str, Tensor] = {"previous": fitted, "current": cell.conv_1x1(current)}
        size = current.shape[-2:]
        for i, branches in enumerate(plan.steps):
            sides = zip(("left", "right"), branches, strict=True)
            a, b = (
                self.sized(
                    cell.get_submodule(f"comb_iter_{i}_{side}")(self.read(maps, *branch)), branch[1], size
                )
                for side, branch in sides
            )
            maps[i] = a + b
        return torch.cat([self.sized(maps[source], source, size) for source in plan.joined], dim=1)

    def fitted(self, previous: Tensor) -> Tensor:
        """`previous` with the cell's width."""
        layer = self.cell.conv_prev_1x1
        return halved(layer, previous) if hasattr(layer, "final_path_bn") else layer(previous)

    def read(self, maps: dict[int | str, Tensor], operation: int | str, source: int | str) -> Tensor:
        """What a branch reads: a 1 × 1 convolution of stride 2 in a shifted cell is to give ⌊n/2⌋ pixels."""
        x = maps[source]
        overhangs = self.shifted and operation == "same" and source in ("previous", "current")
        return x[..., :-1, :-1] if overhangs else x

    def sized(self, x: Tensor, source: int | str, size: torch.Size) -> Tensor:
        """Crop what was read from an overhanging `previous`."""
        if not (self.overhangs and source == "previous"):
            return x
        return x.narrow(-2, 0, size[0]).narrow(-1, 0, size[1])


def halved(module: nn.Module, x: Tensor) -> Tensor:
    """`nasnet.halve`, whose 1 × 1 convolutions get a stride in place of pixels that are picked before."""
    x = F.relu(x)
    odd = F.pad(x, (-1, 1, -1, 1))
    halves = [
        F.conv2d(part, path.conv.weight, stride=2)
        for path, part in ((module.path_1, x), (module.path_2, odd))
    ]
    return module.final_path_bn(torch.cat(halves, dim=1))
