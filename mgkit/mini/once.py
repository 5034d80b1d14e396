"""Folders of generated images, which are there whole or not at all."""

import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from mgkit.machine.records import read_json


def complete(root: Path, name: str, record: dict) -> bool:
    """Return whether root holds what the record describes; raise if it holds something else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    if not (root / name).is_file():
        raise FileExistsError(f"{root} exists without a {name}: choose another folder")
    found = read_json(root / name)
    if not isinstance(found, dict):
        raise ValueError(f"{root / name} is damaged: delete the folder")
    different = [key for key in record if found.get(key) != record[key]]
    if different:
        values = "; ".join(f"{key} {found.get(key)!r} instead of {record[key]!r}" for key in different)
        raise ValueError(f"{root} holds another dataset ({values}): delete the folder or choose another")
    return True


def made_once(root: str | Path, name: str, record: dict, write: Callable[[Path], dict]) -> Path:
    """Create a folder with its record, unless it is there, and return its absolute path.

    root: the folder; it appears when it is complete, an interrupted call leaves nothing
    name: of the JSON file in it that holds the record
    record: what the content depends on
    write: writes the content to a new folder and returns what to add to the record
    Several processes may call it at once. Raises ValueError if `root` has another record, FileExistsError if
    it has none.
    """
    root = Path(root).absolute()
    if complete(root, name, record):
        return root
    partial = root.with_name(f"{root.name}.partial-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        partial.mkdir(parents=True)
        added = write(partial)
        (partial / name).write_text(json.dumps(record | added, indent=1) + "\n", "utf-8")
        try:
            os.rename(partial, root)
        except OSError:
            if not complete(root, name, record):  # else another process created the same folder
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root
