"""Groups, queries and positives on folders made by hand, by name, down to the last group."""

from pathlib import Path

import numpy as np
import pytest
from support import flat_name, list_backwards, one_line_error, write_devkit, write_picture, write_tree

from mgkit.datasets import plain_images
from mgkit.retrieval_sets import copydays, find_sets, grouped_folder, holidays, ukbench


def file_name(retrieval_set, index):
    return Path(retrieval_set.images.paths[index]).name


def answers(retrieval_set):
    """{query: its positives}, by file name."""
    return {
        file_name(retrieval_set, query): [file_name(retrieval_set, i) for i in positives]
        for query, positives in zip(retrieval_set.queries, retrieval_set.positives, strict=True)
    }


def ranked(retrieval_set):
    return [file_name(retrieval_set, i) for i in retrieval_set.database]


HOLIDAYS = ["100000", "100001", "100002", "100100", "100101", "149900", "149901", "149902", "149903"]
HOLIDAYS_ANSWERS = {
    "100000.jpg": ["100001.jpg", "100002.jpg"],
    "100100.jpg": ["100101.jpg"],
    "149900.jpg": ["149901.jpg", "149902.jpg", "149903.jpg"],
}


def holidays_tree(root, numbers=HOLIDAYS):
    return write_tree(root, *[f"jpg/{number}.jpg" for number in numbers])


def test_holidays_down_to_the_last_group(tmp_path):
    found = holidays(holidays_tree(tmp_path))
    assert answers(found) == HOLIDAYS_ANSWERS
    assert ranked(found) == [f"{number}.jpg" for number in HOLIDAYS]
    assert (found.name, found.measure, found.images.exif) == ("holidays", "mAP", False)


def ukbench_files(objects):
    return [f"full/ukbench{4 * number + k:05d}.jpg" for number in objects for k in range(4)]


def test_ukbench_down_to_the_last_object(tmp_path):
    found = ukbench(write_tree(tmp_path, *ukbench_files([0, 1, 2549])))
    expected = {
        f"ukbench{4 * number + k:05d}.jpg": [
            f"ukbench{4 * number + other:05d}.jpg" for other in range(4) if other != k
        ]
        for number in (0, 1, 2549)
        for k in range(4)
    }
    assert answers(found) == expected
    assert (found.measure, sorted(ranked(found))) == ("score", sorted(expected))


COPYDAYS = ["original/200000.jpg", "original/200100.jpg", "original/215600.jpg"]
STRONG = ["strong/200001.jpg", "strong/200002.jpg", "strong/200003.jpg", "strong/215601.jpg"]


def test_copydays_counts_every_strong_copy_of_an_original(tmp_path):
    found = copydays(write_tree(tmp_path, *COPYDAYS, *STRONG))
    assert answers(found) == {
        "200001.jpg": ["200000.jpg"],
        "200002.jpg": ["200000.jpg"],
        "200003.jpg": ["200000.jpg"],
        "215601.jpg": ["215600.jpg"],
    }
    assert ranked(found) == ["200000.jpg", "200100.jpg", "215600.jpg"]
    assert found.name == "copydays"


def test_distractors_are_ranked_but_answer_nothing(tmp_path):
    write_tree(tmp_path / "set", *COPYDAYS, *STRONG)
    extra = plain_images(write_tree(tmp_path / "extra", "00/x.jpg", "01/y.jpg"))
    found = copydays(tmp_path / "set", distractors=extra)
    assert ranked(found) == ["200000.jpg", "200100.jpg", "215600.jpg", "x.jpg", "y.jpg"]
    assert answers(found)["215601.jpg"] == ["215600.jpg"]
    assert "2 distractors" in found.name


@pytest.mark.parametrize(
    ("read", "files"),
    [
        (holidays, [f"jpg/{number}.jpg" for number in HOLIDAYS]),
        (ukbench, ukbench_files([0, 7])),
        (copydays, [*COPYDAYS, *STRONG]),
        (grouped_folder, ["a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.jpg", "b/5.jpg"]),
    ],
)
def test_the_order_of_the_directory_does_not_matter(tmp_path, monkeypatch, read, files):
    forwards = read(write_tree(tmp_path / "set", *files))
    list_backwards(monkeypatch)
    found = read(tmp_path / "set")
    assert found.images.paths == forwards.images.paths
    assert answers(found) == answers(forwards)


@pytest.mark.parametrize(
    ("numbers", "culprit"),
    [(["100000", "100001", "100101", "100102"], "1001"), (["100000", "100100", "100101"], "1000")],
)
def test_a_holidays_group_without_query_or_with_only_it_is_named(tmp_path, numbers, culprit):
    with one_line_error(ValueError, f"group {culprit} ", tmp_path):
        holidays(holidays_tree(tmp_path, numbers))


def test_an_incomplete_four_of_ukbench_is_named(tmp_path):
    with one_line_error(ValueError, "object 1 ", "ukbench00004.jpg", "3 images"):
        ukbench(write_tree(tmp_path, *ukbench_files([0, 1])[:-1]))


