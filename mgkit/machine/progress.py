"""Progress that reads well in both places: a widget in a browser, a few plain lines a minute in a log."""

import json
import os
import sys
from collections.abc import Iterable
from contextlib import suppress

from tqdm.std import tqdm as text_bar

SECONDS_BETWEEN_LINES = 15.0
FOR_RELAY = "MGKIT_RELAY"  # environment of a process whose lines `show_relayed` reads
MARK = "\x1e"  # begins a line that is a bar's state, not text


class LineBar(text_bar):
    """A bar that prints whole lines instead of redrawing one, and no state twice."""

    printed = None  # the count in the last line

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Print the state; tqdm would also move the cursor between bars, as empty lines in a log."""
        if msg != "" and self.n != self.printed:
            self.printed = self.n
            self.fp.write(self.line() + "\n")
            self.fp.flush()

    def line(self) -> str:
        return str(self)

    def clear(self, nolock: bool = False) -> None:
        """Nothing to wipe: lines stay."""

    def close(self) -> None:
        if not self.disable:
            if self.format_dict["elapsed"] >= SECONDS_BETWEEN_LINES:  # what took no time needs no line
                self.display()
            self.leave = False  # tqdm's own farewell redraws the line
            super().close()


class RelayedBar(LineBar):
    """A bar that writes its state as a line, for another process to show."""

    closed = False

    def line(self) -> str:
        state = {"description": self.desc, "n": self.n, "total": self.total, "unit": self.unit}
        state |= {"initial": self.initial, "stays": self.leave, "closed": self.closed}
        return MARK + json.dumps(state)

    def close(self) -> None:
        if not self.disable:
            self.closed, self.printed = True, None
            self.display()
            super().close()


def show_relayed(lines: Iterable[str]) -> None:
    """Print the lines of another process as they come, its bars as bars."""
    bars = {}
    try:
        for line in lines:
            state = bar_state(line)
            if state is None:
                print(line, end="", flush=True)
                continue
            name = state["description"]
            if name not in bars:
                options = {key: state[key] for key in ("total", "unit", "initial", "stays")}
                bars[name] = progress(None, name, **options)
            if state["closed"]:
                bar = bars.pop(name)
                bar.n = state["n"]  # without a line of its own: closing has one
                bar.close()
            else:
                bars[name].update(state["n"] - bars[name].n)
    finally:
        for bar in bars.values():
            bar.close()


def bar_state(line: str) -> dict | None:
    """What a RelayedBar wrote; None for any other line, and for one that was cut off."""
    if not line.startswith(MARK):
        return None
    with suppress(ValueError):
        return json.loads(line[len(MARK) :])
    return None


def progress(
    iterable: Iterable | None,
    description: str,
    *,
    total: int | None = None,
    unit: str = "batch",
    delay: float = 0.0,
    initial: int = 0,
    stays: bool = False,
) -> text_bar:
    """Iterate with progress: a bar in JupyterLab or a terminal, elsewhere a line every 15 s.

    iterable: None to call `update` and `close` of what is returned.
    delay: seconds before a bar appears, for loops that are mostly too short for one.
    initial: steps that were made before.
    stays: whether JupyterLab keeps the bar when all is done; twenty full bars hide what was found.
    """
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)
    options = dict(desc=description, total=total, unit=unit, initial=initial)
    if FOR_RELAY in os.environ:
        return RelayedBar(
            iterable, file=sys.stdout, mininterval=1.0, miniters=1, delay=delay, leave=stays, **options
        )
    if "JPY_SESSION_NAME" in os.environ:  # set by Jupyter servers for the kernels of opened notebooks
        from tqdm.notebook import tqdm as widget_bar

        return widget_bar(iterable, delay=delay, leave=stays, **options)
    if sys.stdout.isatty():
        return text_bar(iterable, file=sys.stdout, leave=False, delay=delay, **options)
    bar = "{desc}: {n_fmt}/{total_fmt} {unit}, {elapsed} passed, {remaining} to go, {rate_fmt}"
    if total is None:
        bar = "{desc}: {n_fmt} {unit}, {elapsed} passed, {rate_fmt}"
    # miniters: 1 keeps tqdm's monitor thread from printing in between
    return LineBar(
        iterable, file=sys.stdout, bar_format=bar, delay=SECONDS_BETWEEN_LINES,
        mininterval=SECONDS_BETWEEN_LINES, miniters=1, **options,
    )  # fmt: skip
