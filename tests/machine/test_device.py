"""Device, precision, memory layout; folded batch norms."""

import gc
from copy import deepcopy
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from support import one_line_error
from torch import nn

from mgkit.backbones.build import build_backbone
from mgkit.machine import device as hardware
from mgkit.machine.device import (
    autocast,
    compute_dtype,
    describe,
    fold,
    foldable,
    frozen,
    has_fast_bf16,
    memory_format,
    pick_device,
    place,
    reserved_memory,
    synchronize,
    to_device,
)

CPU, XPU, MPS = torch.device("cpu"), torch.device("xpu"), torch.device("mps")


def dtype_in(precision):
    with autocast(CPU, precision):
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


@pytest.mark.parametrize(
    ("precision", "fast", "dtype"),
    [
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float32),
        ("bf16", False, torch.bfloat16),
        ("float32", True, torch.float32),
    ],
)
def test_precision_decides_what_a_network_runs_in(monkeypatch, precision, fast, dtype):
    monkeypatch.setattr(hardware, "has_fast_bf16", lambda device: fast)
    assert dtype_in(precision) == dtype


@pytest.mark.parametrize("precision", ["fp16", "", "BF16"])
def test_an_unknown_precision_is_rejected(precision):
    with pytest.raises(ValueError, match="is unknown; one of auto, bf16, float32"):
        autocast(CPU, precision)


@pytest.mark.parametrize(
    ("capabilities", "fast"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx2": True}, False), ({}, False)],
)
def test_fast_bf16_on_a_cpu_needs_its_instructions(monkeypatch, capabilities, fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert hardware.has_fast_bf16(CPU) is fast


@pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_fast_bf16_on_a_gpu_starts_with_ampere(monkeypatch, capability, fast):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert hardware.has_fast_bf16(torch.device("cuda")) is fast


@pytest.fixture
def with_gpus(monkeypatch):
    """A function that makes the device types given the available ones."""

    def make(*kinds):
        for kind, module in [("cuda", torch.cuda), ("xpu", torch.xpu), ("mps", torch.backends.mps)]:
            monkeypatch.setattr(module, "is_available", lambda kind=kind: kind in kinds)

    return make


@pytest.mark.parametrize(
    ("available", "kind"),
    [(("cuda", "xpu", "mps"), "cuda"), (("xpu", "mps"), "xpu"), (("mps",), "mps"), ((), "cpu")],
)
def test_the_gpu_is_taken_if_there_is_one(with_gpus, available, kind):
    with_gpus(*available)
    assert pick_device() == torch.device(kind)


def test_before_torch_2_6_only_cuda_is_taken(with_gpus, monkeypatch):
    monkeypatch.delattr(torch, "accelerator")
    for available, kind in [(("xpu", "mps"), "cpu"), (("cuda", "mps"), "cuda")]:
        with_gpus(*available)
        assert pick_device().type == kind


def test_auto_is_bf16_on_xpu_and_float32_on_mps():
    assert has_fast_bf16(XPU) and not has_fast_bf16(MPS)
    assert compute_dtype(XPU) == compute_dtype(XPU, "bf16") == torch.bfloat16
    assert compute_dtype(MPS) == compute_dtype(XPU, "float32") == torch.float32


def test_bf16_on_mps_is_what_autocast_has(monkeypatch):
    with autocast(MPS, "bf16"):
        assert torch.is_autocast_enabled("mps") and torch.get_autocast_dtype("mps") == torch.bfloat16
    with autocast(MPS, "auto"):
        assert not torch.is_autocast_enabled("mps")
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)  # as before macOS 14
    with one_line_error(ValueError, "precision", "bf16", "MPS", "macOS 14", "auto or float32"):
        autocast(MPS, "bf16")


@pytest.mark.parametrize("kind", ["cpu", "cuda", "xpu", "mps"])
def test_layout_and_copies_are_those_of_the_device(kind):
    device = torch.device(kind)
    last = torch.contiguous_format if kind == "mps" else torch.channels_last
    assert memory_format(device) == last
    with patch.object(torch.Tensor, "to") as to:
        to_device(torch.zeros(2, 3, 4, 5), device)
        to_device(torch.zeros(2), device)
    copies = [(*call.args, *call.kwargs.values()) for call in to.call_args_list]
    waited_for = kind == "mps"  # a freed source would be read
    assert copies == [(device, not waited_for, last), (device, not waited_for, torch.preserve_format)]


def test_gpus_are_described_and_their_memory_is_told(monkeypatch):
    assert describe(MPS) == "Apple GPU (MPS), float32"
    monkeypatch.setattr(torch.xpu, "get_device_name", lambda device: "Arc")
    assert describe(XPU) == "Arc, bf16"
    monkeypatch.setattr(torch.xpu, "max_memory_reserved", lambda device: 5)
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda device: SimpleNamespace(total_memory=8))
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 6)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 9)
    assert [reserved_memory(each) for each in (CPU, XPU, MPS)] == [(0, 0), (5, 8), (6, 9)]


def test_every_gpu_is_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.xpu, "synchronize", waited.append)
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append(MPS))
    for device in (CPU, XPU, MPS):
        synchronize(device)
    assert waited == [XPU, MPS]


def test_placing_changes_the_layout_and_no_output(tiny_net):
    x = torch.rand(2, 3, 24, 32)
    with torch.no_grad():
        expected = tiny_net(x)["embedding"]
        placed = place(tiny_net, CPU)
        torch.testing.assert_close(placed(x)["embedding"], expected)
    assert placed.features[3].weight.is_contiguous(memory_format=torch.channels_last)
    assert not placed.features[3].weight.is_contiguous()


def test_placing_leaves_the_layout_of_all_but_2_d_convolutions(tiny_net):
    tiny_net.volume = torch.nn.Conv3d(2, 4, 3)
    tiny_net.register_buffer("table", torch.rand(2, 3, 4, 5))
    placed = place(tiny_net, CPU)
    assert placed is tiny_net and placed.volume.weight.is_contiguous()
    for tensor in (placed.table, placed.features[3].weight):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("fast", "precision"), [(True, "bf16"), (False, "float32")])
def test_describe_says_what_auto_means(monkeypatch, fast, precision):
    monkeypatch.setattr(hardware, "has_fast_bf16", lambda device: fast)
    threads = torch.get_num_threads()
    assert describe(CPU) == f"CPU, {threads} thread{'s' if threads > 1 else ''}, {precision}"


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
