"""The reference run of 07: what is in git is gone on with, and a run that shows the machine is refused."""

import json

import nbformat
import pytest
from PIL import Image

from mgkit.config import ClaimsConfig, make
from mgkit.demo import claims_reference as module
from mgkit.demo.claims_reference import take_measured, write_claims_reference

CONFIG = make(ClaimsConfig, {"experiment": "claims"})


@pytest.fixture
def reference(here, monkeypatch):
    folder = here / "outputs" / "reference"
    monkeypatch.setattr(module, "folder", lambda: folder)
    (folder / "claims" / "measured").mkdir(parents=True)
    (folder / "claims" / "measured" / "a.json").write_text("old")
    return folder / "claims"


@pytest.fixture
def finished(here, monkeypatch):
    """The files that a run of 07 leaves; a function that writes the notebook with a line of output."""
    results = here / "outputs" / "claims" / "claims"
    results.mkdir(parents=True)
    monkeypatch.setattr(module, "run_folder", lambda config: results)
    (results / "claims.txt").write_text("a claim holds")
    Image.new("RGB", (30, 20)).save(results / "curves.png")
    (results.parent / "measured").mkdir()
    (results.parent / "measured" / "b.json").write_text(json.dumps({"values": 1}))

    def notebook(text):
        cell = nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output("stream", text=text)])
        path = here / "07_claims.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
        return path

    return notebook


def test_a_run_goes_on_from_what_is_in_git_and_keeps_its_own(reference, here):
    own = here / "outputs" / "t" / "measured"
    assert take_measured("t") == 1 and (own / "a.json").read_text() == "old"
    (own / "a.json").write_text("own")
    assert take_measured("t") == 0 and (own / "a.json").read_text() == "own"


def test_a_run_replaces_the_reference(reference, finished):
    assert write_claims_reference(CONFIG, finished("x")) == reference
    found = sorted(str(path.relative_to(reference)) for path in reference.rglob("*") if path.is_file())
    assert found == ["claims.txt", "figures/curves.png", "measured/b.json", "notebooks/07_claims.ipynb"]


def test_a_path_of_the_machine_is_refused_and_the_reference_kept(reference, finished):
    with pytest.raises(ValueError, match="a path of this machine"):
        write_claims_reference(CONFIG, finished("read /home/someone/photos"))
    assert (reference / "measured" / "a.json").read_text() == "old"
