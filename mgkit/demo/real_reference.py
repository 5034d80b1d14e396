"""outputs/reference/real/: a run of `make real` in git, without its photographs and any picture of them."""

import json
from collections.abc import Mapping
from pathlib import Path

import nbformat
from PIL import Image

from mgkit.demo.pictures import PLOTS, without_photographs
from mgkit.demo.real_data import DESCRIPTION, other_sets, read_description
from mgkit.demo.reference import (
    REAL,
    Measure,
    compare_with_reference,
    figure_path,
    folder,
    replaced,
    save_small,
    without_machine,
    write_metrics,
)
from mgkit.engine.run import experiment_folder
from mgkit.machine.files import write_text

TABLE, CURVES = "table.txt", "curves.json"
FIGURES = (  # below outputs/<experiment>/; none of them shows a photograph
    "finetune_p/p_paths", "finetune_p/p_star", "whiten/spectrum", "evaluate_imagenet/accuracy",
    "evaluate_retrieval/retrieval", "evaluate_retrieval/precision_recall", "evaluate_retrieval/figure_4",
    "evaluate_retrieval/reranking",
)  # fmt: skip


def compared(now: Mapping[str, Measure], description: Mapping[str, dict]) -> str:
    """The comparison with outputs/reference/real, or one line if that is of other data or missing."""
    path = folder() / REAL / DESCRIPTION
    try:
        others = other_sets(read_description(path), description)
    except FileNotFoundError:
        others = []
    except ValueError as error:
        return str(error)
    if others:
        names = ", ".join(others)
        return f"not compared with {path.parent}, which was measured on other data (other: {names})"
    return compare_with_reference(now, below=REAL)


def write_real_reference(experiment: str, now: Mapping[str, Measure]) -> Path:
    """Replace outputs/reference/real by a run, without pictures of photographs; returns its path.

    The descriptions of the sets by hand, `about`, stay with data of the same hash. Raises ValueError if a
    notebook contains a path of the machine, FileNotFoundError if a figure is missing; the earlier reference
    is then kept.
    """
    target, results = folder() / REAL, experiment_folder(experiment)
    description = with_about(read_description(results / DESCRIPTION), target / DESCRIPTION)
    with replaced(target) as written:
        write_metrics(written / "metrics.json", now)
        write_text(
            written / DESCRIPTION, json.dumps({"sets": description}, indent=1, ensure_ascii=False) + "\n"
        )
        for name in (TABLE, CURVES):
            write_text(written / name, (results / name).read_text(encoding="utf-8"))
        for name in FIGURES:
            picture = Image.open(figure_path(experiment, name), formats=["PNG"])
            save_small(picture, written / "figures" / Path(name).name)
        for name, plots in PLOTS.items():
            notebook = nbformat.read(results / "notebooks" / f"{name}.ipynb", as_version=4)
            text = without_machine(without_photographs(notebook, plots))
            write_text(written / "notebooks" / f"{name}.ipynb", text)
    return target


def with_about(description: dict[str, dict], earlier: Path) -> dict[str, dict]:
    """The description with `about` of the sets that the earlier reference describes with the same hash."""
    if not earlier.is_file():
        return description
    known = {
        values["sha256"]: {"about": values["about"]}
        for values in read_description(earlier).values()
        if "about" in values
    }
    return {name: values | known.get(values["sha256"], {}) for name, values in description.items()}
