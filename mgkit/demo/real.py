"""`make real DATA=/folder`: 02 to 05 on the embedded EfficientNet-Lite0 and real photographs.

The parameters are those of notebooks/recipes/real_*.yaml. The run is compared with outputs/reference/real if
its data are the same.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import yaml

from mgkit.config import ClassifyConfig, FinetunePConfig, RetrievalConfig, WhitenConfig, make
from mgkit.demo.execute import NotebookFailedError, execute
from mgkit.demo.real_data import LINKED, RealSets, describe_sets, find_real_sets, link_sets
from mgkit.demo.real_reference import CURVES, TABLE, compared, write_real_reference
from mgkit.demo.real_results import (
    CLASSIFY,
    PSTAR,
    RETRIEVE,
    WHITEN,
    Results,
    real_curves,
    real_measures,
    real_table,
)
from mgkit.engine.run import experiment_folder, read_results
from mgkit.machine.files import project_root, write_text
from mgkit.machine.progress import print_anything

STEPS = {  # notebook: its config and its recipe, in the order of the run
    PSTAR: (FinetunePConfig, "real_pstar"),
    WHITEN: (WhitenConfig, "real_whiten"),
    CLASSIFY: (ClassifyConfig, "real_classify"),
    RETRIEVE: (RetrievalConfig, "real_retrieval"),
}
SGD_IMAGES = 1000  # that p* is learned on


def steps(sets: RealSets, data: str, experiment: str) -> dict[str, dict]:
    """{notebook: parameters} of the steps that the sets are enough for, from the recipes."""
    shared, classes = {"experiment": experiment, "data": data}, sets.has("classes")
    can_whiten = classes or sets.has("unlabelled images")
    wanted = {
        PSTAR: classes, WHITEN: can_whiten, CLASSIFY: classes,
        RETRIEVE: sets.has("holidays") or sets.has("ukbench"),
    }  # fmt: skip
    found = {name: recipe(STEPS[name][1]) | shared for name, is_wanted in wanted.items() if is_wanted}
    if classes:
        found[PSTAR]["images_per_class"] = max(1, SGD_IMAGES // sets.classes)
    if RETRIEVE in found and not can_whiten:
        published = recipe(STEPS[WHITEN][1])
        found[RETRIEVE] |= {key: published[key] for key in ("backbone", "pretrained_backbone")}
    return found


def recipe(name: str) -> dict:
    """The parameters of a recipe."""
    path = project_root() / "notebooks" / "recipes" / f"{name}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def run_steps(wanted: Mapping[str, dict], results: Path) -> Results:
    """Execute the notebooks and return their results; raises NotebookFailedError."""
    for name, parameters in wanted.items():
        execute(name, results / "notebooks", parameters)
    return {name: read_results(make(STEPS[name][0], parameters)) for name, parameters in wanted.items()}


def run(data: str, experiment: str, *, write_reference: bool) -> None:
    """Find the sets, run the notebooks, print the table and the comparison.

    Raises ValueError and OSError for a folder without the sets, NotebookFailedError.
    """
    start = time.perf_counter()
    sets = find_real_sets(data)
    print(sets.describe(), flush=True)
    results = experiment_folder(experiment)
    wanted = steps(sets, str((results / LINKED).relative_to(project_root())), experiment)
    if write_reference and len(wanted) < len(STEPS):
        raise ValueError("--write-reference needs all sets")
    description = describe_sets(sets)
    link_sets(sets, description, results)
    measured = run_steps(wanted, results)
    table, now = real_table(measured, description), real_measures(measured)
    write_text(results / TABLE, table + "\n")
    write_text(results / CURVES, json.dumps(real_curves(measured)) + "\n")
    print(f"\n{table}\n")
    print(
        f"written: {write_real_reference(experiment, now)}" if write_reference else compared(now, description)
    )
    print(
        f"{time.perf_counter() - start:.0f} s in all; table, curves, notebooks and figures are in {results}"
    )


def main() -> None:
    print_anything()
    parser = argparse.ArgumentParser(description="Run 02 to 05 on a real network and real photographs.")
    parser.add_argument("--data", default="", help="a folder with the sets")
    parser.add_argument("--experiment", default="real", help="results go to outputs/<experiment>/")
    parser.add_argument(
        "--write-reference", action="store_true", help="replace outputs/reference/real/ by this run"
    )
    arguments = parser.parse_args()
    try:
        run(arguments.data, arguments.experiment, write_reference=arguments.write_reference)
    except (ValueError, OSError, NotebookFailedError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
