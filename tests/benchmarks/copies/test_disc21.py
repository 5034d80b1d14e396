"""DISC21 as it is distributed: queries, references, the csv of answers."""

from pathlib import Path

import pytest
from benchmark_trees import MATCHES, REFERENCES, disc_answers, disc_tree
from support import file_name, one_line_error, ranked, write_empty, written

from mgkit.benchmarks.copies.disc21 import SUBSET, disc21, disc21_10k, read_pairs

TRAIN = ["train/T000000.jpg", "train/T000001.jpg"]


@pytest.mark.parametrize("header", ["", "query_id,reference_id\n", "\ufeffQuery_ID, reference_id\r\n"])
def test_disc_asks_all_its_queries_where_matches_alone_are_listed(tmp_path, header):
    found = disc21(disc_tree(tmp_path, header + MATCHES, *TRAIN))
    assert disc_answers(found) == {
        "Q00000.jpg": [], "Q00001.jpg": [3], "Q00002.jpg": [], "Q00003.jpg": [0, 2], "Q00004.jpg": [],
    }  # fmt: skip
    assert ranked(found) == [Path(name).name for name in REFERENCES]
    assert [file_name(found, i) for i in found.background] == ["T000000.jpg", "T000001.jpg"]
    assert (found.name, found.measure, found.images.exif, found.junk) == ("disc21", "micro-AP", False, ())


def test_disc_columns_are_found_by_name(tmp_path):
    text = "score,reference_id,query_id\n0.5,R001000,Q00002\n0.25,,Q00004\n"
    assert disc_answers(disc21(disc_tree(tmp_path, text))) == {"Q00002.jpg": [1], "Q00004.jpg": []}


@pytest.mark.parametrize(
    ("row", "culprits"),
    [
        ("Q77777,R001000\nQ88888,\n", ["2 images", "Q77777", "queries"]),
        ("Q00000,R777777\n", ["1 images", "R777777", "references"]),
    ],
)
def test_ids_without_an_image_are_counted_and_the_first_named(tmp_path, row, culprits):
    with one_line_error(FileNotFoundError, tmp_path / "public_ground_truth.csv", *culprits):
        disc21(disc_tree(tmp_path, MATCHES + row))


@pytest.mark.parametrize("name", ["queries/Q00002.png", "references/R001000.png"])
def test_two_images_of_one_id_are_named(tmp_path, name):
    with one_line_error(ValueError, Path(name).name, f"{Path(name).stem}.jpg", tmp_path):
        disc21(disc_tree(tmp_path, MATCHES, name))


def test_disc_wants_one_csv(tmp_path):
    disc_tree(tmp_path, MATCHES)
    (tmp_path / "final_ground_truth.csv").write_text(MATCHES)
    with one_line_error(ValueError, "final_ground_truth.csv", "public_ground_truth.csv"):
        disc21(tmp_path)
    for path in tmp_path.glob("*.csv"):
        path.unlink()
    with one_line_error(FileNotFoundError, tmp_path, "*ground*truth*.csv"):
        disc21(tmp_path)


@pytest.mark.parametrize("part", ["queries", "references"])
def test_disc_without_a_folder_is_named(tmp_path, part):
    (disc_tree(tmp_path, MATCHES) / part).rename(tmp_path / "elsewhere")
    with one_line_error(FileNotFoundError, "disc21", tmp_path / part):
        disc21(tmp_path)


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
        ("Q1|R1\n", ["line 1", "Q1|R1"]),
        ("x,reference_id,query_id\n1,R1\n", ["line 2"]),
        (b"Q1,R\xff1\n", ["UTF-8"]),
    ],
)
def test_wrong_pairs_are_named(tmp_path, content, culprits):
    path = written(tmp_path, content)
    with one_line_error(ValueError, path, *culprits):
        read_pairs(path)


def test_disc_asks_the_listed_queries_where_distractors_are_listed(tmp_path, capsys):
    found = disc21(disc_tree(tmp_path, "query_id,reference_id\nQ00000,\nQ00003,R001000\nQ00001,\n"))
    assert disc_answers(found) == {"Q00000.jpg": [], "Q00001.jpg": [], "Q00003.jpg": [1]}
    assert len(found.images) == 4 + 3 and len(found.background) == 0
    [line] = capsys.readouterr().out.splitlines()
    assert "3 of 5 queries" in line and "public_ground_truth.csv" in line


SUBSET_PAIRS = "query_id,reference_id\nQ00004,R000000\nQ00001,R003000\n"


def subset_tree(root, text=SUBSET_PAIRS):
    disc_tree(root, MATCHES, *TRAIN)
    (root / SUBSET).write_text(text)
    return root


def test_the_10k_subset_is_the_listed_pairs_alone(tmp_path):
    found = disc21_10k(subset_tree(tmp_path))
    assert disc_answers(found) == {"Q00001.jpg": [3], "Q00004.jpg": [0]}
    assert ranked(found) == ["R000000.jpg", "R003000.jpg"]
    assert len(found.images) == 4 and not len(found.background)
    assert (found.name, found.measure, found.recalls) == ("disc21_10k", "micro-AP", (1, 10))


def test_the_list_of_the_subset_is_not_taken_for_the_ground_truth(tmp_path):
    subset_tree(tmp_path)
    assert len(disc21(tmp_path).queries) == 5
    (tmp_path / "public_ground_truth.csv").unlink()
    assert len(disc21_10k(tmp_path).queries) == 2
    with one_line_error(FileNotFoundError, tmp_path, "*ground*truth*.csv"):
        disc21(tmp_path)


def test_without_the_list_of_the_subset_the_error_says_where_it_is(tmp_path):
    with one_line_error(FileNotFoundError, tmp_path / SUBSET, "github.com/facebookresearch/isc2021"):
        disc21_10k(disc_tree(tmp_path, MATCHES))


@pytest.mark.parametrize(
    ("row", "error", "culprits"),
    [
        ("Q77777,R000000\n", FileNotFoundError, ["1 images", "Q77777", "queries"]),
        ("Q00000,R777777\n", FileNotFoundError, ["1 images", "R777777", "references"]),
        ("Q00000,\n", ValueError, ["Q00000", "no reference"]),
        ("Q00000\n", ValueError, ["line 4", "Q00000"]),
    ],
)
def test_a_wrong_list_of_the_subset_is_named(tmp_path, row, error, culprits):
    with one_line_error(error, tmp_path / SUBSET, *culprits):
        disc21_10k(subset_tree(tmp_path, SUBSET_PAIRS + row))


@pytest.mark.parametrize("name", ["queries/Q00001.png", "references/R003000.png"])
def test_two_images_of_one_id_of_the_subset_are_named(tmp_path, name):
    write_empty(subset_tree(tmp_path), name)
    with one_line_error(ValueError, Path(name).name, f"{Path(name).stem}.jpg", tmp_path):
        disc21_10k(tmp_path)
