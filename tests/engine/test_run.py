"""A run's folder: config, results, figures, earlier runs set aside."""

import hashlib
import json
import shlex

import numpy as np
import pytest
import yaml
from papermill.cli import _resolve_type
from support import one_line_error, train_config

from mgkit.config import FinetunePConfig, TrainConfig, WhitenConfig, make
from mgkit.data.images import ImageList, list_hash
from mgkit.data.layouts import class_folders
from mgkit.engine.provenance import version
from mgkit.engine.run import (
    Run,
    add_results,
    json_lines,
    latest_results,
    papermill_command,
    read_metrics,
    read_results,
    read_steps,
    runs,
    stage_folder,
)

pytestmark = pytest.mark.usefixtures("here")


def log(run, **metrics):
    """A line of metrics, as a training writes it."""
    with open(run.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(metrics) + "\n")


def test_outputs_land_below_the_working_directory_outside_a_project(here):
    assert stage_folder(train_config()) == here / "outputs" / "t" / "train"


def test_outputs_land_below_the_project_from_within_it(bare_project):
    assert stage_folder(train_config()) == bare_project / "outputs" / "t" / "train"


def test_a_run_with_another_config_is_set_aside_and_kept(here, capsys):
    for lr in (0.1, 0.2, 0.3):
        run = Run(train_config(lr=lr))
        run.results({"lr": lr})
        (run.folder / "checkpoint.pth").write_text(str(lr))
    outputs = here / "outputs" / "t"
    assert sorted(path.name for path in outputs.glob("[!.]*")) == ["train", "train.1", "train.2"]
    kept = [
        json.loads((outputs / name / "results.json").read_text())["lr"]
        for name in ("train.1", "train.2", "train")
    ]
    assert kept == [0.1, 0.2, 0.3]
    assert (outputs / "train.1" / "checkpoint.pth").read_text() == "0.1"
    assert str(outputs / "train.2") in capsys.readouterr().out


def test_the_same_config_runs_in_the_same_folder_without_stale_results(here):
    first = Run(train_config())
    log(first, epoch=1)
    first.results({"top1": 0.5})
    for name in ("curves.png", "pairs.csv", "report.html", "checkpoint.pth"):
        first.write(name, "of the first")
    again = Run(train_config())
    left = {path.name for path in again.folder.iterdir()}
    assert "checkpoint.pth" in left and not left & {"curves.png", "pairs.csv", "report.html"}
    assert again.folder == first.folder
    assert [path.name for path in first.folder.parent.glob("[!.]*")] == ["train"]
    assert read_results(train_config()) is None
    log(again, epoch=1)
    assert len(read_metrics(train_config())) == 1


def test_a_run_with_infinite_p_is_recognised_as_the_same(here):
    for _ in range(2):
        Run(train_config(p=float("inf")))
    assert [path.name for path in (here / "outputs" / "t").glob("[!.]*")] == ["train"]


def test_stages_and_experiments_have_folders_of_their_own(here):
    folders = {
        Run(make(stage, {"experiment": name})).folder
        for stage in (TrainConfig, WhitenConfig)
        for name in ("t", "u")
    }
    assert len(folders) == 4


def test_results_may_be_added_to(here):
    config = make(WhitenConfig, {"experiment": "t"})
    Run(config).results({"p": 2.0, "images": 3})
    add_results(config, {"images": 4, "top1_before": 0.5})
    results = read_results(config)
    assert (results["p"], results["images"], results["top1_before"]) == (2.0, 4, 0.5)


def test_there_are_no_results_of_a_stage_that_was_not_run(here):
    assert read_results(train_config()) is None


def test_provenance_tells_the_command_and_the_checkpoint_that_a_run_began_with(here):
    weights = here / "weights.pth"
    weights.write_bytes(b"weights")
    config = make(WhitenConfig, {"experiment": "t", "data": "my photos", "size": 64})
    run = Run(config, checkpoint=str(weights))
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
    words = shlex.split(papermill_command(config))[3:]
    given = {name: _resolve_type(value) for name, value in zip(words[1::3], words[2::3], strict=True)}
    assert given.keys() == {"data", *values}
    assert make(FinetunePConfig, given) == config


