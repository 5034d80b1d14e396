"""The logs of a training, read back with TensorBoard's own reader; killed and resumed runs; the pace."""

import itertools
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mgkit.engine import monitor
from mgkit.engine.monitor import Monitor, Pace
from mgkit.engine.run import json_lines

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def each_run_in_a_second_of_its_own(monkeypatch):
    """TensorBoard reads its files in the order of their names, which hold the second of their creation."""
    seconds = itertools.count(1_800_000_000)
    monkeypatch.setattr(time, "time", lambda: float(next(seconds)))


def curves(folder):
    """{name: [(step, value), ...]} of the TensorBoard files."""
    read = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {
        name: [(point.step, point.value) for point in read.Scalars(name)] for name in read.Tags()["scalars"]
    }


def numbers(folder, name):
    return [line["step"] for line in json_lines(folder / f"{name}.jsonl")]


def train(folder, steps, *, begin=0, per_epoch=4, close=True):
    """A training that writes its number as its loss, from `begin` steps on."""
    watched = Monitor(folder, step=begin, epoch=begin // per_epoch)
    for step in range(begin + 1, steps + 1):
        watched.step(step, {"loss": step + begin / 100, "lr": 0.5})
        if step % per_epoch == 0:
            watched.epoch(step // per_epoch, step, {"val_top1": step / 100})
    if close:
        watched.close()
    return watched


def test_lines_and_curves_tell_the_same(tmp_path):
    train(tmp_path, 8)
    steps, epochs = (json_lines(tmp_path / name) for name in ("steps.jsonl", "metrics.jsonl"))
    assert steps == [{"step": step, "loss": step, "lr": 0.5} for step in range(1, 9)]
    assert epochs == [{"epoch": e, "step": 4 * e, "val_top1": 4 * e / 100} for e in (1, 2)]
    drawn = curves(tmp_path)
    assert drawn.keys() == {"train/loss", "train/lr", "epoch/val_top1"}
    for group, lines in (("train", steps), ("epoch", epochs)):
        for name in lines[0].keys() - {"epoch", "step"}:
            assert drawn[f"{group}/{name}"] == [(line["step"], pytest.approx(line[name])) for line in lines]


def test_what_is_written_can_be_read_at_once(tmp_path):
    watched = train(tmp_path, 4, close=False)
    assert numbers(tmp_path, "steps") == [1, 2, 3, 4] and numbers(tmp_path, "metrics") == [4]
    assert len(curves(tmp_path)["train/loss"]) == 4 and len(curves(tmp_path)["epoch/val_top1"]) == 1
    watched.close()


def test_lines_may_hold_different_values(tmp_path):
    watched = Monitor(tmp_path)
    watched.step(0, {"gradient_share": 0.9})
    watched.step(1, {"loss": 1})
    watched.step(2, {"loss": float("nan"), "gradient_share": 0.5})
    watched.close()
    assert [sorted(line) for line in json_lines(tmp_path / "steps.jsonl")] == [
        ["gradient_share", "step"],
        ["loss", "step"],
        ["gradient_share", "loss", "step"],
    ]
    drawn = curves(tmp_path)
    assert [step for step, _ in drawn["train/gradient_share"]] == [0, 2]
    assert [step for step, _ in drawn["train/loss"]] == [1, 2]


def test_a_fresh_run_starts_with_nothing(tmp_path):
    train(tmp_path, 8)
    (tmp_path / "results.json").touch()
    (tmp_path / "unreadable.jsonl").touch()
    train(tmp_path, 2)
    assert numbers(tmp_path, "steps") == [1, 2] and numbers(tmp_path, "metrics") == []
    assert curves(tmp_path).keys() == {"train/loss", "train/lr"} and len(curves(tmp_path)["train/loss"]) == 2
    assert (tmp_path / "results.json").exists() and (tmp_path / "unreadable.jsonl").exists()


@pytest.mark.parametrize("checkpoint", range(1, 11))
def test_a_resumed_run_has_every_step_once(tmp_path, checkpoint):
    train(tmp_path, 10, close=False)  # killed after step 10; its last checkpoint is older
    train(tmp_path, 14, begin=checkpoint)
    losses = [s if s <= checkpoint else s + checkpoint / 100 for s in range(1, 15)]
    steps = json_lines(tmp_path / "steps.jsonl")
    assert [(line["step"], line["loss"]) for line in steps] == list(enumerate(losses, 1))
    assert numbers(tmp_path, "metrics") == [4, 8, 12]
    drawn = curves(tmp_path)
    assert drawn["train/loss"] == [(s, pytest.approx(loss)) for s, loss in enumerate(losses, 1)]
    assert [step for step, _ in drawn["epoch/val_top1"]] == [4, 8, 12]


def test_a_run_may_be_killed_more_than_once(tmp_path):
    for begin, end in ((0, 5), (3, 9), (3, 4), (4, 12)):
        train(tmp_path, end, begin=begin, close=False)
    assert numbers(tmp_path, "steps") == list(range(1, 13)) and numbers(tmp_path, "metrics") == [4, 8, 12]
    assert [step for step, _ in curves(tmp_path)["train/loss"]] == list(range(1, 13))


@pytest.mark.parametrize("cut", [1, 2, 7, 20])
def test_half_written_ends_are_dropped(tmp_path, cut):
    train(tmp_path, 8)
    [events] = (tmp_path / "tensorboard").iterdir()
    for path in (tmp_path / "steps.jsonl", tmp_path / "metrics.jsonl", events):
        os.truncate(path, path.stat().st_size - cut)
    whole = 8 if cut == 1 else 7  # without its end of line a line is whole still
    train(tmp_path, 12, begin=8)
    assert numbers(tmp_path, "steps") == [*range(1, whole + 1), 9, 10, 11, 12]
    assert numbers(tmp_path, "metrics") == [4, *([8] if cut == 1 else []), 12]
    drawn = curves(tmp_path)
    assert [step for step, _ in drawn["train/loss"]] == list(range(1, 13))
    assert [step for step, _ in drawn["epoch/val_top1"]] == [4, 12]  # the last point was cut


def test_going_on_without_older_files(tmp_path):
    train(tmp_path / "new", 6, begin=4)
    assert numbers(tmp_path / "new", "steps") == [5, 6]


def test_lines_are_rewritten_all_or_nothing(tmp_path, monkeypatch):
    train(tmp_path, 8)
    before = (tmp_path / "steps.jsonl").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mgkit.machine.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        Monitor(tmp_path, step=4)
    assert (tmp_path / "steps.jsonl").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "steps.jsonl", "tensorboard"]


KILLED = """
import os, signal, sys
from pathlib import Path
from mgkit.engine.monitor import Monitor
assert "tensorboard" not in sys.modules, "only those who watch should wait for it"
watched = Monitor(Path(sys.argv[1]))
for step in range(1, 6):
    watched.step(step, {"loss": step})
watched.epoch(1, 5, {"val_top1": 0.5})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_nothing_of_what_was_written_is_lost_in_a_kill(tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)])
    assert killed.returncode == -signal.SIGKILL
    assert numbers(tmp_path, "steps") == [1, 2, 3, 4, 5] and numbers(tmp_path, "metrics") == [5]
    assert [step for step, _ in curves(tmp_path)["train/loss"]] == [1, 2, 3, 4, 5]
    assert curves(tmp_path)["epoch/val_top1"] == [(5, 0.5)]


# --- Pace


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(monitor, "perf_counter", clock)
    return clock


def loader(clock, seconds):
    """A batch after each of those seconds."""
    for number, second in enumerate(seconds):
        clock.now += second
        yield number


def test_pace_tells_images_a_second_and_the_share_of_waiting(clock):
    pace = Pace(CPU)
    clock.now += 1  # the start counts as work
    batches = []
    for batch in pace.watch(loader(clock, [2, 1, 0])):
        clock.now += 2
        batches.append(batch)
    assert batches == [0, 1, 2]
    assert pace.take(50) == {"images_per_second": pytest.approx(5), "data_wait": pytest.approx(0.3)}


def test_each_take_begins_anew(clock):
    pace, taken = Pace(CPU), []
    for batch in pace.watch(loader(clock, [3, 0, 0, 1])):
        clock.now += 1
        if batch % 2:
            taken.append(pace.take(10))
    assert taken == [
        {"images_per_second": pytest.approx(10 / 5), "data_wait": pytest.approx(3 / 5)},
        {"images_per_second": pytest.approx(10 / 3), "data_wait": pytest.approx(1 / 3)},
    ]
    clock.now += 1
    with pace.paused():
        clock.now += 1000  # a validation
    clock.now += 3
    assert pace.take(8) == {"images_per_second": 2, "data_wait": 0}


def test_an_empty_loader_gives_no_batch():
    pace = Pace(CPU)
    assert list(pace.watch([])) == [] and pace.take(0)["images_per_second"] == 0


def test_memory_is_told_where_there_is_a_gpu(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: asked.append(device) or 3 << 29)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", asked.append)
    gpu = torch.device("cuda", 1)
    assert Pace(gpu).take(1)["gpu_memory_gib"] == 1.5 and asked == [gpu, gpu]
    assert "gpu_memory_gib" not in Pace(CPU).take(1)
    assert "gpu_memory_gib" not in Pace(torch.device("mps")).take(1)  # which counts no peak
    monkeypatch.setattr(torch.xpu, "max_memory_allocated", lambda device: 1 << 30)
    monkeypatch.setattr(torch.xpu, "reset_peak_memory_stats", asked.append)
    xpu = torch.device("xpu")
    assert Pace(xpu).take(1)["gpu_memory_gib"] == 1 and asked[2:] == [xpu]


@pytest.mark.gpu
def test_the_peak_of_a_gpu_s_memory_is_that_since_the_last_take():
    gpu = torch.device("cuda", 0)
    pace = Pace(gpu)
    held = torch.empty(1 << 28, dtype=torch.uint8, device=gpu)
    assert pace.take(1)["gpu_memory_gib"] >= 0.25
    del held
    pace.take(1)
    assert pace.take(1)["gpu_memory_gib"] < 0.25


def test_a_run_below_a_folder_that_is_not_utf_8_has_no_curves_and_says_so(tmp_path, capsys):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    logs = Monitor(folder)
    logs.step(1, {"loss": 1.0})
    logs.close()
    assert list(json_lines(folder / "steps.jsonl")) == [{"step": 1, "loss": 1.0}]
    assert r"caf\xe9/tensorboard: its name is not UTF-8" in capsys.readouterr().out
