"""How long a run will take, said when the first pictures have passed."""

import time
from collections.abc import Callable

import numpy as np

from mgkit.photos.embedding.nearest import MOST_EXACT, NEIGHBOURS
from mgkit.retrieval.search import top_k

QUERIES, ROWS = 256, 8192  # of the search that is timed


class Forecast:
    """Says once how long a run takes; to be called with the number of pictures that have passed, and of all.

    The time is that of the second call's pictures, times their number: the first ones also wait for processes
    to start. Nothing is printed if no picture is left then.

    beside: further pictures that the run opens
    search: gives the seconds of the search
    say: prints a line
    """

    def __init__(
        self,
        *,
        beside: int = 0,
        search: Callable[[], float] = lambda: 0.0,
        say: Callable[[str], None] = print,
    ):
        self.beside, self.search, self.say = beside, search, say
        self.began, self.first, self.said = time.monotonic(), None, False

    def __call__(self, passed: int, of: int) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first = passed, now
        elif not self.said:
            self.said = True
            seconds = (now - self.first[1]) / (passed - self.first[0]) * (of - passed + self.beside)
            if passed < of:
                total = now - self.began + seconds + self.search()
                self.say(f"about {in_words(total)} for {of:,} pictures on this machine, to the end")


def in_words(seconds: float) -> str:
    """A duration in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 100 * 60 else f"{seconds / 3600:.1f} hours"


def seconds_to_search(count: int, dimensions: int) -> float:
    """How long `neighbours` of `count` descriptors will take here, from the time of a small search."""
    random = np.random.default_rng(0)
    rows = random.random((min(ROWS, count), dimensions), np.float32)
    start = time.perf_counter()
    top_k(rows[:QUERIES], rows, k=min(NEIGHBOURS + 1, len(rows)))
    a_pair = (time.perf_counter() - start) / (len(rows[:QUERIES]) * len(rows))
    return a_pair * count * min(count, MOST_EXACT)
