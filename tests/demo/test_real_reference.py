"""outputs/reference/real: compared only for the same data, and without any picture of a photograph."""

import base64
import io
import json

import nbformat
import numpy as np
import pytest
from PIL import Image
from real_support import DESCRIPTION, RESULTS

from mgkit.demo import real_reference, reference
from mgkit.demo.pictures import PLOTS, pictures_of, shows_plot
from mgkit.demo.real_data import describe_sets, find_real_sets, other_sets, read_description
from mgkit.demo.real_results import real_measures
from mgkit.demo.reference import Measure, read_metrics

COMMITTED = reference.folder() / reference.REAL
MEASURES = real_measures(RESULTS)


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A project with a finished run of `make real`; returns the folder of the reference."""
    monkeypatch.setattr("mgkit.demo.reference.project_root", lambda: tmp_path)
    results = tmp_path / "outputs" / "real"
    for owner in ("reference", "real_reference"):
        monkeypatch.setattr(f"mgkit.demo.{owner}.experiment_folder", lambda experiment: results)
    for name in real_reference.FIGURES:
        (results / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20)).save(results / f"{name}.png")
    (results / "notebooks").mkdir()
    photograph = nbformat.v4.new_output("display_data", data={"image/jpeg": "a photograph"})
    for name in PLOTS:
        cell = nbformat.v4.new_code_cell("display(grid)", outputs=[photograph])
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), results / "notebooks" / f"{name}.ipynb")
    (results / "data.json").write_text(json.dumps({"sets": DESCRIPTION}))
    (results / "table.txt").write_text("table\n")
    (results / "curves.json").write_text("{}\n")
    return tmp_path / "outputs" / "reference" / "real"


def changed(**values):
    return {name: each | values for name, each in DESCRIPTION.items()}


def test_a_reference_that_was_written_compares_as_equal(finished):
    assert real_reference.write_real_reference("real", MEASURES) == finished
    text = real_reference.compared(MEASURES, DESCRIPTION)
    assert (
        text
        == f"All {len(MEASURES)} measures are within their tolerances of outputs/reference/real/metrics.json."
    )
    assert sorted(path.name for path in finished.iterdir()) == [
        "curves.json", "data.json", "figures", "metrics.json", "notebooks", "table.txt",
    ]  # fmt: skip
    for name in PLOTS:
        assert "a photograph" not in (finished / "notebooks" / f"{name}.ipynb").read_text()


def test_a_difference_is_named(finished):
    real_reference.write_real_reference("real", MEASURES)
    text = real_reference.compared(MEASURES | {"p* at 224 px": Measure(2.0, 0.1)}, DESCRIPTION)
    assert text.startswith("1 of 10 measures differ from outputs/reference/real/metrics.json")
    assert "p* at 224 px" in text


@pytest.mark.parametrize(
    "description",
    [changed(sha256="c"), {"holidays": DESCRIPTION["holidays"]}, DESCRIPTION | {"ukbench": {"sha256": "u"}}],
)
def test_other_data_are_not_compared(finished, description):
    real_reference.write_real_reference("real", MEASURES)
    text = real_reference.compared(MEASURES, description)
    assert text.startswith("not compared with") and "other data" in text and "\n" not in text


def test_a_missing_or_damaged_reference_is_one_line(finished):
    text = real_reference.compared(MEASURES, DESCRIPTION)
    assert "is missing" in text and "git checkout outputs/reference/real" in text and "\n" not in text
    real_reference.write_real_reference("real", MEASURES)
    (finished / "data.json").write_text("{")
    text = real_reference.compared(MEASURES, DESCRIPTION)
    assert "data.json is damaged" in text and "\n" not in text


def test_what_was_written_by_hand_about_the_same_data_stays(finished):
    real_reference.write_real_reference("real", MEASURES)
    described = {name: each | {"about": f"about {name}"} for name, each in DESCRIPTION.items()}
    described["holidays"]["sha256"] = "of other images"
    (finished / "data.json").write_text(json.dumps({"sets": described}))
    real_reference.write_real_reference("real", MEASURES)
    found = read_description(finished / "data.json")
    assert found["imagenet/val"]["about"] == "about imagenet/val" and "about" not in found["holidays"]


def test_a_missing_figure_keeps_the_earlier_reference(finished):
    real_reference.write_real_reference("real", MEASURES)
    (finished.parents[1] / "real" / "finetune_p" / "p_star.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"p_star\.png"):
        real_reference.write_real_reference("real", {})
    assert len(read_metrics(finished / "metrics.json")) == 10
    assert [path.name for path in finished.parent.iterdir()] == ["real"]


# --- As it is in git


def images_in(notebook):
    """The pictures of a notebook with their cells. A grid of photographs would be a JPEG."""
    for cell in notebook.cells:
        for output in pictures_of(cell):
            [(kind, content)] = [pair for pair in output["data"].items() if pair[0] != "text/plain"]
            assert kind == "image/png"
            yield cell, Image.open(io.BytesIO(base64.b64decode(content)))


def share_of_white(picture):
    return (np.asarray(picture.convert("RGB")) > 245).all(axis=-1).mean()


@pytest.mark.parametrize("name", sorted(PLOTS))
def test_the_committed_notebooks_hold_no_picture_besides_the_plots(name):
    path = COMMITTED / "notebooks" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    found = list(images_in(notebook))
    assert len(found) == len(PLOTS[name])
    for cell, picture in found:
        assert shows_plot(cell, PLOTS[name])
        assert share_of_white(picture) > 0.55  # of grids of photographs: 0.25 to 0.51
    text = path.read_text(encoding="utf-8")
    assert text.count('"image/') == len(found)
    for trace in ("data:image", "<img", "attachment", "text/html", '"widgets"', reference.WIDGET):
        assert trace not in text


def test_the_committed_figures_are_plots():
    figures = {path.name: Image.open(path) for path in (COMMITTED / "figures").iterdir()}
    assert {name.rpartition(".")[0] for name in figures} == {
        n.rpartition("/")[2] for n in real_reference.FIGURES
    }
    assert all(share_of_white(picture) > 0.55 for picture in figures.values())


def test_the_committed_run_is_complete_small_and_of_no_machine():
    assert len(read_metrics(COMMITTED / "metrics.json")) > 20
    assert all(each["about"] for each in read_description(COMMITTED / "data.json").values())
    names = {path.relative_to(COMMITTED).parts[0] for path in COMMITTED.rglob("*")}
    assert names == {"curves.json", "data.json", "figures", "metrics.json", "notebooks", "table.txt"}
    files = [path for path in COMMITTED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2_000_000
    for path in files:
        if path.suffix not in (".png", ".jpg"):
            text = path.read_text(encoding="utf-8")
            assert not reference.MACHINE_PATH.search(text), path
            assert '"papermill": {' not in text, path


def test_the_committed_numbers_are_those_of_the_curves():
    curves = json.loads((COMMITTED / "curves.json").read_text(encoding="utf-8"))
    measures = read_metrics(COMMITTED / "metrics.json")
    searched = curves["accuracy_against_p"]
    for size, p in zip(searched["sizes"], searched["p_star"], strict=True):
        assert measures[f"p* at {size} px"].value == pytest.approx(p, rel=1e-3)
    low, high = np.moveaxis(np.array(searched["intervals"]), -1, 0)
    assert (low <= searched["top1"]).all() and (high >= searched["top1"]).all()


def test_the_committed_data_are_found_again(real):
    described = describe_sets(find_real_sets(str(real)))
    assert other_sets(read_description(COMMITTED / "data.json"), described) == []
