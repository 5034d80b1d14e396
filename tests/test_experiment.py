"""A run's folder: what it holds, and that an earlier run is never lost."""

import hashlib
import json
import shlex

import pytest
import yaml
from papermill.cli import _resolve_type
from support import one_line_error

from mgkit import experiment
from mgkit.config import FinetunePConfig, StageConfig, TrainConfig, WhitenConfig, make
from mgkit.experiment import (
    Run,
    add_results,
    changed_parameters,
    data_root,
    is_mini,
    missing_stage,
    papermill_command,
    read_metrics,
    read_results,
    stage_folder,
)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train_config(**values):
    return make(TrainConfig, {"experiment": "t", **values})


def test_outputs_land_below_the_working_directory_outside_a_project(here):
    assert stage_folder("t", "train") == here / "outputs" / "t" / "train"


def test_outputs_land_below_the_project_from_within_it(bare_project):
    assert stage_folder("t", "train") == bare_project / "outputs" / "t" / "train"


def test_empty_data_is_refused(here):
    with one_line_error(ValueError, "data"):
        data_root("")


def test_what_counts_as_the_embedded_set(here, mini_root):
    assert is_mini("mini") and is_mini(str(mini_root))
    assert not is_mini(str(here)) and not is_mini("nowhere")


def test_a_run_leaves_config_provenance_metrics_and_results(here):
    run = Run("train", train_config(lr=0.5))
    run.log(epoch=1, loss=2.0)
    run.log(epoch=2, loss=1.0)
    returned = run.results({"top1": 0.5})
    folder = here / "outputs" / "t" / "train"
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.yaml",
        "metrics.jsonl",
        "provenance.yaml",
        "results.json",
    ]
    assert yaml.safe_load((folder / "config.yaml").read_text())["lr"] == 0.5
    assert read_metrics("t", "train") == [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}]
    assert read_results("t", "train") == returned
    assert returned["top1"] == 0.5 and returned["seconds"] >= 0
    provenance = yaml.safe_load((folder / "provenance.yaml").read_text())
    assert {"command", "time", "revision", "packages", "python", "machine"} == set(provenance)
    assert provenance["packages"]["torch"] != "not installed"


def test_a_run_with_another_config_is_set_aside_and_kept(here, capsys):
    for lr in (0.1, 0.2, 0.3):
        run = Run("train", train_config(lr=lr))
        run.results({"lr": lr})
        (run.folder / "checkpoint.pth").write_text(str(lr))
    outputs = here / "outputs" / "t"
    assert sorted(path.name for path in outputs.iterdir()) == ["train", "train.1", "train.2"]
    kept = [
        json.loads((outputs / name / "results.json").read_text())["lr"]
        for name in ("train.1", "train.2", "train")
    ]
    assert kept == [0.1, 0.2, 0.3]
    assert (outputs / "train.1" / "checkpoint.pth").read_text() == "0.1"
    assert str(outputs / "train.2") in capsys.readouterr().out


def test_the_same_config_runs_in_the_same_folder_without_stale_results(here):
    first = Run("train", train_config())
    first.log(epoch=1)
    first.results({"top1": 0.5})
    again = Run("train", train_config())
    assert again.folder == first.folder
    assert [path.name for path in first.folder.parent.iterdir()] == ["train"]
    assert read_results("t", "train") is None
    again.log(epoch=1)
    assert len(read_metrics("t", "train")) == 1


def test_a_run_with_infinite_p_is_recognised_as_the_same(here):
    for _ in range(2):
        Run("train", train_config(p=float("inf")))
    assert [path.name for path in (here / "outputs" / "t").iterdir()] == ["train"]


def test_stages_and_experiments_have_folders_of_their_own(here):
    folders = {
        Run(stage, make(StageConfig, {"experiment": name})).folder
        for stage in ("train", "whiten")
        for name in ("t", "u")
    }
    assert len(folders) == 4


def test_results_may_be_added_to(here):
    Run("whiten", make(WhitenConfig, {"experiment": "t"})).results({"p": 2.0, "images": 3})
    add_results("t", "whiten", {"images": 4, "top1_before": 0.5})
    results = read_results("t", "whiten")
    assert (results["p"], results["images"], results["top1_before"]) == (2.0, 4, 0.5)


def test_there_are_no_results_of_a_stage_that_was_not_run(here):
    assert read_results("t", "train") is None


def test_provenance_tells_the_command_and_the_checkpoint_that_a_run_began_with(here):
    weights = here / "weights.pth"
    weights.write_bytes(b"weights")
    config = make(WhitenConfig, {"experiment": "t", "data": "my photos", "size": 64})
    run = Run("whiten", config, checkpoint=str(weights))
    provenance = yaml.safe_load((run.folder / "provenance.yaml").read_text())
    words = shlex.split(provenance["command"])
    assert words[:2] == ["papermill", "notebooks/03_whiten.ipynb"]
    assert words[3:] == ["-p", "experiment", "t", "-p", "data", "my photos", "-p", "size", "64"]
    digest = hashlib.sha256(b"weights").hexdigest()
    assert provenance["checkpoint"] == {"file": str(weights), "sha256": digest}


def test_the_recorded_command_makes_the_same_config(here):
    values = {
        "experiment": "t",
        "sizes": [64, 96],
        "ps": [1.0, float("inf")],
        "backbone": "resnet18",
        "lr": 0.5,
    }
    config = make(FinetunePConfig, values)
    words = shlex.split(papermill_command("finetune_p", changed_parameters(config)))[3:]
    given = {name: _resolve_type(value) for name, value in zip(words[1::3], words[2::3], strict=True)}
    assert given.keys() == {"data", *values}
    assert make(FinetunePConfig, given) == config


def test_a_missing_stage_says_which_command_makes_it(here):
    config = make(WhitenConfig, {"experiment": "t", "data": "my photos"})
    message = str(missing_stage(here / "checkpoint.pth", "train", config))
    assert "\n" not in message and str(here / "checkpoint.pth") in message
    program, notebook, copy, *options = shlex.split(message.split("`")[1])
    assert (program, notebook) == ("papermill", "notebooks/01_train.ipynb")
    assert copy.startswith("outputs/") and copy.endswith(".ipynb")
    assert options == ["-p", "experiment", "t", "-p", "data", "my photos"]
    config = make(WhitenConfig, {"experiment": "t", "backbone": "resnet18"})
    assert "-p data mini -p backbone resnet18`" in str(
        missing_stage(here / "checkpoint.pth", "train", config)
    )


def test_a_package_that_is_not_there_does_not_stop_a_run():
    assert experiment.version("no-such-package-here") == "not installed"
