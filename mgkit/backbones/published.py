"""Published weight files: downloaded once, loaded safely, checked."""

from pathlib import PurePosixPath

import torch
from torch import Tensor, nn

from mgkit.machine.download import fetch
from mgkit.machine.files import project_root


def published_state(url: str, net: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a published file, downloaded once to data/pretrained/.

    url: address of the file
    net: network that it is for; ValueError, naming the file, for another state
    """
    path = fetch(url, project_root() / "data" / "pretrained" / PurePosixPath(url).name)
    wrong = f"{path} does not hold the weights of {url}"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{wrong}: {reason}") from None
    if not isinstance(state, dict):
        raise ValueError(f"{wrong}, but a {type(state).__name__}")
    for key, value in net.state_dict().items():
        counts = key.endswith("num_batches_tracked")  # added to torch after 2018
        if not counts and (key not in state or state[key].shape != value.shape):
            raise ValueError(f"{wrong}: {key} is missing or of another shape")
    return state
