"""What a result depends on besides its config."""

import platform
import socket
import types

import pytest
import torch
import yaml

from mgkit.engine.provenance import cpu_model, driver_version, hardware, provenance

pytestmark = pytest.mark.usefixtures("here")


def test_hardware_is_told_without_the_machine_s_name(monkeypatch):
    for module, name in ((platform, "node"), (socket, "gethostname")):
        monkeypatch.setattr(module, name, lambda: "host-a")
    found = hardware()
    assert found["cpu"] and found["cores"] >= 1 and 0.1 < found["memory_gib"] < 1e5
    assert ("gpus" in found) == torch.cuda.is_available()
    assert "host-a" not in yaml.safe_dump(found)


def test_every_gpu_is_told(monkeypatch):
    gpus = [
        types.SimpleNamespace(name=name, total_memory=size << 30) for name, size in (("A", 80), ("B", 24))
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", gpus.__getitem__)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 90100)
    found = hardware()
    assert found["gpus"] == [{"name": "A", "memory_gib": 80.0}, {"name": "B", "memory_gib": 24.0}]
    assert {"cuda", "cudnn", "driver"} <= found.keys()
    yaml.safe_dump(found)


def test_every_gpu_of_intel_is_told_and_no_cuda(monkeypatch):
    gpu = types.SimpleNamespace(name="Arc", total_memory=16 << 30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 1)
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda k: gpu)
    found = hardware()
    assert found["gpus"] == [{"name": "Arc", "memory_gib": 16.0}] and "cuda" not in found


@pytest.mark.parametrize(
    "line",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.104.05  "
        "Release Build  (dvs-builder@U16)",
    ],
)
def test_the_driver_s_version_is_read_from_the_kernel_s_own_line(here, line):
    (here / "version").write_text(line + "\nGCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n")
    assert driver_version(here / "version") == "535.104.05"
    assert driver_version(here / "nothing") == "unknown"


def test_the_processor_is_named_where_linux_names_it(here):
    (here / "cpuinfo").write_text(
        "processor\t: 0\nmodel\t\t: 1\nmodel name\t: AMD EPYC 7763\n\nmodel name\t: other\n"
    )
    assert cpu_model(here / "cpuinfo") == "AMD EPYC 7763"
    (here / "cpuinfo").write_text("processor\t: 0\nBogoMIPS\t: 50.00\n")
    assert cpu_model(here / "cpuinfo") == cpu_model(here / "nothing") == platform.machine()


def test_a_machine_without_git_has_an_unknown_revision(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance()["revision"] == "unknown"
