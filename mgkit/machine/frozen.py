"""A backbone that is not trained any more: the same feature maps, sooner."""

from collections import Counter
from copy import deepcopy

import torch
from torch import nn
from torch.fx import GraphModule, symbolic_trace
from torch.fx.experimental.optimization import fuse

from mgkit.machine.device import compute_dtype, place

LIBRARIES = {"torch", "torchvision", "timm", "mgkit"}  # whose modules compute maps and do nothing else


def frozen(features: nn.Module, device: torch.device, precision: str = "auto") -> nn.Module:
    """A copy for passes without gradient, to be run in `autocast(device, precision)`.

    features: a backbone [B,3,H,W] -> [B,C,h,w], in eval mode. In the copy batch norms are folded into the convolutions before
    them, and the weights have the precision in which autocast computes, instead of being cast for each batch: the smaller
    the batch the more that counts. The maps are the same to the rounding of float32, or of bf16. A backbone with modules or
    hooks of somebody's own comes back itself: they may do more than compute. Raises ValueError for an unknown precision.
    """
    dtype = compute_dtype(device, precision)
    if any(is_own(module) for module in features.modules()):
        return features
    copy = folded(features)
    for module in copy.modules():
        # Not their subclasses, which may compute with their weights before they use them.
        if type(module) in (nn.Conv2d, nn.Linear):
            module.to(dtype)
    return place(copy, device).requires_grad_(False)


def is_own(module: nn.Module) -> bool:
    """Whether a module is of no library, or has been given hooks or another forward."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    return bool(hooks) or "forward" in vars(module) or type(module).__module__.split(".")[0] not in LIBRARIES


def folded(features: nn.Module) -> nn.Module:
    """A copy in which each batch norm that follows a convolution is part of it.

    A plain copy where forward cannot be traced, or calls weights twice: they cannot be folded for one call alone.
    """
    try:
        traced = symbolic_trace(features)
        if calls_weights_twice(traced):
            return deepcopy(features)
        fused = fuse(traced, inplace=True, no_trace=True)  # shares with `features` what is not folded
        copy = deepcopy(fused)
    except Exception:  # whatever a forward raises that is run on symbols
        return deepcopy(features)
    for module in (traced, fused, copy):
        # A cycle, in which the weights would wait for Python to look for cycles.
        module.graph.owning_module = None
    return copy


def calls_weights_twice(traced: GraphModule) -> bool:
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    return any(n > 1 and [*traced.get_submodule(name).parameters()] for name, n in calls.items())
