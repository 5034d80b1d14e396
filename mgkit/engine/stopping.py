"""How a worker process learns that it should stop, and how it ends."""

import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from mgkit.engine.launch import AGENT, FOLDER, LAUNCHER

SECONDS_TO_STOP = 15  # once the launcher is gone


class StopRequest:
    """Whether this process has been asked to stop: by SIGTERM or SIGINT, or because its parent or its launcher is gone.

    saves: the stage asks, saves and ends by itself. One that does not is ended at once: what it needs of its work is on disk.
    """

    def __init__(self, *, saves: bool = True):
        self.saves = saves
        self.requested = False
        self.work_has_begun = False  # somebody has asked
        self.launcher = int(os.environ.get(LAUNCHER, 0))
        self.parent = started_by() or os.getppid()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.request)
        threading.Thread(target=self.watch, daemon=True).start()

    def __call__(self) -> bool:
        self.work_has_begun = True
        return self.requested

    def request(self, *_) -> None:
        self.requested = True
        if not self.saves:
            self.tidy_up()
            os._exit(1)

    def watch(self) -> None:
        """Ask to stop when there is nobody left to work for, and end at once if that takes long."""
        while not self.is_orphan():
            time.sleep(0.3)
        self.request()
        time.sleep(SECONDS_TO_STOP)
        self.tidy_up()
        os._exit(1)

    def is_orphan(self) -> bool:
        return os.getppid() != self.parent or not is_alive(self.launcher)

    def tidy_up(self) -> None:
        """Remove what the launcher would have, were it alive."""
        if FOLDER in os.environ and not is_alive(self.launcher):
            shutil.rmtree(os.environ[FOLDER], ignore_errors=True)


def started_by() -> int:
    """The process that the launcher started to start us, 0 where that is not known: it may be gone by now."""
    try:
        return int((Path(os.environ[FOLDER]) / AGENT).read_text(encoding="utf-8"))
    except (KeyError, OSError, ValueError):
        return 0


def is_alive(pid: int) -> bool:
    """Whether there is such a process, not counting one that has ended and waits to be collected, which may be for ever.

    0 stands for none that is known, which counts as alive.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:  # no Linux
        return True
    return state not in "ZX"


class Unbreakable:
    """A stream whose reader may go away: what is written then is lost, and nothing else."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except BrokenPipeError:
            return len(text)

    def flush(self) -> None:
        with suppress(BrokenPipeError):
            self.stream.flush()

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


def leave_printing_to_main() -> None:
    """From here on, only the main process prints; on a machine without it, one line says where that is."""
    if os.environ.get("RANK", "0") == "0":
        return
    if os.environ.get("LOCAL_RANK") == "0":
        print(f"how it goes is shown on the machine of rank 0, {os.environ.get('MASTER_ADDR')}", flush=True)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for good


def end_readers() -> None:
    """Kill the readers of what an error broke off: by themselves they are in no hurry to end."""
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise that they were killed
    for reader in multiprocessing.active_children():
        reader.kill()
