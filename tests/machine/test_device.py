"""Device, precision and memory layout."""

import pytest
import torch

from mgkit.machine import device as hardware
from mgkit.machine.device import autocast, describe, pick_device, place

CPU = torch.device("cpu")


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


@pytest.mark.parametrize(("available", "kind"), [(True, "cuda"), (False, "cpu")])
def test_the_gpu_is_taken_if_there_is_one(monkeypatch, available, kind):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert pick_device().type == kind


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
