"""The start of mgkit: import against torch's and torchvision's, and the second indexing of a large tree."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from unittest.mock import patch

from measuring import Row, by_turns, seconds

from mgkit.data import folders
from mgkit.data.layouts import class_folders

IMAGES, CLASSES = 1_281_167, 1000  # ImageNet's training set
BESIDE = "import torch, torchvision"
OURS = "from mgkit import get_multigrain, load_checkpoint"  # a bare `import mgkit` loads nothing yet


def import_row(rounds: int) -> Row:
    def running(code: str):
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    taken = by_turns(running(OURS), running(BESIDE), rounds)
    more = median(a - b for a, b in zip(taken["seconds"], taken["floor_seconds"], strict=True))
    return Row(
        "start: mgkit's public names, torch + torchvision",
        median(taken["seconds"]), median(taken["floor_seconds"]),
        "s", more, 0.3, True, of="s more", raw=taken,
    )  # fmt: skip


def index_row(images: int, rounds: int) -> Row:
    """Time the second indexing of empty files, scaled to ImageNet: it is linear in folders and files."""
    with tempfile.TemporaryDirectory() as folder:
        for name in (f"n{k:08d}" for k in range(CLASSES * images // IMAGES)):
            (Path(folder) / "tree" / name).mkdir(parents=True)
            for k in range(IMAGES // CLASSES):
                (Path(folder) / "tree" / name / f"{name}_{k:06d}.JPEG").touch()
        time.sleep(folders.SETTLED_NS / 1e9 + 0.1)  # before, nothing is remembered
        with patch("mgkit.data.folders.place", lambda root: Path(folder) / "kept.npz"):
            found = len(class_folders(f"{folder}/tree"))
            taken = [seconds(lambda: class_folders(f"{folder}/tree")) * IMAGES / found for _ in range(rounds)]
    scaled = "" if found >= IMAGES * 0.99 else f", measured on {found:,}, scaled"
    stage = f"start: index of {IMAGES:,} images, second time{scaled}"
    return Row(stage, median(taken), None, "s", median(taken), 2.0, True, of="s", raw={"seconds": taken})


def rows(rounds: int = 5, *, full: bool = False) -> list[Row]:
    return [import_row(rounds), index_row(IMAGES if full else IMAGES // 10, rounds)]
