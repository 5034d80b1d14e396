"""The NASNets: each layer against the ports of 2018 (pad, operate, crop), for odd and even sizes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mgkit.backbones.nasnet import (
    PNASNET,
    Cell,
    CellPlan,
    Halving,
    Separable,
    build_branch,
    cropped,
    nasnet_a_mobile,
    pnasnet5_large,
)

SHAPES = [(h, w) for h in range(2, 10) for w in (5, 6, 7, 8)]
BUILDERS = {"nasnetamobile": nasnet_a_mobile, "pnasnet5large": pnasnet5_large}


def random_map(height, width, channels=4, seed=0):
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(seed))


def ported(operation, x):
    """Apply the operation as the ports do: pad zeros above and left, then crop the first row and column."""
    return operation(F.pad(x, (1, 0, 1, 0)))[:, :, 1:, 1:]


def disturbed(module):
    """The module in eval mode, its batch norms with statistics that are not 0 and 1."""
    torch.manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
    return module.eval()


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_pools_are_those_of_the_ports(kind, shifted):
    pool = build_branch(kind, 4, 4, stride=2, shifted=shifted)
    plain = nn.MaxPool2d(3, 2, 1) if kind == "max" else nn.AvgPool2d(3, 2, 1, count_include_pad=False)
    for seed, shape in enumerate(SHAPES):
        x = (
            random_map(*shape, seed=seed) - 3
        )  # negative: a window that saw a zero of the padding would show it
        torch.testing.assert_close(pool(x), ported(plain, x) if shifted else plain(x), msg=str(shape))


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("kernel", [3, 5, 7])
@torch.no_grad()
def test_separable_convolutions_are_those_of_the_ports(kernel, shifted):
    ours = disturbed(Separable(4, 6, kernel, stride=2, shifted=shifted))
    depthwise, pointwise = ours.separable_1.depthwise_conv2d.weight, ours.separable_1.pointwise_conv2d.weight

    def first(x):
        return F.conv2d(F.conv2d(x, depthwise, stride=2, padding=kernel // 2, groups=4), pointwise)

    for seed, shape in enumerate(SHAPES):
        x = random_map(*shape, seed=seed)
        halfway = ours.bn_sep_1(ported(first, x.relu()) if shifted else first(x.relu())).relu()
        depthwise_2, pointwise_2 = (part.weight for part in ours.separable_2)
        expected = F.conv2d(F.conv2d(halfway, depthwise_2, padding=kernel // 2, groups=6), pointwise_2)
        torch.testing.assert_close(ours(x), ours.bn_sep_2(expected), msg=str(shape))


@torch.no_grad()
def test_halving_takes_even_pixels_and_odd_ones():
    halving = disturbed(Halving(4, 6))
    for height, width in SHAPES:
        x = random_map(height, width).relu()
        even = torch.stack([x[:, :, i, j] for i in range(0, height, 2) for j in range(0, width, 2)], dim=-1)
        beyond = torch.zeros(2, 4, height + 1, width + 1)
        beyond[:, :, :height, :width] = x
        odd = torch.stack(
            [beyond[:, :, i, j] for i in range(1, height + 1, 2) for j in range(1, width + 1, 2)], dim=-1
        )
        columns = [
            torch.einsum("oc,bcn->bon", conv.weight[:, :, 0, 0], pixels)
            for conv, pixels in ((halving.path_1.conv, even), (halving.path_2.conv, odd))
        ]
        shape = (2, 6, -(-height // 2), -(-width // 2))
        expected = halving.final_path_bn(torch.cat(columns, dim=1).reshape(shape))
        torch.testing.assert_close(halving(x - (x == 0).float()), expected)  # what was negative is dropped


def test_maps_are_cropped_to_their_common_top_left_part():
    tall, wide = random_map(5, 3), random_map(4, 6, channels=2)
    a, b = cropped([tall, wide])
    assert torch.equal(a, tall[:, :, :4, :3]) and torch.equal(b, wide[:, :, :4, :3])


@torch.no_grad()
def test_a_cell_joins_maps_of_unequal_sizes_from_the_top_left():
    """Every branch alone, cropped by hand."""
    plan = CellPlan("cell", PNASNET, 6, reduction=True, shifted=True)
    cell = disturbed(Cell(plan, 3, 5, halve_previous=False, holds_halving=False))
    previous, current = random_map(10, 9, channels=3), random_map(9, 11, channels=5)
    p, c = cell.conv_prev_1x1(previous), cell.conv_1x1(current)
    steps = []
    for i, (left, right) in enumerate([(p, p), (c, c), (c, c), (None, c), (p, c)]):
        a = getattr(cell, f"comb_iter_{i}_left")(steps[2] if left is None else left)
        b = getattr(cell, f"comb_iter_{i}_right")(right)
        height, width = min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])
        steps.append(a[:, :, :height, :width] + b[:, :, :height, :width])
    assert len({step.shape for step in steps}) > 1
    expected = torch.cat([step[:, :, :4, :4] for step in steps], dim=1)
    torch.testing.assert_close(cell(previous, current), expected)


@pytest.mark.parametrize("name", BUILDERS)
def test_every_size_from_the_smallest_on_gives_a_map(name):
    with torch.device("meta"):
        net = BUILDERS[name]().eval()
    sides = [net.smallest, 97, 500]
    for height, width in zip(sides, reversed(sides), strict=True):
        maps = net(torch.empty(1, 3, height, width, device="meta"))
        assert maps.shape[1] == net.width
        assert all(
            side // 64 <= cells <= side // 32 + 1
            for side, cells in zip((height, width), maps.shape[2:], strict=True)
        )
    with pytest.raises(ValueError, match=f"at least {net.smallest} px a side, got 64 x {net.smallest - 1}"):
        net(torch.empty(1, 3, 64, net.smallest - 1, device="meta"))


@pytest.mark.parametrize("name", BUILDERS)
def test_the_smallest_size_is_the_smallest(name):
    with torch.device("meta"):
        net = BUILDERS[name]().eval()
    net.smallest -= 1
    with pytest.raises(RuntimeError):
        net(torch.empty(1, 3, 64, net.smallest, device="meta"))
