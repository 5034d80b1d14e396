"""A training on disk, so that it survives: whole files, the last few kept, the newest good one found again."""

import re
from pathlib import Path
from typing import IO

import torch

from mgkit.checkpoints import load_checkpoint
from mgkit.machine.files import atomic_write, free_name, remove_partial


class SnapshotError(OSError):
    """A snapshot, or another file of a run, that cannot be written; the message says what is kept and what to do."""


class Remembering:
    """A file to write to that remembers the error of a write: torch.save tells what it failed at, not why."""

    def __init__(self, file: IO[bytes]):
        self.file, self.error = file, None

    def write(self, data) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


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
                saved = Remembering(file)
                try:
                    torch.save(content, saved)
                except RuntimeError:  # torch raises its own for what it meets while it writes
                    raise saved.error or OSError("torch.save failed") from None
            for old in self.files()[self.keep :]:
                old.unlink(missing_ok=True)
        except OSError as error:
            raise self.explained(error, path) from None
        return path

    def explained(self, error: OSError, path: Path) -> SnapshotError:
        """The error for a file of the run that cannot be written: why, what is kept, and what to do, in a line."""
        kept = self.files()
        kept = f"the last good checkpoint, {kept[0]}, is kept" if kept else "there is no checkpoint yet"
        return SnapshotError(
            f"{path} cannot be written ({error.strerror or error}); {kept}: "
            "make room or make the folder writable, then run the same command again"
        )

    def newest(self) -> tuple[Path, dict] | None:
        """The newest snapshot that can be read, and its content; None if there is none. Damaged ones are named, and renamed."""
        remove_partial(self.folder)
        for path in self.files():
            try:
                return path, load_checkpoint(path)
            except ValueError as error:
                # Under its name it would count as the newest of those that are kept.
                aside = path.replace(free_name(path.with_name(f"{path.name}.damaged")))
                print(f"{error}: kept as {aside.name}, trying the one before it")
        return None


def steps_of(path: Path) -> int:
    """The number of steps in the name of a snapshot."""
    return int(path.stem.removeprefix("step-"))
