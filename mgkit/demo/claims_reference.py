"""`python -m mgkit.demo.claims_reference`: go on with the run of 07 that is in outputs/reference/claims/.

What was measured so far is in git, so any machine can add seeds and budgets to it. The parameters are those
of notebooks/recipes/claims_imagenette.yaml.
"""

import argparse
import shutil
import sys
from pathlib import Path

import nbformat
from PIL import Image

from mgkit.config import ClaimsConfig, make
from mgkit.demo.execute import NotebookFailedError, execute
from mgkit.demo.real import recipe
from mgkit.demo.reference import CLAIMS, folder, replaced, save_small, without_machine
from mgkit.engine.run import experiment_folder, run_folder
from mgkit.machine.files import write_text
from mgkit.machine.progress import print_anything

NOTEBOOK, RECIPE, TABLE, MEASURED = "07_claims", "claims_imagenette", "claims.txt", "measured"


def take_measured(experiment: str) -> int:
    """Copy the measured values of the reference to outputs/<experiment>/, unless there; returns how many."""
    target = experiment_folder(experiment) / MEASURED
    target.mkdir(parents=True, exist_ok=True)
    missing = [path for path in measured_files(folder() / CLAIMS) if not (target / path.name).exists()]
    for path in missing:
        shutil.copyfile(path, target / path.name)
    return len(missing)


def measured_files(below: Path) -> list[Path]:
    """The files of measured values below a folder."""
    return sorted((below / MEASURED).glob("*.json"))


def write_claims_reference(config: ClaimsConfig, notebook: Path) -> Path:
    """Replace outputs/reference/claims by a run: measured values, text, figures, notebook; returns its path.

    Raises ValueError if the notebook contains a path of the machine; the earlier reference is then kept.
    """
    results = run_folder(config)
    with replaced(folder() / CLAIMS) as written:
        for path in measured_files(experiment_folder(config.experiment)):
            write_text(written / MEASURED / path.name, path.read_text(encoding="utf-8"))
        write_text(written / TABLE, (results / TABLE).read_text(encoding="utf-8"))
        for path in sorted(results.glob("*.png")):
            save_small(Image.open(path, formats=["PNG"]), written / "figures" / path.stem)
        executed = nbformat.read(notebook, as_version=4)
        write_text(written / "notebooks" / notebook.name, without_machine(executed))
    return folder() / CLAIMS


def main() -> None:
    print_anything()
    parser = argparse.ArgumentParser(description="Go on with the reference run of 07 on photographs.")
    parser.add_argument(
        "--hours", type=float, default=0.0, help="after which no training starts; 0: no limit"
    )
    parser.add_argument("--write-reference", action="store_true", help="replace outputs/reference/claims/")
    arguments = parser.parse_args()
    parameters = recipe(RECIPE) | {"hours": arguments.hours}
    try:
        config = make(ClaimsConfig, parameters)
        taken = take_measured(config.experiment)
        print(f"{taken} files of measured values are taken from {folder() / CLAIMS}", flush=True)
        notebook = execute(NOTEBOOK, experiment_folder(config.experiment) / "notebooks", parameters)
        if arguments.write_reference:
            print(f"written: {write_claims_reference(config, notebook)}")
    except (ValueError, OSError, NotebookFailedError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
