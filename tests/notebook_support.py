"""Shared by the tests of the notebooks: folders, configs, quick parameters, cells, output."""

from pathlib import Path

import nbformat

import mgkit
from mgkit.config import (
    ClassifyConfig,
    FinetunePConfig,
    PhotosConfig,
    RetrievalConfig,
    StageConfig,
    TrainConfig,
    WhitenConfig,
)

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
}
QUICK = {
    "01_train": {"epochs": 1, "size": 32, "batch_size": 12},
    "02_finetune_p": {"sizes": [32, 48], "images_per_class": 2, "ps": [1.0, 3.0]},
    "03_whiten": {"size": 48},
    "04_evaluate_imagenet": {"sizes": [32, 48]},
    "05_evaluate_retrieval": {"size": 48, "resolutions": [32, 48], "indices": []},
    "06_search_your_photos": {"size": 48},
}


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
