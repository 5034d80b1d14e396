"""Progress bars: a widget in JupyterLab, a bar in a terminal, plain lines in a log."""

import json
import os
import sys
from collections.abc import Iterable
from contextlib import suppress

from tqdm.std import tqdm as text_bar

SECONDS_BETWEEN_LINES = 15.0
FOR_RELAY = "MGKIT_RELAY"  # environment variable of a process whose output `show_relayed` reads
MARK = "\x1e"  # first character of a line that holds a bar's state


class LineBar(text_bar):
    """A bar that prints a new line for each state instead of redrawing one."""

    printed = None  # the count in the last line

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Print the state; tqdm would also move the cursor between bars, leaving empty lines in a log."""
        if msg != "" and self.n != self.printed:
            self.printed = self.n
            self.fp.write(self.line() + "\n")
            self.fp.flush()

    def line(self) -> str:
        return str(self)

    def clear(self, nolock: bool = False) -> None:
        """Do nothing: printed lines stay."""

    def close(self) -> None:
        if not self.disable:
            if self.format_dict["elapsed"] >= SECONDS_BETWEEN_LINES:  # short loops print nothing
                self.display()
            self.leave = False  # tqdm would redraw the line
            super().close()


class RelayedBar(LineBar):
    """A bar that writes its state as lines of JSON, for another process to show."""

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


def print_anything() -> None:
    """Have this process print what the encoding of its output lacks as \\x, \\u or \\U, without an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not in Jupyter, which prints everything
            stream.reconfigure(errors="backslashreplace")


def show_relayed(lines: Iterable[str]) -> None:
    """Print the output of another process line by line, showing the bars of its `RelayedBar`s."""
    print_anything()
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
                bar.n = state["n"]  # not `update`, which prints: `close` prints the last line
                bar.close()
            else:
                bars[name].update(state["n"] - bars[name].n)
    finally:
        for bar in bars.values():
            bar.close()


def bar_state(line: str) -> dict | None:
    """The state that a RelayedBar wrote; None for any other or incomplete line."""
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
    """Iterate with a progress bar in JupyterLab or a terminal, elsewhere with a line every 15 s.

    iterable: what to iterate over; None: call `update` and `close` of the returned bar.
    delay: time before a bar appears (seconds).
    initial: steps done before.
    stays: keep the finished bar in JupyterLab.
    """
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)
    # smoothing: what is to go is told from all steps, since the last ones may have been quick or slow
    options = dict(desc=description, total=total, unit=unit, initial=initial, smoothing=0)
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
