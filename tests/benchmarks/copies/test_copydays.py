"""Copydays as it is distributed: strong copies, levels, distractors."""

from pathlib import Path

from benchmark_trees import COPYDAYS, LEVELS, STRONG
from support import answers, file_name, one_line_error, ranked, write_tree

from mgkit.benchmarks.copies.copydays import copydays, copydays_all, copydays_levels
from mgkit.benchmarks.retrieval_set import with_distractors
from mgkit.data.layouts import plain_images


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
    [found] = with_distractors([copydays(tmp_path / "set")], extra)
    assert ranked(found) == ["200000.jpg", "200100.jpg", "215600.jpg", "x.jpg", "y.jpg"]
    assert answers(found)["215601.jpg"] == ["215600.jpg"]
    assert "2 distractors" in found.name


def test_a_strong_copy_without_original_is_named(tmp_path):
    with one_line_error(ValueError, tmp_path / "strong" / "209901.jpg", tmp_path / "original"):
        copydays(write_tree(tmp_path, *COPYDAYS, *STRONG, "strong/209901.jpg"))


def test_two_originals_of_one_number_are_named(tmp_path):
    with one_line_error(ValueError, "2000", tmp_path / "original"):
        copydays(write_tree(tmp_path, *COPYDAYS, *STRONG, "original/200050.jpg"))


# --- Copydays' levels


def test_every_level_of_copydays_is_a_set_of_the_same_images(tmp_path):
    write_tree(tmp_path / "set", *COPYDAYS, *LEVELS)
    extra = plain_images(write_tree(tmp_path / "extra", "x.jpg", "y.jpg"))
    found = with_distractors(copydays_levels(tmp_path / "set"), extra)
    names = ["crops 9", "crops 10", "crops 80", "jpegqual 3", "jpegqual 15"]
    assert [each.name for each in found] == [f"copydays {name}" for name in names]
    asked = [["215600"], ["200000", "200100", "215600"], ["200100"], ["200000"], ["200100"]]
    for each, numbers in zip(found, asked, strict=True):
        assert each.images is found[0].images
        assert answers(each) == {f"{n}.jpg": [f"{n}.jpg"] for n in numbers}
        folders = {"/".join(each.name.split()[1:])}
        assert {
            str(Path(each.images.paths[q]).relative_to(tmp_path / "set").parent) for q in each.queries
        } == folders
        assert ranked(each) == ["200000.jpg", "200100.jpg", "215600.jpg", "x.jpg", "y.jpg"]
        assert {Path(each.images.paths[int(i)]).parent.name for p in each.positives for i in p} == {
            "original"
        }
        assert [file_name(each, i) for i in each.distractors] == ["x.jpg", "y.jpg"]


def test_the_strong_set_and_the_levels_together_share_their_images(tmp_path):
    strong, *levels = copydays_all(write_tree(tmp_path, *COPYDAYS, *STRONG, *LEVELS))
    assert len(levels) == 5 and all(each.images is strong.images for each in levels)
    assert answers(strong) == answers(copydays(tmp_path)) and strong.name == "copydays"
    for together, alone in zip(levels, copydays_levels(tmp_path), strict=True):
        assert (together.name, answers(together)) == (alone.name, answers(alone))


def test_a_level_that_is_no_number_or_no_level_at_all_is_named(tmp_path):
    write_tree(tmp_path, *COPYDAYS)
    with one_line_error(FileNotFoundError, tmp_path, "crops/<number>/"):
        copydays_levels(tmp_path)
    write_tree(tmp_path, "crops/all/200000.jpg")
    with one_line_error(ValueError, tmp_path / "crops" / "all"):
        copydays_levels(tmp_path)


def test_a_copy_of_a_level_without_original_is_named(tmp_path):
    with one_line_error(ValueError, "crops/10/209900.jpg", tmp_path / "original"):
        copydays_levels(write_tree(tmp_path, *COPYDAYS, *LEVELS, "crops/10/209900.jpg"))
