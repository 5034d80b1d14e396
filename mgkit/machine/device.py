"""Where and how precisely a network runs: device, automatic mixed precision, memory layout."""

from itertools import chain

import torch
from torch import nn

PRECISIONS = ("auto", "bf16", "float32")


def pick_device() -> torch.device:
    """This process's GPU, the first one unless `mgkit.machine.distributed` chose another; without any, the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 faster than in float32 (GPUs since Ampere; CPUs with AVX512 or AMX bf16)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def autocast(device: torch.device, precision: str = "auto") -> torch.autocast:
    """The context in which networks run; `auto` is bf16 where the device is fast at it, else float32."""
    dtype = compute_dtype(device, precision)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def compute_dtype(device: torch.device, precision: str = "auto") -> torch.dtype:
    """What convolutions compute in; raises ValueError for an unknown precision."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is unknown; one of {', '.join(PRECISIONS)}")
    in_bf16 = precision == "bf16" or (precision == "auto" and has_fast_bf16(device))
    return torch.bfloat16 if in_bf16 else torch.float32


def place(net: nn.Module, device: torch.device) -> nn.Module:
    """The network on the device, its 2-d convolutions in channels-last layout (faster on CPUs and GPUs alike)."""
    net.to(device)
    for tensor in chain(net.parameters(), net.buffers()):
        if tensor.ndim == 4:  # `net.to` would want to have others in that layout, too
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return net


def describe(device: torch.device) -> str:
    """The device and the precision `auto` means on it, in words, for a run's provenance."""
    threads = torch.get_num_threads()
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    )
    return f"{name}, {'bf16' if has_fast_bf16(device) else 'float32'}"
