"""Limits of shared memory, through which a loader's workers pass batches, and of open files and processes."""

import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mgkit.machine.files import RefusedError

FOLDER = Path("/dev/shm")  # of Linux; other systems have no limit to check
SAID_BY_TORCH = ("shared memory", "(shm)", "torch_shm_manager", "Bus error")
FILES_SAID_BY_TORCH = ("Too many open files", "items of ancdata")
REFUSALS = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSYS, errno.ENOENT)
MOST_OF_TMPDIR = 75  # bytes: a socket's address has 107, of which multiprocessing takes 32
REMEDY = "choose workers=0, or enlarge it (docker run --shm-size=8g, or --ipc=host)"


def check_shared_memory(*, workers: int, batch: int, prefetch: int = 2) -> None:
    """Raise RefusedError if the batches that workers hold at a time do not fit into shared memory.

    So it does if the folder of temporary files has too long a name for the sockets that pass them: the loader
    would wait for its batches in vain.

    workers: of the loader; without any, batches are not shared.
    batch: size of the largest batch (bytes).
    prefetch: batches per worker.
    """
    if not workers or not sys.platform.startswith("linux"):
        return
    if fault := fault_of_folder():
        raise RefusedError(f"{fault}: {REMEDY}")
    long = len(os.fsencode(tempfile.gettempdir()))
    if long > MOST_OF_TMPDIR:
        raise RefusedError(
            f"TMPDIR: {tempfile.gettempdir()} has {long} bytes, and sockets take {MOST_OF_TMPDIR}: choose a "
            "folder with a shorter name, or workers=0"
        )
    state = os.statvfs(FOLDER)
    free = state.f_bavail * state.f_frsize
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    needed = batch * prefetch * workers * processes
    if state.f_blocks and free < needed:  # without blocks there is no limit
        of_processes = f"{processes} processes with " if processes > 1 else ""
        raise RefusedError(
            f"{FOLDER} has {shown(free)} free; {of_processes}workers={workers} hold {prefetch} batches of "
            f"{shown(batch)} each there, {shown(needed)}: {REMEDY}"
        )


def fault_of_folder() -> str:
    """What keeps workers from writing to /dev/shm, other than its size; empty for nothing."""
    if not FOLDER.is_dir():
        return f"{FOLDER}, through which workers pass images, does not exist"
    if os.statvfs(FOLDER).f_flag & os.ST_RDONLY or not os.access(FOLDER, os.W_OK | os.X_OK):
        return f"{FOLDER}, through which workers pass images, cannot be written"
    return ""


@contextmanager
def shared_memory_named() -> Iterator[None]:
    """Turn the errors of a full or missing shared memory in the block into a RefusedError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not is_about_shared_memory(error):
            raise
        fault = fault_of_folder() or f"{FOLDER} is too small for the images that workers pass through it"
        raise RefusedError(f"{fault}: {REMEDY}") from None


@contextmanager
def limits_named() -> Iterator[None]:
    """Turn the errors of too many open files or processes in the block into a RefusedError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        number = getattr(error, "errno", None)
        if number in (errno.EMFILE, errno.ENFILE) or any(word in str(error) for word in FILES_SAID_BY_TORCH):
            remedy = "no more files can be opened: raise the limit (ulimit -n 4096)"
        elif number == errno.EAGAIN and isinstance(error, BlockingIOError):  # of fork
            remedy = "no more processes can be started: raise the limit (ulimit -u) or choose fewer workers"
        else:
            raise
        raise RefusedError(f"{remedy} ({error.args[-1]})") from None


def is_about_shared_memory(error: Exception) -> bool:
    """Whether an error of a loader is about shared memory; those of its semaphores name no file."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in REFUSALS and error.filename is None
    return any(word in str(error) for word in SAID_BY_TORCH)


def shown(size: int) -> str:
    """A number of bytes, in kB, MB or GB."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size / 1e3:.3g} kB"
