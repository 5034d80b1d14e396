"""Where files are, and how they are written: the project's root, paths as a person gives them, all or nothing."""

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


def find_path(path: str) -> Path:
    """A path as given, from the working directory, or else from the project root; where neither exists, the former."""
    given = Path(path).expanduser()
    from_root = project_root() / given
    return from_root if not given.exists() and from_root.exists() else given


@contextmanager
def atomic_write(path: str | Path):
    """A temporary path beside `path`, which replaces it, flushed to disk, when the block ends well; else it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        move_into_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def move_into_place(written: Path, path: Path) -> None:
    """Flush a finished file to disk and give it its name, in place of what had that name."""
    with open(written, "rb") as file:
        os.fsync(file.fileno())
    os.replace(written, path)
