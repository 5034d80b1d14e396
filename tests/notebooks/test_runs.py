"""Single notebooks as papermill runs them: alone, in processes, stopped, resumed, with wrong parameters."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from notebook_support import PACKAGE, QUICK, figures, new_project, runner
from papermill.cli import papermill as papermill_command
from papermill.exceptions import PapermillExecutionError

from mgkit.checkpoints import save_checkpoint
from mgkit.config import TrainConfig, from_yaml
from mgkit.engine.launch import StoppedError
from mgkit.model import get_multigrain
from mgkit.stages.train import run_training


def test_the_last_notebook_runs_alone_and_makes_what_it_needs(project, run):
    text = run("05_evaluate_retrieval", size=48, resolutions=[48])
    assert "running 03_whiten first" in text and "running 01_train first" in text
    assert (project / "outputs/t/evaluate_retrieval/results.json").is_file()


BY_TWO = QUICK["01_train"] | {"gpus": 2, "workers": 1, "log_every": 2, "gradient_share_every": 2}


@pytest.fixture(scope="module")
def trained_by_two(tmp_path_factory, mini_root):
    """A project with a training in two processes, and what its notebook printed."""
    project = new_project(tmp_path_factory.mktemp("project"))
    return project, runner(project, mini_root)("01_train", **BY_TWO)


def test_training_in_two_processes(trained_by_two):
    project, text = trained_by_two
    assert "2 x cpu" in text and "epoch 1: loss" in text and "one run so far" in text
    assert figures(project / "executed_01_train.ipynb") == 4
    folder = project / "outputs" / "t" / "train"
    assert {"checkpoint.pth", "snapshots", "steps.jsonl", "tensorboard"} <= {p.name for p in folder.iterdir()}
    steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    assert steps and all(0 < line["gradient_share"] < 1 for line in steps)


def test_a_training_that_is_complete_is_shown_again_from_the_notebook_s_own_folder(trained_by_two, mini_root):
    project, _ = trained_by_two
    again = runner(project, mini_root)("01_train", cwd="notebooks", **BY_TWO)
    assert "nothing to do" in again and figures(project / "executed_01_train.ipynb") == 4


@pytest.fixture
def started(project, mini_root):
    """Start a long training by papermill from the shell, on two processes; it is ended with the test."""
    values = {
        "experiment": "t", "data": mini_root, "gpus": 2, "workers": 1, "size": 32, "batch_size": 12,
        "len_factor": 2, "epochs": 500,
    }  # fmt: skip
    options = [word for name, value in values.items() for word in ("-p", name, str(value))]
    papermill_script = str(Path(sys.executable).with_name("papermill"))
    command = shlex.join([papermill_script, "notebooks/01_train.ipynb", "out.ipynb", *options])
    # As in a job of SLURM's, whose SIGTERM papermill is to leave to the others.
    process = subprocess.Popen(
        ["bash", "-c", f"trap '' TERM; exec {command}"], cwd=project, start_new_session=True, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
    )  # fmt: skip
    yield process
    process.kill()


@pytest.mark.parametrize("how", ["papermill is killed", "all are told to stop"])
def test_a_training_whose_papermill_ends_leaves_no_process_and_goes_on(project, started, how, monkeypatch):
    snapshots = project / "outputs" / "t" / "train" / "snapshots"
    process = started
    wait_until(lambda: list(snapshots.glob("step-*.pth")), seconds=300)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 4  # kernel, agent, two workers, their readers
    if how == "papermill is killed":
        process.kill()
    else:
        for each in [process, *family]:
            each.send_signal(signal.SIGTERM)
    wait_until(lambda: not any(each.is_running() for each in family), seconds=120)
    assert process.wait(60) != 0
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


SHORT_DRY_RUN = """
from mgkit.engine import dry_run
from mgkit.stages import train

