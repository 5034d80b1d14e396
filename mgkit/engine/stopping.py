"""Stopping of worker processes: signals, the end of the launcher, and their output and loaders."""

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

SECONDS_AS_ORPHAN = 15  # after the launcher has ended


class StopRequest:
    """Whether this process should stop: after SIGTERM or SIGINT, or when its parent or launcher has ended.

    saves: whether the stage looks at the request, saves and ends by itself; others are ended at once
    """

    def __init__(self, *, saves: bool = True):
        self.saves = saves
        self.requested = False
        self.work_has_begun = False  # the stage has looked at the request
        self.step = 0  # at which it has
        self.launcher = int(os.environ.get(LAUNCHER, 0))
        self.parent = started_by() or os.getppid()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.request)
        threading.Thread(target=self.watch, daemon=True).start()

    def __call__(self, step: int) -> bool:
        self.work_has_begun, self.step = True, step
        return self.requested

    def request(self, *_) -> None:
        self.requested = True
        if not self.saves:
            self.tidy_up()
            os._exit(1)

    def watch(self) -> None:
        """Request a stop when the parent or launcher has ended; end the process if that takes long."""
        while not self.is_orphan():
            time.sleep(0.3)
        self.request()
        time.sleep(SECONDS_AS_ORPHAN)
        self.tidy_up()
        os._exit(1)

    def is_orphan(self) -> bool:
        return os.getppid() != self.parent or not is_alive(self.launcher)

    def tidy_up(self) -> None:
        """Remove the folder of a launcher that has ended."""
        if FOLDER in os.environ and not is_alive(self.launcher):
            shutil.rmtree(os.environ[FOLDER], ignore_errors=True)


def started_by() -> int:
    """The process id of torch.distributed.run, which started this worker; 0 if unknown."""
    try:
        return int((Path(os.environ[FOLDER]) / AGENT).read_text(encoding="utf-8"))
    except (KeyError, OSError, ValueError):
        return 0


def is_alive(pid: int) -> bool:
    """Whether a process is running; zombies do not count, and 0, an unknown process, counts as running."""
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
    """An output stream that drops what is written after its reader has ended, without an error."""

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
    """Silence the output of all but the main process; other machines print where that one is."""
    if os.environ.get("RANK", "0") == "0":
        return
    if os.environ.get("LOCAL_RANK") == "0":
        print(f"progress is shown on the machine of rank 0, {os.environ.get('MASTER_ADDR')}", flush=True)
    sys.stdout = open(os.devnull, "w", encoding="utf-8", errors="replace")  # noqa: SIM115 - until the process ends


def end_readers() -> None:
    """Kill the loader processes; after an error they would end late."""
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise that they were killed
    for reader in multiprocessing.active_children():
        reader.kill()
