"""Folders of descriptors that others made: what is read of them, and what is refused in one line."""

import csv
import json
import pickle
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
from support import one_line_error, write_tree

from mgkit.data.layouts import plain_images
from mgkit.retrieval import descriptor_files as module
from mgkit.retrieval.descriptor_files import (
    descriptors_at,
    descriptors_of,
    find_rows,
    lacking,
    read_descriptors,
    relative_names,
)
from mgkit.retrieval.protocols import retrieve

NAMES = ["a/1.png", "a/2.png", "b/4.png", "b/5 €.png", "b/=3.png"]
DIM = 6


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(len(NAMES), DIM)).astype(np.float32)


@pytest.fixture
def images(tmp_path):
    return plain_images(write_tree(tmp_path / "data", *NAMES))


def write(folder, rows, names=NAMES, *, header=("path",), manifest=None, **extra):
    """A folder as another program writes it; extra: further columns."""
    folder.mkdir(exist_ok=True)
    np.save(folder / "descriptors.npy", rows)
    with open(folder / "images.csv", "w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow([*header, *extra])
        lines.writerows(zip(names, *extra.values(), strict=True))
    if manifest is not None:
        (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def flat_index(path, rows, kind=faiss.IndexFlatIP):
    index = kind(rows.shape[1])
    index.add(np.ascontiguousarray(rows, np.float32))
    faiss.write_index(index, str(path))


def unit(rows):
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# --- What is read


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_rows_are_found_by_path_and_normalised(tmp_path, images, rows, dtype, capsys):
    order = [3, 0, 4, 1, 2]
    folder = write(tmp_path / "given", rows[order].astype(dtype), [NAMES[i] for i in order])
    found = descriptors_of([str(folder)], images, tmp_path / "data")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, unit(rows.astype(dtype)), atol=1e-5)
    assert "are L2-normalised" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_of_rows_that_are_normalised_nothing_is_said(tmp_path, images, rows, dtype, capsys):
    folder = write(tmp_path / "given", unit(rows).astype(dtype))
    descriptors_of([str(folder)], images, tmp_path / "data")
    assert capsys.readouterr().out == ""


def test_paths_may_be_absolute_links_or_unusual_ways(tmp_path, images, rows):
    (tmp_path / "link").symlink_to(tmp_path / "data")
    absolute = [str(tmp_path / "data/a/1.png"), str(tmp_path / "link/a/2.png")]
    ways = [*absolute, "a/../b/4.png", "b/5 €.png", "./b/=3.png"]
    folder = write(tmp_path / "given", rows, ways)
    np.testing.assert_allclose(
        descriptors_of([str(folder)], images, tmp_path / "data"), unit(rows), atol=1e-5
    )


def test_two_folders_are_one_after_the_other(tmp_path, images, rows):
    first = write(tmp_path / "queries", rows[:2], NAMES[:2], manifest={"network": "n", "size": 96})
    second = write(tmp_path / "gallery", rows[2:], NAMES[2:], manifest={"network": "n"})
    folders = read_descriptors([str(second), str(first)])
    at = find_rows(folders, images, tmp_path / "data")
    assert at.tolist() == [3, 4, 0, 1, 2]
    np.testing.assert_allclose(descriptors_at(folders, at), unit(rows), atol=1e-5)


def test_a_name_in_both_folders_is_told_by_the_root_of_its_manifest(tmp_path, images, rows):
    """A query and an image of the gallery may have one name, each below a folder of its own."""
    asked = plain_images(write_tree(tmp_path / "asked", NAMES[0]))
    roots = {"asked": (rows[4:], NAMES[:1]), "data": (rows[:4], NAMES[:4])}
    folders = [
        str(write(tmp_path / f"of {name}", *content, manifest={"root": str(tmp_path / name)}))
        for name, content in roots.items()
    ]
    both = replace(images.subset(range(4)), paths=(*images.paths[:4], *asked.paths))
    found = descriptors_of(folders, both, tmp_path / "data")
    np.testing.assert_allclose(found, unit(rows), atol=1e-5)
    for folder in folders:
        (Path(folder) / "manifest.json").unlink()
    with one_line_error(ValueError, "a/1.png is in several folders", "absolute paths"):
        descriptors_of(folders, both, tmp_path / "data")


def test_images_without_a_row_are_counted_and_nan(tmp_path, images, rows):
    folders = read_descriptors([str(write(tmp_path / "given", rows[:3], NAMES[:3]))])
    at = find_rows(folders, images, tmp_path / "data")
    assert at.tolist() == [0, 1, 2, -1, -1] and "2 of 5 images" in lacking(images, at)
    assert np.isnan(descriptors_at(folders, at)).all(1).tolist() == [False] * 3 + [True] * 2
    with one_line_error(ValueError, "2 of 5 images have no row in images.csv", "5 €.png"):
        descriptors_of([str(tmp_path / "given")], images, tmp_path / "data")


def test_blocks_do_not_change_the_rows(tmp_path, images, rows, monkeypatch):
    folder = write(tmp_path / "given", rows)
    whole = descriptors_of([str(folder)], images, tmp_path / "data")
    monkeypatch.setattr(module, "ROWS", 2)
    np.testing.assert_array_equal(descriptors_of([str(folder)], images, tmp_path / "data"), whole)


def test_the_name_is_the_network_s_or_the_folder_s(tmp_path, rows):
    for manifest, name in (({"network": "vit"}, "vit"), ({"network": 3}, "given"), (None, "given")):
        [read] = read_descriptors([str(write(tmp_path / "given", rows, manifest=manifest))])
        assert read.name == name
        (tmp_path / "given/manifest.json").unlink(missing_ok=True)


@pytest.mark.parametrize("kind", [faiss.IndexFlatIP, faiss.IndexFlatL2])
def test_the_index_of_the_rows_passes(tmp_path, rows, kind):
    folder = write(tmp_path / "given", rows.astype(np.float16))
    flat_index(folder / "index.faiss", unit(rows), kind)
    read_descriptors([str(folder)])


def test_names_are_relative_to_a_folder_a_csv_or_absolute(tmp_path, images):
    (tmp_path / "data/groups.csv").touch()
    assert relative_names(images, tmp_path / "data") == NAMES
    assert relative_names(images, tmp_path / "data/groups.csv") == NAMES
    assert relative_names(images, tmp_path / "data/a")[:3] == ["1.png", "2.png", images.paths[2]]


# --- What is refused


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("it was unpickled",))


