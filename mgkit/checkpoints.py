"""Checkpoints in the format of the released files: safe loading, atomic saving."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, Field
from safetensors.torch import save_file
from torch import Tensor

from mgkit.backbones.build import TIMM, check_backbone
from mgkit.backbones.imagenet import imagenet_names
from mgkit.backbones.state_files import (
    WRAPPERS,
    existing_file,
    read_safetensors,
    read_torch,
    wrong_kind,
    wrong_tensor,
)
from mgkit.backbones.timm_sources import is_elsewhere
from mgkit.config import LARGEST_P, SMALLEST_P
from mgkit.machine.download import fetch
from mgkit.machine.files import atomic_write, project_root
from mgkit.machine.printable import printable_errors, say_once, shortened
from mgkit.machine.records import check_values, shown
from mgkit.machine.saving import save_tensors
from mgkit.model import MultiGrain, get_multigrain

RELEASED_URL = "https://dl.fbaipublicfiles.com/multigrain"
RELEASED = {  # name: (folder on the server, backbone)
    "joint_1B_1.0": ("multigrain_models", "resnet50"),  # λ=1, p=1
    "joint_3B_1.0": ("multigrain_models", "resnet50"),  # λ=1, p=3
    "joint_1B_0.5": ("multigrain_models", "resnet50"),  # λ=0.5, p=1
    "joint_3B_0.5": ("multigrain_models", "resnet50"),  # λ=0.5, p=3
    "joint_3BAA_0.5": ("multigrain_models", "resnet50"),  # λ=0.5, p=3, AutoAugment
    "nasnetamobile-finetune350": ("finetuned_models", "nasnetamobile"),  # off the shelf, p* for 350 px
    "senet154-finetune400": ("finetuned_models", "senet154"),  # 400 px
    "pnasnet5large-finetune500": ("finetuned_models", "pnasnet5large"),  # 500 px
}

CLASSIFIER = "classifier.weight"


class Content(BaseModel, strict=True):
    """The fields that are used of any checkpoint, beside `model_state`; all may be missing."""

    backbone: str = Field("", max_length=200)
    classes: list[str] | tuple[str, ...] = ()
    training_p: float = Field(1.0, gt=0)  # may be infinite
    learned_p: bool = True
    classifies: bool = True
    unclassified: str = Field("", max_length=300)
    tokens: Literal["patches", "class", "both"] = "patches"
    signed: bool = False


@printable_errors()
def load_checkpoint(path: str | Path) -> dict:
    """Load a file of `torch.save` (also of the format before 1.6) or a `.safetensors` file, onto the CPU.

    path: checkpoint file

    Returns a dict with at least `model_state`, a state dict for `MultiGrain.load_state_dict`. Only tensors
    and plain values are unpickled; code is refused. Raises FileNotFoundError, or ValueError that names the
    file.
    """
    path = existing_file(Path(path))
    if path.suffix == ".safetensors":
        state, metadata = read_safetensors(path)
        checkpoint = {key: plain_value(text) for key, text in metadata.items()} | {"model_state": state}
    else:
        checkpoint = read_torch(path)
    check_layout(path, checkpoint)
    checkpoint["model_state"] = without_wrappers(path, checkpoint["model_state"])
    check_values_of(path, checkpoint)
    return checkpoint


def check_layout(path: Path, checkpoint: object) -> None:
    """Raise ValueError unless the checkpoint is a dict with a `model_state` of named tensors."""
    state = checkpoint.get("model_state") if isinstance(checkpoint, dict) else None
    if not isinstance(state, Mapping):
        found = f"the keys {shown([*checkpoint])}" if isinstance(checkpoint, dict) else "no dict"
        raise ValueError(f"{path} holds no model_state but {found}: it is not a MultiGrain checkpoint")
    for key, value in state.items():
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            wrong = f"{shown(key)} is a {type(value).__name__}"
            raise ValueError(f"{path}: model_state must hold named tensors, but {wrong}")


def without_wrappers(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state without what wrapping the network put into its keys; prints a line if there was any.

    A prefix of all keys, such as `module.` of DistributedDataParallel, is found by that of the classifier.
    """
    plain = {WRAPPERS.sub("", key): value for key, value in state.items()}
    if any(key.startswith("module.") for key in plain):
        plain.pop("n_averaged", None)  # of torch's AveragedModel
    prefix = next((key.removesuffix(CLASSIFIER) for key in plain if key.endswith("." + CLASSIFIER)), "")
    if CLASSIFIER not in plain and all(key.startswith(prefix) for key in plain):
        plain = {key.removeprefix(prefix): value for key, value in plain.items()}
    if plain.keys() == state.keys() or len(plain) < len(state.keys() - {"n_averaged"}):
        return dict(state)  # nothing to take off, or two keys would become one
    key = next(key for key in state if key.endswith(CLASSIFIER))
    before = shortened(key.removesuffix(CLASSIFIER), 80) or "parts"
    say_once(
        f"{path}: its keys are those of a wrapped network ({before}): they are taken without the wrappers"
    )
    return plain


