"""Paths, atomic writes and lock files."""

import errno
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

CANNOT_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)  # from file systems without fsync


def project_root() -> Path:
    """The nearest folder, upwards from the working directory, with notebooks/ and mgkit/; else the latter."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "notebooks").is_dir() and (folder / "mgkit").is_dir():
            return folder
    return here


def find_path(path: str) -> Path:
    """A path relative to the working directory, or to the project root if it exists only there."""
    given = Path(path).expanduser()
    from_root = project_root() / given
    # os.path.exists is False, where Path.exists raises, for a path in a folder that may not be entered.
    return from_root if not os.path.exists(given) and os.path.exists(from_root) else given


@contextmanager
def atomic_write(path: str | Path):
    """Yield a temporary path: flushed and renamed to `path` after the block, removed on an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        move_into_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically (UTF-8; of names that are not, their bytes)."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def move_into_place(written: Path, path: Path) -> None:
    """Flush a finished file to disk and rename it, replacing any file of that name."""
    with open(written, "rb") as file:
        os.fsync(file.fileno())
    os.replace(written, path)
    if os.name == "posix":  # the rename is on disk once the folder is flushed
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sync(file: IO) -> None:
    """Flush an open file to disk, where its file system supports fsync."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise


def link_or_copy(source: Path, path: Path) -> None:
    """Hard-link a finished file to `path`, replacing what is there; a copy where links are not supported."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    move_into_place(temporary, path)
    temporary.unlink(missing_ok=True)  # os.replace does nothing if both are links to one file


def free_name(path: Path) -> Path:
    """The path if it is free, else the first free one of name.1.suffix, name.2.suffix, ..."""
    free, number = path, 0
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem}.{number}{path.suffix}")
    return free


def remove_partial(folder: Path) -> None:
    """Remove temporary files that killed processes left in a folder."""
    for left_behind in folder.glob(".*.partial"):
        left_behind.unlink(missing_ok=True)


@contextmanager
def exclusive(path: Path, *, purpose: str, patience: float = -1):
    """Hold a lock file; the system releases it when the process ends.

    purpose: what the holder does, printed if another process holds the lock; empty to print nothing.
    patience: the longest wait for it (seconds); -1: no limit.

    Raises TimeoutError after that, OSError where the file cannot be created or locked.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:  # a TimeoutError
        if purpose:
            print(f"waiting for another process, which is {purpose}")
        lock.acquire(timeout=patience, poll_interval=0.2)
    try:
        yield
    finally:
        lock.release()
