"""`python -m mgkit.demo`: run all notebooks, check the claims, compare with outputs/reference.

00 and 06 run EfficientNet-Lite0 on photographs, the others a small network on the embedded dataset.

The table says of each claim whether it holds, does not hold, or is undecided. Joint training (λ=0.5, N=3)
and cross-entropy alone (λ=1, N=1) have equal budgets and several seeds.
"""

import argparse
import json
import time
from pathlib import Path

import papermill

from mgkit.demo.claims import claims, joint_against_cross_entropy, table
from mgkit.demo.reference import compare_with_reference, measures, write_reference
from mgkit.engine.run import experiment_folder
from mgkit.machine.files import project_root
from mgkit.machine.progress import print_anything

NOTEBOOKS = (
    "00_start_here",
    "01_train",
    "02_finetune_p",
    "03_whiten",
    "04_evaluate_imagenet",
    "05_evaluate_retrieval",
    "06_search_your_photos",
)
OWN_PARAMETERS = {"06_search_your_photos": {"photos": ["data/photographs"]}}  # which 00 writes


def run_notebooks(experiment: str, data: str) -> Path:
    """Execute 00 to 06 in order and return the folder of the executed copies."""
    root = project_root()
    folder = root / "outputs" / experiment / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    for name in NOTEBOOKS:
        start = time.perf_counter()
        papermill.execute_notebook(
            root / "notebooks" / f"{name}.ipynb", folder / f"{name}.ipynb",
            parameters={"experiment": experiment, "data": data} | OWN_PARAMETERS.get(name, {}),
            cwd=root / "notebooks", progress_bar=False,
        )  # fmt: skip
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    return folder


def main() -> None:
    print_anything()
    what = "Run the notebooks on the embedded set and check the claims of the method."
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--experiment", default="mini", help="results go to outputs/<experiment>/")
    parser.add_argument("--data", default="mini", help="mini, or the folder of another embedded set")
    parser.add_argument("--seeds", type=int, default=2, help="trainings with each loss")
    parser.add_argument("--size", type=int, default=96, help="evaluation resolution of the comparison (px)")
    write = "replace outputs/reference/ by this run"
    parser.add_argument("--write-reference", action="store_true", help=write)
    arguments = parser.parse_args()
    given = vars(arguments)
    as_by_default = all(given[name] == parser.get_default(name) for name in ("data", "seeds", "size"))
    if arguments.write_reference and not as_by_default:
        parser.error("--write-reference needs the default --data, --seeds and --size, as `make demo` has")
    start = time.perf_counter()
    run_notebooks(arguments.experiment, arguments.data)
    measured = joint_against_cross_entropy(
        arguments.experiment, arguments.data, range(arguments.seeds), arguments.size
    )
    found = claims(arguments.experiment, measured, arguments.size)
    folder = experiment_folder(arguments.experiment) / "claims"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "claims.json").write_text(
        json.dumps([vars(claim) for claim in found], indent=1), encoding="utf-8"
    )
    (folder / "measured.json").write_text(json.dumps(measured, indent=1), encoding="utf-8")
    (folder / "claims.txt").write_text(table(found, arguments.seeds) + "\n", encoding="utf-8")
    print(f"\n{table(found, arguments.seeds)}\n")
    now = measures(arguments.experiment, measured)
    if arguments.write_reference:
        print(f"written: {write_reference(arguments.experiment, now)}")
    elif as_by_default:
        print(compare_with_reference(now))  # a difference does not change the exit status
    else:
        print("not compared with outputs/reference, which has the default --data, --seeds and --size")
    folder = experiment_folder(arguments.experiment)
    print(f"{time.perf_counter() - start:.0f} s in all; notebooks and figures are in {folder}")


if __name__ == "__main__":
    main()
