"""What a training leaves to watch it by: lines of numbers, TensorBoard's files, and how fast it went.

steps.jsonl has a line every few optimizer steps, metrics.jsonl one an epoch, tensorboard/ the same as curves.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TypeVar

import torch

from mgkit.engine.run import json_lines
from mgkit.machine.files import write_text

Batch = TypeVar("Batch")


class Monitor:
    """Writes what there is to watch in a run's folder; for one process only. What was written survives a kill.

    step, epoch: the optimizer steps and the epochs, with their validation, done so far. 0 is a fresh run: what an earlier one
    left goes. Past 0, a run goes on from its checkpoint: lines and points past that step, which a killed run left, and
    half-written ones are dropped.
    """

    def __init__(self, folder: Path, *, step: int = 0, epoch: int = 0):
        from torch.utils.tensorboard import SummaryWriter  # a tenth of a second that only trainings pay

        self.steps, self.epochs = folder / "steps.jsonl", folder / "metrics.jsonl"
        curves = folder / "tensorboard"
        if step == 0:
            for stale in (self.steps, self.epochs, *curves.glob("events.out.tfevents.*")):
                stale.unlink(missing_ok=True)
        else:
            keep_up_to(self.steps, "step", step)
            keep_up_to(self.epochs, "epoch", epoch)
        # Of the files before this one TensorBoard forgets the points from purge_step on.
        self.curves = SummaryWriter(curves, purge_step=step + 1 if step else None)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """A line {"step": …, **values} of steps.jsonl, and the curves train/<name>; step: optimizer steps done."""
        append_line(self.steps, {"step": step, **values})
        self.draw("train", step, values)

    def epoch(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """A line {"epoch": …, "step": …, **values} of metrics.jsonl, and the curves epoch/<name>, against the step.

        epoch: epochs done. step: optimizer steps done.
        """
        append_line(self.epochs, {"epoch": epoch, "step": step, **values})
        self.draw("epoch", step, values)

    def draw(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """A point at `step` of each curve <group>/<name>, on disk on return."""
        for name, value in values.items():
            self.curves.add_scalar(f"{group}/{name}", value, step)
        self.curves.flush()

    def close(self) -> None:
        """End TensorBoard's file."""
        self.curves.close()


def append_line(path: Path, values: dict) -> None:
    """Append a JSON object as a line."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")


def keep_up_to(path: Path, key: str, last: int) -> None:
    """Rewrite a file of JSON lines without those past `last` and without half-written ones, all or nothing."""
    kept = [line for line in json_lines(path) if line[key] <= last]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


class Pace:
    """How fast images are trained on, how much of the time goes into waiting for them, and the memory it takes.

    device: where the network is. Nothing here waits for a GPU, whose work may go on while the next batch is waited for:
    then the share of waiting is an upper bound of its idle time.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.since, self.waited = perf_counter(), 0.0

    def watch(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """The loader's batches; the time until each is there counts as waiting."""
        asked = perf_counter()
        for batch in loader:
            self.waited += perf_counter() - asked
            yield batch
            asked = perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time of the block, such as a validation, does not count."""
        began = perf_counter()
        yield
        self.since += perf_counter() - began

    def take(self, images: int) -> dict[str, float]:
        """images_per_second and data_wait (0..1, the share of the time) since the last take, in which `images` passed.

        On a GPU also gpu_memory_gib, the peak of what was allocated.
        """
        now = perf_counter()
        elapsed = now - self.since
        taken = {"images_per_second": images / elapsed, "data_wait": self.waited / elapsed}
        self.since, self.waited = now, 0.0
        if self.device.type == "cuda":
            taken["gpu_memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
            torch.cuda.reset_peak_memory_stats(self.device)
        return taken
