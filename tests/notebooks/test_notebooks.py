"""The notebooks: clean in git, parameters equal to their configs, and run in order from any folder."""

import ast
import json
import re
import sys
from contextlib import redirect_stdout
from dataclasses import MISSING, fields
from io import StringIO
from typing import NamedTuple

import nbformat
import papermill
import pytest
import yaml
from notebook_support import CONFIGS, NOTEBOOKS, QUICK, cells_of, execute, figures, new_project, runner

STAGES = (
    "train", "finetune_p", "whiten", "evaluate_imagenet", "evaluate_retrieval", "search_photos", "claims",
)  # fmt: skip
MOST_LINES = 12  # of a code cell
MOST_BYTES = 400_000  # of an executed notebook

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
    assert found == {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(CONFIGS[name])
    }


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


BY_TWO = {"gpus": 2, "workers": 1, "log_every": 2, "gradient_share_every": 2}  # of 01


# Run by papermill, each in a kernel: 01, and those that test_browser.py leaves out.
IN_KERNELS = ("01_train", "04_evaluate_imagenet", "07_claims")


class Executed(NamedTuple):
    """A notebook that was run: what it printed, how many figures it showed, the bytes of these or all."""

    text: str
    figures: int
    size: int


def executed_here(name, **parameters):
    """Run a notebook in this process, in the working directory."""
    with redirect_stdout(StringIO()) as printed:
        shown = execute(name, {"workers": 0} | parameters)
    return Executed(printed.getvalue(), shown.figures, shown.bytes)


@pytest.fixture(scope="module")
def after_all(tmp_path_factory, mini_root):
    """A project whose notebooks were all run in order from its root, and {notebook: Executed}.

    01 trains in two processes.
    """
    project = new_project(tmp_path_factory.mktemp("project"))
    run, done = runner(project, mini_root), {}
    own = QUICK | {"01_train": QUICK["01_train"] | BY_TWO}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.setattr(sys, "argv", ["notebook"])
        for name in CONFIGS:
            if name in IN_KERNELS:
                text, path = run(name, **own[name]), project / f"executed_{name}.ipynb"
                done[name] = Executed(text, figures(path), path.stat().st_size)
            else:
                values = {"experiment": "t", "data": str(mini_root)} | own.get(name, {})
                done[name] = executed_here(name, **values)
    return project, done


def test_the_notebooks_run_in_order(after_all):
    project, done = after_all
    outputs = project / "outputs" / "t"
    left = [*STAGES, "features", "start_here", "measured"]  # the last by 07, beside its stage
    assert sorted(path.name for path in outputs.glob("[!.]*")) == sorted(left)
    for stage in STAGES:
        assert json.loads((outputs / stage / "results.json").read_text())["seconds"] > 0
        assert list((outputs / stage).glob("*.png"))
    assert all(each.figures for each in done.values())
    sizes = {name: each.size for name, each in done.items()}
    assert max(sizes.values()) < MOST_BYTES, sizes
    texts = [each.text for each in done.values()]
    assert not any(" first" in text and "does not exist" in text for text in texts)
    assert "Traceback" not in "".join(texts) and "\r" not in "".join(texts)
    recorded = yaml.safe_load((outputs / "finetune_p" / "config.yaml").read_text())
    assert (recorded["sizes"], recorded["ps"], recorded["images_per_class"]) == ([32, 48], [1.0, 3.0], 2)
    whitened = json.loads((outputs / "whiten" / "results.json").read_text())
    # Unlabelled images fit it, labelled ones check it.
    assert (whitened["images"], whitened["val_images"]) == (40, 36)
    assert left_in(project) == ["data", "mgkit", "notebooks", "outputs"]


def test_00_searches_among_photographs(after_all):
    project, done = after_all
    text = done["00_start_here"].text
    assert "65 queries, 74 database images" in text
    assert "not shown" not in text.replace("not shown: p* of a real network", "")
    value = re.search(r"p = 3: mAP ([\d.]+) %", text)
    assert float(value[1]) > 95 and re.search("^coffee +espresso", text, re.MULTILINE)
    assert (project / "data" / "photographs" / "groups.csv").is_file()
    assert (project / "outputs" / "t" / "start_here" / "photographs.png").is_file()


def test_training_in_two_processes(after_all):
    project, done = after_all
    said, shown, _ = done["01_train"]
    assert "2 x cpu" in said and "epoch 1: loss" in said and "one run so far" in said
    assert shown == 4
    folder = project / "outputs" / "t" / "train"
    assert {"checkpoint.pth", "snapshots", "steps.jsonl", "tensorboard"} <= {p.name for p in folder.iterdir()}
    steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    assert steps and all(0 < line["gradient_share"] < 1 for line in steps)


def test_a_training_that_is_complete_is_shown_again_from_the_notebook_s_own_folder(
    after_all, run_here, mini_root, monkeypatch
):
    monkeypatch.chdir(after_all[0] / "notebooks")
    values = {"experiment": "t", "data": str(mini_root)} | QUICK["01_train"] | BY_TWO
    again, shown = run_here("01_train", **values)
    assert "nothing to do" in again and shown == 4


def test_from_its_own_folder_a_notebook_finds_what_the_others_left(
    after_all, run_here, mini_root, monkeypatch
):
    project, _ = after_all
    name, measured = "04_evaluate_imagenet", project / "outputs" / "t" / "evaluate_imagenet" / "results.json"
    before = json.loads(measured.read_text())
    measured.unlink()
    monkeypatch.chdir(project / "notebooks")
    printed, _ = run_here(name, experiment="t", data=str(mini_root), **QUICK[name])
    assert " first" not in printed
    assert json.loads(measured.read_text())["rows"] == before["rows"]
    assert left_in(project) == ["data", "mgkit", "notebooks", "outputs"]
    assert not (project / "notebooks" / "outputs").exists()


def left_in(project):
    """The names in a project's folder but those of executed notebooks."""
    return sorted(path.name for path in project.iterdir() if not path.name.startswith("executed"))
