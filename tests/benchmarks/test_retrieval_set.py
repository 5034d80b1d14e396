"""A retrieval set without some of its images, and its description, by file name."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmark_trees import (
    COPYDAYS,
    HOLIDAYS,
    HOLIDAYS_ANSWERS,
    REVISITED_FILES,
    STRONG,
    holidays_tree,
    revisited_tree,
    ukbench_files,
    upright,
    write_gnd,
)
from PIL import Image
from support import answers, file_name, list_backwards, one_line_error, ranked, write_empty, write_tree

from mgkit.benchmarks.copies.copydays import copydays
from mgkit.benchmarks.copies.disc21 import disc21
from mgkit.benchmarks.instances.holidays import holidays
from mgkit.benchmarks.instances.revisited import revisited
from mgkit.benchmarks.instances.ukbench import ukbench
from mgkit.benchmarks.retrieval_set import RetrievalSet, with_distractors
from mgkit.data.images import UNLABELLED, ImageList, image_shapes
from mgkit.data.layouts import plain_images
from mgkit.data.loader import ImageDataset


def without(retrieval_set, *names):
    kept = [Path(path).name not in names for path in retrieval_set.images.paths]
    return retrieval_set.only(np.array(kept))


def test_nothing_changes_where_all_images_are_kept(tmp_path):
    found = holidays(holidays_tree(tmp_path))
    assert without(found) is found


def test_an_unreadable_positive_is_neither_ranked_nor_missed(tmp_path):
    kept = without(holidays(holidays_tree(tmp_path)), "149902.jpg")
    assert answers(kept) == HOLIDAYS_ANSWERS | {"149900.jpg": ["149901.jpg", "149903.jpg"]}
    assert ranked(kept) == [f"{number}.jpg" for number in HOLIDAYS if number != "149902"]


def test_an_unreadable_query_asks_nothing(tmp_path):
    kept = without(holidays(holidays_tree(tmp_path)), "100000.jpg")
    assert answers(kept) == {query: HOLIDAYS_ANSWERS[query] for query in ("100100.jpg", "149900.jpg")}
    assert len(kept.images) == len(kept.database) == 8


def test_a_query_whose_every_answer_is_unreadable_asks_nothing(tmp_path):
    kept = without(holidays(holidays_tree(tmp_path)), "100101.jpg")
    assert answers(kept) == {query: HOLIDAYS_ANSWERS[query] for query in ("100000.jpg", "149900.jpg")}
    assert "100100.jpg" in ranked(kept)


def test_an_unreadable_original_and_distractor_leave_copydays_consistent(tmp_path):
    write_tree(tmp_path / "set", *COPYDAYS, *STRONG)
    extra = plain_images(write_tree(tmp_path / "extra", "x.jpg", "y.jpg"))
    [found] = with_distractors([copydays(tmp_path / "set")], extra)
    kept = without(found, "200000.jpg", "x.jpg")
    assert answers(kept) == {"215601.jpg": ["215600.jpg"]}
    assert ranked(kept) == ["200100.jpg", "215600.jpg", "y.jpg"]


def test_boxes_and_junk_stay_with_their_images_when_others_go(tmp_path):
    found = revisited(revisited_tree(tmp_path), "roxford5k")[2]
    kept = without(found, "all_souls_000001.jpg", "christ_church_000003.jpg", "keble_000055.jpg")
    assert answers(kept) == {"all_souls_000013.jpg": ["magdalen_000002.jpg"], "radcliffe_000777.jpg": []}
    assert [[file_name(kept, i) for i in each] for each in kept.junk] == [
        ["ashmolean_000004.jpg", "keble_000005.jpg"],
        [],
    ]
    assert [kept.images.load(q).size for q in kept.queries] == [(9, 13), (10, 8)]


def test_distractors_stay_known(tmp_path):
    write_tree(tmp_path / "set", *COPYDAYS, *STRONG)
    extra = plain_images(write_tree(tmp_path / "extra", "x.jpg", "y.jpg"))
    [found] = with_distractors([copydays(tmp_path / "set")], extra)
    kept = without(found, "200000.jpg", "x.jpg")
    assert [file_name(kept, i) for i in kept.distractors] == ["y.jpg"]


def test_many_distractors_are_added_within_seconds(monkeypatch):
    """200,000 paths without files: each folder is resolved once, not each path."""
    resolved = []
    real = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path: resolved.append(path) or real(path))

    def listed(paths):
        return ImageList(Path("/none"), tuple(paths), np.full(len(paths), UNLABELLED))

    images = listed([f"/none/own/{k}.jpg" for k in range(10)])
    extra = listed([f"/none/{k % 100}/{k}.jpg" for k in range(200_000)])
    one = RetrievalSet("own", images, np.arange(10), np.arange(10), tuple(np.arange(10)[:, None] - 1))
    first, second = with_distractors([one, one], extra)
    assert first.images is second.images and len(first.images) == 200_010
    assert first.database.tolist() == list(range(200_010)) and len(resolved) <= 101
    kept = first.only(np.arange(200_010) % 3 > 0)
    assert len(kept.distractors) == np.count_nonzero(np.arange(10, 200_010) % 3)


def test_what_is_right_what_is_wrong_and_what_is_neither(searched_set):
    query, junk = searched_set.queries[5], searched_set.junk[5]
    assert searched_set.right(5, searched_set.positives[5][0]) is True
    assert searched_set.right(5, 0) is False and searched_set.right(5, query) is False
    assert searched_set.right(5, junk[0]) is None
    assert replace(searched_set, measure="none").right(5, 0) is None


def test_a_file_that_is_not_named_as_in_the_set_is_named(tmp_path):
    with one_line_error(ValueError, "IMG_1.jpg", tmp_path / "jpg"):
        holidays(holidays_tree(tmp_path, [*HOLIDAYS, "IMG_1"]))


@pytest.mark.parametrize(("read", "folder"), [(holidays, "jpg"), (ukbench, "full"), (copydays, "original")])
def test_a_missing_or_empty_folder_of_a_set_is_named(tmp_path, read, folder):
    with one_line_error(FileNotFoundError, read.__name__, tmp_path / folder):
        read(tmp_path)
    (tmp_path / folder).mkdir()
    with one_line_error(ValueError, read.__name__, tmp_path / folder):
        read(tmp_path)


@pytest.mark.parametrize(
    ("read", "names"),
    [
        (holidays, ["jpg/100000.jpg", "jpg/100000.jpeg"]),
        (holidays, ["jpg/100001.jpg", "jpg/more/100001.jpg"]),
        (ukbench, ["full/ukbench00001.jpg", "full/ukbench00001.JPG"]),
        (copydays, ["original/200000.jpg", "original/200000.jpeg"]),
        (copydays, ["strong/200001.jpg", "strong/200001.jpeg"]),
    ],
)
def test_two_files_of_one_number_are_named(tmp_path, read, names):
    write_empty(
        tmp_path, *[f"jpg/{number}.jpg" for number in HOLIDAYS], *ukbench_files([0]), *COPYDAYS, *STRONG
    )
    write_empty(tmp_path, *names)
    folder = tmp_path / names[0].split("/")[0]
    with one_line_error(ValueError, *(str(Path(name).relative_to(folder.name)) for name in names), folder):
        read(tmp_path)


def revisited_hard(root):
    return revisited(root, "roxford5k")[2]


# --- All of them


@pytest.mark.parametrize(
    ("read", "files"),
    [
        (holidays, [f"jpg/{number}.jpg" for number in HOLIDAYS]),
        (ukbench, ukbench_files([0, 7])),
        (copydays, [*COPYDAYS, *STRONG]),
        (revisited_hard, [*REVISITED_FILES]),
        (
            disc21,
            ["queries/Q1.jpg", "queries/Q2.jpg", "references/R1.jpg", "references/R2.jpg", "train/T1.jpg"],
        ),
    ],
)
def test_the_order_of_the_directory_does_not_matter(tmp_path, monkeypatch, read, files):
    write_tree(tmp_path / "set", *files)
    write_gnd(tmp_path / "set" / "gnd_roxford5k.pkl")
    (tmp_path / "set" / "a_ground_truth.csv").write_text("Q2,R1\nQ1,R2\n")
    forwards = read(tmp_path / "set")
    list_backwards(monkeypatch)
    found = read(tmp_path / "set")
    assert found.images.paths == forwards.images.paths
    assert answers(found) == answers(forwards)
    assert [each.tolist() for each in found.junk] == [each.tolist() for each in forwards.junk]
    assert found.images.views == forwards.images.views


def test_photos_in_every_layout(tmp_path, photos):
    """Real photos under the benchmarks' names are loaded as they are, turned or cropped."""
    sources = sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[:4]
    for k, source in enumerate(sources):
        with Image.open(source) as image:
            picture = image.convert("RGB")
            picture.thumbnail((160, 160))
        for name in (f"holidays/jpg/1000{k:02d}.jpg", f"oxford/jpg/photo_{k}.jpg"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / name, quality=95)
    upright(tmp_path / "holidays", '{"100001.jpg": 90, "100003.jpg": 270}')
    truth = {"imlist": ["photo_1", "photo_2", "photo_3"], "qimlist": ["photo_0"],
             "gnd": [{"bbx": [10.2, 20.0, 70.0, 80.9], "easy": [2], "hard": [0], "junk": []}]}  # fmt: skip
    write_gnd(tmp_path / "oxford" / "gnd_roxford5k.pkl", truth)
    turned, cropped = holidays(tmp_path / "holidays"), revisited(tmp_path / "oxford", "roxford5k")[1]
    assert answers(turned) == {"100000.jpg": ["100001.jpg", "100002.jpg", "100003.jpg"]}
    assert answers(cropped) == {"photo_0.jpg": ["photo_1.jpg", "photo_3.jpg"]}
    quarter_turns = {1: -1, 3: -3}  # anticlockwise
    for i, path in enumerate(turned.images.paths):
        with Image.open(path) as image:
            assert np.array_equal(turned.images.load(i), np.rot90(image, quarter_turns.get(i, 0)))
    with Image.open(cropped.images.paths[3]) as image:
        assert np.array_equal(cropped.images.load(3), np.asarray(image)[20:81, 10:70])
    for images in (turned.images, cropped.images):
        whole = ImageDataset(images, lambda image: image)
        assert [whole[i][0].size for i in range(len(images))] == image_shapes(images)
