"""Checkpoints in the layout of the released files: loaded without running code from them, saved in one piece."""

import json
import re
import tarfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mgkit.backbones.build import check_backbone
from mgkit.machine.download import fetch, is_web_page
from mgkit.machine.files import atomic_write, project_root
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


def load_checkpoint(path: str | Path) -> dict:
    """The file's content, on the CPU: at least `model_state`, a state dict for `MultiGrain.load_state_dict`.

    Files of `torch.save`, in its present and its first layout, and `.safetensors` files. Only tensors and plain
    containers are read: a pickle with code in it is refused. Raises FileNotFoundError, or ValueError naming the file,
    what it is and what it should be.
    """
    path = Path(path)
    if path.is_dir():
        raise FileNotFoundError(f"{path} is a folder: a checkpoint is a file, .pth or .safetensors")
    if not path.is_file():
        raise FileNotFoundError(f"the checkpoint {path} does not exist")
    checkpoint = read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
    check_layout(path, checkpoint)
    return checkpoint


def read_torch(path: Path) -> object:
    """The content of a file of `torch.save`. Raises ValueError for anything else."""
    found = other_format(path)
    if found:
        raise ValueError(f"{path} is {found}, not a checkpoint: a file of torch.save is expected")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols that torch.save does not write
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f"{path} is not a checkpoint: {refusal(error)}") from None


def other_format(path: Path) -> str | None:
    """What a file is, in words, if it is no file of `torch.save`; None if it may be one."""
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        return "empty"
    if is_web_page(head):
        return "a web page (a download that went wrong?)"
    if head.startswith(b"PK"):
        return zip_content(path)
    if head[8:10] == b'{"':  # behind the length of that header
        return "a safetensors file (rename it to .safetensors)"
    if tarfile.is_tarfile(path):  # also torch's layout before 0.1.10, which cannot be read safely
        return "a tar archive"
    if not head.startswith(b"\x80"):  # every pickle of torch.save names its protocol first
        return "a text file" if is_text(head) else "of an unknown format"
    return None


def zip_content(path: Path) -> str | None:
    """What a zip file is, in words, if it is no whole file of `torch.save`."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, EOFError):
        return "damaged or cut off (a zip file without its end)"
    return None if any(name.endswith("/data.pkl") for name in names) else "a zip file of something else"


def is_text(head: bytes) -> bool:
    """Whether the first bytes of a file are readable as text."""
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else a character is cut off by our end
            return False
    return b"\0" not in head


def refusal(error: Exception) -> str:
    """Why torch could not read a file, in one line; its own message goes on to suggest reading without protection."""
    message = str(error).strip()
    name = re.search(r"GLOBAL ([\w.]+)", message)
    if name:
        return f"it asks for {name[1]}, code that is not run; only tensors and plain values are expected"
    unsupported = re.search(r"Unsupported operand \d+", message)
    reason = unsupported[0] if unsupported else message.split("\n")[0] or type(error).__name__
    return f"damaged, cut off or a pickle that torch.save did not write ({reason})"


def check_layout(path: Path, checkpoint: object) -> None:
    """Raise ValueError unless this is a dict with a `model_state` of named tensors."""
    state = checkpoint.get("model_state") if isinstance(checkpoint, dict) else None
    if not isinstance(state, Mapping):
        found = f"the keys {', '.join(map(str, checkpoint))}" if isinstance(checkpoint, dict) else "no dict"
        raise ValueError(f"{path} holds no model_state but {found[:200]}: it is not a MultiGrain checkpoint")
    for key, value in state.items():
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            kind = type(value).__name__
            raise ValueError(
                f"{path}: model_state must hold named tensors, but {str(key)[:80]!r} is a {kind}"
            )
    if not isinstance(checkpoint.get("backbone", ""), str):
        raise ValueError(f"{path}: backbone must be a name, not a {type(checkpoint['backbone']).__name__}")


def read_safetensors(path: Path) -> dict:
    """The content of a `.safetensors` file in the layout of the others. Raises ValueError for anything else."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is not iterable
            metadata = file.metadata() or {}
    except (SafetensorError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path} is damaged, cut off or no safetensors file ({reason})") from None
    return {key: plain_value(text) for key, text in metadata.items()} | {"model_state": state}


