"""The committed reference run: complete, independent of the machine, compared within tolerances."""

import json

import nbformat
import numpy as np
import pytest
from claims_outcomes import noisy_outcome
from PIL import Image

from mgkit.demo import reference
from mgkit.demo.__main__ import NOTEBOOKS
from mgkit.demo.reference import Measure, compare, compare_with_reference, measures, read_metrics, report

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
    monkeypatch.setattr("mgkit.demo.reference.project_root", lambda: tmp_path)
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
    assert "metrics.json is damaged" in text and "\n" not in text


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


@pytest.mark.parametrize(
    "text", ["read /home/someone/pictures", "it is\n/tmp/x/y", "'/Users/a'", 'file:///usr/lib/x.py", line 3']
)
def test_another_path_of_the_machine_is_refused(elsewhere, text):
    notebook = nbformat.v4.new_notebook(cells=[printed(text)])
    with pytest.raises(
        ValueError, match="holds a path of this machine: '.?/(home/someone|tmp/x|Users/a|usr/lib)"
    ):
        reference.without_machine(notebook)


@pytest.mark.parametrize(
    "text", ["outputs/mini/train", "../home/x", "and/or", "1/2", "https://a.org/tmp/x", "`/opt`"]
)
def test_what_is_no_path_of_the_machine_stays(elsewhere, text):
    notebook = nbformat.v4.new_notebook(cells=[printed(text)])
    found = nbformat.reads(reference.without_machine(notebook), as_version=4)
    assert found.cells[0].outputs[0].text == text


def printed(text):
    return nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output("stream", text=text)])


def test_of_a_widget_its_text_stays(elsewhere):
    data = {reference.WIDGET: {"model_id": "a"}, "text/plain": "live in a running notebook"}
    shown = nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output("display_data", data=data)])
    cells = [nbformat.v4.new_markdown_cell("text"), shown]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"widgets": {"state": {}}})
    found = nbformat.reads(reference.without_machine(notebook), as_version=4)
    assert found.cells[1].outputs[0].data == {"text/plain": "live in a running notebook"}
    assert "widgets" not in found.metadata


def test_curves_are_kept_as_png_and_photographs_as_jpeg(tmp_path):
    random = np.random.default_rng(0)
    photograph = Image.fromarray(random.integers(0, 255, (300, 300, 3), np.uint8))
    assert reference.save_small(photograph, tmp_path / "photograph").suffix == ".jpg"
    assert reference.save_small(Image.new("RGBA", (300, 300), "red"), tmp_path / "curve").suffix == ".png"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.png", "photograph.jpg"]


@pytest.fixture
def finished(elsewhere):
    """The files that a run of the demo leaves of an experiment e; returns the folder of its stages."""
    stages = elsewhere.parent / "e"
    for name in reference.FIGURES:
        path = stages / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20)).save(path)
    (stages / "claims.txt").write_text("claim holds?")
    (stages / "notebooks").mkdir()
    write_notebook(stages, f"{elsewhere.parents[1]}/outputs/e")
    return stages


def write_notebook(stages, text):
    nbformat.write(nbformat.v4.new_notebook(cells=[printed(text)]), stages / "notebooks" / "00_x.ipynb")


def test_a_reference_that_was_written_compares_as_equal(finished, elsewhere, monkeypatch):
    monkeypatch.setattr("mgkit.demo.reference.experiment_folder", lambda experiment: finished)
    assert reference.write_reference("e", BEFORE) == elsewhere
    assert compare_with_reference(BEFORE).startswith("All 2 measures")
    made = json.loads((elsewhere / "metrics.json").read_text())["made"]
    assert made["packages"]["torch"] and made["machine"] and made["revision"]
    write_notebook(finished, "read /home/someone")
    with pytest.raises(ValueError, match="/home/someone"):
        reference.write_reference("e", {"top-1": Measure(0.1, 0.1)})
    assert compare_with_reference(BEFORE).startswith("All 2 measures")  # the earlier one is whole
    assert [path.name for path in elsewhere.parent.iterdir() if path.name.startswith(".")] == []


def test_what_a_demo_measures_has_tolerances_by_what_it_depends_on(tmp_path, monkeypatch):
    results = {
        "finetune_p": {"sizes": [96], "p_star": [3.2], "top1_at_p_star": [0.5]},
        "evaluate_retrieval": {
            "rows": [
                {"set": "ukbench", "descriptor": "GeM", "measure": "score", "value": 3.0},
                {"set": "copydays + 300 distractors", "descriptor": "GeM", "measure": "mAP", "value": 0.4},
                {"set": "copydays crops 80", "descriptor": "GeM", "measure": "mAP", "value": 0.1},
            ]
        },
        "whiten": {"same_class": 1.0, "images": 40, "val_images": 20},
        "search_photos": {
            "pictures": 7,
            "readable": 6,
            "left_out": 1,
            "groups": 2,
            "same_file": {"copies_found": {"brighter": 0.9}},
        },
    }
    monkeypatch.setattr("mgkit.demo.reference.latest_results", lambda config: results[config.stage])
    tried = noisy_outcome(["plain", "joint"])
    found = measures("e", tried)
    for one in tried.trained:
        for name, values in one.measured.arrays().items():
            expected = Measure(values.mean(), reference.TRAINED[name])
            assert found[f"07, {one.training.name}: {name}"] == expected
    assert found["ukbench, GeM"] == Measure(3.0, reference.TRAINED["ukbench"])
    assert found["copydays + 300 distractors, GeM"] == Measure(0.4, reference.TRAINED["copydays"])
    assert found["images whose class folding keeps, share"] == Measure(1.0, 0.0)
    assert found["06: readable"] == Measure(6, 0.0) and found["validation images"] == Measure(20, 0.0)
    assert found["06: copies found, brighter"] == Measure(0.9, reference.PUBLISHED["copies found"])
    assert len(found) == 12 + 4 * len(tried.trained)


# --- As it is in git


def test_the_committed_run_is_complete():
    assert len(read_metrics(COMMITTED / "metrics.json")) > 30
    text = (COMMITTED / "claims.txt").read_text(encoding="utf-8")
    assert "repeated augmentation at λ=1" in text and "the margin loss at N=3" in text
    assert sorted(path.stem for path in (COMMITTED / "notebooks").iterdir()) == sorted(NOTEBOOKS)
    figures = {name.rpartition("/")[2] for name in reference.FIGURES}
    assert {path.stem for path in (COMMITTED / "figures").iterdir()} == figures


def test_the_committed_files_are_small_and_of_no_machine():
    most = {".ipynb": 300_000, ".png": 130_000, ".jpg": 200_000, ".json": 50_000, ".txt": 30_000}
    files = [path for path in COMMITTED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 4_000_000  # 1 MB of it of 07: a value for each query
    for path in files:
        assert path.stat().st_size < most[path.suffix], path
        if path.suffix not in (".png", ".jpg"):
            text = path.read_text(encoding="utf-8")
            assert not reference.MACHINE_PATH.search(text), path
            assert reference.WIDGET not in text and '"papermill": {' not in text, path


def test_the_reference_of_the_real_run_stays(finished, elsewhere, monkeypatch):
    monkeypatch.setattr("mgkit.demo.reference.experiment_folder", lambda experiment: finished)
    (elsewhere / reference.REAL).mkdir(parents=True)
    (elsewhere / reference.REAL / "metrics.json").write_text("{}")
    (elsewhere / "stale.txt").touch()
    reference.write_reference("e", BEFORE)
    assert (elsewhere / reference.REAL / "metrics.json").read_text() == "{}"
    assert not (elsewhere / "stale.txt").exists()
