"""Provenance of a result besides its config: code version, packages, machine and time."""

import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import torch

from mgkit.machine.device import GPUS, describe, pick_device

PACKAGES = (
    "mgkit", "torch", "torchvision", "timm", "numpy", "scipy", "pillow", "faiss-cpu", "safetensors",
    "tensorboard",
)  # fmt: skip


def provenance() -> dict:
    """Code version, packages, machine and time, for provenance.yaml."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "revision": revision() or "unknown",
        "packages": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": describe(pick_device()),
        "hardware": hardware(),
    }


def revision() -> str:
    """The git commit of the code; empty without git or outside of a repository."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, encoding="utf-8", errors="replace"
        )
    except OSError:  # git is not installed
        return ""
    return found.stdout.strip()


def hardware() -> dict:
    """Processor, memory, GPUs and operating system, without the machine's name."""
    found = {
        "system": platform.platform(),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": gib(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
    }
    kind = pick_device().type
    if kind in GPUS:
        gpus = [GPUS[kind].get_device_properties(k) for k in range(GPUS[kind].device_count())]
        found["gpus"] = [{"name": gpu.name, "memory_gib": gib(gpu.total_memory)} for gpu in gpus]
    if kind == "cuda":
        found |= {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": driver_version(),
        }
    return found


def gib(size: int) -> float:
    """Bytes -> GiB, to one decimal."""
    return round(size / 2**30, 1)


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name from /proc/cpuinfo, or the architecture if there is none."""
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return model[1] if model else platform.machine()


def driver_version(file: Path = Path("/proc/driver/nvidia/version")) -> str:
    """The version of NVIDIA's kernel module, or `unknown`."""
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    version = re.search(r"\b\d+(\.\d+)+\b", text)
    return version[0] if version else "unknown"


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
