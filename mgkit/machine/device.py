"""Device, mixed precision and memory layout of a network."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

PRECISIONS = ("auto", "bf16", "float32")
GPUS = {"cuda": torch.cuda, "xpu": torch.xpu}  # by device type: torch's modules, of the same functions


def pick_device() -> torch.device:
    """This process's current GPU by CUDA, Intel's XPU or Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    recent = hasattr(torch, "accelerator")  # torch 2.6: peaks of memory on XPU, autocast to bf16 on MPS
    if recent and torch.xpu.is_available():
        return torch.device("xpu")
    return torch.device("mps" if recent and torch.backends.mps.is_available() else "cpu")


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32: CUDA since Ampere, XPU, CPUs with AVX512 or AMX bf16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type in ("xpu", "mps"):
        return device.type == "xpu"  # on MPS no speed-up is known
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def autocast(device: torch.device, precision: str = "auto") -> torch.autocast:
    """The autocast context of a forward pass; `auto` is bf16 where that is fast, else float32."""
    dtype = compute_dtype(device, precision)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def compute_dtype(device: torch.device, precision: str = "auto") -> torch.dtype:
    """The dtype of convolutions under `autocast`.

    Raises ValueError for an unknown precision, and for bf16 on an MPS that lacks it.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is unknown; one of {', '.join(PRECISIONS)}")
    if precision == "bf16" and device.type == "mps" and not autocasts_to_bf16(device):
        raise ValueError("precision bf16: MPS has it from macOS 14 on; choose auto or float32")
    in_bf16 = precision == "bf16" or (precision == "auto" and has_fast_bf16(device))
    return torch.bfloat16 if in_bf16 else torch.float32


def autocasts_to_bf16(device: torch.device) -> bool:
    """Whether torch's autocast takes bf16 on the device; where it does not, it warns and stays off."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return torch.is_autocast_enabled(device.type)


def memory_format(device: torch.device) -> torch.memory_format:
    """The faster layout of 4-d tensors: channels-last, on MPS contiguous."""
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def place(net: nn.Module, device: torch.device) -> nn.Module:
    """Move the network to the device; 4-d tensors get its `memory_format`."""
    net.to(device)
    for tensor in chain(net.parameters(), net.buffers()):
        if tensor.ndim == 4:  # `net.to(memory_format=...)` would fail for 5-d tensors
            tensor.data = tensor.data.to(memory_format=memory_format(device))
    return net


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Move a tensor of a batch to the device; images [B,3,H,W] get its `memory_format`."""
    layout = memory_format(device) if x.ndim == 4 else torch.preserve_format
    # A copy to MPS that is not waited for may read memory that has been freed: wrong values, no error.
    return x.to(device, non_blocking=device.type != "mps", memory_format=layout)


def kept_memory() -> dict[str, str]:
    """Environment variables with which a process keeps the memory that it frees; none with a GPU.

    For processes that are still to be started, with glibc. Where it returns the memory of large feature maps,
    new pages take a fifth of the CPU time: of a step of EfficientNet-Lite0 with 48 images of 128 px, and of
    passes of small images through resnet8.
    """
    if pick_device().type != "cpu":
        return {}
    return {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34)}


def to_float64(x: Tensor) -> Tensor:
    """The tensor in float64, on the CPU unless it is on CUDA: MPS and some XPUs have no float64."""
    return (x if x.device.type in ("cpu", "cuda") else x.cpu()).double()


@contextmanager
def one_thread() -> Iterator[None]:
    """Within the block, this thread's operators on a CPU take no other: small ones only wait for them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "mps":
        torch.mps.synchronize()
    elif device.type in GPUS:
        GPUS[device.type].synchronize(device)


def reserved_memory(device: torch.device) -> tuple[int, int]:
    """Memory of a GPU that torch has held at most, and all of it (bytes); 0, 0 on a CPU."""
    if device.type == "mps":  # holds what it has freed, and counts no peak
        return torch.mps.driver_allocated_memory(), torch.mps.recommended_max_memory()
    if device.type not in GPUS:
        return 0, 0
    gpu = GPUS[device.type]
    return gpu.max_memory_reserved(device), gpu.get_device_properties(device).total_memory


def describe(device: torch.device) -> str:
    """The device's name and what precision `auto` means on it."""
    if device.type in GPUS:
        name = GPUS[device.type].get_device_name(device)
    elif device.type == "mps":
        name = "Apple GPU (MPS)"
    else:
        threads = torch.get_num_threads()
        name = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    return f"{name}, {'bf16' if has_fast_bf16(device) else 'float32'}"
