"""Names in timm's models: their classifiers, their heads, and the names of other files that timm converts."""

import sys
from contextlib import redirect_stdout
from io import StringIO

import torch
from torch import Tensor, nn


def classifier_names(net: nn.Module) -> tuple[str, ...]:
    """The names of a model's classifiers; of a model without one, those it would have."""
    found = net.get_classifier()
    heads = found if isinstance(found, tuple | list) else (found,)
    names = [
        name
        for name, module in net.named_modules()
        if any(module is head for head in heads) and not isinstance(module, nn.Identity)
    ]
    names = names or net.pretrained_cfg.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def is_clip_projection(net: nn.Module, bias: Tensor) -> bool:
    """Whether a classifier is CLIP's projection, which timm saves as one whose biases are zero."""
    return "clip" in net.pretrained_cfg["architecture"] and not bias.any()


@torch.no_grad()
def head_parts(net: nn.Module) -> set[str]:
    """The names of a model's parts that its classifier alone uses, such as a norm behind the pooling."""
    called: set[str] = set()
    hooks = [
        part.register_forward_pre_hook(lambda module, inputs, name=name: called.add(name))
        for name, child in net.named_children()
        for part in child.modules()
    ]
    was_training = net.training
    try:
        maps = net.eval().forward_features(torch.zeros(1, *net.pretrained_cfg["input_size"]))
        before = set(called)
        called.clear()
        net.forward_head(maps)
    finally:
        net.train(was_training)
        for hook in hooks:
            hook.remove()
    return called - before


def converted_names(tensors: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor] | None:
    """Tensors under the names of a timm model, as timm itself converts the files of its authors.

    None where timm has no conversion, or one for other files.
    """
    convert = vars(sys.modules[type(net).__module__]).get("checkpoint_filter_fn")
    if convert is None:
        return None
    try:
        with redirect_stdout(StringIO()):  # it prints what it does not find
            converted = convert(dict(tensors), net)
    except Exception:  # of names that it does not expect
        return None
    return {key: value for key, value in converted.items() if isinstance(value, Tensor)}
