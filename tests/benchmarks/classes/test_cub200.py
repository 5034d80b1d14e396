"""CUB-200-2011 as it is distributed, down to a whole set."""

import os
import time

import pytest
from benchmark_trees import CUB, cub_tree
from support import answers, one_line_error, ranked

from mgkit.benchmarks.classes.cub200 import cub200
from mgkit.benchmarks.fetch import examine


def test_the_second_hundred_classes_are_queries_and_database(tmp_path):
    found = cub200(cub_tree(tmp_path))
    pelicans, yellowthroats = (
        [path.rpartition("/")[2] for path, of in CUB.items() if of == number] for number in (101, 200)
    )
    assert ranked(found) == [*pelicans, *yellowthroats]
    assert answers(found) == {
        name: [other for other in same if other != name]
        for same in (pelicans, yellowthroats)
        for name in same
    }
    assert (found.name, found.measure, found.recalls) == ("cub200", "Recall@1", (1, 2, 4, 8))


@pytest.mark.parametrize("name", ["images.txt", "image_class_labels.txt"])
def test_a_missing_list_is_named(tmp_path, name):
    (cub_tree(tmp_path) / "CUB_200_2011" / name).unlink()
    with one_line_error(FileNotFoundError, tmp_path / "CUB_200_2011" / name):
        cub200(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "culprits"),
    [
        ("images.txt", "1 a.jpg\n8 b.jpg\n", ["line 2", "image_class_labels.txt", "'8'"]),
        ("images.txt", "1 a b.jpg\n", ["line 1", "image_id image_name"]),
        ("image_class_labels.txt", "1 one\n", ["line 1", "class_id", "'one'"]),
        ("images.txt", "1 a.jpg\n", ["no test images"]),
    ],
)
def test_a_wrong_line_is_named(tmp_path, name, content, culprits):
    listing = cub_tree(tmp_path) / "CUB_200_2011" / name
    listing.write_text(content)
    with one_line_error(ValueError, listing, *culprits):
        cub200(tmp_path)


def test_a_missing_image_is_named(tmp_path):
    path = f"images/{[*CUB][1]}"
    (cub_tree(tmp_path) / "CUB_200_2011" / path).unlink()
    with one_line_error(FileNotFoundError, "images.txt", "1 images", path):
        cub200(tmp_path)


def whole(root):
    """As many images as published, 5,924 of them of the second hundred classes, all names of one file."""
    numbers = [58] * 64 + [59] * 36 + [58] * 4 + [59] * 20 + [60] * 60 + [57] * 16
    numbers[0] += 11_788 - 5_924 - sum(numbers[:100])
    numbers[-1] += 5_924 - sum(numbers[100:])
    rows = {f"{c:03d}.Bird/B_{k}.jpg": c for c, number in enumerate(numbers, start=1) for k in range(number)}
    cub_tree(root, {[*rows][0]: 1})
    top = root / "CUB_200_2011"
    byte = top / "images" / [*rows][0]
    byte.write_bytes(b"1")
    for path in [*rows][1:]:
        (top / "images" / path).parent.mkdir(exist_ok=True)
        os.link(byte, top / "images" / path)
    (top / "images.txt").write_text("".join(f"{k} {path}\n" for k, path in enumerate(rows)))
    labels = "".join(f"{k} {number}\n" for k, number in enumerate(rows.values()))
    (top / "image_class_labels.txt").write_text(labels)
    return root


def test_a_complete_set_has_no_findings(tmp_path):
    whole(tmp_path / "cub200")
    start = time.perf_counter()
    report = examine(tmp_path, "cub200")
    assert time.perf_counter() - start < 5
    assert str(report) == "cub200: 11,788 of 11,788 images, complete"
    found = cub200(tmp_path / "cub200")
    assert len(found.queries) == len(found.database) == 5_924
