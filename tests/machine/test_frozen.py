"""The copy of a network for inference gives the same maps; what may not be folded is left in place."""

import gc
import threading
import time
from copy import deepcopy

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from mgkit.backbones.build import build_backbone
from mgkit.features import frozen_backbone
from mgkit.machine.device import autocast
from mgkit.machine.frozen import SamePadded, fold, foldable, for_cpu, frozen, shared_copy, side_by_side
from mgkit.model import get_multigrain

CPU = torch.device("cpu")


def worn(features):
    """The backbone in eval mode, its batch norms as after a training: none of them is the identity."""
    generator = torch.Generator().manual_seed(1)
    for module in features.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for values, low, high in [
                (module.running_mean, -0.2, 0.2), (module.running_var, 0.5, 2.0),
                (module.weight.data, 0.5, 1.5), (module.bias.data, -0.2, 0.2),
            ]:  # fmt: skip
                values.uniform_(low, high, generator=generator)
    return features.eval()


def batch_norms(features):
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in features.modules())


def maps(features, images, precision="float32"):
    with torch.no_grad(), autocast(CPU, precision):
        return features(images)


@pytest.fixture
def images():
    return torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "resnet50", "timm/efficientnet_b0", "nasnetamobile"])
def test_the_maps_are_the_same_to_the_rounding_of_float32(name, images):
    features = worn(build_backbone(name).features)
    expected = maps(features, images)
    difference = maps(frozen(features, CPU, "float32"), images) - expected
    assert difference.norm() < 1e-5 * expected.norm()


def test_in_float64_folding_is_exact_to_ten_digits(images):
    features = worn(build_backbone("resnet18").features).double()
    quick_features = deepcopy(features)
    for names in foldable(features):
        fold(quick_features, *names)
    assert batch_norms(quick_features) == 0
    with torch.no_grad():
        plain, quick = features(images.double()), quick_features(images.double())
    torch.testing.assert_close(quick, plain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "timm/efficientnet_b0"])
def test_in_bf16_the_maps_are_as_near_to_float32_as_those_of_plain_autocast(name, images):
    features = worn(build_backbone(name).features)
    exact = maps(features, images)
    plain = (maps(features, images, "bf16").float() - exact).norm()
    quick = (maps(frozen(features, CPU, "bf16"), images, "bf16").float() - exact).norm()
    assert 0 < quick < 1.25 * plain


def test_batch_norms_are_folded_and_weights_have_the_dtype_of_the_computation():
    features = worn(build_backbone("resnet18").features)
    for precision, dtype in [("float32", torch.float32), ("bf16", torch.bfloat16)]:
        quick = frozen(features, CPU, precision)
        assert batch_norms(quick) == 0
        weights = [module.weight for module in quick.modules() if isinstance(module, nn.Conv2d)]
        assert len(weights) == 20
        assert {weight.dtype for weight in weights} == {dtype}
        assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
        assert not any(parameter.requires_grad for parameter in quick.parameters())