def plain_value(text: str) -> object:
    """The value that a metadata text stands for: JSON where it is that, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def load_network(checkpoint: str | Path, *, backbone: str | None = None) -> tuple[MultiGrain, dict]:
    """The network of a checkpoint, in eval mode, and the checkpoint's content.

    checkpoint: a file, or the name of a released one, which is downloaded where it is missing. backbone: needed for
    files that do not say it, checked for those that do. Raises what `load_checkpoint` and `fetch_released` raise, and
    ValueError, naming the file, for the state of another backbone.
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
        raise ValueError(
            f"{path} has no classifier.weight of two dimensions: it is not a MultiGrain checkpoint"
        )
    try:
        net = get_multigrain(backbone, num_classes=len(state["classifier.weight"]))
        net.load_state_dict(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    net.classes, net.source = tuple(content.get("classes", ())), str(path)
    return net.eval(), content


def released_name(path: Path) -> str:
    """The name of the released checkpoint that a path stands for; empty where it stands for a file that is there."""
    name = str(path).removesuffix(".pth")
    return name if name in RELEASED and not path.exists() else ""


def checkpoint_file(path: Path) -> Path:
    """The file itself; for the name of a released one, that file, downloaded where it is missing."""
    name = released_name(path)
    return fetch_released(name) if name else path


def agreed_backbone(path: Path, recorded: str | None, given: str | None) -> str:
    """The backbone that a file records or a person gives; ValueError where they differ or neither says it."""
    if given and recorded and given != recorded:
        raise ValueError(
            f"{path} is a {recorded}, not a {given}: leave `backbone` empty or choose another checkpoint"
        )
    if not (given or recorded):
        raise ValueError(f"{path} does not say its backbone: give `backbone`")
    return given or recorded


def load_released(name: str, *, folder: str | Path | None = None) -> MultiGrain:
    """A network of the paper's authors by the name of its file, in eval mode, with the p of the file (`RELEASED`).

    Arguments and errors as for `fetch_released`; ValueError also for a file that holds something else.
    """
    path = fetch_released(name, folder=folder)
    return load_network(path, backbone=RELEASED[path.stem][1])[0]


def fetch_released(name: str, *, folder: str | Path | None = None) -> Path:
    """The file of a released checkpoint, downloaded on first use.

    name: one of `RELEASED`, with or without `.pth`. folder: where the files are kept, data/released below the
    project's root unless given. Raises ValueError for an unknown name, and what `mgkit.machine.download.fetch` raises.
    """
    name = name.removesuffix(".pth")
    if name not in RELEASED:
        raise ValueError(f"{name!r} is not a released checkpoint; one of {', '.join(RELEASED)}")
    on_server, backbone = RELEASED[name]
    check_backbone(backbone)
    folder = project_root() / "data" / "released" if folder is None else Path(folder)
    return fetch(f"{RELEASED_URL}/{on_server}/{name}.pth", folder / f"{name}.pth")


def save_checkpoint(path: str | Path, net: MultiGrain, **content) -> None:
    """Write `model_state`, the backbone's name and `content` (tensors and plain values) to path, all or nothing."""
    checkpoint = {"model_state": net.state_dict(), "backbone": net.name, **content}
    with atomic_write(path) as temporary:
        torch.save(checkpoint, temporary)


def export_safetensors(path: str | Path, net: MultiGrain, **content) -> None:
    """Write the network to a `.safetensors` file, all or nothing, for `load_checkpoint` and other programs to read.

    The tensors are those of `net.state_dict()`; the metadata hold the backbone's name, p and `content` (say
    `classes=[...]`), plain values, as JSON texts. Raises ValueError for another suffix or a value that is no plain one.
    """
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"{path} should end in .safetensors: by that it is recognised when it is loaded")
    try:
        texts = {key: json.dumps(value) for key, value in ({"p": net.pool.p.item()} | content).items()}
    except TypeError as error:
        raise ValueError(f"{path} can only keep plain values beside the tensors: {error}") from None
    # Copies: the format knows neither tensors that share memory nor memory layouts such as channels-last.
    state = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in net.state_dict().items()
    }
    with atomic_write(path) as temporary:
        save_file(state, temporary, metadata={"format": "pt", "backbone": net.name} | texts)
