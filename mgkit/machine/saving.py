"""Files of `torch.save`, written whole or not at all."""

from pathlib import Path
from typing import IO

import torch

from mgkit.machine.files import atomic_write


def save_tensors(content: dict, path: str | Path) -> None:
    """Write `torch.save`'s file of tensors and plain values; raises RefusedError where that is refused."""
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        saved = ErrorKeepingFile(file)
        try:
            torch.save(content, saved)
        except RuntimeError:
            raise saved.error or OSError("torch.save failed") from None


class ErrorKeepingFile:
    """A file for torch.save, whose RuntimeError does not tell why a write failed.

    error: of the write that failed, or None.
    """

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
