"""The devkit of ImageNet: which class has which number, and what is wrong with a damaged one."""

import subprocess
import sys

import numpy as np
import pytest
from scipy.io import loadmat, savemat
from support import flat_name, one_line_error, write_devkit

from mgkit.imagenet import devkit_wnids, ground_truth, validation_labels, validation_number

IDS = {1: "n03000000", 2: "n01000000", 3: "n02000000"}
TRUTH = [3, 1, 1, 2]


def test_only_synsets_without_children_are_classes(tmp_path):
    data = write_devkit(tmp_path, IDS, TRUTH)
    assert devkit_wnids(tmp_path) == IDS
    synsets = loadmat(data / "meta.mat")["synsets"]  # nested as in the original
    assert synsets.shape == (4, 1) and synsets[3, 0]["num_children"].tolist() == [[3]]


def test_a_single_class(tmp_path):
    write_devkit(tmp_path, {1: "n03000000"}, [1])
    assert devkit_wnids(tmp_path) == {1: "n03000000"}


def test_a_thousand_classes_and_fifty_thousand_lines(tmp_path):
    rng = np.random.default_rng(0)
    ids = {k + 1: f"n{w:08d}" for k, w in enumerate(rng.permutation(1000) * 7919)}
    truth = rng.integers(1, 1001, 50_000).tolist()
    write_devkit(tmp_path, ids, truth)
    numbers = rng.permutation(50_000)[:2000] + 1
    classes, labels = validation_labels([flat_name(n) for n in numbers], tmp_path)
    assert classes == tuple(sorted(ids.values()))
    assert [classes[k] for k in labels] == [ids[truth[n - 1]] for n in numbers]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("ILSVRC2012_val_00000001.JPEG", 1),
        ("ILSVRC2012_val_00050000.jpeg", 50000),
        ("ILSVRC2012_val_00000010.jpg", 10),
        ("ILSVRC2012_val_00000000.JPEG", None),
        ("ILSVRC2012_val_001.JPEG", None),
        ("ILSVRC2012_test_00000001.JPEG", None),
        ("ILSVRC2012_val_00000001.JPEG.png", None),
        ("copy of ILSVRC2012_val_00000001.JPEG", None),
    ],
)
def test_the_number_in_a_name(name, number):
    assert validation_number(name) == number


def test_an_image_of_another_name_is_named(tmp_path):
    write_devkit(tmp_path, IDS, TRUTH)
    with one_line_error(ValueError, "holiday.jpg", "ILSVRC2012_val_"):
        validation_labels([flat_name(1), "holiday.jpg"], tmp_path)


@pytest.mark.parametrize("missing", ["meta.mat", "ILSVRC2012_validation_ground_truth.txt"])
def test_a_missing_file_of_the_devkit_is_named(tmp_path, missing):
    (write_devkit(tmp_path, IDS, TRUTH) / missing).unlink()
    with one_line_error(FileNotFoundError, tmp_path / "ILSVRC2012_devkit_t12" / "data" / missing, "devkit"):
        validation_labels([flat_name(1)], tmp_path)


def test_a_damaged_meta_is_named(tmp_path):
    path = write_devkit(tmp_path, IDS, TRUTH) / "meta.mat"
    content = path.read_bytes()
    damaged = [b"", b"MATLAB", b"\x00" * 500, content[: len(content) // 2], content[:130], content[::-1]]
    for bad in damaged:
        path.write_bytes(bad)
        with one_line_error(ValueError, path, "damaged"):
            devkit_wnids(tmp_path)


def synsets_of(rows):
    return np.array(
        [[row] for row in rows],
        dtype=[(name, object) for name in ("ILSVRC2012_ID", "WNID", "num_children")],
    )


@pytest.mark.parametrize(
    "content",
    [
        {"other": np.arange(3)},
        {"synsets": np.arange(3)},
        {"synsets": "n01000000"},
        {"synsets": synsets_of([(1.0, "n01000000", 2.0)])},  # no leaf
        {"synsets": synsets_of([(1.0, "n01000000", 0.0), (1.0, "n02000000", 0.0)])},  # a number twice
        {"synsets": synsets_of([(1.0, "n01000000", 0.0), (2.0, "n01000000", 0.0)])},  # an id twice
        {"synsets": synsets_of([(1.0, "cat", 0.0)])},
        {"synsets": synsets_of([(np.zeros((0, 0)), "n01000000", 0.0)])},
    ],
)
def test_a_mat_file_of_something_else_is_named(tmp_path, content):
    path = write_devkit(tmp_path, IDS, TRUTH) / "meta.mat"
    savemat(path, content)
    with one_line_error(ValueError, path):
        devkit_wnids(tmp_path)


@pytest.mark.parametrize(
    ("text", "line", "culprit"),
    [
        ("1\nthree\n2\n", 2, "'three'"),
        ("1\n\n2\n", 2, "''"),
        ("4\n", 1, "'4'"),  # the parent's number
        ("1\n2\n0\n", 3, "'0'"),
        ("1\n-1\n", 2, "'-1'"),
        ("1\n2.0\n", 2, "'2.0'"),
        ("1\nçé\n", 2, ""),
        ("1\n" + "9" * 9999, 2, "999"),
    ],
)
def test_a_line_that_is_no_class_is_named(tmp_path, text, line, culprit):
    path = write_devkit(tmp_path, IDS, TRUTH) / "ILSVRC2012_validation_ground_truth.txt"
    path.write_text(text, encoding="utf-8")
    with one_line_error(ValueError, path, f"line {line}:", culprit):
        ground_truth(tmp_path, IDS)


def test_spaces_and_windows_line_ends_do_not_matter(tmp_path):
    path = write_devkit(tmp_path, IDS, TRUTH) / "ILSVRC2012_validation_ground_truth.txt"
    path.write_bytes(b"3\r\n 1\r\n1 \r\n2")
    assert ground_truth(tmp_path, IDS) == [IDS[k] for k in TRUTH]


@pytest.mark.parametrize("lines", [0, 3])
def test_too_few_lines_are_counted_and_the_image_beyond_them_named(tmp_path, lines):
    data = write_devkit(tmp_path, IDS, TRUTH[:lines])
    with one_line_error(ValueError, data, f"{lines} lines", flat_name(4)):
        validation_labels([flat_name(4), flat_name(1)], tmp_path)


def test_scipy_is_imported_only_for_the_devkit():
    code = "import sys, mgkit.imagenet, mgkit.index; sys.exit('scipy.io' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
