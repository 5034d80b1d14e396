"""ILIAS as it is distributed: queries and positives by object, with and without distractors."""

import pytest
from benchmark_trees import ILIAS, ilias_tree
from support import answers, one_line_error, ranked

from mgkit.benchmarks.fetch import examine
from mgkit.benchmarks.instances.ilias import ilias

ANSWERS = {
    "Q000_00.jpg": ["P000_00.jpg", "P000_01.jpg"],
    "Q999_00.jpg": ["P999_00.jpg"],
    "Q999_01.jpg": ["P999_00.jpg"],
}
POSITIVES = ["P000_00.jpg", "P000_01.jpg", "P999_00.jpg"]


def test_queries_find_the_positives_of_their_object(tmp_path):
    [found] = ilias(ilias_tree(tmp_path))
    assert answers(found) == ANSWERS and ranked(found) == POSITIVES
    assert (found.name, found.measure, found.cutoff) == ("ilias core", "mAP@k", 1000)
    assert found.images.exif and not found.images.views


def test_distractors_make_a_second_set_of_the_same_images(tmp_path):
    core, mini = ilias(ilias_tree(tmp_path, "000000/b.jpg", "000000/a.jpg", "000044/c.jpg"))
    assert core.images is mini.images and mini.name == "ilias mini"
    assert answers(core) == answers(mini) == ANSWERS
    assert ranked(core) == POSITIVES and ranked(mini) == [*POSITIVES, "a.jpg", "b.jpg", "c.jpg"]


@pytest.mark.parametrize(
    ("names", "culprits"),
    [
        ([*ILIAS, "bold_bimp_000/other/P000_02.jpg"], ["P000_02.jpg", "query/"]),
        ([*ILIAS, "P000_02.jpg"], ["P000_02.jpg", "query/"]),
        ([*ILIAS, "new_001/query/Q001_00.jpg"], ["new_001/pos", "no images"]),
        ([*ILIAS, "new_001/pos/P001_00.jpg"], ["new_001/query", "no images"]),
    ],
)
def test_an_image_elsewhere_and_an_incomplete_object_are_named(tmp_path, names, culprits):
    with one_line_error(ValueError, tmp_path / "ilias_core", *culprits):
        ilias(ilias_tree(tmp_path, names=names))


def test_a_missing_folder_is_named(tmp_path):
    with one_line_error(FileNotFoundError, "ilias", tmp_path / "ilias_core"):
        ilias(tmp_path)
    ilias_tree(tmp_path)
    (tmp_path / "mini").mkdir()
    with one_line_error(ValueError, tmp_path / "mini", "no images"):
        ilias(tmp_path)


def test_objects_queries_and_positives_are_counted(tmp_path):
    root = ilias_tree(tmp_path / "ilias", "000000/a.jpg")
    for path in root.rglob("*.jpg"):
        path.write_bytes(b"1")
    assert examine(tmp_path, "ilias").findings == [
        "ilias_core/ holds 6 images, published are 5,947",
        "2 objects, published are 1,000",
        "3 images in the folders query/, published are 1,232",
        "3 images in the folders pos/, published are 4,715",
    ]
