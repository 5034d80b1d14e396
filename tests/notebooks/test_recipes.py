"""The recipes: parameters that their notebooks know, commands that run, the figures that the paper prints."""

import re
import shlex
import subprocess
from pathlib import Path

import papermill
import pytest
import yaml
from click.testing import CliRunner
from notebook_support import CONFIGS, NOTEBOOKS
from papermill.cli import papermill as papermill_command

from mgkit.board import board
from mgkit.config import make
from mgkit.retrieval.indices import check_factory

RECIPES = NOTEBOOKS / "recipes"
every_recipe = pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)


def header(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("#").strip() for line in lines if line.startswith("#")]


def commands(path):
    """(notebook, recipes, parameters of -p) of each command in a recipe's header."""
    found = []
    for line in header(path):
        if line.startswith("papermill "):
            _, notebook, _, *options = shlex.split(line)
            pairs = list(zip(options, options[1:], strict=False))
            recipes = [RECIPES.parents[1] / value for option, value in pairs if option == "-f"]
            found.append((Path(notebook).stem, recipes, overrides(options)))
    return found


def overrides(options):
    return {options[i + 1]: yaml.safe_load(options[i + 2]) for i, word in enumerate(options) if word == "-p"}


def test_there_are_recipes():
    assert len(list(RECIPES.glob("*.yaml"))) > 40


@every_recipe
def test_the_header_gives_commands_expectation_and_cost(path):
    text = "\n".join(header(path))
    places = [text.index(word) for word in ("Commands, in order:", "Expected:", "Cost:")]
    assert places == sorted(places) and commands(path)
    assert any(path in recipes for _, recipes, _ in commands(path)), "no command runs the recipe itself"


@every_recipe
def test_every_command_gives_parameters_that_its_notebook_knows(path):
    for name, recipes, extra in commands(path):
        known = papermill.inspect_notebook(str(NOTEBOOKS / f"{name}.ipynb"))
        for recipe in recipes:
            values = yaml.safe_load(recipe.read_text(encoding="utf-8")) | extra
            assert set(values) <= set(known), (name, recipe)
            make(CONFIGS[name], values)


@every_recipe
def test_a_step_is_explained_by_a_recipe_that_ends_with_it(path):
    """The recipe of an earlier step asks for that step with the same notebook."""
    for name, recipes, _ in commands(path):
        for recipe in recipes:
            assert any(name == other and recipe in used for other, used, _ in commands(recipe)), recipe


@every_recipe
def test_the_expected_figures_are_the_board_s(path):
    text = "\n".join(header(path))
    for entry in board(path.parent / "no outputs here"):
        if entry.recipe == path.stem:
            digits = 2 if entry.measure == "ukbench" else 1
            shown = f"p* {entry.paper:g}" if entry.measure == "p*" else f"{entry.paper:.{digits}f}"
            [line] = [x for x in header(path) if x.startswith(f"{entry.table}, {entry.size} px")]
            assert shown in line, (entry, text)


def test_every_printed_figure_that_can_be_measured_has_its_recipe():
    missing = {e.recipe for e in board(RECIPES / "no outputs here") if e.recipe} - {
        p.stem for p in RECIPES.glob("*.yaml")
    }
    assert not missing


@pytest.mark.parametrize("name", ["released_joint_3B_0.5", "whiten_resnet50_published"])
def test_papermill_takes_the_command_as_it_stands(name, tmp_path, monkeypatch):
    monkeypatch.chdir(RECIPES.parents[1])
    line = [line for line in header(RECIPES / f"{name}.yaml") if line.startswith("papermill ")][-1]
    words = shlex.split(line)[1:]
    words[1] = str(tmp_path / "prepared.ipynb")
    result = CliRunner().invoke(papermill_command, [*words, "--prepare-only"])
    assert result.exit_code == 0, result.output
    assert "experiment" in (tmp_path / "prepared.ipynb").read_text()


def test_the_job_for_slurm_gives_parameters_that_the_training_knows():
    job = RECIPES / "train.slurm"
    assert subprocess.run(["bash", "-n", job]).returncode == 0
    [command] = re.findall(r"papermill --log-output .*?'", job.read_text().replace("\\\n", " "), re.DOTALL)
    known = papermill.inspect_notebook(str(NOTEBOOKS / "01_train.ipynb"))
    given = re.findall(r"-p (\w+)", command)
    assert set(given) == {"workers", "nnodes", "node_rank", "rdzv_endpoint"} and set(given) <= set(known)


@every_recipe
def test_indices_fit_the_descriptors_of_a_resnet50(path):
    for factory in yaml.safe_load(path.read_text(encoding="utf-8")).get("indices", []):
        check_factory(factory, 2049)
