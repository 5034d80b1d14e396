"""The direction of imports: a file imports from folders to the left of its own, never to the right."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mgkit

ROOT = Path(mgkit.__file__).parent
LAYERS = (  # "" is the method: the files at the top of mgkit/
    {"machine"}, {"data", "mini", "backbones"}, {"benchmarks"}, {""}, {"retrieval"}, {"engine"}, {"stages"},
    {"explore"}, {"photos", "board", "descriptors"}, {"claims"}, {"demo", "__main__"},
)  # fmt: skip
FREE = {
    "losses",
    "pooling",
    "samplers",
    "metrics",
}  # import nothing of the kit, so that any file may import them
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))


def room(module):
    """The folder of a module `mgkit.a.b`, as LAYERS names it."""
    name, _, below = module.removeprefix("mgkit").strip(".").partition(".")
    return name if below or (ROOT / name).is_dir() or name == "__main__" else ""


def imported(file):
    """The modules of the kit that a file imports, wherever in it."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def floor(name):
    return next(k for k, rooms in enumerate(LAYERS) if name in rooms)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_file_imports_from_folders_to_the_left(file):
    own = ".".join(["mgkit", *file.with_suffix("").parts]).removesuffix(".__init__")
    ours = room(own)
    for module in imported(file):
        if module == "mgkit" or module.startswith("mgkit."):
            assert own.removeprefix("mgkit.") not in FREE, f"{file} imports {module}"
            there = room(module)
            if module.removeprefix("mgkit.") in FREE:
                continue
            assert there == ours or floor(there) < floor(ours), f"{file} imports {module}"


SLOW_IMPORTS = """
import sys
import mgkit.data.layouts
import mgkit.engine.monitor
from mgkit.__main__ import work_of
from mgkit.config import TrainConfig, make

make(TrainConfig, {"backbone": "senet154"})
work_of(TrainConfig)
slow = {"timm", "scipy.io", "tensorboard", "faiss", "sklearn", "matplotlib", "mgkit.photos", "mgkit.claims"}
print(*slow & set(sys.modules))
"""


def test_slow_libraries_are_imported_with_their_first_use():
    """Not for names of backbones, images in class folders, logs, or a worker that trains."""
    done = subprocess.run([sys.executable, "-c", SLOW_IMPORTS], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_no_folder_is_crowded():
    assert len([*ROOT.glob("*")]) and len([path for path in ROOT.iterdir() if path.is_file()]) <= 16
    for folder in {file.parent for file in FILES} - {Path()}:
        assert len([*(ROOT / folder).glob("*.*")]) <= 12, folder
