"""Google Landmarks v2 as it is distributed: nested folders, and ground truth in two parts."""

import pytest
from benchmark_trees import LANDMARK_QUERIES, LANDMARKS, SOLUTION, gldv2_tree, landmark
from support import answers, one_line_error, ranked

from mgkit.benchmarks.fetch import examine
from mgkit.benchmarks.instances.gldv2 import gldv2, read_solution

CSV = "retrieval_solution_v2.1.csv"


def jpg(*names):
    return [f"{name}.jpg" for name in names]


def test_private_and_public_queries_share_their_images(tmp_path):
    private, public = gldv2(gldv2_tree(tmp_path))
    assert (private.name, public.name) == ("gldv2 private", "gldv2 public")
    assert private.images is public.images and len(private.images) == len(LANDMARKS) + 2
    assert ranked(private) == ranked(public) == jpg(*LANDMARKS)
    assert answers(private) == {jpg(LANDMARK_QUERIES[0])[0]: jpg(LANDMARKS[0], LANDMARKS[2])}
    assert answers(public) == {jpg(LANDMARK_QUERIES[2])[0]: jpg(LANDMARKS[3])}
    assert all((one.measure, one.cutoff) == ("mAP@k", 100) for one in (private, public))


def test_a_part_without_queries_is_left_out(tmp_path):
    [found] = gldv2(gldv2_tree(tmp_path, SOLUTION[:-1]))
    assert found.name == "gldv2 private"


@pytest.mark.parametrize(
    ("rows", "culprits"),
    [
        ((("id", "image", "Usage"), *SOLUTION[1:]), ["id,images,Usage", "id,image,Usage"]),
        ((*SOLUTION, ("3", LANDMARKS[0], "Test")), ["line 5", "'3,", "Ignored"]),
        ((*SOLUTION, SOLUTION[1]), ["line 5", "new"]),
        ((*SOLUTION, ("", LANDMARKS[0], "Public")), ["line 5"]),
        ((SOLUTION[0], SOLUTION[2]), ["no Public or Private query"]),
    ],
)
def test_a_wrong_solution_is_named(tmp_path, rows, culprits):
    with one_line_error(ValueError, tmp_path / CSV, *culprits):
        gldv2(gldv2_tree(tmp_path, rows))


def test_a_missing_solution_or_image_is_named(tmp_path):
    root = gldv2_tree(tmp_path)
    (root / landmark("index", LANDMARKS[3])).unlink()
    with one_line_error(FileNotFoundError, root / CSV, root / "index", LANDMARKS[3]):
        gldv2(root)
    (root / landmark("test", LANDMARK_QUERIES[0])).unlink()
    with one_line_error(FileNotFoundError, root / CSV, root / "test", LANDMARK_QUERIES[0]):
        gldv2(root)
    (root / CSV).unlink()
    with one_line_error(FileNotFoundError, "gldv2", root / CSV):
        read_solution(root / CSV)


def test_nested_folders_are_counted_and_compared_with_the_solution(tmp_path):
    root = gldv2_tree(tmp_path / "gldv2")
    for path in root.rglob("*.jpg"):
        path.write_bytes(b"1")
    (root / landmark("index", LANDMARKS[0])).unlink()
    (root / landmark("index", LANDMARKS[1])).write_bytes(b"")
    (root / "index" / "0" / "1" / "2" / "x").mkdir()
    (root / "index" / "0" / "0").mkdir()  # may be empty
    (root / "index" / "0" / "1" / "note.txt").touch()
    (root / "train").mkdir()
    assert examine(tmp_path, "gldv2").findings == [
        f"empty: {landmark('index', LANDMARKS[1])}",
        "not part of the set: index/0/1/2/x/, index/0/1/note.txt",
        "index/ holds 3 images, published are 761,757",
        "test/ holds 4 images, published are 117,577",
        f"missing: {landmark('index', LANDMARKS[0])}",
    ]
