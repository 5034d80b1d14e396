"""`python -m mgkit.photos FOLDER [FOLDER ...]`: run 06 on folders of pictures; run by `make photos`."""

import argparse
import sys

import papermill
from papermill.exceptions import PapermillExecutionError

from mgkit.config import PhotosConfig, make
from mgkit.engine.run import experiment_folder
from mgkit.machine.files import find_path, project_root
from mgkit.machine.printable import shown_name
from mgkit.machine.progress import print_anything


def search(folders: str, experiment: str) -> None:
    """Execute 06 on folders (separated by semicolons), and print what it prints, the report's path last.

    Raises ValueError for texts that no parameter can be, PapermillExecutionError for an error of 06.
    """
    config = make(PhotosConfig, {"experiment": experiment, "photos": folders})
    if not config.photos:
        raise ValueError("photos: a folder is wanted, as in make photos PHOTOS=~/Pictures")
    root = project_root()
    name = f"{config.notebook}.ipynb"
    executed = experiment_folder(experiment) / "notebooks" / name
    executed.parent.mkdir(parents=True, exist_ok=True)
    print(f"executing {config.notebook}; with its figures it goes to {shown_name(executed)}", flush=True)
    photos = [str(find_path(folder).absolute()) for folder in config.photos]
    papermill.execute_notebook(
        root / "notebooks" / name, executed, parameters={"experiment": experiment, "photos": photos},
        cwd=root / "notebooks", progress_bar=False, stdout_file=sys.stdout, stderr_file=sys.stderr,
    )  # fmt: skip


def main() -> None:
    print_anything()
    parser = argparse.ArgumentParser(prog="python -m mgkit.photos", description="Search in your pictures.")
    parser.add_argument(
        "folders", nargs="+", help="folders of pictures; in one text, separated by semicolons"
    )
    parser.add_argument("--experiment", default="photos", help="results go to outputs/<experiment>/")
    arguments = parser.parse_args()
    try:
        search("; ".join(arguments.folders), arguments.experiment)
    except PapermillExecutionError as error:
        sys.exit(f"{error.ename}: {error.evalue}")
    except (OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