def test_an_array_of_objects_is_not_unpickled(tmp_path, rows):
    folder = write(tmp_path / "given", rows)
    np.save(folder / "descriptors.npy", np.array([[Evil()]] * len(NAMES)), allow_pickle=True)
    with one_line_error(ValueError, folder / "descriptors.npy", "no array of numbers"):
        read_descriptors([str(folder)])
    (folder / "descriptors.npy").write_bytes(pickle.dumps(Evil()))
    with one_line_error(ValueError, folder / "descriptors.npy", "no array of numbers"):
        read_descriptors([str(folder)])


@pytest.mark.parametrize(
    ("array", "culprits"),
    [
        (np.ones((5, 2), np.int64), ["float32 or float16", "int64"]),
        (np.ones((5, 2), complex), ["float32 or float16", "complex128"]),
        (np.ones((5, 2), [("x", "f4")]), ["float32 or float16"]),
        (np.ones(5, np.float32), ["[N,D]", "(5,)"]),
        (np.ones((5, 2, 2), np.float32), ["[N,D]", "(5, 2, 2)"]),
        (np.ones((0, 2), np.float32), []),
        (np.ones((5, 0), np.float32), []),
        (np.ones((4, 2), np.float32), ["4 rows", "lists 5 images"]),
        (np.where(np.eye(5, 6) * [0, 0, 0, 1, 0, 0] > 0, np.nan, 1.0), ["not finite", "first is 3"]),
        (np.full((5, 2), np.inf, np.float16), ["not finite", "first is 0"]),
        (np.full((5, 2), 1e200), ["not finite", "first is 0"]),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_what_are_no_descriptors_is_named(tmp_path, rows, array, culprits):
    folder = write(tmp_path / "given", rows)
    np.save(folder / "descriptors.npy", array)
    with one_line_error(ValueError, folder, "descriptors.npy", *culprits):
        read_descriptors([str(folder)])


HUGE = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"text",
        HUGE.replace(b"%s", b"4000000000000, 9").ljust(127) + b"\n",
        HUGE.replace(b"%s", b"2" + b"0" * 40 + b", 9").ljust(127) + b"\n",
        HUGE.replace(b"%s", b"-5, -6").ljust(127) + b"\n" + bytes(120),
        HUGE.replace(b"%s", b"'a', 6").ljust(127) + b"\n" + bytes(120),
    ],
)
def test_a_damaged_array_is_named(tmp_path, rows, content):
    folder = write(tmp_path / "given", rows)
    (folder / "descriptors.npy").write_bytes(content)
    with one_line_error(ValueError, folder / "descriptors.npy"):
        read_descriptors([str(folder)])


