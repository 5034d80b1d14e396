"""A stand-in for MPS: tensors in the CPU's memory that claim to be on MPS, and fail as those there do."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

MPS, CPU = torch.device("mps"), torch.device("cpu")
NO_FLOAT64 = "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64"
MAKE_SUBCLASS = torch.Tensor._make_subclass
# Functions that take tensors of two devices
MIXING = {"copy_", "__get__", "__set__", "__getitem__", "__setitem__", "_has_compatible_shallow_copy_type"}


@contextmanager
def on_mps() -> Iterator["StandInForMPS"]:
    """Within the block, MPS is the only GPU."""
    with pytest.MonkeyPatch.context() as patch, StandInForMPS() as mode:
        patch.setattr(torch, "Generator", Generator)
        patch.setattr(torch.Tensor, "_make_subclass", staticmethod(parameter_of))
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(torch.xpu, "is_available", lambda: False)
        patch.setattr(torch.backends.mps, "is_available", lambda: True)
        yield mode


class Generator(torch.Generator):
    """A generator of the CPU that claims to be on the device that it is made for."""

    def __new__(cls, device=CPU):
        generator = super().__new__(cls)
        generator.claimed = device
        return generator

    @property
    def device(self):
        return self.claimed


class StandInForMPS(TorchFunctionMode):
    """Within the mode, tensors may be moved to MPS.

    Raises TypeError for float64 there and for `numpy`, RuntimeError for tensors of two devices in one call,
    AssertionError for copies that are not waited for and for channels-last tensors.

    names: of the functions that were called with tensors on MPS.
    """

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func.__name__
        if name == "_parse_to":  # of nn.Module.to
            return func(*args, **kwargs)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        there = [x for x in given if is_there(x)]
        if there:
            if func == torch.Tensor.device.__get__:
                return MPS
            self.names.add(name)
            check_call(name, given, args, kwargs)
        asked = CPU if name == "cpu" else device_of(args, kwargs)
        assert not (asked == MPS and kwargs.get("non_blocking")), f"{name}: a copy that is not waited for"
        to_mps = asked == MPS if asked else bool(there)
        if name == "copy_":
            to_mps = is_there(args[0])
        args, kwargs = tree_map(lambda x: CPU if isinstance(x, torch.device) else x, (args, kwargs))
        result = func(*args, **kwargs)
        if func == torch.Tensor.data.__set__:
            args[0].there = is_there(args[1])
        if asked and given and result is given[0] and is_there(result) != to_mps:
            result = result.detach().clone()  # the memory is the same here, but not there
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor):
                x.there = to_mps
                check_result(name, x)
        return result


def parameter_of(kind: type, data: torch.Tensor, *options) -> torch.Tensor:
    """What nn.Parameter makes of a tensor: on the same device; torch asks no mode about it."""
    parameter = MAKE_SUBCLASS(kind, data, *options)
    parameter.there = is_there(data)
    return parameter


def is_there(x: torch.Tensor) -> bool:
    return getattr(x, "there", False)


def device_of(args: tuple, kwargs: dict) -> torch.device | None:
    """The device that a call asks for, if it does."""
    return next((x for x in (*args, *kwargs.values()) if isinstance(x, torch.device)), None)


def check_call(name: str, given: list[torch.Tensor], args: tuple, kwargs: dict) -> None:
    """Raise where MPS would fail for a call with one of its tensors."""
    if name == "numpy":
        raise TypeError("can't convert mps device type tensor to numpy")
    if torch.float64 in [x for x in (*args, *kwargs.values()) if isinstance(x, torch.dtype)]:
        raise TypeError(f"{name}: {NO_FLOAT64}")  # also on the way to the CPU: the cast comes first
    indexed = name in ("__getitem__", "__setitem__") and not is_there(given[0])  # by a tensor on MPS
    if indexed or (name not in MIXING and any(x.ndim and not is_there(x) for x in given)):
        raise RuntimeError(f"{name}: expected all tensors to be on the same device")


def check_result(name: str, x: torch.Tensor) -> None:
    """Raise where MPS would fail for a result, or would be slow."""
    if is_there(x) and x.dtype == torch.float64:
        raise TypeError(f"{name}: {NO_FLOAT64}")
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    assert not (is_there(x) and last), f"{name}: a channels-last tensor"
