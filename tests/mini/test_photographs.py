"""The set of photographs: layout, sizes, determinism, sources; whole or not at all."""

import csv
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from mgkit.benchmarks.find import find_sets
from mgkit.mini import photographs as module
from mgkit.mini.photographs import ALONE, GROUPS, Photograph, make_photographs, packaged


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_photographs(tmp_path_factory.mktemp("photographs") / "set")


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_files_are_those_of_groups_csv(root):
    listed = rows(root / "groups.csv")
    files = sorted(str(path.relative_to(root)) for path in root.rglob("*.jpg"))
    assert sorted(row["image"] for row in listed) == files
    assert 60 <= len(files) <= 100 and json.loads((root / module.RECORD).read_text())["files"] == len(files)
    for row in listed:
        folder = row["image"].partition("/")[0]
        assert row["group"] == ("" if folder == "strangers" else folder)


def test_it_is_a_retrieval_set_with_strangers(root):
    [found] = find_sets(root)
    copies = len(module.EDITS) + 1  # and the original
    queries = copies * len(GROUPS) + len(module.SECOND_VIEWS)
    assert len(found.queries) == queries and len(found.database) == queries + len(ALONE)
    assert sorted({len(positives) for positives in found.positives}) == [copies - 1, copies]


def test_files_are_small_jpegs_of_different_content(root):
    seen = set()
    for path in sorted(root.rglob("*.jpg")):
        with Image.open(path) as image:
            pixels = np.asarray(image)
            assert image.format == "JPEG" and max(image.size) <= module.SIDE
        assert path.stat().st_size < 100_000 and pixels.std() > 5
        seen.add(pixels.tobytes())
    assert len(seen) == len(rows(root / "groups.csv"))


def test_edits_are_of_their_original(root):
    def opened(name):
        with Image.open(root / "cat" / f"{name}.jpg") as image:
            return image.convert("RGB")

    original = opened("original")

    def distance(image):
        same = np.asarray(image.resize(original.size), dtype=float) - np.asarray(original, dtype=float)
        return np.abs(same).mean()

    assert distance(opened("small")) < 12
    assert distance(opened("mirrored").transpose(Image.Transpose.FLIP_LEFT_RIGHT)) < 3
    assert distance(opened("turned").transpose(Image.Transpose.ROTATE_270)) < 3
    assert distance(original.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) > 20  # these bounds say something
    width, height = original.size
    assert distance(opened("bordered").crop((width // 4, height // 4, width * 3 // 4, height * 3 // 4))) < 12
    assert np.ptp(np.asarray(opened("grey")), axis=2).max() == 0
    assert np.asarray(opened("brighter")).mean() > np.asarray(original).mean() + 20


def test_every_photograph_has_a_source_and_a_licence(root):
    listed = rows(root / "sources.csv")
    assert [row["photograph"] for row in listed] == [*GROUPS, *ALONE]
    assert all(all(row.values()) for row in listed)


def test_bytes_are_the_same_every_time(root, tmp_path):
    assert contents(make_photographs(tmp_path / "again")) == contents(root)


def test_two_callers_at_once_both_end_with_the_set(tmp_path, root):
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(make_photographs, tmp_path / "set") for _ in range(2)]
        assert [call.result() for call in calls] == [tmp_path / "set"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert contents(tmp_path / "set") == contents(root)


def test_a_complete_set_is_left_alone_and_another_folder_refused(root, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_write", None)
    assert make_photographs(root) == root
    (tmp_path / "thesis.txt").write_text("keep me")
    with pytest.raises(FileExistsError, match="without a photographs.json"):
        make_photographs(tmp_path)
    monkeypatch.setattr(module, "VERSION", 0)
    with pytest.raises(ValueError, match="version 1 instead of 0"):
        make_photographs(root)


@pytest.mark.parametrize("file", ["no_such_package/cat.jpg", "skimage/data/no_such_picture.png"])
def test_a_missing_photograph_is_named_with_the_command(file, tmp_path, monkeypatch):
    missing = Photograph("scikit-image", file, "", "")
    with pytest.raises(FileNotFoundError, match=f"^{file} .*`pip install --force-reinstall scikit-image`$"):
        packaged(missing)
    monkeypatch.setitem(ALONE, "missing", missing)
    with pytest.raises(FileNotFoundError):
        make_photographs(tmp_path / "deep" / "set")
    assert not list((tmp_path / "deep").iterdir())
