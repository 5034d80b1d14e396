"""The run that is in git: complete, of no machine; a difference beyond a tolerance is named, a smaller one is not."""

import json

import nbformat
import pytest
from PIL import Image

from mgkit import reference
from mgkit.demo import NOTEBOOKS
from mgkit.reference import Measure, compare, compare_with_reference, measures, read_metrics, report

BEFORE = {"top-1": Measure(0.60, 0.10), "pictures": Measure(40, 0.0)}
COMMITTED = reference.folder()


@pytest.mark.parametrize(
    ("now", "outside"),
    [
        ({"top-1": 0.60, "pictures": 40}, []),
        ({"top-1": 0.70, "pictures": 40}, []),
        ({"top-1": 0.50, "pictures": 40}, []),
        ({"top-1": 0.71, "pictures": 40}, ["top-1"]),
        ({"top-1": 0.49, "pictures": 41}, ["top-1", "pictures"]),
        ({"top-1": 0.60}, ["pictures"]),
        ({"top-1": 0.60, "pictures": 40, "new": 1}, ["new"]),
        ({"top-1": float("nan"), "pictures": 40}, ["top-1"]),
    ],
)
def test_what_lies_outside_its_tolerance_is_named(now, outside):
    compared = compare(BEFORE, {name: Measure(value, 9.0) for name, value in now.items()})
    assert [each.name for each in compared if not each.within] == outside
    text = report(compared)
    if outside:
        assert text.startswith(f"{len(outside)} of {len(compared)} measures differ")
        assert [line.split()[0] for line in text.splitlines()[2:]] == outside
    else:
        assert text == "All 2 measures are within their tolerances of outputs/reference/metrics.json."


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A project without a reference."""
    monkeypatch.setattr("mgkit.reference.project_root", lambda: tmp_path)
    return tmp_path / "outputs" / "reference"


def test_a_missing_reference_is_one_line(elsewhere):
    text = compare_with_reference(BEFORE)
    assert "metrics.json is missing" in text and "\n" not in text


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"measures": {"a": 1}}', '{"measures": {"a": {"x": 1}}}']
)
def test_a_damaged_reference_is_one_line(elsewhere, content):
    elsewhere.mkdir(parents=True)
    (elsewhere / "metrics.json").write_text(content)
    text = compare_with_reference(BEFORE)
    assert "metrics.json is no metrics.json of a reference run" in text and "\n" not in text


def test_a_run_is_compared_with_the_file(elsewhere):
    elsewhere.mkdir(parents=True)
    stored = {"measures": {name: vars(measure) for name, measure in BEFORE.items()}}
    (elsewhere / "metrics.json").write_text(json.dumps(stored))
    assert compare_with_reference(BEFORE).startswith("All 2 measures")
    assert compare_with_reference(BEFORE | {"top-1": Measure(0.9, 0.1)}).startswith("1 of 2 measures differ")


def test_an_executed_notebook_loses_what_says_where_it_ran(elsewhere):
    project = elsewhere.parents[1]
    cell = nbformat.v4.new_code_cell("1", metadata={"papermill": {"start_time": "t"}, "tags": ["x"]})
    text = f"results go to {project}/outputs/mini; {project}"
    cell.outputs = [nbformat.v4.new_output("stream", text=text)]
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"papermill": {"input_path": f"{project}/a"}})
    found = nbformat.reads(reference.without_machine(notebook), as_version=4)
    assert found.cells[0].outputs[0].text == "results go to outputs/mini; ."
    assert "papermill" not in found.metadata and found.cells[0].metadata == {"tags": ["x"]}
    cell.outputs = [nbformat.v4.new_output("stream", text="read /home/someone/pictures")]
    with pytest.raises(ValueError, match="holds a path of this machine: '/home/someone"):
        reference.without_machine(notebook)


def test_pictures_stand_side_by_side_at_one_height():
    row = reference.side_by_side([Image.new("RGB", (100, 240), "red"), Image.new("RGB", (960, 960), "blue")])
    assert row.size == (200 + 480, 480)
    assert row.getpixel((10, 10)) == (255, 0, 0) and row.getpixel((210, 470)) == (0, 0, 255)


def test_what_a_demo_measures_has_tolerances_by_what_it_depends_on(tmp_path, monkeypatch):
    results = {
        "finetune_p": {"sizes": [96], "p_star": [3.2], "top1_at_p_star": [0.5]},
        "evaluate_retrieval": {
            "rows": [{"set": "ukbench", "descriptor": "GeM", "measure": "score", "value": 3.0}]
        },
        "whiten": {"top1_before": 0.5, "top1_after": 0.5, "images": 40},
        "search_photos": {"pictures": 7, "readable": 6, "left_out": 1},
    }
    monkeypatch.setattr("mgkit.reference.read_results", lambda experiment, stage: results[stage])
    found = measures("e", {"joint": [{"top-1": 0.6, "ukbench": 3.1}], "untrained": [{"top-1": 0.1}]})
    assert found["joint, seed 0: top-1"] == Measure(0.6, reference.TRAINED)
    assert found["joint, seed 0: ukbench"] == Measure(3.1, reference.TRAINED_SCORE)
    assert found["untrained, seed 0: top-1"] == Measure(0.1, reference.UNTRAINED)
    assert found["ukbench, GeM"] == Measure(3.0, reference.TRAINED_SCORE)
    assert found["top-1 lost by folding"] == Measure(0.0, 0.0) and found["06: readable"] == Measure(6, 0.0)
    assert len(found) == 11


# --- As it is in git


def test_the_committed_run_is_complete():
    assert len(read_metrics(COMMITTED / "metrics.json")) > 30
    assert "holds?" in (COMMITTED / "claims.txt").read_text(encoding="utf-8")
    assert sorted(path.stem for path in (COMMITTED / "notebooks").iterdir()) == sorted(NOTEBOOKS)
    figures = {name.rpartition("/")[2] for name in reference.FIGURES}
    assert {path.stem for path in (COMMITTED / "figures").iterdir()} == figures
    assert Image.open(COMMITTED / "overview.png").height == reference.OVERVIEW_HEIGHT


def test_the_committed_files_are_small_and_of_no_machine():
    files = [path for path in COMMITTED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 4_000_000
    for path in files:
        assert path.stat().st_size < (300_000 if path.suffix in (".ipynb", ".png") else 30_000), path
        if path.suffix != ".png":
            assert not reference.OF_A_MACHINE.search(path.read_text(encoding="utf-8")), path
