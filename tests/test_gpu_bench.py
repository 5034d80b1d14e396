"""`make gpu`: its rows on the CPU, what fails or does not fit, and the halving of batches."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from gpu import run
from gpu.checks import outcomes
from gpu.lines import Line, report
from gpu.run import Plan, Worker, measured
from gpu.setting import TINY, Setting, halving
from measuring import Row, by_turns

import mgkit
from mgkit.machine.files import RefusedError


def test_all_rows_run_on_a_cpu(tmp_path):
    """The command as it is, in a folder of its own."""
    (tmp_path / "mgkit").mkdir()
    (tmp_path / "notebooks").mkdir()
    path = os.pathsep.join([str(Path(run.__file__).parents[1]), str(Path(mgkit.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-m", "gpu.run", "--tiny"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    folder = tmp_path / "outputs" / "bench"
    table = (folder / "gpu-tiny.txt").read_text(encoding="utf-8")
    assert table in done.stdout and "error" not in table and "left out" not in table
    found = json.loads((folder / "gpu-tiny.json").read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in found["rows"]}
    for start in (
        "tests marked gpu", "limit: matrix rate, bf16", "limit: decoding", "training step, resnet18 32 px",
        "evaluation, rect 48 px", "embedding to disk", "p* fine-tuning", "sweep of 9 p", "top_k, 2,000 × 64",
        "training input, 32 px, full", "training input, 32 px, AA", "whitening fit", "batches of 4, 48 px",
    ):  # fmt: skip
        assert any(name.startswith(start) for name in rows), f"{start} is not in\n{table}"
    compared = [row for row in rows.values() if row["row"]]
    assert len(compared) == 13, table
    for row in compared:
        assert len(row["row"]["raw"]["seconds"]) >= 2 and row["row"]["value"] > 0 and row["share"] > 0


def test_without_a_gpu_a_line_says_how_to_try_it(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run.main([]) == 1
    [line] = capsys.readouterr().out.splitlines()
    assert "no CUDA device" in line and "make gpu GPU=--tiny" in line


# --- Rows that fail


def good(setting):
    return [Line("good", text=str(os.getpid()), known={"seen": len(setting.known)})]


def wrong(setting):
    raise ValueError("as it\ncomes")


def dead(setting):
    os._exit(3)


def endless(setting):
    time.sleep(600)


def measured_lines(*works, seconds=60.0, least=0.0):
    worker = Worker(tiny=True, pictures=Path("nowhere"), method="fork")
    plans = [Plan(work.__name__, 1, least, work) for work in works]
    try:
        return list(measured(plans, worker, seconds))
    finally:
        worker.end()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_row_that_fails_is_a_line_and_the_next_has_a_new_process():
    first, second, failed, third, died, fourth = measured_lines(good, good, wrong, good, dead, good)
    assert first.text == second.text != third.text != fourth.text
    assert failed.bad and failed.remark == "ValueError: as it comes"
    assert died.bad and "ended with 3" in died.remark
    assert [line.known["seen"] for line in (first, second, third)] == [0, 1, 1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_row_that_hangs_is_stopped():
    worker = Worker(tiny=True, pictures=Path("nowhere"), method="fork")
    [line] = worker.lines(Plan("endless", 1, 0, endless), 1.0, {}, most=0.5)
    assert line.bad and line.remark.startswith("stopped after") and worker.process is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_row_for_which_too_little_time_is_left_is_left_out():
    [line] = measured_lines(good, seconds=5, least=10)
    assert line.text == "left out" and "it needs 10" in line.remark and not line.bad


# --- A row's parts

MARKED = """
import pytest

@pytest.mark.gpu
def test_it_is_fast(): pass

@pytest.mark.gpu
def test_it_is_right(): assert 1 == 2, "but slow"

@pytest.mark.gpu
@pytest.mark.skipif(True, reason="needs two GPUs")
def test_two(): pass

def test_of_a_cpu(): pass
"""


def test_a_line_says_how_each_marked_test_ended(tmp_path, capsys):
    file = tmp_path / "test_some.py"
    file.write_text(MARKED)
    (tmp_path / "pytest.ini").write_text("[pytest]")
    passed, failed, skipped = outcomes([file], folder=tmp_path, seconds=600)
    assert (passed.name, passed.text, passed.bad) == ("test: it is fast", "passed", False)
    assert (failed.name, failed.text, failed.bad) == ("test: it is right", "failed", True)
    assert "but slow" in failed.remark and "test_it_is_right" in capsys.readouterr().out
    assert (skipped.text, skipped.bad) == ("skipped", False) and "needs two GPUs" in skipped.remark
    with pytest.raises(OSError, match="pytest ran no test"):
        outcomes([tmp_path / "test_none.py"], folder=tmp_path, seconds=600)


def test_the_batch_is_halved_until_it_fits():
    tried = []

    def work(least, batch):
        tried.append(batch)
        if batch > least:
            raise torch.cuda.OutOfMemoryError
        return Line("step", remark="as said")

    assert halving(512, partial(work, 512)).remark == "as said"
    assert halving(512, partial(work, 128)).remark == "batch 128: 256 does not fit into memory; as said"
    assert tried == [512, 512, 256, 128]
    with pytest.raises(torch.cuda.OutOfMemoryError):
        halving(512, partial(work, 1))


def test_fewer_processes_load_images_where_shared_memory_is_small(monkeypatch):
    setting = Setting(torch.device("cpu"), replace(TINY, workers=16), 1.0, Path("nowhere"), {})

    def check(most, *, workers, batch):
        if workers * batch > most:
            raise RefusedError

    for most, expected in ((1600, 16), (599, 4), (99, 0)):
        monkeypatch.setattr("gpu.setting.check_shared_memory", partial(check, most))
        assert setting.loaders(100) == expected


@pytest.mark.parametrize(
    ("at_most", "value", "expected"), [(True, 1.0, (0.5, 2.0)), (False, 3.0, (1.5, 6.0))]
)
def test_the_spread_is_that_of_the_rounds(at_most, value, expected):
    raw = {"seconds": [1.0, 2.0, 1.0], "floor_seconds": [1.0, 1.0, 2.0]}
    row = Row("stage", 1.0, 1.0, "s", value, 1.0, at_most, raw=raw)
    assert row.spread == pytest.approx(expected)
    assert "{:.3g} to {:.3g}".format(*expected) in report([Line("stage", row)])


def test_rounds_end_with_the_time_but_there_are_two():
    taken = by_turns(lambda: None, lambda: None, 50, longest=0.0)
    assert len(taken["seconds"]) == len(taken["floor_seconds"]) == 2
    assert len(by_turns(lambda: None, lambda: None, 5)["seconds"]) == 5
