"""The copy of a network for inference: batch norms folded, weights cast once, no padded copies of maps.

On a CPU, several copies that share their weights run side by side, on a thread each.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mgkit.machine.device import compute_dtype, place

# By name, since timm takes seconds to import. Other subclasses may change their weights before they use them.
CONVOLUTIONS = {"Conv2d", "Conv2dSame"}
NORMS = {"BatchNorm2d", "BatchNormAct2d", "SyncBatchNorm"}

AHEAD = 4  # results a lane that may wait, so that lanes go on while the caller works on what it got

Item, Result = TypeVar("Item"), TypeVar("Result")


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


class InLanes:
    """Counts the passes in threads, and keeps them apart from what changes modules for all threads."""

    def __init__(self):
        self.changed, self.count = threading.Condition(), 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Within the block, a pass."""
        with self.changed:
            self.count += 1
        try:
            yield
        finally:
            with self.changed:
                self.count -= 1
                self.changed.notify_all()

    @contextmanager
    def none(self) -> Iterator[None]:
        """Within the block, no pass: those that run are waited for, others begin later."""
        with self.changed:
            self.changed.wait_for(lambda: not self.count)
            yield


IN_LANES = InLanes()  # torch.fx replaces the call of all modules while it traces one


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
        with IN_LANES.none():
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


class SamePadded(nn.Module):
    """A convolution with TensorFlow's padding `SAME` that makes no padded copy of its input.

    conv: timm's Conv2dSame, without dilation

    Where SAME pads one more row or column at the end than at the start, as many are padded on both sides, and
    the kernel gets a zero at its start instead. The outputs are the same up to rounding.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.kernel_size, self.stride, self.groups = conv.kernel_size, conv.stride, conv.groups
        self.bias = conv.bias
        kernels = [F.pad(conv.weight, (left, 0, top, 0)) for top in (0, 1) for left in (0, 1)]
        self.kernels = nn.ParameterList(kernels)  # at 2 * top + left
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,H,W] -> [B,D,ceil(H/stride),ceil(W/stride)]."""
        padded = [
            max((-(-side // stride) - 1) * stride + kernel - side, 0)
            for side, stride, kernel in zip(x.shape[2:], self.stride, self.kernel_size, strict=True)
        ]
        kernel = self.kernels[2 * (padded[0] % 2) + padded[1] % 2]
        return F.conv2d(x, kernel, self.bias, self.stride, [-(-p // 2) for p in padded], 1, self.groups)


def for_cpu(features: nn.Module) -> nn.Module:
    """Replace timm's convolutions with padding `SAME` by `SamePadded` ones; returns the network.

    Not for export: the kernel depends on the input's shape.
    """
    # EfficientNet-Lite0 takes 1.25 to 1.31 times the images (224 px, batches of 16). Left out is what gains
    # less than 15 %: activations within convolutions (1.12), Inductor (1.09, after 20 s), and matrix products
    # for convolutions of 1 x 1 (0.9 to 1.1, on ten networks).
    # Padding images to few shapes would not be exact: behind the first convolution, the padding is no longer
    # zero, and changes the maps at the border.
    for name, module in list(features.named_modules()):
        if type(module).__name__ == "Conv2dSame" and module.dilation == (1, 1):
            features.set_submodule(name, SamePadded(module))
    return features


# --- Side by side


def side_by_side(
    network: nn.Module, work: Callable[[nn.Module, Item], Result], items: Iterable[Item], *, lanes: int
) -> Iterator[Result]:
    """Yield `work(network, item)` of every item, in order, with `lanes` of them at once, in threads.

    The calling thread's processors are divided among the lanes. Each lane works on a copy of its own, see
    `shared_copy`, without gradient. An error of the work is raised where its result would come. One lane: all
    is done in the calling thread, on the network itself.
    """
    # A small batch on all threads is slow, since these wait for each other at every layer. Two lanes instead
    # of two threads, photographs of 224 px in their shapes: EfficientNet-Lite0 takes 1.4 times the images,
    # ViT-Tiny 1.3, ResNet-18 and ResNet-50 1.1; batches of one or two images more than twice.
    if lanes == 1:
        for item in items:
            yield without_gradient(work, network, item)
        return
    threads, own = torch.get_num_threads(), threading.local()

    def begin() -> None:
        torch.set_num_threads(max(1, threads // lanes))
        own.network = shared_copy(network)

    def in_lane(item: Item) -> Result:
        with IN_LANES.one():
            return without_gradient(work, own.network, item)

    waiting, refused = deque(), []
    pool = ThreadPoolExecutor(lanes, "lane", begin)
    try:
        for item in until_error(items, refused):
            waiting.append(pool.submit(in_lane, item))
            if len(waiting) > AHEAD * lanes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
        for error in refused:
            raise error
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # threads that begin later take the number that was set last


def until_error(items: Iterable[Item], errors: list[Exception]) -> Iterator[Item]:
    """Yield the items; an error that ends them is appended to `errors`, to be raised behind their results."""
    try:
        yield from items
    except Exception as error:
        errors.append(error)


@torch.no_grad()
def without_gradient(work: Callable[[nn.Module, Item], Result], network: nn.Module, item: Item) -> Result:
    """`work(network, item)`; the gradient mode is a thread's own."""
    return work(network, item)


def shared_copy(network: nn.Module) -> nn.Module:
    """A copy with the same tensors: what a forward keeps in a module, as some of timm's do, is its own."""
    tensors = chain(network.parameters(), network.buffers())
    return deepcopy(network, {id(tensor): tensor for tensor in tensors})
