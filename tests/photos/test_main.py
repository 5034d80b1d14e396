"""`python -m mgkit.photos`: parameters of 06, errors in one line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

from mgkit.photos.__main__ import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(bare_project, monkeypatch):
    """A function: the command with these words; returns the parameters that 06 gets. `error`: of 06."""
    given = {}

    def execute(source, executed, *, parameters, cwd, **_):
        given.update(parameters, source=Path(source), executed=Path(executed))
        if given.get("error"):
            raise given["error"]

    def of(*words, error=None):
        given.update(error=error)
        monkeypatch.setattr(sys, "argv", ["photos", *words])
        main()
        return given

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    return of


def test_folders_are_given_one_by_one_or_in_one_text(run, bare_project, capsys):
    expected = ["/a b", str(bare_project / "notebooks" / "c"), str(Path.home() / "d")]
    assert run("/a b; c;~/d")["photos"] == run("/a b", "c", "~/d")["photos"] == expected
    given = run("/a", "--experiment", "mine")
    assert given["experiment"] == "mine" and given["source"].name == "06_search_your_photos.ipynb"
    assert given["executed"] == bare_project / "outputs/mine/notebooks/06_search_your_photos.ipynb"
    assert str(given["executed"]) in capsys.readouterr().out and given["executed"].is_absolute()


def test_folders_to_hold_them_against_are_given_too(run, bare_project):
    given = run("/a", "--against", "/b c; /d", "--against", "/e")
    assert (given["photos"], given["against"]) == (["/a"], ["/b c", "/d", "/e"])
    assert run("--against=", "--", "/a")["against"] == []


def test_a_folder_of_any_name_is_taken_as_it_is(run, bare_project, monkeypatch):
    names = ["a; b", "-x", "=1", " spaced ", "new\nline", "'\"", "🏖"]
    monkeypatch.chdir(bare_project)
    for name in names:
        (bare_project / name).mkdir()
    expected = [str(bare_project / name) for name in names]
    assert run("--", *names)["photos"] == expected
    assert run("--against=-x", "--", "a; b")["against"] == [str(bare_project / "-x")]


def test_a_folder_whose_name_no_notebook_can_hold_is_one_line(run):
    with pytest.raises(SystemExit, match=r"^ValueError: against: the name /\\xff is not UTF-8[^\n]*$"):
        run("/a", "--against", os.fsdecode(b"/\xff"))


def test_an_error_is_one_line(run):
    error = PapermillExecutionError(1, 1, "", "ValueError", "photos: /a holds no pictures", [])
    with pytest.raises(SystemExit, match="^ValueError: photos: /a holds no pictures$"):
        run("/a", error=error)
    for words in ((" ; ",), ("/a", "--experiment", "../x"), ("x\0",)):
        with pytest.raises(SystemExit, match="^ValueError: (photos|experiment)[.0]*: [^\n]+$"):
            run(*words)


def test_make_says_how_without_a_folder():
    done = subprocess.run(["make", "photos", "PHOTOS="], cwd=ROOT, capture_output=True, text=True)
    [line] = done.stderr.splitlines()
    assert done.returncode and "make photos PHOTOS=~/Pictures" in line


def test_make_passes_folders_of_any_names(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    python = tmp_path / ".venv/bin/python"
    python.write_text('#!/bin/sh\nfor word; do printf "%s|" "$word"; done\n')
    python.chmod(0o755)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    (tmp_path / ".venv/.installed").touch()
    words = ['PHOTOS=a; "b"', "AGAINST=-x 'y'"]
    make = ["make", "--no-print-directory", "photos"]  # as this make may be run by another one
    done = subprocess.run([*make, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "-m|mgkit.photos|--against=-x 'y'|--|a; \"b\"|", done.stderr
    done = subprocess.run([*make, words[0]], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == '-m|mgkit.photos|--against=|--|a; "b"|'
