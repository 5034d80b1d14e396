"""Paths, reading of text, atomic writes, refusals of the file system, and lock files."""

import codecs
import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from mgkit.machine.printable import say_once

# What file systems without fsync answer, as CIFS, FUSE and VirtualBox mounts do for folders.
CANNOT_SYNC = (
    errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.ENOTTY, errno.EISDIR,
    errno.EACCES, errno.EPERM,
)  # fmt: skip
CANNOT_LOCK = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
REMEDIES = {  # of what a restart does not change: cause and remedy, for a folder
    errno.ENOSPC: "the disk that holds {} is full: make room there",
    errno.EDQUOT: "the disk quota of {} is used up: make room there",
    errno.EROFS: "{} is read-only: mount it for writing, or work in another folder",
    errno.EACCES: "there is no permission to write in {}: change that, or work in another folder",
    errno.EPERM: "writing in {} is not permitted: change that, or work in another folder",
    errno.EFBIG: "{} does not take files that large: work on another disk",
    errno.EIO: "the disk that holds {} fails: check it, or work on another disk",
    errno.ESTALE: "the connection to {} is lost: mount it again",
    errno.ENAMETOOLONG: "{} takes no name that long: choose a shorter one",
}
PROBE = 64 * 1024  # bytes that `check_writable` writes
MARKS = (  # byte order marks; that of UTF-32 starts like that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class RefusedError(OSError):
    """The machine refuses something, and would again; the message says what, why and what to do."""


# --- Paths


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


# --- Reading text


def read_text(path: str | Path) -> str:
    """Read a text file of any system: UTF-8, or UTF-16 or UTF-32 with a byte order mark.

    Line ends are kept. Raises ValueError with the file and line for other encodings.
    """
    content = Path(path).read_bytes()
    encoding = next((name for mark, name in MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = len(split_lines(content[: error.start].decode(encoding, "replace") + "."))
        raise ValueError(
            f"{path}, line {line}: this is not {encoding} text: save the file as UTF-8"
        ) from None
    if "\0" in text:
        line = len(split_lines(text[: text.index("\0")] + "."))
        raise ValueError(f"{path}, line {line}: there is a NUL character: save the file as UTF-8 text")
    return text


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file without their ends and without blank lines at its end; see `read_text`."""
    lines = split_lines(read_text(path))
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def split_lines(text: str) -> list[str]:
    """Split at the line ends of Unix, Windows and old Macs; str.splitlines has more, which names may hold."""
    return re.split("\r\n|\n|\r", text)


# --- Writing


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path: flushed and renamed to `path` after the block, removed on an error.

    Raises RefusedError where the file system refuses it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            move_into_place(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn an OSError of the block, which writes `path`, into a RefusedError with the cause and a remedy.

    Errors of other files, and those without an error number, which have a message of their own, are kept.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or not concerns(error, Path(path)):
            raise
        raise RefusedError(f"{path} cannot be written: {why_refused(error, Path(path))}") from None


def concerns(error: OSError, path: Path) -> bool:
    """Whether an error may be about a path, its folders or files beside it; errors of writes name none."""
    names = [
        name for name in (error.filename, error.filename2) if isinstance(name, str | bytes | os.PathLike)
    ]
    named = [Path(os.fsdecode(name)) for name in names]
    return not named or any(name in (path, *path.parents) or path.parent in name.parents for name in named)


def why_refused(error: OSError, path: Path) -> str:
    """Why a file cannot be written, and what to do."""
    for folder in path.parents:
        if os.path.lexists(folder) and not os.path.isdir(folder):
            what = "a link to nothing" if folder.is_symlink() and not folder.exists() else "not a folder"
            return f"{folder} is {what}: remove it or work in another folder"
    reason = error.strerror or type(error).__name__
    remedy = REMEDIES.get(error.errno)
    return f"{remedy.format(path.parent)} ({reason})" if remedy else reason


def check_writable(path: Path) -> None:
    """Write a small temporary file beside `path`, whose folder is created. Raises RefusedError."""
    probe = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(bytes(PROBE))
            sync(probe)
        finally:
            probe.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically (UTF-8; of names that are not, their bytes)."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def move_into_place(written: Path, path: Path) -> None:
    """Flush a finished file to disk and rename it, replacing any file of that name."""
    sync(written)
    os.replace(written, path)
    if os.name == "posix":  # the rename is on disk once the folder is flushed
        sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file or folder to disk, where its file system supports that."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise


def link_or_copy(source: Path, path: Path) -> None:
    """Hard-link a finished file to `path`, replacing what is there; a copy where links are not supported."""
    with atomic_write(path) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def free_name(path: Path) -> Path:
    """The path if it is free, else the first free one of name.1.suffix, name.2.suffix, ..."""
    free, number = path, 0
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem}.{number}{path.suffix}")
    return free


def remove_partial(folder: Path, name: str = "*") -> None:
    """Remove temporary files of `atomic_write`, which killed processes left in a folder.

    name: of the file that was to be written; `*`: of all files. Nobody else may be writing them.
    """
    for left_behind in folder.glob(f".{name}.*.partial"):
        left_behind.unlink(missing_ok=True)


# --- Locks


@contextmanager
def exclusive(path: Path, *, purpose: str, patience: float = -1) -> Iterator[None]:
    """Hold a lock file; the system releases it when the process ends.

    purpose: what the holder does, printed if another process holds the lock; empty to print nothing.
    patience: the longest wait for it (seconds); -1: no limit.

    Where the file system has no locks, the lock is one of this machine, and a line is printed. Raises
    TimeoutError after the wait, RefusedError where the file cannot be created.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock = acquired(FileLock(path), purpose, patience)
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in CANNOT_LOCK:
                raise
            say_once(f"{path.parent} has no locks: start no run on another machine that writes there, too")
            lock = acquired(FileLock(lock_here(path)), purpose, patience)
    try:
        yield
    finally:
        lock.release()


def acquired(lock: BaseFileLock, purpose: str, patience: float) -> BaseFileLock:
    """Acquire a lock; waits, and says so, if another process holds it."""
    try:
        lock.acquire(timeout=0)
    except Timeout:  # a TimeoutError
        if purpose:
            print(f"waiting for another process, which is {purpose}")
        lock.acquire(timeout=patience, poll_interval=0.2)
    return lock


def lock_here(path: Path) -> Path:
    """A lock file for `path` in the machine's folder of temporary files."""
    key = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"mgkit-{key}.lock"
