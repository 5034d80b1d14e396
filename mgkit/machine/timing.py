"""Where the time of a run goes: seconds by kind of work, for whoever asks for them by TIMES.

Every process appends its own lines to a file in that folder, so that what it noted before a kill is kept.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import NamedTuple, TypeVar

from mgkit.machine.progress import FOR_RELAY

TIMES = "MGKIT_TIMES"  # environment variable: the folder of the records; without it, nothing is noted
Item = TypeVar("Item")
INNER: list[float] = []  # of each open block, the seconds that blocks within it have noted for themselves


class Noted(NamedTuple):
    """A block of work, as it is noted.

    kind: what it was
    seconds: it took, without the blocks within it
    ended: when, in seconds since 1970
    worker: whether a worker process of `launch` did it
    """

    kind: str
    seconds: float
    ended: float
    worker: bool


@contextmanager
def timed(kind: str) -> Iterator[None]:
    """Note the seconds of the block, without those of timed blocks within it, where TIMES asks for it.

    Of a process only the main thread notes, and of several ranks only the first.
    """
    folder = os.environ.get(TIMES)
    elsewhere = (
        threading.current_thread() is not threading.main_thread() or os.environ.get("RANK", "0") != "0"
    )
    if not folder or elsewhere:
        yield
        return
    INNER.append(0.0)
    began = time.perf_counter()
    try:
        yield
    finally:
        whole = time.perf_counter() - began
        own = whole - INNER.pop()
        if INNER:
            INNER[-1] += whole
        note(Path(folder), kind, own)


def each_timed(kind: str) -> Callable[[Callable[..., Iterator[Item]]], Callable[..., Iterator[Item]]]:
    """A decorator of generators: note the time until each item comes, but not what is done with it."""

    def decorated(generate: Callable[..., Iterator[Item]]) -> Callable[..., Iterator[Item]]:
        @wraps(generate)
        def items(*arguments, **options) -> Iterator[Item]:
            coming, end = generate(*arguments, **options), object()
            while True:
                with timed(kind):
                    item = next(coming, end)
                if item is end:
                    return
                yield item

        return items

    return decorated


def note(folder: Path, kind: str, seconds: float) -> None:
    """Append a line to this process's record; a record that cannot be written is done without."""
    line = json.dumps([kind, seconds, time.time(), FOR_RELAY in os.environ])
    with suppress(OSError), open(folder / f"{os.getpid()}.jsonl", "a", encoding="utf-8") as file:
        file.write(line + "\n")


def noted_in(folder: Path) -> list[Noted]:
    """What all processes have noted in a folder; damaged lines are left out."""
    found = []
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, TypeError):
                found.append(Noted(*json.loads(line)))
    return found
