"""Where the time of the demo's notebooks goes: a table, from what their processes note of themselves."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import nbformat

from mgkit.demo.execute import environment
from mgkit.machine.timing import TIMES, Noted

KINDS = {  # of work: what it is, as a heading
    "start": "kernel, imports", "workers": "start of workers", "training": "training", "passes": "passes",
    "search": "search", "figures": "figures", "other": "other",
}  # fmt: skip


@contextmanager
def recorded() -> Iterator[Path]:
    """Have the processes that are started within the block note their times; yields the folder of these."""
    with tempfile.TemporaryDirectory(prefix="mgkit-times-") as folder, environment(**{TIMES: folder}):
        yield Path(folder)


def times(copy: Path, noted: Sequence[Noted], *, began: float, ended: float) -> dict[str, float]:
    """Seconds of a notebook by kind of work, which sum to all of them.

    copy: of the executed notebook
    noted: by its processes
    began, ended: when it was executed, in seconds since 1970

    The start ends with the first cell that imports the kit. What that cell does besides is not of the start.
    Of the time that workers run, what they note is theirs, and the rest is their start and end.
    """
    imported = end_of_imports(copy, began)
    found = dict.fromkeys(KINDS, 0.0)
    for one in noted:
        found[one.kind] += one.seconds
        if one.worker:
            found["workers"] -= one.seconds
        elif one.ended <= imported:
            found["start"] -= one.seconds
    found["start"] += imported - began
    found["other"] = ended - began - sum(found.values())
    return found


def end_of_imports(copy: Path, began: float) -> float:
    """When the first cell that imports the kit had been executed, in seconds since 1970; else `began`."""
    for cell in nbformat.read(copy, as_version=4).cells:
        if cell.cell_type == "code" and "from mgkit" in cell.source:
            end = cell.metadata.get("papermill", {}).get("end_time")
            return datetime.fromisoformat(end).replace(tzinfo=timezone.utc).timestamp() if end else began
    return began


def times_table(taken: Mapping[str, Mapping[str, float]]) -> str:
    """A line per notebook with its seconds by kind of work, and one for all."""
    width = max(map(len, taken))
    every = {kind: sum(of_one[kind] for of_one in taken.values()) for kind in KINDS}
    lines = [" " * width + "".join(f"{title:>18}" for title in (*KINDS.values(), "all"))]
    for name, of_one in {**taken, "all": every}.items():
        seconds = (*(of_one[kind] for kind in KINDS), sum(of_one.values()))
        lines.append(f"{name:{width}}" + "".join(f"{value:18.0f}" for value in seconds))
    return "\n".join(lines)
