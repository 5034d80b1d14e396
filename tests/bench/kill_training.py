"""Kill trainings at random moments, resume them, and compare weights, state and logs with an undisturbed one.

    python tests/bench/kill_training.py --runs 20 --seed 0 --processes 2

Makes a small image set in a temporary folder and trains on it in worker processes, once undisturbed. Each of
the runs then has one or two SIGKILLs at moments drawn from the seed, many while a snapshot is written: of a
worker, of torch.distributed.run, or of the process that called `train`. The same command is run until the
training has finished. A line shows each kill, the time until no process was left, and where the training
resumed. Exits with 1 if a run differs, fails to resume, or leaves a process behind. Linux only: it finds
processes in /proc.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

MARK = "MGKIT_KILLED_RUN"  # environment of all processes of a run
SPEED = {"images_per_second", "data_wait"}  # of steps.jsonl: no two runs have the same
LONGEST_END = 30  # seconds that the processes of a killed run may take to end
MOMENTS = ("starting", "training", "writing", "writing")
VICTIMS = ("rank 0", "rank 0", "another rank", "agent", "parent")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the victims and of the moments of the kills")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--train", nargs=2, metavar=("IMAGES", "PROCESSES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train(*options.train)
        return
    with tempfile.TemporaryDirectory() as folder:
        good = compare(Path(folder), options)
    print(f"{good} of {options.runs} killed runs ended equal, bit for bit")
    sys.exit(good != options.runs)


def train(images: str, processes: str) -> None:
    """A training of 36 steps that writes a snapshot at almost every one; in a process of its own."""
    from mgkit.config import TrainConfig, make
    from mgkit.stages.train import train

    values = {"experiment": "killed", "data": images, "size": 32, "batch_size": 12, "epochs": 3, "workers": 1}
    values |= {"gpus": int(processes), "checkpoint_minutes": 1e-4, "log_every": 5, "max_restarts": 1}
    train(make(TrainConfig, values))


@dataclass
class Started:
    """A training started in a folder; MARK in their environment identifies its processes."""

    folder: Path
    images: Path
    processes: int
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self):
        self.log = self.folder / f"log-{len(list(self.folder.glob('log-*')))}"
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [sys.executable, Path(__file__).resolve(), "--train", self.images, str(self.processes)],
                cwd=self.folder, env=os.environ | {MARK: str(self.folder)}, stdout=log, stderr=log,
            )  # fmt: skip

    @property
    def snapshots(self) -> Path:
        return self.folder / "outputs/killed/train/snapshots"

    def finish(self) -> int:
        """Wait for the end; the exit code."""
        return self.process.wait()

    def find(self, victim: str) -> int | None:
        """The process id of a victim, if there is one yet."""
        if victim == "parent":
            return self.process.pid
        commands = {pid: command_of(pid) for pid in marked(self.folder)}
        # A process that the agent has just forked has its command line for a moment.
        agents = [pid for pid, command in commands.items() if "torch.distributed.run" in command]
        alone = self.process.pid if self.processes == 1 else None  # starts its only worker itself
        agent = min(agents, key=lambda pid: (parent_of(pid) in agents, pid), default=alone)
        if victim == "agent" or agent is None:
            return agent
        workers = [
            pid
            for pid, command in commands.items()
            if "-m mgkit train" in command and parent_of(pid) == agent
        ]
        of_rank = {rank_of(pid): pid for pid in workers}
        return of_rank.get(0) if victim == "rank 0" else of_rank.get(max(of_rank, default=0))

    def kill(self, victim: str, moment: str, random: np.random.Generator, seconds: float) -> int | None:
        """SIGKILL the victim at the moment: the number of half-written files, or None if it did not run."""
        if moment == "starting":
            delay = random.uniform(0, seconds / 2)
            self.sleep_until(lambda: time.monotonic() > self.began + delay and self.find(victim) is not None)
        else:
            self.sleep_until(lambda: any(self.snapshots.glob("step-*.pth")))
            came, delay = time.monotonic(), random.uniform(0, 1.0)
            self.sleep_until(lambda: time.monotonic() > came + delay)
        pid = self.find(victim)  # takes longer than a snapshot's write
        if moment == "writing":
            self.sleep_until(lambda: any(self.snapshots.glob(".*.partial")))
        if pid is None or self.process.poll() is not None:
            return None
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
        return len(list(self.snapshots.glob(".*.partial")))

    def sleep_until(self, come) -> None:
        while not come() and self.process.poll() is None:
            time.sleep(0.0005)

    def seconds_to_end(self) -> float:
        """Wait until none of the run's processes is left; how long that took."""
        began = time.monotonic()
        self.process.wait()
        while marked(self.folder):
            if time.monotonic() - began > 2 * LONGEST_END:
                for pid in marked(self.folder):
                    os.kill(pid, signal.SIGKILL)
                return float("inf")
            time.sleep(0.05)
        return time.monotonic() - began

    def resumed_from(self) -> list[str]:
        """The steps of the snapshots from which the log says that it resumed."""
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("resuming from")]
        return [str(int(line.rpartition("-")[2].removesuffix(".pth"))) for line in lines]


