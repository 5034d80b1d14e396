"""Text files of ground truth, well and badly written."""

import pytest
from support import one_line_error

from mgkit.annotations import read_groups, read_pairs, read_rotations


def written(folder, content, name="file.csv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "content", ['{\n"100600.jpg": 90,\n"100700.jpg": 270,\n}', "100600.jpg: 90\n100700.JPEG: 270\n"]
)
def test_rotations_are_read_by_number(tmp_path, content):
    assert read_rotations(written(tmp_path, content)) == {100600: 90, 100700: 270}


@pytest.mark.parametrize(
    "content",
    [
        "", "90", "[90, 180]", "100600.jpg: 45", "100600.jpg: 0", "100600.jpg: left", "100600.jpg: [90]", "100600.jpg: true",
        "100600.jpg: 90.0", "photo.jpg: 90", "90: 90", "a: b: c", "{", "\t- x", b"\xff\xfe\x00", "2001-99-99: 90", "x: 2001-99-99",
        "? [a]\n: 90", "!!python/object/apply:os.system ['true']: 90", "[" * 1000,
    ],
)  # fmt: skip
def test_a_wrong_list_of_rotations_is_named(tmp_path, content):
    path = written(tmp_path, content)
    with one_line_error(ValueError, path):
        read_rotations(path)


def test_pairs_are_counted_once_and_may_have_no_reference(tmp_path):
    path = written(tmp_path, "query_id,reference_id\nQ1,R1\nQ2,\n\nQ1,R2\nQ1,R1\nQ3,R1\nQ3,\n")
    assert read_pairs(path) == {"Q1": {"R1", "R2"}, "Q2": set(), "Q3": {"R1"}}
    assert list(read_pairs(path)) == ["Q1", "Q2", "Q3"]


@pytest.mark.parametrize(
    ("content", "culprits"),
    [
        ("", ["empty"]),
        ("\n\n", ["empty"]),
        ("query_id,reference_id\n", ["no pairs"]),
        ("Q1,R1\nQ2\n", ["line 2", "Q2"]),
        ("Q1,R1\n,R2\n", ["line 2", ",R2"]),
        ("Q1;R1\n", ["line 1", "Q1;R1"]),
        ("x,reference_id,query_id\n1,R1\n", ["line 2"]),
        (b"Q1,R\xff1\n", ["UTF-8"]),
    ],
)
def test_wrong_pairs_are_named(tmp_path, content, culprits):
    path = written(tmp_path, content)
    with one_line_error(ValueError, path, *culprits):
        read_pairs(path)


def test_groups_are_sorted_by_path(tmp_path):
    for name in ("b.jpg", "a.jpg"):
        (tmp_path / name).touch()
    path = written(tmp_path, "group,note,image\nx,1,b.jpg\n,2,a.jpg\n")
    assert list(read_groups(path).items()) == [(str(tmp_path / "a.jpg"), ""), (str(tmp_path / "b.jpg"), "x")]
