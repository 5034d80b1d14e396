"""The logs of a training: steps.jsonl (a line every few steps), metrics.jsonl (per epoch) and TensorBoard."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from mgkit.engine.run import json_lines
from mgkit.machine.device import GPUS
from mgkit.machine.distributed import all_reduce
from mgkit.machine.files import write_text
from mgkit.machine.printable import say_once
from mgkit.training import STATISTICS

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Batch = TypeVar("Batch")


class Monitor:
    """Write the logs of a run into its folder, from one process. What was written survives a kill.

    folder: of the run.
    step, epoch: optimizer steps and epochs done so far. At step 0, logs of an earlier run are removed. Past 0
        a run is resumed: lines and points past that step, and half-written lines, are removed.
    """

    def __init__(self, folder: Path, *, step: int = 0, epoch: int = 0):
        self.steps, self.epochs = folder / "steps.jsonl", folder / "metrics.jsonl"
        curves = folder / "tensorboard"
        if step == 0:
            for stale in (self.steps, self.epochs, *curves.glob("events.out.tfevents.*")):
                stale.unlink(missing_ok=True)
        else:
            keep_up_to(self.steps, "step", step)
            keep_up_to(self.epochs, "epoch", epoch)
        self.curves = curves_writer(curves, step)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Append {"step": step, **values} to steps.jsonl, and a point to each curve train/<name>.

        step: optimizer steps done.
        """
        append_line(self.steps, {"step": step, **values})
        self.draw("train", step, values)

    def epoch(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Append {"epoch": …, "step": …, **values} to metrics.jsonl, and a point to each curve epoch/<name>.

        epoch, step: epochs and optimizer steps done.
        """
        append_line(self.epochs, {"epoch": epoch, "step": step, **values})
        self.draw("epoch", step, values)

    def draw(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Add a point at `step` to each curve <group>/<name>, and flush it to disk."""
        if not self.curves:
            return
        for name, value in values.items():
            self.curves.add_scalar(f"{group}/{name}", value, step)
        self.curves.flush()

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self.curves:
            self.curves.close()


def curves_writer(folder: Path, step: int) -> "SummaryWriter | None":
    """TensorBoard's writer, after `step` steps; None, with a line, below a folder whose name is not UTF-8."""
    from torch.utils.tensorboard import SummaryWriter  # takes a tenth of a second to import

    try:
        str(folder.absolute()).encode("utf-8")
    except UnicodeEncodeError:
        say_once(f"{folder}: its name is not UTF-8, as TensorBoard needs it: there are no curves of this run")
        return None
    # TensorBoard ignores the points of earlier files from purge_step on.
    return SummaryWriter(folder, purge_step=step + 1 if step else None)


def append_line(path: Path, values: dict) -> None:
    """Append a JSON object as one line."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")


def keep_up_to(path: Path, key: str, last: int) -> None:
    """Remove lines past `last`, and half-written ones, from a file of JSON lines; the rewrite is atomic."""
    kept = [line for line in json_lines(path) if isinstance(line.get(key), int) and line[key] <= last]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


class StepStatistics:
    """The statistics of recent steps, kept on the device: reading them waits for its work.

    Steps are kept apart, so that sums over many do not depend on how often they were read.
    """

    def __init__(self):
        self.of_step: dict[int, Tensor] = {}

    def add(self, step: int, sums: Tensor) -> None:
        """Keep what `train_step` returned for a step, [8]."""
        self.of_step[step] = sums

    def take(self) -> dict[int, dict[str, float]]:
        """Return and forget {step: {name: sum over the samples of all processes}}; called by all of them."""
        if not self.of_step:
            return {}
        everything = all_reduce(torch.stack([*self.of_step.values()])).tolist()  # [steps, 8]
        steps, self.of_step = list(self.of_step), {}
        return {
            step: dict(zip(STATISTICS, sums, strict=True))
            for step, sums in zip(steps, everything, strict=True)
        }


class Pace:
    """Training speed, the share of time spent waiting for images, and peak GPU memory.

    device: of the network. A GPU may go on computing while the next batch is loaded: the share of waiting is
        then an upper bound of its idle time.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.since, self.waited = perf_counter(), 0.0

    def watch(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the loader's batches, and count the time until each arrives as waiting."""
        asked = perf_counter()
        for batch in loader:
            self.waited += perf_counter() - asked
            yield batch
            asked = perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the block, such as a validation, out of the measurement."""
        began = perf_counter()
        yield
        self.since += perf_counter() - began

    def take(self, images: int) -> dict[str, float]:
        """Return images_per_second and data_wait (share of time, 0..1) since the last call, and start anew.

        images: trained on since the last call.

        On a GPU of CUDA or XPU also gpu_memory_gib, the peak of allocated memory (GiB).
        """
        now = perf_counter()
        elapsed = now - self.since
        taken = {"images_per_second": images / elapsed, "data_wait": self.waited / elapsed}
        self.since, self.waited = now, 0.0
        if self.device.type in GPUS:
            gpu = GPUS[self.device.type]
            taken["gpu_memory_gib"] = gpu.max_memory_allocated(self.device) / 2**30
            gpu.reset_peak_memory_stats(self.device)
        return taken