def test_the_network_itself_stays_as_it_was(images):
    features = worn(build_backbone("resnet8").features)
    state, expected = deepcopy(features.state_dict()), maps(features, images)
    quick = frozen(features, CPU, "bf16")
    for parameter in quick.parameters():
        parameter.data.zero_()
    assert all(torch.equal(value, state[key]) for key, value in features.state_dict().items())
    assert all(parameter.requires_grad for parameter in features.parameters())
    assert torch.equal(maps(features, images), expected)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_forward_that_cannot_be_traced_is_run_as_it_is(images, sign):
    class Moody(nn.Sequential):
        def forward(self, x):
            return super().forward(x if x.mean() > 0 else -x)

    features = worn(Moody(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    quick = frozen(features, CPU, "float32")
    assert quick is not features and batch_norms(quick) == 1
    torch.testing.assert_close(maps(quick, sign * images), maps(features, sign * images))


@pytest.mark.parametrize("name", ["timm/tf_efficientnet_lite0", "timm/regnety_002", "timm/resnet18"])
def test_the_norms_of_timm_are_folded_with_their_activations(name, images):
    features = worn(build_backbone(name).features)
    quick = frozen(features, CPU, "float32")
    assert batch_norms(features) > 0 and batch_norms(quick) == 0
    expected = maps(features, images)
    assert (maps(quick, images) - expected).norm() < 1e-5 * expected.norm()


def test_hooks_see_what_they_saw(images):
    features, seen = worn(build_backbone("resnet8").features), []
    features.bn1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    for net in (features, frozen(features, CPU, "float32")):
        maps(net, images)
    assert len(seen) == 2 and torch.equal(*seen)


def test_a_synchronised_batch_norm_is_folded_too(images):
    features = worn(nn.Sequential(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4), nn.ReLU()))
    assert batch_norms(frozen(features, CPU, "float32")) == 0
    torch.testing.assert_close(maps(frozen(features, CPU, "float32"), images), maps(features, images))


def test_a_batch_norm_whose_convolution_is_read_elsewhere_too_is_left_in_place(images):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.convolution(x)
            return x + self.norm(x)

    features = worn(Twice())
    torch.testing.assert_close(maps(frozen(features, CPU, "float32"), images), maps(features, images))


class OneConvolution(nn.Module):
    """Calls its convolution twice, with the batch norms that it is given after each."""

    def __init__(self, *after):
        super().__init__()
        self.convolution, self.after = nn.Conv2d(3, 3, 3, padding=1), nn.ModuleList(after)

    def forward(self, x):
        for after in self.after:
            x = after(self.convolution(x))
        return x


def test_a_convolution_that_runs_twice_is_left_as_it_is(images):
    norms = [nn.BatchNorm2d(3) for _ in range(3)]
    for after in ([norms[0], norms[1]], [norms[2], nn.ReLU()]):
        features = worn(OneConvolution(*after))
        expected = maps(features, images)
        difference = maps(frozen(features, CPU, "float32"), images) - expected
        assert difference.norm() < 1e-5 * expected.norm()


class Standardised(nn.Conv2d):
    """Convolves with its weights less their mean, which rounding them first would spoil."""

    def forward(self, x):
        weight = self.weight.float()
        return nn.functional.conv2d(x, weight - weight.mean(dim=(1, 2, 3), keepdim=True), self.bias)


def test_a_norm_behind_weights_that_are_computed_with_is_left_in_place(images):
    features = worn(nn.Sequential(Standardised(3, 8, 3), nn.BatchNorm2d(8)))
    torch.testing.assert_close(maps(frozen(features, CPU, "float32"), images), maps(features, images))


def test_weights_that_are_computed_with_are_not_rounded_before(images):
    class Untraceable(nn.Sequential):
        def forward(self, x):
            return super().forward(x if x.mean() > 0 else -x)

    features = worn(Untraceable(Standardised(3, 8, 3)))
    features[0].weight.data += 5  # which the mean takes away
    exact, plain = maps(features, images), maps(features, images, "bf16").float()
    quick = maps(frozen(features, CPU, "bf16"), images, "bf16").float()
    assert (quick - exact).norm() < 1.25 * (plain - exact).norm()


def test_a_copy_is_gone_with_its_last_name():
    """Not when Python next looks for cycles: until then a GPU would hold the weights of several passes."""
    features = worn(build_backbone("resnet8").features)
    gc.collect()
    gc.disable()
    try:
        before = tensors()
        quick = frozen(features, CPU, "float32")
        assert tensors() > before
        del quick
        assert tensors() == before
    finally:
        gc.enable()


def tensors() -> int:
    return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())


def test_folding_rejects_an_unknown_precision():
    with pytest.raises(ValueError, match="is unknown; one of auto, bf16, float32"):
        frozen(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), CPU, "fp16")


