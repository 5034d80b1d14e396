"""06 on descriptors that are given: copies by a given threshold, no network, no classes."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from support import one_line_error, write_picture

from mgkit.config import PhotosConfig, make
from mgkit.photos.report.page import save_report
from mgkit.photos.search import describe_with, embed_photos, search_photos
from mgkit.photos.task import photo_task

NAMES = [f"{k}.png" for k in range(8)]


@pytest.fixture
def album(here):
    """Eight pictures, and a folder of descriptors in which the first two are alike, and two others."""
    for seed, name in enumerate(NAMES):
        write_picture(here / "album" / name, seed=seed)
    rows = np.eye(8, 10, dtype=np.float32)
    rows[1, 0], rows[5, 4] = 5.0, 10.0
    write_descriptors(here / "given", rows, NAMES)
    return here / "album"


def write_descriptors(folder, rows, names):
    folder.mkdir(exist_ok=True)
    np.save(folder / "descriptors.npy", rows)
    (folder / "images.csv").write_text("path\n" + "\n".join(names) + "\n")


def searched(album, **values):
    shared = {"photos": [str(album)], "descriptors": "given", "threshold": 0.9, "workers": 0}
    task = photo_task(make(PhotosConfig, shared | values))
    embed_photos(task)
    return search_photos(task)


def test_copies_are_found_by_the_given_rows_and_threshold(album, here):
    found = searched(album)
    assert [group.members for group in found.groups] == [(4, 5), (0, 1)]
    assert found.groups[0].similarities[0] == pytest.approx(10 / np.sqrt(101), abs=1e-4)
    assert found.threshold.value == 0.9 and "as given" in found.threshold.describe()
    assert found.collection().answers(0, 1).neighbours == [1]
    stage = here / "outputs/mini/search_photos"
    results = json.loads((stage / "results.json").read_text())
    assert (results["pictures"], results["groups"], results["descriptors"]) == (8, 2, ["given"])
    with open(stage / "near_duplicates.csv", newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    assert paths == [str(album / f"{i}.png") for i in (4, 5, 0, 1)]


def test_there_is_no_network_and_no_class(album, capsys):
    found = searched(album)
    assert found.class_names == () and found.classes(0) == [] and "no classes are shown" in found.fit
    assert describe_with(found) is None and "no picture can be uploaded" in capsys.readouterr().out
    assert "descriptors of given are given" in found.task.describe()
    report = save_report(found).read_text(encoding="utf-8")
    assert "given, which made the given descriptors" in report and "No classes" not in report


def test_pictures_without_a_row_are_left_out_or_an_error(album, here):
    write_descriptors(here / "given", np.eye(7, 10, dtype=np.float32), NAMES[:-1])
    found = searched(album)
    assert len(found.readable) == 7
    assert {Path(path).name: why for path, why in found.left_out.items()} == {"7.png": "it has no descriptor"}
    with one_line_error(ValueError, "1 of 8 images have no row", "7.png"):
        searched(album, on_unreadable="raise")
    write_descriptors(here / "given", np.eye(7, 10, dtype=np.float32), [f"other/{n}" for n in NAMES[:-1]])
    with one_line_error(ValueError, "8 of 8 images have no row"):
        searched(album)


def test_an_index_searches_them_too(album, here):
    assert searched(album, index="HNSW8").groups
    with one_line_error(ValueError, "'PQ3'", "10 dimensions"):
        searched(album, index="PQ3")


@pytest.mark.parametrize(
    ("values", "culprit"),
    [
        ({"threshold": None}, "threshold"),
        ({"whitening": "photos"}, "whitening"),
        ({"whitening": "network"}, "whitening"),
        ({"checkpoint": "net.pth"}, "leave checkpoint out"),
    ],
)
def test_what_needs_a_network_is_refused(album, values, culprit):
    with one_line_error(ValueError, "descriptors", culprit):
        searched(album, **values)


def test_a_folder_of_none_is_named(album):
    with one_line_error(FileNotFoundError, "descriptors", "elsewhere"):
        searched(album, descriptors="elsewhere")
