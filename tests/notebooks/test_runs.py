"""Single notebooks as papermill runs them: alone, in processes, stopped, resumed, with wrong parameters."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from notebook_support import PACKAGE, QUICK
from papermill.cli import papermill as papermill_command
from papermill.exceptions import PapermillExecutionError
from support import one_line_error

from mgkit.checkpoints import save_checkpoint
from mgkit.config import TrainConfig, from_yaml
from mgkit.engine import dry_run
from mgkit.engine.launch import StoppedError
from mgkit.model import get_multigrain
from mgkit.stages.train import run_training


def test_the_last_notebook_runs_alone_and_makes_what_it_needs(here, run_here, tiny_root):
    values = {"experiment": "t", "data": str(tiny_root), "size": 48, "resolutions": [48], "indices": []}
    text, _ = run_here("05_evaluate_retrieval", **values)
    assert "running 03_whiten first" in text and "running 01_train first" in text
    assert (here / "outputs/t/evaluate_retrieval/results.json").is_file()


@pytest.fixture
def temporary():
    """A folder for temporary files. Its path is short, as those of sockets must be."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def started(project, mini_root, how, temporary):
    """Start a long training by papermill from the shell; it is ended with the test."""
    gpus = 2 if how == "all are told to stop" else 1  # as those must agree
    values = {
        "experiment": "t", "data": mini_root, "gpus": gpus, "workers": 1, "size": 32, "batch_size": 12,
        "len_factor": 2, "epochs": 500,
    }  # fmt: skip
    options = [word for name, value in values.items() for word in ("-p", name, str(value))]
    papermill_script = str(Path(sys.executable).with_name("papermill"))
    command = shlex.join([papermill_script, "notebooks/01_train.ipynb", "out.ipynb", *options])
    # As in a job of SLURM's, whose SIGTERM papermill is to leave to the others.
    process = subprocess.Popen(
        ["bash", "-c", f"trap '' TERM; exec {command}"], cwd=project, start_new_session=True, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent), "TMPDIR": str(temporary)},
    )  # fmt: skip
    yield process
    process.kill()


@pytest.mark.parametrize("how", ["papermill is killed", "all are told to stop"])
def test_a_training_whose_papermill_ends_leaves_no_process_and_goes_on(
    project, started, how, temporary, monkeypatch
):
    snapshots = project / "outputs" / "t" / "train" / "snapshots"
    process = started
    wait_until(lambda: list(snapshots.glob("step-*.pth")), seconds=300)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= (3 if how == "papermill is killed" else 6)  # kernel, agent of two, workers, readers
    if how == "papermill is killed":
        process.kill()
    else:
        for each in [process, *family]:
            each.send_signal(signal.SIGTERM)
    wait_until(lambda: not any(each.is_running() for each in family), seconds=120)
    assert process.wait(60) != 0
    assert not list(temporary.glob("mgkit-*"))
    if how == "all are told to stop":
        # A process that reads images may be told before it listens; then the last snapshot is what is kept.
        assert "StoppedError: stopped as asked" in process.stderr.read()
    reached = max(snapshots.glob("step-*.pth"))
    monkeypatch.chdir(project)
    config = replace(from_yaml(TrainConfig, snapshots.parent / "config.yaml"), gpus=1, workers=0)
    answers = iter([False, False, True])
    with pytest.raises(StoppedError):
        run_training(config, asked_to_stop=lambda _: next(answers))
    assert max(snapshots.glob("step-*.pth")) > reached
    provenance = sorted(path.name for path in snapshots.parent.glob("provenance*.yaml"))
    assert provenance == ["provenance.1.yaml", "provenance.yaml"]  # the same run, started twice


def wait_until(is_so, *, seconds):
    """Wait for it; the test fails if it takes longer."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.2)


def test_a_dry_run_tells_what_a_training_would_cost_and_writes_nothing(
    here, run_here, mini_root, monkeypatch
):
    monkeypatch.setattr(dry_run, "SECONDS", 0.2)  # of each measurement
    values = QUICK["01_train"] | {"experiment": "t", "data": str(mini_root)}
    text, _ = run_here("01_train", **values, dry_run=True)
    assert "whole training" in text and "images/s" in text
    assert not (here / "outputs").exists()


def test_retrieval_in_a_plain_folder(here, run_here, mini_root):
    text, shown = run_here(
        "05_evaluate_retrieval", data=str(mini_root / "unlabelled" / "distractors" / "00"), size=48,
        experiment="t", backbone="resnet8", checkpoint=str(untrained(here / "net.pth")),
    )  # fmt: skip
    assert "without ground truth" in text and "exact search is enough" in text
    assert shown == 3  # the neighbours, the answers to some queries, the regions that match


def test_photos_that_are_bad_are_said_in_one_line_and_good_ones_make_a_report(here, run_here, photos):
    values = {"checkpoint": str(untrained(here / "net.pth")), "backbone": "resnet8", "size": 48}
    values |= {"experiment": "t"}
    (here / "holiday <1>").mkdir()
    with one_line_error(ValueError, "holds no pictures"):
        run_here("06_search_your_photos", photos=[str(here / "holiday <1>")], **values)
    assert not (here / "outputs").exists()
    for path in sorted(photos.rglob("*.JPEG"))[:30]:
        shutil.copy(path, here / "holiday <1>" / f"'{path.name}")
    (here / "holiday <1>" / "bad.jpg").write_text("no picture")
    text, _ = run_here("06_search_your_photos", photos=f"{here}/holiday <1>", **values)
    assert "30 pictures as descriptors" in text and "bad.jpg: not an image" in text
    assert "does not name its 3 classes" in text
    report = (here / "outputs/t/search_photos/report.html").read_text(encoding="utf-8")
    assert "holiday &lt;1&gt;" in report and "bad.jpg" in report and report.count("<script") == 3


def untrained(path):
    """A checkpoint of a small network with random weights."""
    save_checkpoint(path, get_multigrain("resnet8", num_classes=3))
    return path


def test_an_unknown_parameter_fails_with_one_line_that_names_it(project, run):
    """As papermill shows it."""
    with pytest.raises(PapermillExecutionError) as caught:
        run("01_train", epoch=1)
    assert caught.value.ename == "ValueError"
    assert caught.value.evalue.startswith("unknown parameter 'epoch'") and "\n" not in caught.value.evalue
    assert not (project / "outputs").exists()


def test_a_missing_stage_on_data_of_one_s_own_gives_a_command_that_papermill_understands(
    project, run_here, mini_root, monkeypatch
):
    monkeypatch.chdir(project)
    with one_line_error(FileNotFoundError, "papermill notebooks/01_train.ipynb") as caught:
        run_here("02_finetune_p", data=str(mini_root / "imagenet"), experiment="t")
    command = shlex.split(str(caught.value).split("`")[1])
    os.makedirs("outputs", exist_ok=True)
    result = CliRunner().invoke(papermill_command, [*command[1:], "--prepare-only"])
    assert result.exit_code == 0, result.output
    [written] = Path("outputs").glob("*.ipynb")
    assert str(mini_root / "imagenet") in written.read_text()
