"""The sections of the report: two grades, the picture that stays, what could be freed, two folders."""

import os

import pytest

from mgkit.photos.copies.groups import Group
from mgkit.photos.copies.pairs import SAME_FILE, SAME_MOMENT
from mgkit.photos.report.sections import graded, missing, readable_bytes, sections

NAMES = ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"]
COPIES = Group(
    (0, 1, 2), (0.9, 0.95, 0.97), SAME_FILE, tightness=0.934, turns=(8, 1, 2), kept=1,
    reason="most pixels: 80 x 60", going=(0, 2),
)  # fmt: skip
FRAMES = Group((3, 4), (0.7, 0.7), SAME_MOMENT, tightness=0.7, turns=(1, 1), kept=0, going=(4,))


def test_each_grade_has_its_section_with_the_numbers_of_the_csv(found):
    result = found(NAMES, groups=[COPIES, FRAMES])
    copies, frames, *_ = sections(result)
    assert (copies.title, frames.title) == ("The same file, edited", "The same moment")
    assert [row.key for row in copies.rows] == ["group-1"] and [row.key for row in frames.rows] == ["group-2"]


def test_the_picture_that_stays_comes_first_with_its_reason_and_the_others_with_what_they_are(found):
    [row] = graded(found(NAMES, groups=[COPIES]), SAME_FILE).rows
    assert [(each.name, each.mark) for each in row.pictures] == [
        ("b.jpg", "keep"),
        ("a.jpg", ""),
        ("c.jpg", ""),
    ]
    kept, turned, mirrored = (each.lines for each in row.pictures)
    assert kept[0].startswith("40 × 30 px, ") and kept[1:] == ("most pixels: 80 x 60",)
    assert turned[1:] == ("turned by 90° clockwise", "similarity 0.900")
    assert mirrored[1:] == ("mirrored", "similarity 0.970")


def test_only_copies_that_may_go_count_as_freed(found):
    result = found(NAMES, groups=[COPIES, FRAMES])
    size = sum(os.path.getsize(result.images.paths[i]) for i in (0, 2))
    copies, frames, *_ = sections(result)
    assert f"{readable_bytes(size)} (2 copies) could be freed" in copies.text
    assert f"{readable_bytes(size)} could be freed" in copies.rows[0].title
    assert "mean similarity 0.93" in copies.rows[0].title
    assert "freed" not in frames.text + frames.rows[0].title


def test_of_two_folders_it_is_said_what_the_other_one_holds_and_what_not(found):
    there = Group((0, 3), (0.9, 0.9), SAME_FILE, turns=(1, 1), kept=1, reason="oldest", going=(0,))
    result = found(NAMES, own=3, groups=[there])
    [row] = graded(result, SAME_FILE).rows
    assert [each.name for each in row.pictures] == ["a.jpg", "d.jpg"]
    assert (
        "in the other folder" in row.pictures[1].lines and "in the other folder" not in row.pictures[0].lines
    )
    absent = missing(result)
    assert [each.name for each in absent.rows[0].pictures] == ["b.jpg", "c.jpg"]
    assert absent.short == "Not in the other folder (2)"
    assert [part.key for part in sections(result)] == [
        "same-file",
        "same-moment",
        "missing",
        "like",
        "classes",
    ]


def test_without_another_folder_nothing_is_said_of_it(found):
    assert "missing" not in [part.key for part in sections(found(NAMES))]


@pytest.mark.parametrize(
    "size, shown", [(0, "0 kB"), (1499, "1 kB"), (2_500_000, "2.5 MB"), (1_234_567_890_123, "1,234.6 GB")]
)
def test_bytes_are_readable(size, shown):
    assert readable_bytes(size) == shown