def test_a_strong_copy_without_original_is_named(tmp_path):
    with one_line_error(ValueError, tmp_path / "strong" / "209901.jpg", tmp_path / "original"):
        copydays(write_tree(tmp_path, *COPYDAYS, *STRONG, "strong/209901.jpg"))


def test_two_originals_of_one_number_are_named(tmp_path):
    with one_line_error(ValueError, "2000", tmp_path / "original"):
        copydays(write_tree(tmp_path, *COPYDAYS, *STRONG, "original/200050.jpg"))


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


def test_a_grouped_folder_with_singletons(tmp_path):
    found = grouped_folder(
        write_tree(tmp_path, "a/1.png", "a/2.png", "b/3.png", "c/4.png", "c/5.png", "c/6.png")
    )
    assert answers(found) == {
        "1.png": ["2.png"],
        "2.png": ["1.png"],
        "4.png": ["5.png", "6.png"],
        "5.png": ["4.png", "6.png"],
        "6.png": ["4.png", "5.png"],
    }
    assert ranked(found) == [f"{n}.png" for n in range(1, 7)]
    assert found.images.exif


def test_a_grouped_folder_of_singletons_is_refused(tmp_path):
    with one_line_error(ValueError, tmp_path):
        grouped_folder(write_tree(tmp_path, "a/1.png", "b/2.png"))


@pytest.mark.parametrize("below", ["", "imagenet/"])
@pytest.mark.parametrize("val", ["val", "ILSVRC2012_img_val"])
def test_imagenet_s_layout_gives_its_validation_images(tmp_path, val, below):
    files = [
        f"{below}{split}/{c}/{split}_{c}_{n}.png" for split in ("train", val) for c in "ab" for n in (1, 2)
    ]
    [found] = find_sets(write_tree(tmp_path, *files))
    assert answers(found) == {
        f"{val}_a_1.png": [f"{val}_a_2.png"],
        f"{val}_a_2.png": [f"{val}_a_1.png"],
        f"{val}_b_1.png": [f"{val}_b_2.png"],
        f"{val}_b_2.png": [f"{val}_b_1.png"],
    }


def test_imagenet_s_flat_validation_images_are_grouped_by_class(tmp_path):
    write_tree(tmp_path, *[f"val/{flat_name(n)}" for n in range(1, 5)], "train/n01000000/1.JPEG")
    [plain] = find_sets(tmp_path)
    assert plain.measure == "none"  # nothing says the classes
    write_devkit(tmp_path, {1: "n02000000", 2: "n01000000"}, [2, 1, 2, 1])
    [found] = find_sets(tmp_path)
    first, second, third, fourth = (flat_name(n) for n in range(1, 5))
    assert answers(found) == {first: [third], second: [fourth], third: [first], fourth: [second]}


def test_all_sets_of_the_mini_set_are_found(mini_root):
    found = find_sets(mini_root)
    assert [each.name for each in found] == ["holidays", "ukbench", "copydays + 6 distractors"]
    for each in found:
        assert each.describe().startswith(f"{each.name}: {len(each.queries)} queries")
        assert all(
            query not in positives
            for query, positives in zip(each.queries, map(list, each.positives), strict=True)
        )


def test_named_sets_come_in_the_order_asked(mini_root):
    assert [each.name for each in find_sets(mini_root, names=["ukbench", "holidays"])] == [
        "ukbench",
        "holidays",
    ]


def test_other_distractors_may_be_given(mini_root, tmp_path):
    write_tree(tmp_path, "1.png", "2.png")
    [found] = find_sets(mini_root, names=["copydays"], distractors=str(tmp_path))
    assert found.name == "copydays + 2 distractors"


def test_an_unknown_set_is_named(mini_root):
    with one_line_error(ValueError, "'oxford'", "holidays"):
        find_sets(mini_root, names=["holidays", "oxford"])


def test_a_set_that_is_not_there_is_named(tmp_path):
    holidays_tree(tmp_path / "holidays")
    with one_line_error(FileNotFoundError, "ukbench", tmp_path / "ukbench" / "full"):
        find_sets(tmp_path, names=["ukbench"])


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
    kept = without(copydays(tmp_path / "set", distractors=extra), "200000.jpg", "x.jpg")
    assert answers(kept) == {"215601.jpg": ["215600.jpg"]}
    assert ranked(kept) == ["200100.jpg", "215600.jpg", "y.jpg"]


def test_a_plain_folder_has_queries_but_no_ground_truth(tmp_path):
    for number in range(3):
        write_picture(tmp_path / f"{number}.jpg")
    [each] = find_sets(tmp_path)
    assert each.measure == "none" and "without ground truth" in each.describe()
    assert each.queries.tolist() == each.database.tolist() == [0, 1, 2]
    assert not any(len(positives) for positives in each.positives)
    left = each.only(np.array([True, False, True]))
    assert left.queries.tolist() == [0, 1]
