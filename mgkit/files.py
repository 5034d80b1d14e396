"""Where the project lies, and files that are written in one piece."""

import os
from contextlib import contextmanager
from pathlib import Path


def project_root() -> Path:
    """The folder that holds notebooks/ and mgkit/: the working directory or the nearest one above; else the former."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "notebooks").is_dir() and (folder / "mgkit").is_dir():
            return folder
    return here


@contextmanager
def atomic_write(path: str | Path):
    """A temporary path beside `path`, which replaces it, flushed to disk, when the block ends well; else it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