@pytest.mark.parametrize("kernel", [1, 2, 3, (3, 5), 6])
@pytest.mark.parametrize("stride", [1, 2, (3, 2)])
def test_padding_same_needs_no_padded_copy(kernel, stride):
    random = torch.Generator().manual_seed(3)
    conv = Conv2dSame(4, 6, kernel, stride, groups=2).double().requires_grad_(False)
    quick = SamePadded(conv)
    for height, width in [(12, 12), (13, 12), (12, 13), (13, 13), (7, 16), (1, 2)]:
        x = torch.randn(2, 4, height, width, generator=random, dtype=torch.float64)
        torch.testing.assert_close(quick(x), conv(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sides", [(64, 64), (63, 64), (48, 61), (33, 35)])
def test_passes_of_efficientnet_pad_no_map(sides):
    net = get_multigrain("efficientnet_lite0", num_classes=3)
    features = worn(net.features)
    random = torch.rand(2, 3, *sides, generator=torch.Generator().manual_seed(2))
    expected = maps(features, random)
    quick = frozen_backbone(net, "float32")
    assert not any(isinstance(module, Conv2dSame) for module in quick.modules())
    assert any(isinstance(module, Conv2dSame) for module in features.modules())  # the network's own stay
    assert (maps(quick, random) - expected).norm() < 1e-5 * expected.norm()


def test_a_dilated_convolution_keeps_its_padding():
    net = nn.Sequential(Conv2dSame(3, 4, 3, stride=2, dilation=2))
    assert isinstance(for_cpu(net)[0], Conv2dSame)


# --- Side by side


class Forgetful(nn.Module):
    """Keeps the shape of its last input, which another thread must not change meanwhile."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.register_buffer("shift", torch.zeros(()))

    def forward(self, x):
        self.shape = x.shape
        time.sleep(0.001)
        return x.new_full(self.shape, 2) * self.weight + self.shift


def apply(network, x):
    return network(x)


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_results_come_in_order_from_networks_that_are_not_shared(four_threads, lanes):
    shapes = [(1 + k % 3, 1 + k % 5) for k in range(40)]
    found = list(side_by_side(Forgetful(), apply, map(torch.zeros, shapes), lanes=lanes))
    assert [tuple(x.shape) for x in found] == shapes and not any(x.requires_grad for x in found)
    assert torch.get_num_threads() == 4


def test_lanes_share_the_tensors_and_divide_the_threads(four_threads):
    net, seen = Forgetful(), []
    together = threading.Barrier(2, timeout=60)  # both lanes are at work at once

    def work(own, item):
        together.wait()
        seen.append((own, threading.get_ident(), torch.get_num_threads()))
        return item

    assert list(side_by_side(net, work, range(8), lanes=2)) == [*range(8)]
    networks = {id(own): own for own, *_ in seen}
    assert len(networks) == 2 and id(net) not in networks and len({thread for _, thread, _ in seen}) == 2
    assert all(own.weight is net.weight and own.shift is net.shift for own in networks.values())
    assert {threads for *_, threads in seen} == {2} and torch.get_num_threads() == 4


def test_a_thread_that_starts_afterwards_has_all_the_threads(four_threads):
    list(side_by_side(Forgetful(), apply, [torch.zeros(2)] * 3, lanes=3))
    found = []
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert found == [4]


@pytest.mark.parametrize("lanes", [1, 3])
def test_an_error_is_raised_at_its_place_and_ends_the_rest(four_threads, lanes):
    begun = []

    def work(_, k):
        begun.append(k)
        if k == 5:
            raise ValueError("the fifth")
        return k

    results, got = side_by_side(Forgetful(), work, range(100), lanes=lanes), []
    with pytest.raises(ValueError, match="the fifth"):
        got.extend(results)
    assert got == [0, 1, 2, 3, 4] and max(begun) <= 5 + (1 if lanes == 1 else 5 * lanes)


@pytest.mark.parametrize("lanes", [1, 3])
def test_the_error_of_an_item_comes_behind_the_results_of_those_before(four_threads, lanes):
    def items():
        yield from range(7)
        raise OSError("unreadable")

    results, got = side_by_side(Forgetful(), lambda _, k: k, items(), lanes=lanes), []
    with pytest.raises(OSError, match="unreadable"):
        got.extend(results)
    assert got == [*range(7)]


def test_networks_are_traced_while_no_lane_is_at_work(four_threads):
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), *(nn.Conv2d(4, 4, 1) for _ in range(30))
    ).eval()
    results = side_by_side(net, apply, (torch.rand(1, 3, 32, 32 + k) for k in range(200)), lanes=4)
    for k, found in enumerate(results):
        assert found.shape == (1, 4, 30, 30 + k)
        if k % 20 == 0:  # torch.fx would catch the modules' calls in other threads
            assert foldable(net) == [("0", "1")]


def test_one_that_is_not_read_to_its_end_leaves_no_thread(four_threads):
    before = threading.active_count()
    results = side_by_side(Forgetful(), apply, (torch.zeros(k + 1) for k in range(100)), lanes=3)
    assert len(next(results)) == 1
    results.close()
    assert threading.active_count() == before and torch.get_num_threads() == 4


def test_a_shared_copy_keeps_to_itself_what_a_module_is_given():
    net = Forgetful()
    own = shared_copy(net)
    own.shift = torch.ones(())
    assert own.weight is net.weight and net.shift == 0 and own.shift == 1
