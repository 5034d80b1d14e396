"""Processes that run one stage of one experiment at once: one computes, others wait, join or are refused."""

import os
import platform
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import yaml
from pydantic.dataclasses import dataclass

from mgkit.config import StageConfig, different
from mgkit.engine.run import keep_to_run, leave_run, read_results, stage_folder
from mgkit.machine.distributed import broadcast_object, is_main, run_in_all
from mgkit.machine.files import exclusive, remove_partial, write_text
from mgkit.machine.records import read_yaml

SECONDS_TO_STOP = 120  # that a run with other parameters may take to end
POLL = 0.2  # seconds


@dataclass(frozen=True)
class Holder:
    """The process that runs a stage, or ran it last, as noted beside the lock.

    config: its parameters
    finished: whether its results are complete
    """

    process: str
    config: dict
    finished: bool = False

    def differs(self, config: StageConfig) -> list[str]:
        """The parameters in which it differs from `config`."""
        return different(self.config, asdict(config))

    def described(self, config: StageConfig) -> str:
        """The process, and the parameters in which it differs from `config`."""
        changed = self.differs(config)
        parameters = f"another {', '.join(changed)}" if changed else "the same parameters"
        return f"{self.process} runs it with {parameters}"


@contextmanager
def holding(config: StageConfig) -> Iterator[bool]:
    """Hold the lock of an experiment's stage while it is computed and its results are read.

    Yields whether another process has finished a run with the same parameters while this one waited, whose
    results are then to be taken. Waits for such a process without limit, for one with other parameters at
    most SECONDS_TO_STOP. Of several processes and machines the main one holds the lock; with machines that
    wait for each other it takes no results.

    Raises TimeoutError, which names the parameters, and OSError where the lock file cannot be written.
    """
    here = is_main() and not config.node_rank
    with ExitStack() as stack:
        joined = broadcast_object(run_in_all(lambda: take(config, stack), here=here))
        yield bool(joined)
        if here:
            write_holder(config, finished=True)


def take(config: StageConfig, stack: ExitStack) -> bool:
    """Hold the lock until `stack` is closed; see `holding`."""
    last = read_holder(config) if wait(config, stack) else None
    leave_run(config)
    stack.callback(keep_to_run, config)
    joined = config.nnodes == 1 and last is not None and last.finished and not last.differs(config)
    joined = joined and read_results(config) is not None
    if joined:
        print(f"{stage_folder(config)}: taking the results of {last.process}, which had the same parameters")
    write_holder(config, finished=False)
    return joined


def wait(config: StageConfig, stack: ExitStack) -> bool:
    """Wait for the lock, then hold it until `stack` is closed; returns whether another process had it."""
    folder, waited = stage_folder(config), False
    seen, since = None, time.monotonic()
    while True:
        try:
            stack.enter_context(exclusive(beside(folder, "lock"), purpose="", patience=POLL))
            return waited
        except TimeoutError:
            waited = True
        holder = read_holder(config)
        if holder != seen:
            seen, since = holder, time.monotonic()
            if holder and not holder.finished:
                print(f"{folder}: waiting, as {holder.described(config)}", flush=True)
        if time.monotonic() - since > SECONDS_TO_STOP and (holder is None or holder.differs(config)):
            who = holder.described(config) if holder else "another process runs it"
            raise TimeoutError(f"{folder}: {who}: wait, or choose another experiment")


def write_holder(config: StageConfig, *, finished: bool) -> None:
    """Note this process beside the lock, which it holds."""
    process = f"process {os.getpid()} on {platform.node()}"
    note = {"process": process, "finished": finished, "config": asdict(config)}
    path = beside(stage_folder(config), "yaml")
    remove_partial(path.parent, path.name)
    write_text(path, yaml.safe_dump(note, sort_keys=False, width=1000))


def read_holder(config: StageConfig) -> Holder | None:
    """The process that holds the lock, or held it last; None where there is no readable note."""
    try:
        return Holder(**read_yaml(beside(stage_folder(config), "yaml")))
    except (OSError, TypeError, ValueError):  # none, or of another version of the kit
        return None


def beside(folder: Path, suffix: str) -> Path:
    """A file beside a run's folder, as the folder itself may be renamed."""
    return folder.with_name(f".{folder.name}.run.{suffix}")
