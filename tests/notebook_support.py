"""Shared by the tests of the notebooks: folders, configs, quick parameters, cells, output."""

import ast
import json
import shutil
from pathlib import Path

import matplotlib.figure
import nbformat
import papermill

import mgkit
from mgkit.config import (
    ClaimsConfig,
    ClassifyConfig,
    FinetunePConfig,
    PhotosConfig,
    RetrievalConfig,
    StageConfig,
    TrainConfig,
    WhitenConfig,
)
from mgkit.explore.widgets import Explorer

PACKAGE = Path(mgkit.__file__).parent
NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
CONFIGS = {
    "00_start_here": StageConfig,
    "01_train": TrainConfig,
    "02_finetune_p": FinetunePConfig,
    "03_whiten": WhitenConfig,
    "04_evaluate_imagenet": ClassifyConfig,
    "05_evaluate_retrieval": RetrievalConfig,
    "06_search_your_photos": PhotosConfig,
    "07_claims": ClaimsConfig,
}
QUICK = {
    "01_train": {"epochs": 1, "size": 32, "batch_size": 12},
    "02_finetune_p": {"sizes": [32, 48], "images_per_class": 2, "ps": [1.0, 3.0], "fixres_epochs": 2},
    "03_whiten": {"size": 48},
    "04_evaluate_imagenet": {"sizes": [32, 48]},
    "05_evaluate_retrieval": {"size": 48, "resolutions": [32, 48], "indices": []},
    "06_search_your_photos": {"size": 48},
    "07_claims": {
        "arms": ["plain", "joint"], "budgets": [1], "seeds": [0, 1], "size": 32, "batch_size": 12,
        "len_factor": 0.5, "eval_size": 48, "further": True, "larger_sizes": [48], "whitening_images": [40],
    },
}  # fmt: skip


def cells_of(name, kind="code"):
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def printed(path):
    notebook = nbformat.read(path, as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def figures(path):
    """How many pictures the executed notebook shows."""
    notebook = nbformat.read(path, as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum(bool({"image/png", "image/jpeg"} & set(output.get("data", {}))) for output in outputs)


def new_project(folder):
    """A project of its own, so that outputs stay out of the repository."""
    shutil.copytree(NOTEBOOKS, folder / "notebooks")
    (folder / "mgkit").symlink_to(PACKAGE)
    return folder


def runner(project, mini_root):
    """A function that runs a notebook of the project on the reduced set and returns its output."""

    def execute(name, **parameters):
        copy = project / f"executed_{name}.ipynb"
        papermill.execute_notebook(
            str(project / "notebooks" / f"{name}.ipynb"), str(copy), cwd=str(project),
            progress_bar=False,
            parameters={"experiment": "t", "data": str(mini_root), "workers": 0} | parameters,
        )  # fmt: skip
        return printed(copy)

    return execute


class Display:
    """What a notebook's `display` does here: draw figures, and encode the state of widgets.

    figures: how many were drawn.
    bytes: of their pictures, in base64 as in a notebook.
    """

    def __init__(self):
        self.figures = self.bytes = 0

    def __call__(self, shown):
        if isinstance(shown, matplotlib.figure.Figure):
            pictures = shown._repr_mimebundle_().values()
            self.figures += bool(pictures)
            self.bytes += sum(4 * len(picture) // 3 for picture in pictures)
        elif isinstance(shown, Explorer):
            states = [shown.get_state(), *(child.get_state() for child in shown.children)]
            json.dumps(states, default=str, ensure_ascii=False).encode("utf-8")


def execute(name, parameters) -> Display:
    """Run a notebook's code cells in this process; returns what it showed."""
    first, *cells = [cell.source for cell in cells_of(name)]
    namespace = {"__name__": name, "display": Display()}
    exec(first, namespace)
    namespace |= parameters
    for source in cells:
        *statements, last = ast.parse(source).body
        if not isinstance(last, ast.Expr):
            exec(source, namespace)
            continue
        exec(compile(ast.Module(statements, []), name, "exec"), namespace)
        namespace["display"](eval(compile(ast.Expression(last.value), name, "eval"), namespace))
    return namespace["display"]
