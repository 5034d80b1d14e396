"""`python -m mgkit.photos FOLDER ... [--against FOLDER]`: run 06 on folders; run by `make photos`."""

import argparse
import os
import sys
from collections.abc import Sequence

import papermill
from papermill.exceptions import PapermillExecutionError

from mgkit.config import PhotosConfig, make
from mgkit.engine.run import experiment_folder
from mgkit.machine.files import find_path, project_root
from mgkit.machine.printable import UNDECODED, shown_name
from mgkit.machine.progress import print_anything


def search(photos: Sequence[str], experiment: str, *, against: Sequence[str] = ()) -> None:
    """Execute 06 on folders, and print what it prints, the report's path last.

    Raises ValueError for texts that no parameter can be, PapermillExecutionError for an error of 06.
    """
    given = {"photos": separate(photos), "against": separate(against)}
    if not given["photos"]:
        raise ValueError("photos: a folder is wanted, as in make photos PHOTOS=~/Pictures")
    config = make(PhotosConfig, {"experiment": experiment} | given)
    folders = {"photos": absolute(config.photos, "photos"), "against": absolute(config.against, "against")}
    root = project_root()
    name = f"{config.notebook}.ipynb"
    executed = experiment_folder(experiment) / "notebooks" / name
    executed.parent.mkdir(parents=True, exist_ok=True)
    print(f"executing {config.notebook}; with its figures it goes to {shown_name(executed)}", flush=True)
    papermill.execute_notebook(
        root / "notebooks" / name, executed, parameters={"experiment": experiment} | folders,
        cwd=root / "notebooks", progress_bar=False, stdout_file=sys.stdout, stderr_file=sys.stderr,
    )  # fmt: skip


def separate(texts: Sequence[str]) -> list[str]:
    """The folders in texts, each of which is a folder, whatever its name, or several, separated by `;`."""
    folders = []
    for text in texts:
        whole = "\0" not in text and os.path.isdir(find_path(text))
        folders += [text] if whole else [part.strip() for part in text.split(";")]
    return [folder for folder in folders if folder.strip()]


def absolute(folders: Sequence[str], purpose: str) -> list[str]:
    """The folders' absolute paths; ValueError for one that is not UTF-8, as the text of a notebook is."""
    paths = [str(find_path(folder).absolute()) for folder in folders]
    for path in paths:
        if any(ord(character) in UNDECODED for character in path):
            raise ValueError(
                f"{purpose}: the name {shown_name(path)} is not UTF-8, as a parameter of a notebook must be: "
                "give a folder around it, or a link to it"
            )
    return paths


def main() -> None:
    print_anything()
    parser = argparse.ArgumentParser(prog="python -m mgkit.photos", description="Search in your pictures.")
    parser.add_argument(
        "folders", nargs="+", help="folders of pictures; in one text, separated by semicolons"
    )
    parser.add_argument(
        "--against", action="append", default=[], metavar="FOLDER",
        help="look for the pictures in this folder instead, or in several, separated by semicolons",
    )  # fmt: skip
    parser.add_argument("--experiment", default="photos", help="results go to outputs/<experiment>/")
    arguments = parser.parse_args()
    try:
        search(arguments.folders, arguments.experiment, against=arguments.against)
    except PapermillExecutionError as error:
        sys.exit(f"{error.ename}: {error.evalue}")
    except (OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
