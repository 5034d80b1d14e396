"""Where files are, and how they are written: the project's root, paths as a person gives them, all or nothing."""

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

CANNOT_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)  # of file systems, not of files


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
    # Unlike that of a path, this `exists` raises nothing for what lies in a folder that may not be entered.
    return from_root if not os.path.exists(given) and os.path.exists(from_root) else given


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


def write_text(path: str | Path, text: str) -> None:
    """Write a text file (UTF-8), all or nothing."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def move_into_place(written: Path, path: Path) -> None:
    """Flush a finished file to disk and give it its name, in place of what had that name."""
    with open(written, "rb") as file:
        os.fsync(file.fileno())
    os.replace(written, path)
    if os.name == "posix":  # the name itself is on disk once its folder is
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sync(file: IO) -> None:
    """Have what was written to an open file on the disk, where its file system can say so."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise


def link_or_copy(source: Path, path: Path) -> None:
    """Give a finished file a second name, in place of what had it; a copy where the file system has no hard links."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    move_into_place(temporary, path)
    temporary.unlink(missing_ok=True)  # two names of one file are not renamed into each other


def free_name(path: Path) -> Path:
    """The path itself if nothing is there, else the first that is free with a number before its suffix, from 1."""
    free, number = path, 0
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem}.{number}{path.suffix}")
    return free


def remove_partial(folder: Path) -> None:
    """Remove what an `atomic_write` that was killed has left in a folder."""
    for left_behind in folder.glob(".*.partial"):
        left_behind.unlink(missing_ok=True)


@contextmanager
def exclusive(path: Path, *, on_wait: Callable[[], None], patience: float = -1):
    """Hold a file as a lock: one process at a time; it ends with the process, however that dies.

    on_wait: called once if another process holds it.
    patience: seconds to wait then, without end by default.

    Raises TimeoutError past that, OSError where the file cannot be made or locked.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:  # a TimeoutError
        on_wait()
        lock.acquire(timeout=patience, poll_interval=0.2)
    try:
        yield
    finally:
        lock.release()
