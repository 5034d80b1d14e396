"""Executing the notebooks, with what their cells print shown as it comes."""

import sys
import time
from pathlib import Path

import papermill
from papermill.exceptions import PapermillExecutionError

from mgkit.machine.files import project_root


class NotebookFailedError(RuntimeError):
    """A cell of a notebook raised an error."""


def execute(name: str, folder: Path, parameters: dict) -> Path:
    """Execute a notebook of notebooks/ in a kernel of its own; returns the executed copy in `folder`.

    name: without its suffix
    parameters: values of its first code cell

    Raises NotebookFailedError, one line with the cell's error and the executed copy.
    """
    root, copy, start = project_root(), folder / f"{name}.ipynb", time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    print(f"--- {name}", flush=True)
    try:
        papermill.execute_notebook(
            root / "notebooks" / f"{name}.ipynb", copy, parameters=parameters, cwd=root / "notebooks",
            progress_bar=False, stdout_file=sys.stdout, stderr_file=sys.stderr, coalesce_streams=True,
        )  # fmt: skip
    except PapermillExecutionError as error:
        raise NotebookFailedError(
            f"{name}: {error.ename}: {error.evalue} (executed as far as {copy})"
        ) from None
    print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    return copy
