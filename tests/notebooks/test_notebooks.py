"""The notebooks: clean in git, parameters equal to their configs, and run headless from any folder."""

import ast
import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import nbformat
import papermill
import psutil
import pytest
import yaml
from click.testing import CliRunner
from notebook_support import CONFIGS, NOTEBOOKS, PACKAGE, QUICK, cells_of, figures, printed
from papermill.cli import papermill as papermill_command
from papermill.exceptions import PapermillExecutionError

from mgkit.checkpoints import save_checkpoint
from mgkit.config import TrainConfig, from_yaml
from mgkit.engine.launch import StoppedError
from mgkit.model import get_multigrain
from mgkit.stages.train import run_training

STAGES = ("train", "finetune_p", "whiten", "evaluate_imagenet", "evaluate_retrieval", "search_photos")
MOST_LINES = 12  # of a code cell
MOST_BYTES = 300_000  # of an executed notebook

every_notebook = pytest.mark.parametrize("name", CONFIGS)


def parameters_cell(name):
    [cell] = [cell for cell in cells_of(name) if "parameters" in cell.metadata.get("tags", [])]
    return cell


def test_every_notebook_is_tested():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} >= set(CONFIGS)


# --- As they are in git


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_has_no_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@every_notebook
def test_the_first_code_cell_holds_the_parameters(name):
    cell = parameters_cell(name)
    assert cell.id == cells_of(name)[0].id
    assert cell.source.startswith("# Parameters")


@every_notebook
def test_the_parameters_are_those_of_the_config_with_its_defaults(name):
    statements = ast.parse(parameters_cell(name).source).body
    assert all(isinstance(statement, ast.AnnAssign) for statement in statements)
    found = {statement.target.id: ast.literal_eval(statement.value) for statement in statements}
    assert found == dataclasses.asdict(CONFIGS[name]())


@every_notebook
def test_papermill_lists_every_parameter_with_a_help_text(name):
    found = papermill.inspect_notebook(str(NOTEBOOKS / f"{name}.ipynb"))
    assert list(found) == [statement.target.id for statement in ast.parse(parameters_cell(name).source).body]
    for parameter in found.values():
        assert parameter["help"].strip(), parameter
        assert parameter["inferred_type_name"] in ("str", "int", "float", "bool", "list"), parameter


@every_notebook
def test_code_cells_are_short(name):
    tagged = parameters_cell(name).id
    lengths = {cell.id: len(cell.source.splitlines()) for cell in cells_of(name) if cell.id != tagged}
    assert max(lengths.values()) <= MOST_LINES, lengths


@every_notebook
def test_headings_make_a_table_of_contents(name):
    text = "\n".join(cell.source for cell in cells_of(name, "markdown"))
    headings = re.findall(r"^(#+) ", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    assert headings[0] == "#" and headings.count("#") == 1
    assert len(headings) >= 3 and set(headings[1:]) == {"##"}


@every_notebook
def test_text_introduces_the_notebook_and_most_of_its_cells(name):
    assert cells_of(name, "markdown")[0].source.startswith("# ")
    assert len(cells_of(name, "markdown")) >= len(cells_of(name)) / 2


# --- As they run


def new_project(folder):
    """A project of its own, so that outputs stay out of the repository."""
    shutil.copytree(NOTEBOOKS, folder / "notebooks")
    (folder / "mgkit").symlink_to(PACKAGE)
    return folder


def runner(project, mini_root):
    """A function that runs a notebook of the project on the reduced set and returns its output."""

    def execute(name, *, cwd=".", **parameters):
        copy = project / f"executed_{name}.ipynb"
        papermill.execute_notebook(
            str(project / "notebooks" / f"{name}.ipynb"), str(copy), cwd=str(project / cwd),
            progress_bar=False,
            parameters={"experiment": "t", "data": str(mini_root), "workers": 0} | parameters,
        )  # fmt: skip
        return printed(copy)

    return execute


@pytest.fixture
def project(tmp_path):
    return new_project(tmp_path)


@pytest.fixture
def run(project, mini_root):
    return runner(project, mini_root)


@pytest.fixture(scope="module")
def after_all(tmp_path_factory, mini_root):
    """A project whose notebooks were all run in order from its root, and {notebook: its output}."""
    project = new_project(tmp_path_factory.mktemp("project"))
    run = runner(project, mini_root)
    return project, {name: run(name, **QUICK.get(name, {})) for name in CONFIGS}


def test_the_notebooks_run_in_order(after_all):
    project, text = after_all
    outputs = project / "outputs" / "t"
    assert sorted(path.name for path in outputs.glob("[!.]*")) == sorted([*STAGES, "features"])
    for stage in STAGES:
        assert json.loads((outputs / stage / "results.json").read_text())["seconds"] > 0
        assert list((outputs / stage).glob("*.png"))
    executed = {name: project / f"executed_{name}.ipynb" for name in CONFIGS}
    assert all(figures(path) for path in executed.values())
    sizes = {name: path.stat().st_size for name, path in executed.items()}
    assert max(sizes.values()) < MOST_BYTES, sizes
    assert not any(" first" in printed and "does not exist" in printed for printed in text.values())
    assert "Traceback" not in "".join(text.values()) and "\r" not in "".join(text.values())
    recorded = yaml.safe_load((outputs / "finetune_p" / "config.yaml").read_text())
    assert (recorded["sizes"], recorded["ps"], recorded["images_per_class"]) == ([32, 48], [1.0, 3.0], 2)
    whitened = json.loads((outputs / "whiten" / "results.json").read_text())
    # Unlabelled images fit it, labelled ones check it.
    assert (whitened["images"], whitened["val_images"]) == (40, 36)
    assert left_in(project) == ["mgkit", "notebooks", "outputs"]


def test_from_its_own_folder_a_notebook_finds_what_the_others_left(after_all, mini_root):
    project, text = after_all
    name, measured = "04_evaluate_imagenet", project / "outputs" / "t" / "evaluate_imagenet" / "results.json"
    before = json.loads(measured.read_text())
    measured.unlink()
    assert " first" not in runner(project, mini_root)(name, cwd="notebooks", **QUICK[name])
    assert json.loads(measured.read_text())["rows"] == before["rows"]
    assert left_in(project) == ["mgkit", "notebooks", "outputs"]
    assert not (project / "notebooks" / "outputs").exists()


def left_in(project):
    """The names in a project's folder but those of executed notebooks."""
    return sorted(path.name for path in project.iterdir() if not path.name.startswith("executed"))


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
    wait_until(lambda: list(snapshots.glob("step-*.pth")), seconds=120)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 4  # kernel, agent, two workers, their readers
    if how == "papermill is killed":
        process.kill()
    else:
        for each in [process, *family]:
            each.send_signal(signal.SIGTERM)
    wait_until(lambda: not any(each.is_running() for each in family), seconds=40)
    assert process.wait(20) != 0
    if how == "all are told to stop":
        # A process that reads images may be told before it listens; then the last snapshot is what is kept.
        assert "StoppedError: stopped as asked" in process.stderr.read()
    reached = max(snapshots.glob("step-*.pth"))
    monkeypatch.chdir(project)
    config = replace(from_yaml(TrainConfig, snapshots.parent / "config.yaml"), gpus=1, workers=0)
    with pytest.raises(StoppedError):
        run_training(config, asked_to_stop=partial(next, iter([False, False, True])))
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
    assert "holiday &lt;1&gt;" in report and "bad.jpg" in report and "<script" not in report


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
