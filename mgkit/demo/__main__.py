"""`python -m mgkit.demo`: run all notebooks, check the claims, compare with outputs/reference.

00 and 06 run EfficientNet-Lite0 on photographs, the others small networks on the embedded dataset.

The table says of each claim whether it holds, does not hold, or is undecided.
"""

import argparse
import multiprocessing
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait

from mgkit.claims.run import outcome
from mgkit.config import ClaimsConfig
from mgkit.demo.claims import claims, claims_text
from mgkit.demo.execute import NotebookFailedError, in_kernel
from mgkit.demo.reference import compare_with_reference, measures, write_reference
from mgkit.demo.times import recorded, times, times_table
from mgkit.engine.run import experiment_folder
from mgkit.machine.files import write_text
from mgkit.machine.progress import print_anything
from mgkit.machine.timing import noted_in
from mgkit.stages.inputs import data_root

NEEDS = {  # each notebook, with those whose results it reads; of those that may start, the longer come first
    "00_start_here": (),  # writes the photographs
    "01_train": (),
    "02_finetune_p": ("01_train",),
    "03_whiten": ("02_finetune_p",),
    "05_evaluate_retrieval": ("03_whiten",),
    "04_evaluate_imagenet": ("03_whiten",),
    "07_claims": (),
    "06_search_your_photos": ("00_start_here",),
}
NOTEBOOKS = tuple(sorted(NEEDS))
OWN_PARAMETERS = {"06_search_your_photos": {"photos": ["data/photographs"]}}  # which 00 writes
AT_ONCE = 2


def run_notebooks(experiment: str, data: str) -> dict[str, dict[str, float]]:
    """Execute 00 to 07, to copies in the experiment's folder; returns the `times` of each.

    Two at a time, as half of a notebook's time is spent in one thread: imports, drawing, figures. An error of
    one ends the other. Raises NotebookFailedError.
    """
    parameters = {"experiment": experiment, "data": data}
    waiting, running, taken = list(NEEDS), {}, {}
    with ProcessPoolExecutor(AT_ONCE) as pool:  # not threads: each notebook has an environment of its own
        try:
            while waiting or running:
                ready = [name for name in waiting if taken.keys() >= set(NEEDS[name])]
                del ready[AT_ONCE - len(running) :]  # what is handed to the pool can no longer be taken back
                running |= {pool.submit(run_notebook, name, parameters): name for name in ready}
                waiting = [name for name in waiting if name not in ready]
                for run in wait(running, return_when=FIRST_COMPLETED).done:
                    taken[running.pop(run)] = run.result()
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()  # ends its kernel, too
            raise
    return {name: taken[name] for name in NOTEBOOKS}


def run_notebook(name: str, parameters: dict[str, str]) -> dict[str, float]:
    """Execute a notebook, print how long it took, and return its `times`."""
    folder, start = experiment_folder(parameters["experiment"]) / "notebooks", time.time()
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / f"{name}.ipynb"
    with recorded() as records:
        in_kernel(name, copy, parameters | OWN_PARAMETERS.get(name, {}))
        taken = times(copy, noted_in(records), began=start, ended=time.time())
    print(f"{name}: {sum(taken.values()):.0f} s", flush=True)
    return taken


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
    try:
        data_root(arguments.data)  # draws the embedded dataset, so that no notebook waits for it
    except (OSError, ValueError) as error:
        sys.exit(f"--data {arguments.data}: {error}")
    try:
        taken = run_notebooks(arguments.experiment, arguments.data)
    except NotebookFailedError as error:
        sys.exit(str(error))
    tried = outcome(ClaimsConfig(experiment=arguments.experiment, data=arguments.data))
    folder = experiment_folder(arguments.experiment)
    text = claims_text(tried, claims(arguments.experiment))
    write_text(folder / "claims.txt", text + "\n")
    print(f"\n{text}\n")
    print(f"Where the time went, in seconds, while two ran at a time:\n\n{times_table(taken)}\n")
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
