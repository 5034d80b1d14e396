"""Executing the notebooks, with what their cells print shown as it comes."""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import papermill
from papermill.exceptions import PapermillExecutionError

from mgkit.machine.device import kept_memory
from mgkit.machine.files import project_root


class NotebookFailedError(RuntimeError):
    """A cell of a notebook raised an error."""


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set environment variables within the block, for the processes that are started in it."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def in_kernel(name: str, copy: Path, parameters: Mapping[str, object], **options) -> None:
    """Execute a notebook of notebooks/ in a kernel of its own, which keeps the memory that it frees.

    name: without its suffix
    copy: the executed copy
    parameters: values of its first code cell
    options: of papermill

    Raises NotebookFailedError, one line with the cell's error and the executed copy.
    """
    root = project_root()
    with environment(**{key: os.environ.get(key, value) for key, value in kept_memory().items()}):
        try:
            papermill.execute_notebook(
                root / "notebooks" / f"{name}.ipynb", copy, parameters=parameters, cwd=root / "notebooks",
                progress_bar=False, **options,
            )  # fmt: skip
        except PapermillExecutionError as error:
            reason = f"{name}: {error.ename}: {error.evalue} (executed as far as {copy})"
            raise NotebookFailedError(reason) from None


def execute(name: str, folder: Path, parameters: dict) -> Path:
    """Execute a notebook of notebooks/ in a kernel of its own; returns the executed copy in `folder`.

    name: without its suffix
    parameters: values of its first code cell

    Raises NotebookFailedError.
    """
    copy, start = folder / f"{name}.ipynb", time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    print(f"--- {name}", flush=True)
    output = {"stdout_file": sys.stdout, "stderr_file": sys.stderr, "coalesce_streams": True}
    in_kernel(name, copy, parameters, **output)
    print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    return copy