def test_a_package_that_is_not_there_does_not_stop_a_run():
    assert version("no-such-package-here") == "not installed"


# --- Runs that go on


def files_of(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_run_that_goes_on_keeps_all_that_it_left_and_notes_each_start(here):
    run = Run(train_config(lr=0.5))
    log(run, epoch=1, step=4)
    run.write("steps.jsonl", '{"step": 2}\n')
    left = files_of(run.folder)
    for starts in (2, 3):
        again = Run(train_config(lr=0.5), fresh=False)
        assert again.folder == run.folder
        now = files_of(run.folder)
        assert now.items() >= left.items() and len(now) == len(left) + starts - 1
    assert [path.name for path in run.folder.parent.glob("[!.]*")] == ["train"]
    starts = [yaml.safe_load(now[f"provenance{number}.yaml"]) for number in ("", ".1", ".2")]
    assert [start["command"] for start in starts] == [starts[0]["command"]] * 3
    assert read_metrics(train_config(lr=0.5)) == [{"epoch": 1, "step": 4}]
    assert read_steps(train_config(lr=0.5)) == [{"step": 2}]


@pytest.mark.parametrize("fresh", [True, False])
def test_what_was_half_written_is_removed_at_the_next_start(here, fresh):
    run = Run(train_config())
    for name in ("config.yaml", "provenance.yaml"):
        (run.folder / f".{name}.77.partial").write_text("half")
    run = Run(train_config(), fresh=fresh)
    assert not [*run.folder.glob("*.partial")]


def test_a_run_goes_on_where_there_is_none_as_if_it_were_fresh(here):
    run = Run(train_config(), fresh=False)
    assert sorted(files_of(run.folder)) == ["config.yaml", "provenance.yaml"]


def test_a_run_with_another_config_does_not_go_on(here):
    run = Run(train_config(lr=0.5, epochs=3))
    left = files_of(run.folder)
    with one_line_error(ValueError, run.folder, "lr", "epochs"):
        Run(train_config(lr=0.25, epochs=4), fresh=False)
    assert files_of(run.folder) == left


def test_a_fresh_run_leaves_nothing_of_one_that_went_on(here):
    for fresh in (True, False, True):
        run = Run(train_config(), fresh=fresh)
        log(run, epoch=1)
        run.write("steps.jsonl", "{}\n")
        (run.folder / "checkpoint.pth").touch()
    run = Run(train_config())
    assert sorted(files_of(run.folder)) == ["checkpoint.pth", "config.yaml", "provenance.yaml"]


def test_a_run_that_cannot_tell_where_it_comes_from_leaves_the_earlier_one_alone(here):
    run = Run(train_config())
    log(run, epoch=1)
    with pytest.raises(FileNotFoundError):
        Run(train_config(lr=0.9), checkpoint=str(here / "nowhere.pth"))
    assert read_metrics(train_config()) == [{"epoch": 1}]


def test_all_runs_of_a_stage_are_found_the_latest_first_then_in_their_order(here):
    for number in range(1, 12):
        run = Run(train_config(lr=number / 100))
        if number != 4:
            log(run, epoch=1, loss=number)
    run.write("notes.txt", "")
    run.folder.with_name("train.old").mkdir()
    other = make(FinetunePConfig, {"experiment": "t"})
    log(Run(other), epoch=1)
    found = runs(train_config())
    assert list(found) == ["train", "train.1", "train.2", "train.3", *(f"train.{k}" for k in range(5, 11))]
    assert [lines[0]["loss"] for lines in found.values()] == [11, 1, 2, 3, 5, 6, 7, 8, 9, 10]
    assert list(runs(other)) == ["finetune_p"]
    assert runs(train_config(experiment="nothing-here")) == {}


def test_nothing_is_read_where_nothing_was_run(here):
    assert read_metrics(train_config()) == [] and read_steps(train_config()) == []


@pytest.mark.parametrize("tail", [b"", b'{"step": 3', b"\0\0\0\0", b"\xc3", b"\n"])
def test_a_half_written_line_is_left_out(here, tail):
    (here / "lines.jsonl").write_bytes(b'{"step": 1}\n{"step": 2, "loss": NaN}\n' + tail)
    assert [line["step"] for line in json_lines(here / "lines.jsonl")] == [1, 2]


# --- Provenance


def test_provenance_tells_the_images_that_a_run_works_on(here, mini_root):
    train, val = (class_folders(mini_root / "imagenet" / split) for split in ("train", "val"))
    for images, expected in ((train, [train]), ((train, val), [train, val])):
        run = Run(train_config(), images=images)
        data = yaml.safe_load((run.folder / "provenance.yaml").read_text())["data"]
        assert data == [
            {
                "root": str(each.root),
                "images": len(each),
                "classes": len(each.classes),
                "sha256": list_hash(each),
            }
            for each in expected
        ]


def test_a_list_of_imagenet_s_size_is_noted_without_a_look_at_a_file(here):
    paths = tuple(f"{here}/nowhere/n{i // 1300:08d}/n{i // 1300:08d}_{i}.JPEG" for i in range(20_000))
    images = ImageList(here / "nowhere", paths, np.arange(20_000) // 1300, tuple(map(str, range(16))))
    run = Run(train_config(), images=images)
    [data] = yaml.safe_load((run.folder / "provenance.yaml").read_text())["data"]
    assert (data["images"], data["classes"]) == (20_000, 16)


def test_a_run_leaves_config_provenance_metrics_and_results(here):
    run = Run(train_config(lr=0.5))
    log(run, epoch=1, loss=2.0)
    log(run, epoch=2, loss=1.0)
    returned = run.results({"top1": 0.5})
    folder = here / "outputs" / "t" / "train"
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.yaml",
        "metrics.jsonl",
        "provenance.yaml",
        "results.json",
    ]
    assert yaml.safe_load((folder / "config.yaml").read_text())["lr"] == 0.5
    assert read_metrics(train_config(lr=0.5)) == [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}]
    assert read_results(train_config(lr=0.5)) == latest_results(train_config()) == returned
    assert returned["top1"] == 0.5 and returned["seconds"] >= 0
    provenance = yaml.safe_load((folder / "provenance.yaml").read_text())
    assert {"command", "time", "revision", "packages", "python", "machine", "hardware"} == set(provenance)
    assert "not installed" not in [
        provenance["packages"][name] for name in ("torch", "timm", "scipy", "pillow")
    ]