def marked(folder: Path) -> list[int]:
    """The processes of a run that are alive."""
    mark = f"{MARK}={folder}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
        except OSError:  # it has ended meanwhile
            continue
    return found


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    except OSError:
        return 0


def rank_of(pid: int) -> int:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return -1
    return int(next((v[5:] for v in variables if v.startswith(b"RANK=")), -1))


def compare(folder: Path, options: argparse.Namespace) -> int:
    """How many of the killed and resumed runs equal an undisturbed one."""
    from mgkit.mini.make import MiniSizes, make_mini

    sizes = MiniSizes(
        train_per_class=6, val_per_class=3, holidays_groups=1, ukbench_objects=1, copydays_originals=1,
        whiten=1, distractors=1,
    )  # fmt: skip
    images = make_mini(folder / "mini", seed=0, sizes=sizes, workers=1)
    undisturbed = started_in(folder / "undisturbed", images, options.processes)
    if undisturbed.finish():
        sys.exit(undisturbed.log.read_text())
    seconds = time.monotonic() - undisturbed.began
    print(f"undisturbed: {seconds:.1f} s with {options.processes} processes", flush=True)
    expected = left_by(undisturbed.folder)
    good = 0
    for number in range(options.runs):
        random = np.random.default_rng([options.seed, number])
        good += survives(
            folder / f"run-{number}", images, number, random, seconds, expected, options.processes
        )
    return good


def started_in(folder: Path, images: Path, processes: int) -> Started:
    folder.mkdir(exist_ok=True)
    return Started(folder, images, processes)


def survives(folder, images, number, random, seconds, expected, processes) -> bool:
    """Whether a run killed once or twice, and resumed, equals the undisturbed one and leaves no process."""
    wanted, clean = 1 + int(random.random() < 0.3), True
    for _ in range(10):
        victim, moment = (str(random.choice(kinds)) for kinds in (VICTIMS, MOMENTS))
        run = started_in(folder, images, processes)
        partial = run.kill(victim, moment, random, seconds)
        snapshots = sorted(run.snapshots.glob("step-*.pth"))
        last = int(snapshots[-1].stem[5:]) if snapshots else 0
        ended = run.seconds_to_end()
        if "rank" in victim:  # the other processes must resume by themselves
            clean &= run.process.returncode == 0
        else:
            clean &= ended < LONGEST_END
        if not clean:
            print(run.log.read_text()[-3000:])
        print(
            f"{number:3d}  {victim:12s} {moment:8s} "
            + (
                f"killed at step {last:2d}, {partial} half-written"
                if partial is not None
                else "not there    "
            )
            + f"; exit code {run.process.returncode:3d}, all ended after {ended:4.1f} s"
            + (f", by itself from {', '.join(run.resumed_from())}" if run.resumed_from() else ""),
            flush=True,
        )
        wanted -= partial is not None
        if wanted == 0 or (folder / "outputs/killed/train/results.json").is_file():
            break
    for _ in range(2):
        run = started_in(folder, images, processes)
        if run.finish() == 0:
            break
    clean &= run.process.returncode == 0 and run.seconds_to_end() < LONGEST_END
    if run.process.returncode:
        print(run.log.read_text()[-3000:])
    unequal = differences(left_by(folder), expected) if clean else ["it did not end well"]
    print(
        f"{number:3d}  resumed from {', '.join(run.resumed_from()) or '-'}: {', '.join(unequal) or 'equal'}",
        flush=True,
    )
    return not unequal


def left_by(folder: Path) -> dict:
    """What a training left: its last snapshot, and its lines without the speed."""
    from mgkit.checkpoints import load_checkpoint
    from mgkit.engine.run import json_lines

    run = folder / "outputs/killed/train"
    steps = [{k: v for k, v in line.items() if k not in SPEED} for line in json_lines(run / "steps.jsonl")]
    content = load_checkpoint(run / "checkpoint.pth")
    kept = {key: content[key] for key in ("model_state", "extra", "optimizer", "position")}
    return kept | {"metrics.jsonl": json_lines(run / "metrics.jsonl"), "steps.jsonl": steps}


def differences(ours: dict, theirs: dict) -> list[str]:
    """The names of what differs in any bit."""
    return [f"{name} differs" for name in theirs if not same(ours[name], theirs[name])]


def same(a, b) -> bool:
    import torch

    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


if __name__ == "__main__":
    main()