def check_values_of(path: Path, checkpoint: dict) -> None:
    """Check tensors and fields; raise ValueError, naming the file and what is wrong."""
    state = checkpoint["model_state"]
    for key, value in state.items():
        # p is the one weight that may be infinite.
        is_p = key == "pool.p"
        if wrong := (wrong_kind(value) or wrong_exponent(value)) if is_p else wrong_tensor(key, value):
            raise ValueError(f"{path}: {shortened(key, 80)} in model_state {wrong}")
    fields = check_values(path, Content, checkpoint)
    checkpoint |= {name: getattr(fields, name) for name in fields.model_fields_set}
    known = state["classifier.weight"].shape[:1] if "classifier.weight" in state else ()
    if fields.classes and known and len(fields.classes) != known[0]:
        raise ValueError(
            f"{path}: classes has {len(fields.classes)} names, the classifier has {known[0]} classes"
        )


def wrong_exponent(p: Tensor) -> str:
    """What is wrong with a p, as the end of a sentence; empty for one that a training may have."""
    rounded = 1e-2  # a p of the ends of the range, as half precision holds it
    if p.numel() == 1 and (SMALLEST_P * (1 - rounded) <= p <= LARGEST_P * (1 + rounded) or p == math.inf):
        return ""
    return f"must be one number from {SMALLEST_P} to {LARGEST_P:g}, or inf, got {shown(p.tolist())}"


