"""A notebook is executed with its output shown as it comes; an error is one line."""

import os

import nbformat
import papermill
import pytest
import torch
from support import one_line_error

from mgkit.demo.execute import NotebookFailedError, environment, execute, in_kernel


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with a notebook of one parameter that fails for a negative one."""
    for name in ("notebooks", "mgkit"):
        (tmp_path / name).mkdir()
    cells = [
        nbformat.v4.new_code_cell("number: int = 1", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(
            "import time\nfor k in range(3):\n    print('number', number, flush=True)\n    time.sleep(0.3)\n"
            "assert number > 0, 'number: above 0 is wanted'"
        ),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "notebooks" / "n.ipynb")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_output_is_shown_and_the_copy_kept(project, capsys):
    copy = execute("n", project / "outputs", {"number": 3})
    printed = capsys.readouterr().out.splitlines()
    assert printed[:4] == ["--- n", *["number 3"] * 3] and printed[-1].startswith("n: ")
    assert copy == project / "outputs" / "n.ipynb"
    *_, loop = nbformat.read(copy, as_version=4).cells
    assert [output.text for output in loop.outputs] == ["number 3\n" * 3]  # one block, without gaps


def test_an_error_of_a_cell_is_one_line_with_the_copy(project, capsys):
    with one_line_error(NotebookFailedError, "n: AssertionError: number: above 0 is wanted", "n.ipynb"):
        execute("n", project / "outputs", {"number": -1})
    assert "number -1" in capsys.readouterr().out


def test_variables_are_set_within_the_block_only(monkeypatch):
    monkeypatch.setenv("MGKIT_ONE", "before")
    monkeypatch.delenv("MGKIT_OTHER", raising=False)
    with pytest.raises(OSError), environment(MGKIT_ONE="1", MGKIT_OTHER="2"):
        assert (os.environ["MGKIT_ONE"], os.environ["MGKIT_OTHER"]) == ("1", "2")
        raise OSError
    assert os.environ["MGKIT_ONE"] == "before" and "MGKIT_OTHER" not in os.environ


@pytest.mark.parametrize(
    ("gpu", "own", "wanted"), [(False, None, "0"), (False, "5", "5"), (True, None, None)]
)
def test_kernels_on_cpus_keep_freed_memory(monkeypatch, tmp_path, gpu, own, wanted):
    """Unless the environment says otherwise."""
    monkeypatch.delenv("MALLOC_MMAP_MAX_", raising=False)
    if own:
        monkeypatch.setenv("MALLOC_MMAP_MAX_", own)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    found = []
    monkeypatch.setattr(
        papermill, "execute_notebook", lambda *_, **__: found.append(os.environ.get("MALLOC_MMAP_MAX_"))
    )
    in_kernel("n", tmp_path / "n.ipynb", {})
    assert found == [wanted] and os.environ.get("MALLOC_MMAP_MAX_") == own
