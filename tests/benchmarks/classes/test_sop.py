"""Stanford Online Products as it is distributed: the list of test images, and what is wrong with another."""

import pytest
from benchmark_trees import SOP, sop_tree
from support import answers, one_line_error, ranked

from mgkit.benchmarks.classes.sop import sop
from mgkit.benchmarks.fetch import examine


def of_class(number):
    return [path.rpartition("/")[2] for path, of in SOP.items() if of == number]


def test_every_test_image_finds_the_others_of_its_class(tmp_path):
    found = sop(sop_tree(tmp_path))
    names = [path.rpartition("/")[2] for path in SOP]
    assert ranked(found) == names  # without the training images, in the order of the list
    assert answers(found) == {
        name: [other for other in of_class(number) if other != name]
        for name, number in zip(names, SOP.values(), strict=True)
    }
    assert (found.name, found.measure, found.recalls) == ("sop", "Recall@1", (1, 10, 100, 1000))
    assert not found.images.exif


def test_a_missing_list_or_image_is_named(tmp_path):
    root = sop_tree(tmp_path)
    top = root / "Stanford_Online_Products"
    for path in [*SOP][:2]:
        (top / path).unlink()
    with one_line_error(FileNotFoundError, top / "Ebay_test.txt", "2 images", [*SOP][0]):
        sop(root)
    (top / "Ebay_test.txt").unlink()
    with one_line_error(FileNotFoundError, top / "Ebay_test.txt", "class_id"):
        sop(root)


@pytest.mark.parametrize(
    ("line", "culprits"),
    [
        ("7 11319 bicycle_final/1.JPG", ["line 3", "super_class_id"]),
        ("7 x 1 bicycle_final/1.JPG", ["line 3", "class_id", "'x'"]),
        ("7 ²  1 bicycle_final/1.JPG", ["line 3", "class_id"]),
        (f"7 1 1 {[*SOP][0]}", ["twice", [*SOP][0]]),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, culprits):
    root = sop_tree(tmp_path)
    listing = root / "Stanford_Online_Products" / "Ebay_test.txt"
    lines = listing.read_text().splitlines()
    listing.write_text("\n".join([*lines[:2], line, *lines[2:]]), encoding="utf-8")
    with one_line_error(ValueError, listing, *culprits):
        sop(root)


def test_a_list_without_images_is_named(tmp_path):
    with one_line_error(ValueError, "Ebay_test.txt", "no test images"):
        sop(sop_tree(tmp_path, {}))


def test_no_name_leads_out_of_the_folder(tmp_path):
    (tmp_path / "secret.jpg").touch()
    with one_line_error(FileNotFoundError, "Ebay_test.txt", "../secret.jpg"):
        sop(sop_tree(tmp_path / "sop", {"../../secret.jpg": 11319}))


def test_numbers_and_missing_images_are_checked(tmp_path):
    root = sop_tree(tmp_path / "sop")
    for path in root.rglob("*.JPG"):
        path.write_bytes(b"1")
    (root / "Stanford_Online_Products" / [*SOP][0]).unlink()
    (root / "Stanford_Online_Products" / "sofa_final" / "copy.png").touch()
    assert examine(tmp_path, "sop").findings == [
        "not part of the set: Stanford_Online_Products/sofa_final/copy.png",
        "Stanford_Online_Products/ holds 5 images, published are 120,053",
        "missing: Stanford_Online_Products/bicycle_final/111085122871_0.JPG",
        "Ebay_test.txt names 5 test images of 2 classes, published are 60,502 of 11,316",
    ]