def test_a_cut_array_is_named(tmp_path, rows):
    folder = write(tmp_path / "given", rows)
    content = (folder / "descriptors.npy").read_bytes()
    for length in (len(content) - 1, 130, 60):
        (folder / "descriptors.npy").write_bytes(content[:length])
        with one_line_error(ValueError, folder / "descriptors.npy", "cut off"):
            read_descriptors([str(folder)])


@pytest.mark.parametrize(
    ("text", "culprits"),
    [
        ("", ["empty"]),
        ("row,file\n0,a/1.png\n", ["column path", "row,file"]),
        ("path\na/1.png\na/1.png\n", ["line 3", "'a/1.png' is listed twice"]),
        ("path\na/1.png\na/../a/1.png\n", ["line 3", "listed twice"]),
        ("row,path\n0,a/1.png\n2,a/2.png\n", ["line 3", "row 1", "'2'"]),
        ("row,path\n0,a/1.png\n1\n", ["line 3", "no image is named"]),
        ("path\na/1.png\n", ["5 rows", "lists 1 images"]),
        (b"path\n\xff\n", ["UTF-8"]),
    ],
)
def test_a_wrong_csv_is_named(tmp_path, rows, text, culprits):
    folder = write(tmp_path / "given", rows)
    (folder / "images.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with one_line_error(ValueError, folder, "images.csv", *culprits):
        read_descriptors([str(folder)])


def test_a_missing_file_or_folder_is_named(tmp_path, rows):
    with one_line_error(FileNotFoundError, "descriptors", tmp_path / "gone"):
        read_descriptors([str(tmp_path / "gone")])
    for name in ("descriptors.npy", "images.csv"):
        folder = write(tmp_path / "given", rows)
        (folder / name).unlink()
        with one_line_error(FileNotFoundError, folder, name):
            read_descriptors([str(folder)])


def test_an_image_that_has_changed_is_named(tmp_path, images, rows):
    sizes = [(tmp_path / "data" / name).stat().st_size for name in NAMES]
    folder = write(tmp_path / "given", rows, bytes=sizes)
    assert find_rows(read_descriptors([str(folder)]), images, tmp_path / "data").tolist() == [0, 1, 2, 3, 4]
    sizes[1] += 1
    folder = write(tmp_path / "given", rows, bytes=sizes)
    with one_line_error(ValueError, "1 images have changed", "a/2.png"):
        find_rows(read_descriptors([str(folder)]), images, tmp_path / "data")


@pytest.mark.parametrize(
    ("manifest", "culprits"),
    [
        ("[1]", ["damaged"]),
        ("{", ["damaged"]),
        ('{"count": 4}', ["count is 4", "has 5"]),
        ('{"dimensions": "many"}', ["dimensions is 'many'", "has 6"]),
        (" " * 2**21, ["too large"]),
    ],
)
def test_a_wrong_manifest_is_named(tmp_path, rows, manifest, culprits):
    folder = write(tmp_path / "given", rows)
    (folder / "manifest.json").write_text(manifest)
    with one_line_error(ValueError, folder / "manifest.json", *culprits):
        read_descriptors([str(folder)])


@pytest.mark.parametrize(
    ("other", "culprits"),
    [
        ({"network": "b"}, ["network is 'a' and 'b'"]),
        ({"size": 224}, ["size is 96 and 224"]),
        ({"p": "inf"}, ["p is 3.0 and 'inf'"]),
        ({"checkpoint_sha256": "0" * 64}, ["checkpoint_sha256"]),
        ({"whitening": "PCA"}, ["whitening is 'none' and 'PCA'"]),
    ],
)
def test_descriptors_that_were_made_differently_are_not_compared(tmp_path, rows, other, culprits):
    made = {"network": "a", "size": 96, "p": 3.0, "checkpoint_sha256": "f", "whitening": "none"}
    first = write(tmp_path / "queries", rows, manifest=made)
    second = write(tmp_path / "gallery", rows, manifest=made | other)
    with one_line_error(ValueError, first, second, "cannot be compared", *culprits):
        read_descriptors([str(first), str(second)])


def test_descriptors_of_other_widths_are_not_compared(tmp_path, rows):
    first, second = write(tmp_path / "queries", rows), write(tmp_path / "gallery", rows[:, :4])
    with one_line_error(ValueError, first, second, "6 and 4 dimensions"):
        read_descriptors([str(first), str(second)])


# --- The index


def factory_index(path, factory, rows):
    index = faiss.index_factory(rows.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add(rows)
    faiss.write_index(index, str(path))


@pytest.mark.parametrize("factory", ["Flat", "IVF2,Flat", "HNSW4", "PCA2,Flat", "SQ8"])
def test_an_index_of_another_collection_is_named(tmp_path, rows, factory):
    folder = write(tmp_path / "given", rows)
    factory_index(folder / "index.faiss", factory, rows)
    read_descriptors([str(folder)])
    for other in (rows[:4], np.ascontiguousarray(rows[:, :4])):
        factory_index(folder / "index.faiss", factory, other)
        with one_line_error(ValueError, folder / "index.faiss", "another collection"):
            read_descriptors([str(folder)])


def test_other_rows_in_an_index_are_named(tmp_path, rows):
    folder = write(tmp_path / "given", rows)
    for row, value in ((0, 0.0), (3, np.nan)):
        other = rows.copy()
        other[row] = value
        flat_index(folder / "index.faiss", other)
        with one_line_error(ValueError, folder / "index.faiss", f"row {row} is not that of descriptors.npy"):
            read_descriptors([str(folder)])
    flat_index(folder / "index.faiss", rows[::-1])
    with one_line_error(ValueError, folder / "index.faiss", "another collection"):
        read_descriptors([str(folder)])


def test_a_cut_index_is_named(tmp_path, rows):
    folder = write(tmp_path / "given", rows)
    flat_index(folder / "index.faiss", rows)
    content = (folder / "index.faiss").read_bytes()
    for length in (0, 10, 30, len(content) - 1):
        (folder / "index.faiss").write_bytes(content[:length])
        with one_line_error(ValueError, folder / "index.faiss", "cut off"):
            read_descriptors([str(folder)])


def test_no_index_is_given_to_faiss(tmp_path, rows, monkeypatch):
    monkeypatch.setattr(faiss, "read_index", lambda *_: pytest.fail("faiss reads a file of others"))
    folder = write(tmp_path / "given", rows)
    flat_index(folder / "index.faiss", rows)
    read_descriptors([str(folder)])


def test_the_metrics_take_them_as_an_array(tmp_path, searched_set):
    """The measure by the files' rows in another order, against the same rows by themselves."""
    rng = np.random.default_rng(1)
    rows = unit(rng.normal(size=(len(searched_set.images), 5))).astype(np.float32)
    order = rng.permutation(len(rows))
    names = relative_names(searched_set.images, searched_set.images.root)
    folder = write(tmp_path / "given", rows[order], [names[i] for i in order])
    given = descriptors_of([str(folder)], searched_set.images, searched_set.images.root)
    assert retrieve(searched_set, given).value == pytest.approx(retrieve(searched_set, rows).value)
    turned = replace(searched_set, images=searched_set.images.with_exif("apply"))
    np.testing.assert_array_equal(descriptors_of([str(folder)], turned.images, turned.images.root), given)