dry_run.SECONDS = 0.5  # of each measurement
train.launch = train.run_training  # in the kernel, where this holds
"""


@pytest.fixture
def short_dry_run(tmp_path_factory, monkeypatch):
    """Kernels measure for moments: IPython runs the files in startup/ first."""
    folder = tmp_path_factory.mktemp("ipython")
    (folder / "profile_default" / "startup").mkdir(parents=True)
    (folder / "profile_default" / "startup" / "short.py").write_text(SHORT_DRY_RUN)
    monkeypatch.setenv("IPYTHONDIR", str(folder))


@pytest.mark.usefixtures("short_dry_run")
def test_a_dry_run_tells_what_a_training_would_cost_and_writes_nothing(project, run):
    text = run("01_train", **QUICK["01_train"], dry_run=True)
    assert "whole training" in text and "images/s" in text
    assert not (project / "outputs").exists()


def test_retrieval_in_a_plain_folder(project, run, mini_root):
    text = run(
        "05_evaluate_retrieval", data=str(mini_root / "unlabelled" / "distractors" / "00"), size=48,
        backbone="resnet8", checkpoint=str(untrained(project / "net.pth")),
    )  # fmt: skip
    assert "without ground truth" in text and "exact search is enough" in text
    # The neighbours, the answers to some queries, the regions that match.
    assert figures(project / "executed_05_evaluate_retrieval.ipynb") == 3


def test_photos_that_are_bad_are_said_in_one_line_and_good_ones_make_a_report(project, run, photos):
    checkpoint = {"checkpoint": str(untrained(project / "net.pth")), "backbone": "resnet8", "size": 48}
    (project / "holiday <1>").mkdir()
    with pytest.raises(PapermillExecutionError) as caught:
        run("06_search_your_photos", photos=[str(project / "holiday <1>")], **checkpoint)
    assert caught.value.ename == "ValueError" and "holds no pictures" in caught.value.evalue
    assert "\n" not in caught.value.evalue and not (project / "outputs").exists()
    for path in sorted(photos.rglob("*.JPEG"))[:30]:
        shutil.copy(path, project / "holiday <1>" / f"'{path.name}")
    (project / "holiday <1>" / "bad.jpg").write_text("no picture")
    text = run("06_search_your_photos", photos=f"{project}/holiday <1>", **checkpoint)
    assert "30 pictures as descriptors" in text and "bad.jpg: not an image" in text
    assert "does not name its 3 classes" in text
    report = (project / "outputs/t/search_photos/report.html").read_text(encoding="utf-8")
    assert "holiday &lt;1&gt;" in report and "bad.jpg" in report and report.count("<script") == 3


def untrained(path):
    """A checkpoint of a small network with random weights."""
    save_checkpoint(path, get_multigrain("resnet8", num_classes=3))
    return path


def test_an_unknown_parameter_fails_with_one_line_that_names_it(project, run):
    with pytest.raises(PapermillExecutionError) as caught:
        run("01_train", epoch=1)
    assert caught.value.ename == "ValueError"
    assert caught.value.evalue.startswith("unknown parameter 'epoch'") and "\n" not in caught.value.evalue
    assert not (project / "outputs").exists()


def test_a_missing_stage_on_data_of_one_s_own_gives_a_command_that_papermill_understands(
    project, run, mini_root, monkeypatch
):
    with pytest.raises(PapermillExecutionError) as caught:
        run("02_finetune_p", data=str(mini_root / "imagenet"))
    assert caught.value.ename == "FileNotFoundError" and "\n" not in caught.value.evalue
    command = shlex.split(caught.value.evalue.split("`")[1])
    monkeypatch.chdir(project)
    os.makedirs("outputs", exist_ok=True)
    result = CliRunner().invoke(papermill_command, [*command[1:], "--prepare-only"])
    assert result.exit_code == 0, result.output
    [written] = Path("outputs").glob("*.ipynb")
    assert str(mini_root / "imagenet") in written.read_text()
