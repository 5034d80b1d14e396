"""Device, precision, memory layout."""

from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from support import one_line_error

from mgkit.machine import device as hardware
from mgkit.machine.device import (
    autocast,
    compute_dtype,
    describe,
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


def test_one_thread_within_the_block_alone(four_threads):
    with pytest.raises(ZeroDivisionError), hardware.one_thread():
        assert torch.get_num_threads() == 1
        1 / 0  # noqa: B018
    assert torch.get_num_threads() == 4
