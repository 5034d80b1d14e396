"""Models of timm that are described elsewhere: `hf-hub:org/model`, and `local-dir:/folder`."""

import re
from collections.abc import Callable
from pathlib import Path

from torch import nn

from mgkit.machine.files import find_path
from mgkit.machine.printable import shown_name
from mgkit.machine.records import read_json, shown

HUB, FOLDER = "hf-hub:", "local-dir:"
REPOSITORY = re.compile(r"[\w.\-]+/[\w.\-]+(@[\w.\-/]+)?")  # org/model, or org/model@revision
WEIGHTS = (  # names of files of weights, as timm and open_clip write them; the first that is there is read
    "model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin",
)  # fmt: skip


def is_elsewhere(model: str) -> bool:
    """Whether a model is not one of timm's own but described on the hub or in a folder."""
    return model.startswith((HUB, FOLDER))


def check_source(model: str) -> None:
    """Raise ValueError for a name that cannot be on the hub, and for a folder without a model of timm."""
    if model.startswith(HUB):
        if not REPOSITORY.fullmatch(model.removeprefix(HUB)):
            raise ValueError(f"backbone: {HUB}org/model is wanted, got {shown(model)}")
        return
    import timm

    config = folder_of(model) / "config.json"
    if not config.is_file():
        raise ValueError(f"backbone: {shown_name(config)} does not exist: timm's models in folders have one")
    content = read_json(config)
    architecture = content.get("architecture") if isinstance(content, dict) else None
    if not (isinstance(architecture, str) and timm.is_model(architecture)):
        raise ValueError(
            f"backbone: {shown_name(config)} names no architecture of timm {timm.__version__}, "
            f"but {shown(architecture)}"
        )


def folder_of(model: str) -> Path:
    """The folder that a name gives."""
    return find_path(model.removeprefix(FOLDER))


def model_elsewhere(model: str, create: Callable[[str], nn.Module]) -> nn.Module:
    """Create a model with random weights; raise OSError if its description cannot be fetched or used.

    create: creates a model by timm's name
    """
    source = f"{FOLDER}{folder_of(model)}" if model.startswith(FOLDER) else model
    try:
        return create(source)
    except Exception as error:  # the hub's client raises its own types
        raise unusable(model, error) from None


def weights_file(model: str) -> Path:
    """The file of a model's weights; fetched from the hub on first use.

    Raises OSError if it cannot be fetched or there is none.
    """
    if model.startswith(FOLDER):
        folder = folder_of(model)
        found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
        if found is None:
            raise FileNotFoundError(f"{shown_name(folder)} holds none of {', '.join(WEIGHTS)}")
        return found
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import EntryNotFoundError

    repository, _, revision = model.removeprefix(HUB).partition("@")
    missing: Exception | None = None
    for name in WEIGHTS:
        try:
            return Path(hf_hub_download(repository, name, revision=revision or None))
        except EntryNotFoundError as error:  # also without a network, for a file that is not in the cache
            missing = error
        except Exception as error:
            raise unusable(model, error) from None
    raise unusable(model, missing)


def unusable(model: str, error: Exception) -> OSError:
    """The error for a model that timm cannot build, or the hub does not give."""
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return OSError(
        f"timm's {shown_name(model)} could not be built ({shown_name(reason)}): build it once where there is "
        "a network and copy its cache (~/.cache/huggingface) here, or give its folder as local-dir"
    )
