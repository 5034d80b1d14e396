"""A first GPU: what no GPU has run yet is tested and measured, in one table.

    make gpu                    # on a machine with a CUDA device, 8 minutes
    make gpu MINUTES=20
    make gpu GPU=--tiny         # the same rows with tiny sizes on the CPU: does the command work?
    PYTHONPATH=tests/bench python -m gpu.run --minutes 8    # without make

Writes outputs/bench/gpu.json and gpu.txt, with --tiny gpu-tiny.json and gpu-tiny.txt. Rows are in order of
importance, each with a share of the time; what does not fit is listed as left out. A row that fails, hangs or
kills its process becomes a line of the table. Ratios are medians over rounds in which both sides take turns.
The machine's limits are measured too, and the table says which part of them each row reaches.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic

import torch
from gpu import arrays, checks, inputs, limits, passes, steps
from gpu.lines import ERROR, FAILED, LEFT_OUT, SKIPPED, Line, report
from gpu.setting import FULL, TINY, Setting, free
from measuring import OUTPUT, write_json

from mgkit.engine.provenance import provenance
from mgkit.machine.device import pick_device
from mgkit.machine.files import write_text

GRACE = 30  # seconds beyond its time after which a row is stopped


@dataclass(frozen=True)
class Plan:
    """A row, or several that belong together.

    weight: its share of the time, beside the weights of those after it.
    least: seconds below which it is not begun.
    """

    name: str
    weight: float
    least: float
    work: Callable[[Setting], list[Line]]


PLANS = (
    Plan("tests marked gpu", 60, 0, checks.lines),
    Plan("limits of the machine", 20, 0, limits.lines),
    Plan("training step", 35, 15, steps.step_lines),
    Plan("rect evaluation", 35, 15, passes.rect_lines),
    Plan("embedding to disk", 30, 15, passes.store_lines),
    Plan("p* fine-tuning", 35, 15, passes.p_star_lines),
    Plan("sweep over p", 30, 15, passes.sweep_lines),
    Plan("exact search", 60, 30, arrays.search_lines),
    Plan("training input", 45, 25, inputs.lines),
    Plan("DDP with one process", 25, 15, steps.parallel_lines),
    Plan("SyncBatchNorm", 25, 15, steps.synchronised_lines),
    Plan("whitening", 15, 10, arrays.whitening_lines),
    Plan("batches of more pixels", 15, 10, passes.larger_lines),
    Plan("training step, torch.compile", 90, 60, steps.compiled_lines),
)


# --- A process for the rows: an error of CUDA spoils the process in which it is raised


class Worker:
    """Measures rows in a process of its own, and in a new one after a row that failed."""

    def __init__(self, *, tiny: bool, pictures: Path, method: str = "spawn"):
        self.tiny, self.pictures = tiny, pictures
        self.context = multiprocessing.get_context(method)  # CUDA does not work in forked processes
        self.process = None

    def start(self) -> None:
        self.pipe, theirs = self.context.Pipe()
        self.process = self.context.Process(target=serve, args=(theirs, self.tiny, self.pictures))
        self.process.start()
        theirs.close()  # so that the pipe ends with the process

    def lines(self, plan: Plan, seconds: float, known: dict[str, float], most: float) -> list[Line]:
        """Measure a row in about so many seconds; after `most` it is stopped."""
        if self.process is None:
            self.start()
        self.pipe.send((plan.work, seconds, known))
        try:
            answer = self.pipe.recv() if self.pipe.poll(most) else f"stopped after {most:.0f} s"
        except EOFError:
            self.process.join()
            answer = f"its process ended with {self.process.exitcode}"
        if isinstance(answer, list):
            return answer
        self.end()
        return [Line(plan.name, text=ERROR, remark=answer)]

    def end(self) -> None:
        if self.process is None:
            return
        self.process.kill()
        self.process.join()
        self.process = None


def serve(pipe: Connection, tiny: bool, pictures: Path) -> None:
    """The process of a `Worker`: sends the lines of each row, or what went wrong, in words."""
    if sys.platform == "linux":  # so that loading processes have the images in memory of `passes`
        multiprocessing.set_start_method("fork", force=True)
    device, sizes = pick_device(), TINY if tiny else FULL
    while True:
        work, seconds, known = pipe.recv()
        try:
            pipe.send(work(Setting(device, sizes, seconds, pictures, known)))
            free()
        except Exception as error:
            traceback.print_exc()
            pipe.send(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
            return


# --- The command


def measured(plans: Sequence[Plan], worker: Worker, seconds: float) -> Iterator[Line]:
    """The lines of the rows in turn; those for which too little time is left say so."""
    end, known = monotonic() + seconds, {}
    for k, plan in enumerate(plans):
        left = end - monotonic()
        if left < plan.least or left <= 0:
            remark = f"{max(0, left):.0f} s were left, it needs {plan.least:.0f}"
            yield Line(plan.name, text=LEFT_OUT, remark=remark)
            continue
        share = left * plan.weight / sum(each.weight for each in plans[k:])
        most = min(3 * share, left) + GRACE
        print(f"{plan.name}, about {share:.0f} s ...", flush=True)
        began = monotonic()
        for line in worker.lines(plan, share, known, most):
            known |= line.known
            yield replace(line, seconds=monotonic() - began)


def keep(name: str, machine: dict, minutes: float, lines: Sequence[Line]) -> None:
    """Write what is known so far."""
    plain = [line.plain() for line in lines]
    write_json(f"{name}.json", {"provenance": machine, "minutes": minutes, "rows": plain})
    write_text(OUTPUT / f"{name}.txt", report(lines) + "\n")


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=8, help="for all rows together, roughly")
    parser.add_argument("--tiny", action="store_true", help="on the CPU with tiny sizes, in half a minute")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 if a test failed or a row could not be measured."""
    options = options_of(arguments)
    if options.tiny:  # read by the processes that are started
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TORCHDYNAMO_DISABLE": "1"}
    elif not torch.cuda.is_available():
        print("there is no CUDA device here; `make gpu GPU=--tiny` tries the command on the CPU")
        return 1
    name, began, lines = "gpu-tiny" if options.tiny else "gpu", monotonic(), []
    sizes, machine = TINY if options.tiny else FULL, provenance()
    with tempfile.TemporaryDirectory() as folder:
        inputs.write_pictures(Path(folder), sizes.pictures, sizes.side)
        worker = Worker(tiny=options.tiny, pictures=Path(folder))
        try:
            for line in measured(PLANS, worker, 60 * options.minutes):
                lines.append(line)
                print("  ".join(filter(None, line.cells())), flush=True)
                keep(name, machine, (monotonic() - began) / 60, lines)
        finally:
            worker.end()
    print(f"\n{report(lines)}\n\n{summary(lines, machine['machine'], (monotonic() - began) / 60)}")
    if options.tiny:
        print("the sizes are tiny: that the rows run is all that this says")
    return int(any(line.bad for line in lines))


def summary(lines: Sequence[Line], machine: str, minutes: float) -> str:
    met = [line.row.met for line in lines if line.row]
    counts = {
        word: sum(line.text == word for line in lines)
        for word in ("passed", FAILED, SKIPPED, LEFT_OUT, ERROR)
    }
    counted = ", ".join(f"{count} {word}" for word, count in counts.items())
    return f"{sum(met)} of {len(met)} as wanted; {counted}; {machine}; {minutes:.1f} minutes"


if __name__ == "__main__":
    sys.exit(main())
