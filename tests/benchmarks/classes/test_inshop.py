"""In-Shop as it is distributed: queries apart from the gallery, and wrong lines of the list."""

import pytest
from benchmark_trees import INSHOP, inshop_tree
from support import one_line_error

from mgkit.benchmarks.classes.inshop import inshop
from mgkit.benchmarks.fetch import examine

LIST = "Eval/list_eval_partition.txt"


@pytest.mark.parametrize("top", ["", "Img/"])
def test_queries_find_the_gallery_images_of_their_item(tmp_path, top):
    found = inshop(inshop_tree(tmp_path, top=top))
    names = [name.removeprefix(top) for name in found.images.names()]
    by_status = {
        status: [name for name, (_, of) in INSHOP.items() if of == status] for status in ("query", "gallery")
    }
    assert [names[i] for i in found.database] == by_status["gallery"]
    assert [names[i] for i in found.queries] == by_status["query"]
    assert {
        names[q]: [names[i] for i in each] for q, each in zip(found.queries, found.positives, strict=True)
    } == {
        name: [other for other in by_status["gallery"] if INSHOP[other][0] == INSHOP[name][0]]
        for name in by_status["query"]
    }
    assert (found.name, found.measure, found.recalls) == ("inshop", "Recall@1", (1, 10, 20, 30))


def with_row(name, item, status):
    return INSHOP | {name: (item, status)}


@pytest.mark.parametrize(
    ("rows", "culprits"),
    [
        (with_row("img/a.jpg", "id_1", "test"), ["line 10", "train, query, gallery", "'test'"]),
        (with_row("img/a.jpg", "id_1 extra", "query"), ["line 10", "item_id"]),
        (with_row("img/a.jpg", "id_1", "query"), ["no image in the gallery", "img/a.jpg"]),
        ({name: (item, "gallery") for name, (item, _) in INSHOP.items()}, ["no query"]),
    ],
)
def test_a_wrong_line_is_named(tmp_path, rows, culprits):
    with one_line_error(ValueError, tmp_path / LIST, *culprits):
        inshop(inshop_tree(tmp_path, rows=rows))


@pytest.mark.parametrize("number", ["8", "seven"])
def test_a_list_of_another_length_is_named(tmp_path, number):
    with one_line_error(ValueError, tmp_path / LIST, number):
        inshop(inshop_tree(tmp_path, number=number))


def test_an_image_that_is_listed_twice_is_named(tmp_path):
    listing = inshop_tree(tmp_path, number=8) / LIST
    with open(listing, "a") as file:
        file.write(f"{[*INSHOP][0]} id_00000002 train\n")
    with one_line_error(ValueError, listing, "twice", [*INSHOP][0]):
        inshop(tmp_path)


@pytest.mark.parametrize("content", ["", "\n"])
def test_an_empty_list_is_named(tmp_path, content):
    listing = inshop_tree(tmp_path) / LIST
    listing.write_text(content)
    with one_line_error(ValueError, listing):
        inshop(tmp_path)


def test_a_missing_list_or_image_is_named(tmp_path):
    root = inshop_tree(tmp_path)
    (root / [*INSHOP][1]).unlink()
    with one_line_error(FileNotFoundError, root / LIST, "1 images", [*INSHOP][1]):
        inshop(root)
    (root / LIST).unlink()
    with one_line_error(FileNotFoundError, root / LIST):
        inshop(root)


@pytest.mark.parametrize("top", ["", "Img/"])
def test_numbers_and_missing_images_are_checked(tmp_path, top):
    root = inshop_tree(tmp_path / "inshop", top=top)
    for path in root.rglob("*.jpg"):
        path.write_bytes(b"1")
    (root / top / [*INSHOP][1]).unlink()
    (root / top / "img" / "WOMEN" / "note.doc").touch()
    assert examine(tmp_path, "inshop").findings == [
        f"not part of the set: {top}img/WOMEN/note.doc",
        f"{top}img/ holds 6 images, published are 52,712",
        f"missing: {top}{[*INSHOP][1]}",
        f"{LIST} names 3 queries and 3 gallery images, published are 14,218 and 12,612",
    ]
