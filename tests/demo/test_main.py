"""`make demo`: the notebooks in their order, with parameters that they know."""

import multiprocessing
import os
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from functools import partial
from pathlib import Path

import nbformat
import papermill
import pytest
from notebook_support import CONFIGS
from papermill.exceptions import PapermillExecutionError

from mgkit.config import make
from mgkit.demo import __main__ as demo
from mgkit.demo.execute import NotebookFailedError
from mgkit.machine.timing import TIMES, note


class Here(Executor):
    """Does the work in this process, when it is submitted."""

    def __init__(self, _):
        pass

    def submit(self, work, *arguments):
        done = Future()
        done.set_result(work(*arguments))
        return done


def test_the_notebooks_run_after_those_they_need_with_parameters_that_they_know(here, monkeypatch, capsys):
    ran = {}

    def execute(notebook, copy, *, parameters, **_):
        ran[notebook.stem] = make(CONFIGS[notebook.stem], parameters)
        assert copy.parts[-4:-1] == ("outputs", "e", "notebooks") and copy.parent.is_dir()
        nbformat.write(nbformat.v4.new_notebook(), copy)

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    monkeypatch.setattr(demo, "ProcessPoolExecutor", Here)
    taken = demo.run_notebooks("e", "mini")
    assert sorted(ran) == list(CONFIGS) == list(taken) == list(demo.NOTEBOOKS)
    order = list(ran)
    assert all(order.index(needed) < order.index(name) for name in ran for needed in demo.NEEDS[name])
    assert all((config.experiment, config.data) == ("e", "mini") for config in ran.values())
    assert ran["06_search_your_photos"].photos == ["data/photographs"]
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == order


def stand_in(monkeypatch, work):
    """Call `work` with a notebook's name for executing it, in processes that are forked from here."""

    def execute(notebook, copy, **_):
        work(notebook.stem)
        nbformat.write(nbformat.v4.new_notebook(), copy)

    forked = partial(ProcessPoolExecutor, mp_context=multiprocessing.get_context("fork"))
    monkeypatch.setattr(demo, "ProcessPoolExecutor", forked)
    monkeypatch.setattr(papermill, "execute_notebook", execute)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the stand-in is handed on by a fork")
def test_two_notebooks_run_at_a_time_each_with_its_own_times(here, monkeypatch):
    """07 does not wait for 01; what two processes note at once is not mixed up."""
    (here / "ran").mkdir()

    def work(name):
        folder = here / "ran"
        if name in ("01_train", "07_claims"):
            (folder / f"{name} began").touch()
            begun = time.monotonic()
            while len(list(folder.glob("* began"))) < 2:  # each waits for the other
                assert time.monotonic() < begun + 60, "the notebooks ran one after another"
                time.sleep(0.01)
        note(Path(os.environ[TIMES]), "passes", float(name[:2]))

    stand_in(monkeypatch, work)
    taken = demo.run_notebooks("e", "mini")
    assert [of_one["passes"] for of_one in taken.values()] == [0, 1, 2, 3, 4, 5, 6, 7]


def test_the_dataset_is_drawn_before_any_notebook_runs(here, monkeypatch):
    done = []

    def fail(*_):
        done.append("notebooks")
        raise NotebookFailedError("seen")

    monkeypatch.setattr(demo, "data_root", done.append)
    monkeypatch.setattr(demo, "run_notebooks", fail)
    monkeypatch.setattr("sys.argv", ["demo", "--experiment", "e"])
    with pytest.raises(SystemExit, match="^seen$"):
        demo.main()
    assert done == ["mini", "notebooks"]
    assert not demo.NEEDS["00_start_here"] and not demo.NEEDS["01_train"]  # so both start then


def test_a_foreign_folder_in_the_place_of_the_dataset_is_named_before_any_notebook_runs(here, monkeypatch):
    (here / "data" / "mini").mkdir(parents=True)
    (here / "data" / "mini" / "thesis.txt").write_text("keep me")
    monkeypatch.setattr(demo, "run_notebooks", None)
    monkeypatch.setattr("sys.argv", ["demo", "--experiment", "e"])
    with pytest.raises(SystemExit, match="^--data mini: .*mini exists without a mini.json"):
        demo.main()
    assert (here / "data" / "mini" / "thesis.txt").read_text() == "keep me"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the stand-in is handed on by a fork")
def test_an_error_of_a_notebook_ends_the_others_at_once(here, monkeypatch, capfd):
    def work(name):
        (here / f"{name} began").touch()
        if name == "07_claims":
            while not (here / "01_train began").exists():
                time.sleep(0.01)
            raise PapermillExecutionError(1, 1, "", "ValueError", "arms: none", [])
        time.sleep(0 if name == demo.NOTEBOOKS[0] else 60)

    stand_in(monkeypatch, work)
    monkeypatch.setattr(demo, "data_root", lambda data: None)
    monkeypatch.setattr("sys.argv", ["demo", "--experiment", "e"])
    begun = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        demo.main()
    assert str(ended.value).startswith("07_claims: ValueError: arms: none (executed as far as ")
    assert time.monotonic() < begun + 30
    assert len(list(here.glob("* began"))) == 3  # 00, 01 and 07: nothing is begun after the error
    with pytest.raises(NotebookFailedError):
        demo.run_notebooks("e", "mini")
