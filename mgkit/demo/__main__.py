"""`python -m mgkit.demo`: run all notebooks, check the claims, compare with outputs/reference.

00 and 06 run EfficientNet-Lite0 on photographs, the others small networks on the embedded dataset.

The table says of each claim whether it holds, does not hold, or is undecided.
"""

import argparse
import time
from pathlib import Path

from mgkit.claims.run import outcome
from mgkit.config import ClaimsConfig
from mgkit.demo.claims import claims, claims_text
from mgkit.demo.execute import in_kernel
from mgkit.demo.reference import compare_with_reference, measures, write_reference
from mgkit.demo.times import recorded, times, times_table
from mgkit.engine.run import experiment_folder
from mgkit.machine.files import write_text
from mgkit.machine.progress import print_anything
from mgkit.machine.timing import noted_in

NOTEBOOKS = (
    "00_start_here",
    "01_train",
    "02_finetune_p",
    "03_whiten",
    "04_evaluate_imagenet",
    "05_evaluate_retrieval",
    "06_search_your_photos",
    "07_claims",
)
OWN_PARAMETERS = {"06_search_your_photos": {"photos": ["data/photographs"]}}  # which 00 writes


def run_notebooks(experiment: str, data: str) -> tuple[Path, dict[str, dict[str, float]]]:
    """Execute 00 to 07 in order; the folder of the executed copies, and `times` of each notebook."""
    folder = experiment_folder(experiment) / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    taken = {}
    for name in NOTEBOOKS:
        with recorded() as records:
            start = time.time()
            parameters = {"experiment": experiment, "data": data} | OWN_PARAMETERS.get(name, {})
            in_kernel(name, folder / f"{name}.ipynb", parameters)
            taken[name] = times(folder / f"{name}.ipynb", noted_in(records), began=start, ended=time.time())
        print(f"{name}: {sum(taken[name].values()):.0f} s", flush=True)
    return folder, taken


def main() -> None:
    print_anything()
    what = "Run the notebooks on the embedded set and check the claims of the method."
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--experiment", default="mini", help="results go to outputs/<experiment>/")
    parser.add_argument("--data", default="mini", help="mini, or the folder of another embedded set")
    write = "replace outputs/reference/ by this run"
    parser.add_argument("--write-reference", action="store_true", help=write)
    arguments = parser.parse_args()
    by_default = arguments.data == parser.get_default("data")
    if arguments.write_reference and not by_default:
        parser.error("--write-reference needs the default --data, as `make demo` has")
    start = time.perf_counter()
    _, taken = run_notebooks(arguments.experiment, arguments.data)
    tried = outcome(ClaimsConfig(experiment=arguments.experiment, data=arguments.data))
    folder = experiment_folder(arguments.experiment)
    text = claims_text(tried, claims(arguments.experiment))
    write_text(folder / "claims.txt", text + "\n")
    print(f"\n{text}\n")
    print(f"Where the time went, in seconds:\n\n{times_table(taken)}\n")
    now = measures(arguments.experiment, tried)
    if arguments.write_reference:
        print(f"written: {write_reference(arguments.experiment, now)}")
    elif by_default:
        print(compare_with_reference(now))  # a difference does not change the exit status
    else:
        print("not compared with outputs/reference, which has the default --data")
    print(f"{time.perf_counter() - start:.0f} s in all; notebooks and figures are in {folder}")


if __name__ == "__main__":
    main()
