"""Checkpoints in the format of the released files: safe loading, atomic saving."""

import json
import math
import os
import re
import tarfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mgkit.backbones.build import check_backbone
from mgkit.backbones.imagenet import imagenet_names
from mgkit.config import LARGEST_P, SMALLEST_P
from mgkit.machine.download import fetch, is_web_page
from mgkit.machine.files import atomic_write, project_root
from mgkit.machine.printable import printable_errors, say_once, shortened, shown_name
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
# What torch.compile, FSDP and checkpointed activations put into the keys, of the network or a part of it.
WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
DTYPES = frozenset(
    {
        torch.float16, torch.bfloat16, torch.float32, torch.float64,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    }
)  # fmt: skip
MOST_INFLATED = 100  # times the size of the file


class Content(BaseModel, strict=True):
    """The fields that are used of any checkpoint, beside `model_state`; all may be missing."""

    backbone: str = Field("", max_length=200)
    classes: list[str] | tuple[str, ...] = ()
    training_p: float = Field(1.0, gt=0)  # may be infinite
    classifies: bool = True
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
    checkpoint = read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
    check_layout(path, checkpoint)
    checkpoint["model_state"] = without_wrappers(path, checkpoint["model_state"])
    check_values_of(path, checkpoint)
    return checkpoint


def read_torch(path: Path) -> object:
    """Load a file of `torch.save`; raise ValueError for other files."""
    found = other_format(path)
    if found:
        raise ValueError(f"{path} is {found}, not a checkpoint written by torch.save")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about other pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f"{path} is not a checkpoint: {refusal(error)}") from None


def other_format(path: Path) -> str | None:
    """Describe a file that torch.save did not write; return None if it may have written it."""
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        return "empty"
    if is_web_page(head):
        return "a web page (a failed download?)"
    if head.startswith(b"PK"):
        return zip_content(path)
    if head[8:10] == b'{"':  # a header after its length
        return "a safetensors file (rename it to .safetensors)"
    if tarfile.is_tarfile(path):  # also torch's format before 0.1.10, which cannot be read safely
        return "a tar archive"
    if not head.startswith(b"\x80"):  # pickles of torch.save start with their protocol
        return "a text file" if is_text(head) else "of an unknown format"
    return None


def zip_content(path: Path) -> str | None:
    """Describe a zip file that torch.save did not write; return None if it may have written it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names, inflated = archive.namelist(), sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, EOFError):
        return "damaged or truncated (a zip file without its end)"
    if inflated > MOST_INFLATED * path.stat().st_size:
        return f"a zip file that would become {inflated:,} bytes"
    return None if any(name.endswith("/data.pkl") for name in names) else "a zip file of something else"


def is_text(head: bytes) -> bool:
    """Return whether the first bytes of a file are UTF-8 text."""
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else the last character is truncated
            return False
    return b"\0" not in head


def refusal(error: Exception) -> str:
    """Describe in one line why torch could not read a file, without its advice to disable weights_only."""
    message = str(error).strip()
    name = re.search(r"GLOBAL ([\w.]+)", message)
    if name:
        return f"it contains code ({name[1]}), which is not run; only tensors and plain values are read"
    unsupported = re.search(r"Unsupported operand \d+", message)
    reason = unsupported[0] if unsupported else message.split("\n")[0] or type(error).__name__
    return f"damaged, truncated or not written by torch.save ({reason})"


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
        if wrong := wrong_tensor(key, value):
            raise ValueError(f"{path}: {shortened(key, 80)} in model_state {wrong}")
    fields = check_values(path, Content, checkpoint)
    checkpoint |= {name: getattr(fields, name) for name in fields.model_fields_set}
    known = state["classifier.weight"].shape[:1] if "classifier.weight" in state else ()
    if fields.classes and known and len(fields.classes) != known[0]:
        raise ValueError(
            f"{path}: classes has {len(fields.classes)} names, the classifier has {known[0]} classes"
        )


def wrong_tensor(key: str, value: Tensor) -> str:
    """What is wrong with a tensor of a state, as the end of a sentence; empty for a sound one."""
    if value.layout != torch.strided or value.is_nested or value.is_quantized:
        return "is sparse, nested or quantized: a plain tensor is wanted"
    if value.device.type != "cpu":
        return f"has no values, it is on the device {value.device}"
    if value.dtype not in DTYPES:
        return f"is of type {str(value.dtype).removeprefix('torch.')}: float32 or such is wanted"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"is declared as {tuple(value.shape)}, larger than what is stored"
    if key == "pool.p":  # the one weight that may be infinite
        return wrong_exponent(value)
    if key.endswith("running_var") and (value < 0).any():
        return "is negative, which no variance is: the file is damaged"
    return "" if value.float().isfinite().all() else "is not finite: the training that left it diverged"


def wrong_exponent(p: Tensor) -> str:
    """What is wrong with a p, as the end of a sentence; empty for one that a training may have."""
    rounded = 1e-2  # a p of the ends of the range, as half precision holds it
    if p.numel() == 1 and (SMALLEST_P * (1 - rounded) <= p <= LARGEST_P * (1 + rounded) or p == math.inf):
        return ""
    return f"must be one number from {SMALLEST_P} to {LARGEST_P:g}, or inf, got {shown(p.tolist())}"


def read_safetensors(path: Path) -> dict:
    """Load a `.safetensors` file as a checkpoint dict; raise ValueError for other files."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is not iterable
            metadata = file.metadata() or {}
    except (SafetensorError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path} is damaged, truncated or not a safetensors file ({reason})") from None
    return {key: plain_value(text) for key, text in metadata.items()} | {"model_state": state}


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
    net.unclassified = "" if content.get("classifies", True) else "the checkpoint has random weights for it"
    net.pool.signed = content.get("signed", False)  # earlier files were pooled so
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


def existing_file(path: Path) -> Path:
    """Return the path; raise FileNotFoundError unless it is a file."""
    if os.path.isdir(path):  # Path's methods raise for a name that is too long
        raise FileNotFoundError(f"{shown_name(path)} is a folder: a .pth or .safetensors file is expected")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"the checkpoint {shown_name(path)} does not exist")
    return path


def agreed_backbone(path: Path, recorded: str | None, given: str | None) -> str:
    """Return the recorded or given backbone; raise ValueError if they differ or both are missing."""
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