def plain_value(text: str) -> object:
    """Decode a metadata text from JSON; return the text itself if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


@printable_errors()
def load_network(checkpoint: str | Path, *, backbone: str | None = None) -> tuple[MultiGrain, dict]:
    """Load a network in eval mode; return it with the content of its checkpoint.

    checkpoint: file, or name of a released checkpoint, which is downloaded if missing
    backbone: name of the backbone; needed for files that do not record it, checked for those that do

    Raises what `load_checkpoint` and `fetch_released` raise, and ValueError for the state of another
    backbone.
    """
    path = Path(checkpoint)
    name = released_name(path)
    if name:
        backbone = agreed_backbone(path, RELEASED[name][1], backbone)  # before a long download
        path = checkpoint_file(path)
    content = load_checkpoint(path)
    backbone = agreed_backbone(path, content.get("backbone"), backbone)
    state = content["model_state"]
    if "classifier.weight" not in state or state["classifier.weight"].ndim != 2:
        raise ValueError(f"{path} has no classifier.weight [K,D]: it is not a MultiGrain checkpoint")
    try:
        net = get_multigrain(
            backbone, num_classes=len(state["classifier.weight"]), tokens=content.get("tokens", "patches")
        )
        net.load_state_dict(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    net.classes, net.source = tuple(content.get("classes", ())), str(path)
    if not content.get("classifies", True):
        net.unclassified = content.get("unclassified") or "the checkpoint has random weights for it"
    net.pool.signed = content.get("signed", net.pool.signed)  # earlier files do not record it
    if not net.classes and path.stem in RELEASED and net.classifier.out_features == 1000:
        net.classes = tuple(imagenet_names())  # the released files do not name them
    return net.eval(), content


def released_name(path: Path) -> str:
    """Return the name of the released checkpoint that a path names; empty for a path that exists."""
    name = str(path).removesuffix(".pth")
    return name if name in RELEASED and not os.path.exists(path) else ""


def checkpoint_file(path: Path) -> Path:
    """Return the file of a path; a released checkpoint is downloaded if missing."""
    name = released_name(path)
    return fetch_released(name) if name else existing_file(path)


def agreed_backbone(path: Path, recorded: str | None, given: str | None) -> str:
    """Return the recorded or given backbone; raise ValueError if they differ or both are missing.

    A file does not choose what else is read or fetched: such a backbone must be given.
    """
    if recorded and not given and is_elsewhere(recorded.removeprefix(TIMM)):
        raise ValueError(
            f"{path} records the backbone {recorded}, which is read from elsewhere: set `backbone` to this "
            "name if you trust it"
        )
    if given and recorded and given != recorded:
        raise ValueError(f"{path} is a {recorded}, not a {given}: leave `backbone` empty or change the file")
    if not (given or recorded):
        raise ValueError(f"{path} does not record its backbone: set `backbone`")
    return given or recorded


def load_released(name: str, *, folder: str | Path | None = None) -> MultiGrain:
    """Load a released network in eval mode, with the p of its file.

    name, folder: as for `fetch_released`, as are errors; ValueError also for a file of another network
    """
    path = fetch_released(name, folder=folder)
    return load_network(path, backbone=RELEASED[path.stem][1])[0]


def fetch_released(name: str, *, folder: str | Path | None = None) -> Path:
    """Return the file of a released checkpoint, downloaded on first use.

    name: one of `RELEASED`, with or without `.pth`
    folder: where files are stored; None for data/released/ in the project

    Raises ValueError for an unknown name, and what `mgkit.machine.download.fetch` raises.
    """
    name = name.removesuffix(".pth")
    if name not in RELEASED:
        raise ValueError(f"{name!r} is not a released checkpoint; one of {', '.join(RELEASED)}")
    on_server, backbone = RELEASED[name]
    check_backbone(backbone)
    folder = project_root() / "data" / "released" if folder is None else Path(folder)
    return fetch(f"{RELEASED_URL}/{on_server}/{name}.pth", folder / f"{name}.pth")


def save_checkpoint(path: str | Path, net: MultiGrain, **content) -> None:
    """Save `model_state`, the backbone's name and `content` (tensors and plain values) atomically."""
    save_tensors({"model_state": net.state_dict()} | facts(net) | content, path)


def facts(net: MultiGrain) -> dict:
    """What a checkpoint has of a network beside its state: with it, `load_network` builds the same."""
    return {
        "backbone": net.name,
        "tokens": net.tokens,
        "signed": net.pool.signed,
        "classifies": net.classifies,
        "unclassified": net.unclassified,
    }


def export_safetensors(path: str | Path, net: MultiGrain, **content) -> None:
    """Save the network as a `.safetensors` file, atomically; `load_checkpoint` reads it.

    path: file, ending in .safetensors
    content: plain values for the metadata, in JSON beside the backbone's name and p

    Raises ValueError for another suffix or other values.
    """
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"{path} must end in .safetensors")
    try:
        values = facts(net) | {"p": net.pool.p.item()} | content
        texts = {key: json.dumps(value) for key, value in values.items()} | {"backbone": net.name}
    except TypeError as error:
        raise ValueError(f"{path}: metadata must be plain values: {error}") from None
    # Copies, since the format supports neither shared memory nor layouts such as channels-last.
    state = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in net.state_dict().items()
    }
    with atomic_write(path) as temporary:
        save_file(state, temporary, metadata={"format": "pt"} | texts)
