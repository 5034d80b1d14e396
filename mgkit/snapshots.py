"""A training on disk, so that it survives: whole files, the last few kept, the newest good one found again."""

import re
from pathlib import Path

import torch

from mgkit.checkpoints import load_checkpoint
from mgkit.files import atomic_write, remove_partial


class SnapshotError(OSError):
    """A snapshot that cannot be written; the message says what is kept and what to do."""


class Snapshots:
    """The snapshots of a run, <folder>/step-<steps>.pth: checkpoints with all that a training needs to go on.

    keep: how many of the last are kept. Only one process at a time may write.
    """

    def __init__(self, folder: str | Path, *, keep: int = 2):
        self.folder, self.keep = Path(folder), keep

    def files(self) -> list[Path]:
        """The snapshots there are, the newest first."""
        found = [path for path in self.folder.glob("step-*.pth") if re.fullmatch(r"step-\d+\.pth", path.name)]
        return sorted(found, key=steps_of, reverse=True)

    def save(self, step: int, content: dict) -> Path:
        """Write a snapshot, all or nothing, then remove those past `keep`.

        Raises SnapshotError where it cannot be written: a full disk, a read-only folder. The older ones are untouched then.
        """
        path = self.folder / f"step-{step:09d}.pth"
        try:
            with atomic_write(path) as temporary, open(temporary, "wb") as file:
                torch.save(content, file)
        except (OSError, RuntimeError) as error:  # torch wraps what it meets while it writes
            raise SnapshotError(self.explain(path, error)) from None
        for old in self.files()[self.keep :]:
            old.unlink()
        return path

    def explain(self, path: Path, error: Exception) -> str:
        """Why a snapshot could not be written, what is kept, and what to do, in a line."""
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        kept = self.files()
        kept = f"the last good one, {kept[0]}, is kept" if kept else "there is none yet"
        return (
            f"the checkpoint {path} cannot be written ({reason}); {kept}: "
            "make room or make the folder writable, then run the same command again"
        )

    def newest(self) -> tuple[Path, dict] | None:
        """The newest snapshot that can be read, and its content; None if there is none. A line names every damaged one."""
        remove_partial(self.folder)
        for path in self.files():
            try:
                return path, load_checkpoint(path)
            except ValueError as error:
                print(f"{error}: going on at the one before it")
        return None


def steps_of(path: Path) -> int:
    """The number of steps in the name of a snapshot."""
    return int(path.stem.removeprefix("step-"))
