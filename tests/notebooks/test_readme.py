"""The README pages: commands run, or are accepted by what they call; links lead to files; lines are short."""

import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import papermill
import pytest
import yaml
from notebook_support import CONFIGS, NOTEBOOKS, QUICK
from test_recipes import overrides

from mgkit.config import make

ROOT = NOTEBOOKS.parent
PAGES = {page: (ROOT / page).read_text(encoding="utf-8") for page in (
    "README.md", "notebooks/README.md", "data/README.md", "outputs/README.md",
)}  # fmt: skip
TEXT = "\n".join(PAGES.values())
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.M | re.S)
COMMANDS = [line for language, block in BLOCKS if not language for line in block.splitlines() if line]
COMMANDS += re.findall(r"`((?:papermill|make|python) [^`]+)`", TEXT)
COMMANDS = list(dict.fromkeys(COMMANDS))
PYTHON = [command for command in COMMANDS if command.startswith("python -m")]
LONG = [
    command for command in PYTHON if "fetch" in command or "--write" in command
]  # not to be run in a test
LINKS = [
    (page, target) for page, text in PAGES.items() for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text)
]
SMALL = {"small": {"size": 32, "epochs": 1, "lr_drops": [1], "batch_size": 12}}
OWN = [c for c in COMMANDS if c.startswith("papermill") and "-p data" in c]
WIDTH = 120  # columns of prose


def taken_apart(command):
    """(notebook, parameters of recipes and -p) of a papermill command."""
    _, notebook, _, *options = shlex.split(command)
    values = {}
    for option, value in zip(options, options[1:], strict=False):
        if option == "-f":
            values |= yaml.safe_load((ROOT / value).read_text(encoding="utf-8"))
    return Path(notebook).stem, values | overrides(options)


def test_the_commands_are_found():
    assert len(COMMANDS) > 20 and len(OWN) == 7
    assert {command.split()[0] for command in COMMANDS} == {"make", "papermill", "python", "source"}
    assert len(LONG) == 2 and len(PYTHON) == 5


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("papermill notebooks")])
def test_a_notebook_takes_its_command(command):
    name, values = taken_apart(command)
    known = papermill.inspect_notebook(str(NOTEBOOKS / f"{name}.ipynb"))
    assert set(values) <= set(known)
    make(CONFIGS[name], values)


@pytest.mark.parametrize("command", sorted({c for c in COMMANDS if c.startswith("make ")}))
def test_make_knows_its_command(command):
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{command.split()[1]}:", makefile, re.M)


def test_the_table_names_every_notebook():
    assert re.findall(r"^\| [^|]+ \| `(\w+)` \|", PAGES["README.md"], re.M) == sorted(CONFIGS)


@pytest.fixture(scope="module")
def project(tmp_path_factory, mini_root):
    """A folder with those that the README calls ~/pets and ~/photos."""
    root = tmp_path_factory.mktemp("readme")
    for folder in sorted((mini_root / "imagenet" / "train").iterdir())[:3]:
        shutil.copytree(folder, root / "pets" / folder.name)
    shutil.copytree(mini_root / "unlabelled" / "whiten", root / "photos")
    return root


def test_the_commands_for_own_images_run_in_their_order(project, run_here, monkeypatch):
    monkeypatch.chdir(project)
    for command in OWN:
        name, values = taken_apart(command)
        quick = SMALL.get(values["experiment"], QUICK.get(name, {}))
        folders = {
            key: value.replace("~", str(project))
            for key, value in values.items()
            if isinstance(value, str) and "~" in value
        }
        text, _ = run_here(name, **(values | quick | folders))
        assert "Error in mgkit" not in text and "does not exist" not in text, (command, text)
        assert any((project / "outputs" / values["experiment"]).iterdir())


@pytest.fixture
def of_python(tmp_path, monkeypatch, capsys):
    """A function that runs a `python -m` command, in this process: its exit status and what it printed."""

    def run(command, *options):
        (tmp_path / "data").mkdir()
        monkeypatch.chdir(tmp_path)
        _, _, module, *words = shlex.split(command)
        monkeypatch.setattr(sys, "argv", [module, *words, *options])
        status = None
        try:
            runpy.run_module(module, run_name="__main__")
        except SystemExit as ended:
            status = ended.code
        said = capsys.readouterr()
        return status, said.out + said.err + (status if isinstance(status, str) else "")

    return run


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("command", [command for command in PYTHON if command not in LONG])
def test_a_command_of_python_runs(of_python, command):
    _, said = of_python(command)
    assert said.strip()


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("command", LONG)
def test_a_long_command_of_python_is_known(of_python, command):
    status, said = of_python(command, "--help")
    options = [word for word in command.split() if word.startswith("--")]
    assert not status and options and all(option in said for option in options), said


def test_the_example_in_python_prints_the_shapes(capsys):
    code = next(block for language, block in BLOCKS if language == "python")
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.split() == ["torch.Size([2,", "2048])", "torch.Size([2,", "1000])"]


@pytest.mark.parametrize(("page", "target"), LINKS)
def test_a_link_leads_to_a_file_and_its_heading(page, target):
    name, _, anchor = target.partition("#")
    path = (ROOT / page).parent / name
    assert path.exists()
    if anchor:
        headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
        assert anchor in [heading.lower().replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", PAGES)
def test_prose_is_not_wide(page):
    prose = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.M | re.S).splitlines()
    assert not [line for line in prose if len(line) > WIDTH and not line.startswith("|")]
