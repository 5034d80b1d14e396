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
    """A bar that prints whole lines instead of redrawing one."""

    @staticmethod
    def status_printer(file):
        def print_line(text: str) -> None:
            if text.strip():
                file.write(text + "\n")
                file.flush()

        return print_line

    def close(self) -> None:
        if self.disable:
            return
        self.leave = False  # tqdm's own farewell redraws the line; ours is printed once, here
        print_line, summary = self.status_printer(self.fp), str(self)
        long = self.format_dict["elapsed"] >= SECONDS_BETWEEN_LINES  # what took no time needs no line
        super().close()
        if long:
            print_line(summary)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Where tqdm would wipe its line with an empty one, and return the carriage, nothing is written."""
        return msg != "" and super().display(msg, pos)

    def clear(self, nolock: bool = False) -> None:
        """Nothing to wipe: lines stay."""


class RelayedBar(text_bar):
    """A bar that writes its state as a line, for another process to show."""

    @staticmethod
    def status_printer(file):
        return lambda text: None

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if msg != "":
            self.tell(closed=False)

    def tell(self, *, closed: bool) -> None:
        state = {"description": self.desc, "n": self.n, "total": self.total, "unit": self.unit}
        state |= {"initial": self.initial, "stays": self.leave, "closed": closed}
        print(MARK + json.dumps(state), flush=True)

    def close(self) -> None:
        if not self.disable:
            self.tell(closed=True)
            self.leave = False
            super().close()

    def clear(self, nolock: bool = False) -> None:
        """Nothing to wipe."""


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
    """Iterate with progress: a bar in JupyterLab or a terminal, a line every 15 s elsewhere (papermill, a log file).

    delay: seconds before a bar appears, for loops that are mostly too short for one. initial: steps that were made before.
    stays: whether JupyterLab keeps it when all is done; a page with twenty full bars hides what was found.
    None for the iterable: call `update` and `close` of what is returned.
    """
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)
    options = dict(desc=description, total=total, unit=unit, initial=initial)
    if FOR_RELAY in os.environ:
        return RelayedBar(iterable, mininterval=1.0, maxinterval=1.0, delay=delay, leave=stays, **options)
    if "JPY_SESSION_NAME" in os.environ:  # set by Jupyter servers for the kernels of opened notebooks
        from tqdm.notebook import tqdm as widget_bar

        return widget_bar(iterable, delay=delay, leave=stays, **options)
    if sys.stdout.isatty():
        return text_bar(iterable, file=sys.stdout, leave=False, delay=delay, **options)
    bar = "{desc}: {n_fmt}/{total_fmt} {unit}, {elapsed} passed, {remaining} to go, {rate_fmt}"
    if total is None:
        bar = "{desc}: {n_fmt} {unit}, {elapsed} passed, {rate_fmt}"
    return LineBar(
        iterable, file=sys.stdout, bar_format=bar, delay=SECONDS_BETWEEN_LINES,
        mininterval=SECONDS_BETWEEN_LINES, maxinterval=SECONDS_BETWEEN_LINES, **options,
    )  # fmt: skip
