"""`python -m mgkit.demo`: run all notebooks, check the claims, compare with outputs/reference.

00 and 06 run EfficientNet-Lite0 on photographs, the others small networks on the embedded dataset.

The table says of each claim whether it holds, does not hold, or is undecided.
"""

import argparse
import multiprocessing
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from itertools import chain

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

FIRST = "00_start_here"  # draws the embedded dataset and writes the photographs
CHAINS = (  # beside each other; a notebook needs the first one and those before it in its chain
    ("01_train", "02_finetune_p", "03_whiten", "04_evaluate_imagenet", "05_evaluate_retrieval"),
    ("06_search_your_photos", "07_claims"),
)
NOTEBOOKS = (FIRST, *chain.from_iterable(CHAINS))
OWN_PARAMETERS = {"06_search_your_photos": {"photos": ["data/photographs"]}}  # which 00 writes

Taken = dict[str, dict[str, float]]  # the `times` of notebooks


def run_notebooks(experiment: str, data: str) -> Taken:
    """Execute 00 to 07, two at a time, to copies in the experiment's folder.

    Half of a notebook's time is spent in one thread: imports, drawing, figures. Raises NotebookFailedError.
    """
    run = partial(run_chain, {"experiment": experiment, "data": data})
    with ProcessPoolExecutor(len(CHAINS)) as pool:  # processes, for each has an environment
        try:
            taken = pool.submit(run, [FIRST]).result()
            for chain_done in as_completed([pool.submit(run, names) for names in CHAINS]):
                taken |= chain_done.result()
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()  # ends its kernel, too
            raise
    return {name: taken[name] for name in NOTEBOOKS}


def run_chain(parameters: Mapping[str, str], names: Sequence[str]) -> Taken:
    """Execute notebooks one after another, and print how long each took."""
    folder, taken = experiment_folder(parameters["experiment"]) / "notebooks", {}
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        copy, start = folder / f"{name}.ipynb", time.time()
        with recorded() as records:
            in_kernel(name, copy, {**parameters, **OWN_PARAMETERS.get(name, {})})
            taken[name] = times(copy, noted_in(records), began=start, ended=time.time())
        print(f"{name}: {sum(taken[name].values()):.0f} s", flush=True)
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