@pytest.mark.parametrize("name", ["2019", "007", "1e5", "True", "nan", "1_000", "a b"])
def test_the_printed_command_gives_any_name_back(name):
    config = make(TrainConfig, {"experiment": "t", "data": name})
    words = shlex.split(papermill_command(config))
    place = words.index("data")
    value = words[place + 1] if words[place - 1] == "-r" else _resolve_type(words[place + 1])
    assert make(TrainConfig, {"data": value}).data == name


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b"3"], ids=range(6))
def test_damaged_results_are_named_with_what_to_do(here, content):
    path = here / "outputs" / "t" / "finetune_p" / "results.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with one_line_error(ValueError, path, "damaged", "run 02_finetune_p again"):
        latest_results(make(FinetunePConfig, {"experiment": "t"}))


@pytest.mark.parametrize("content", ["{", "\0", "[" * 5000, "x" * 2_000_000], ids=range(4))
def test_a_run_whose_config_is_damaged_is_set_aside(here, content, capsys):
    folder = Run(train_config()).folder
    (folder / "config.yaml").write_text(content)
    Run(train_config())
    assert (folder.with_name("train.1") / "config.yaml").read_text() == content
    assert f"{folder / 'config.yaml'} is" in capsys.readouterr().out


def test_lines_of_metrics_that_are_no_objects_are_left_out(here):
    (here / "m.jsonl").write_text('3\n[1]\nnull\n{"step": 1}\n' + "[" * 100_000 + "\n{")
    assert json_lines(here / "m.jsonl") == [{"step": 1}]
