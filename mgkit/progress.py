"""Progress that reads well in both places: a widget in a browser, a few plain lines a minute in a log."""

import os
import sys
from collections.abc import Iterable

from tqdm.std import tqdm as text_bar

SECONDS_BETWEEN_LINES = 15.0


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


def progress(
    iterable: Iterable, description: str, *, total: int | None = None, unit: str = "batch", delay: float = 0.0
) -> Iterable:
    """Iterate with progress: a bar in JupyterLab or a terminal, a line every 15 s elsewhere (papermill, a log file).

    delay: seconds before a bar appears, for loops that are mostly too short for one.
    """
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)
    options = dict(desc=description, total=total, unit=unit)
    if "JPY_SESSION_NAME" in os.environ:  # set by Jupyter servers for the kernels of opened notebooks
        from tqdm.notebook import tqdm as widget_bar

        return widget_bar(iterable, delay=delay, **options)
    if sys.stdout.isatty():
        return text_bar(iterable, file=sys.stdout, leave=False, delay=delay, **options)
    bar = "{desc}: {n_fmt}/{total_fmt} {unit}, {elapsed} passed, {remaining} to go, {rate_fmt}"
    if total is None:
        bar = "{desc}: {n_fmt} {unit}, {elapsed} passed, {rate_fmt}"
    return LineBar(
        iterable, file=sys.stdout, bar_format=bar, delay=SECONDS_BETWEEN_LINES,
        mininterval=SECONDS_BETWEEN_LINES, maxinterval=SECONDS_BETWEEN_LINES, **options,
    )  # fmt: skip
