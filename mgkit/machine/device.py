"""Device, mixed precision and memory layout of a network, and its copy for inference."""

from collections import Counter
from copy import deepcopy
from itertools import chain

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

PRECISIONS = ("auto", "bf16", "float32")
# By name, since timm takes seconds to import. Other subclasses may change their weights before they use them.
CONVOLUTIONS = {"Conv2d", "Conv2dSame"}
NORMS = {"BatchNorm2d", "BatchNormAct2d", "SyncBatchNorm"}


def pick_device() -> torch.device:
    """This process's current GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32: GPUs since Ampere, CPUs with AVX512 or AMX bf16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def autocast(device: torch.device, precision: str = "auto") -> torch.autocast:
    """The autocast context of a forward pass; `auto` is bf16 where that is fast, else float32."""
    dtype = compute_dtype(device, precision)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def compute_dtype(device: torch.device, precision: str = "auto") -> torch.dtype:
    """The dtype of convolutions under `autocast`. Raises ValueError for an unknown precision."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is unknown; one of {', '.join(PRECISIONS)}")
    in_bf16 = precision == "bf16" or (precision == "auto" and has_fast_bf16(device))
    return torch.bfloat16 if in_bf16 else torch.float32


def place(net: nn.Module, device: torch.device) -> nn.Module:
    """Move the network to the device; 4-d tensors get channels-last layout, faster on CPUs and GPUs."""
    net.to(device)
    for tensor in chain(net.parameters(), net.buffers()):
        if tensor.ndim == 4:  # `net.to(memory_format=...)` would fail for 5-d tensors
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return net


def describe(device: torch.device) -> str:
    """The device's name and what precision `auto` means on it."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        name = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    return f"{name}, {'bf16' if has_fast_bf16(device) else 'float32'}"


def frozen(features: nn.Module, device: torch.device, precision: str = "auto") -> nn.Module:
    """A copy for inference: batch norms folded into convolutions, weights cast once.

    features: a backbone in eval mode ([B,3,H,W] -> [B,C,h,w]).
    precision: that of the `autocast` in which the copy is to run.

    The feature maps are the same up to rounding. Raises ValueError for an unknown precision.
    """
    # Speed-up by folding on a CPU, batches of 32 at 224 px: EfficientNet-Lite0 1.43, ResNet-50 1.1 to 1.2;
    # in bf16 1.24 and 1.09.
    dtype = compute_dtype(device, precision)
    copy = deepcopy(features)
    for convolution, norm in foldable(features):  # not of the copy, which the trace would keep alive
        fold(copy, convolution, norm)
    for module in copy.modules():
        if type(module) in (nn.Conv2d, nn.Linear):
            module.to(dtype)
    return place(copy, device).requires_grad_(False)


class Tracer(fx.Tracer):
    """Treats convolutions and batch norms as leaves, timm's too."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return type(module).__name__ in CONVOLUTIONS | NORMS or super().is_leaf_module(module, name)


def foldable(features: nn.Module) -> list[tuple[str, str]]:
    """Names of (convolution, batch norm) pairs: each is called once, only the norm reads the convolution.

    Empty where the forward cannot be traced, or where a hook may read what lies between.
    """
    if any(module._forward_hooks or module._forward_pre_hooks for module in features.modules()):
        return []
    try:
        nodes = Tracer().trace(features).nodes
    except Exception:  # a forward may raise anything when it is run on symbols
        return []
    calls = Counter(node.target for node in nodes if node.op == "call_module")
    once = {
        node: type(features.get_submodule(node.target)).__name__
        for node in nodes
        if node.op == "call_module" and calls[node.target] == 1
    }
    return [
        (before.target, node.target)
        for node, kind in once.items()
        for before in node.all_input_nodes
        if kind in NORMS and once.get(before) in CONVOLUTIONS and len(before.users) == 1
    ]


def fold(features: nn.Module, convolution: str, norm: str) -> None:
    """Fold a batch norm into the weights of the convolution before it, both given by name."""
    conv, bn = features.get_submodule(convolution), features.get_submodule(norm)
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
    )
    features.set_submodule(norm, nn.Sequential(*bn.children()))  # keeps the activation inside timm's norms
