"""Checkpoints in the layout of the released files: loaded without running code from them, saved in one piece."""

from collections.abc import Mapping
from pathlib import Path

import torch

from mgkit.files import atomic_write
from mgkit.model import MultiGrain, get_multigrain


def load_checkpoint(path: str | Path) -> dict:
    """The file's content, on the CPU: at least `model_state`, a state dict for `MultiGrain.load_state_dict`.

    Only tensors and plain containers are read (`weights_only=True`): a pickle with code in it is refused. Raises
    FileNotFoundError, or ValueError naming the file and what is wrong with it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"the checkpoint {path} does not exist")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path} is not a checkpoint of tensors and plain values: {reason}") from None
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("model_state"), Mapping):
        raise ValueError(f"{path} holds no model_state: it is not a MultiGrain checkpoint")
    return checkpoint


def load_network(path: str | Path, *, backbone: str | None = None) -> tuple[MultiGrain, dict]:
    """The network of a checkpoint, in eval mode, and the checkpoint.

    backbone: needed for files that do not say it (the released ones), checked for those that do. Raises ValueError, naming
    the file, for the state of another backbone.
    """
    checkpoint = load_checkpoint(path)
    recorded = checkpoint.get("backbone")
    if backbone and recorded and backbone != recorded:
        raise ValueError(
            f"{path} is a {recorded}, not a {backbone}: leave `backbone` empty or choose another checkpoint"
        )
    name = backbone or recorded
    if not name:
        raise ValueError(f"{path} does not say its backbone: give `backbone`")
    state = checkpoint["model_state"]
    if "classifier.weight" not in state:
        raise ValueError(f"{path} has no classifier.weight: it is not a MultiGrain checkpoint")
    net = get_multigrain(name, num_classes=len(state["classifier.weight"]))
    try:
        net.load_state_dict(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return net.eval(), checkpoint


def save_checkpoint(path: str | Path, net: MultiGrain, **content) -> None:
    """Write `model_state`, the backbone's name and `content` (tensors and plain values) to path, all or nothing."""
    checkpoint = {"model_state": net.state_dict(), "backbone": net.name, **content}
    with atomic_write(path) as temporary:
        torch.save(checkpoint, temporary)
