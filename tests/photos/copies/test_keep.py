"""Which picture of a group stays: the order of the criteria, its reason, files that are gone."""

from dataclasses import replace

import pytest
from support import one_line_error

from mgkit.config import PhotosConfig, make
from mgkit.data.headers import HOLDS_MORE
from mgkit.photos.copies.keep import CRITERIA, Keeping, day
from mgkit.photos.looks import Facts

PLAIN = Facts(100, 80, 8000, 1e9)


@pytest.fixture
def keeping(tmp_path):
    """A function {name: facts}, order -> the choice among files of these names."""

    def of(facts, order=tuple(CRITERIA)):
        paths = [tmp_path / name for name in facts]
        for path in paths:
            path.touch()
        return Keeping(order, [str(path) for path in paths], list(facts.values()).__getitem__)

    return of


@pytest.mark.parametrize(
    ("better", "reason"),
    [
        ({"width": 120, "height": 90, "size": 1}, "most pixels: 120 x 90"),
        ({"size": 9000}, "least compressed: 1.12 bytes per pixel"),
        ({"camera": True, "changed": 2e9}, "camera data"),
        ({"taken": 0.5e9, "changed": 2e9}, "oldest: 1985-11-05"),
        ({"changed": 0.9e9}, "oldest: 1998-07-09"),
    ],
)
def test_the_first_criterion_that_differs_decides_and_is_the_reason(keeping, better, reason):
    facts = {"a.jpg": PLAIN, "b.jpg": replace(PLAIN, **better), "c.jpg": replace(PLAIN, turned=True)}
    assert keeping(facts).choose([0, 1, 2]) == (1, reason)


def test_a_picture_that_is_not_turned_stays_and_then_the_first_by_path(keeping):
    facts = {"b.jpg": replace(PLAIN, turned=True), "c.jpg": PLAIN, "a.jpg": replace(PLAIN, turned=True)}
    assert keeping(facts).choose([0, 1, 2]) == (1, "not turned")
    assert keeping(facts).choose([0, 2]) == (1, "first by path")


def test_the_order_is_a_parameter(keeping):
    large, old = replace(PLAIN, width=200), replace(PLAIN, taken=1.0)
    facts = {"a.jpg": large, "b.jpg": old}
    assert keeping(facts, ["pixels", "date"]).choose([0, 1])[0] == 0
    assert keeping(facts, ["date", "pixels"]).choose([0, 1]) == (1, "oldest: 1970-01-01")
    assert keeping(facts, ["upright"]).choose([1, 0]) == (1, "first by path")


def test_compression_is_compared_within_a_format_only(keeping):
    """A HEIC of half the bytes may be the original of the JPEG."""
    facts = {
        "a.heic": replace(PLAIN, size=4000, taken=1.0), "b.jpg": PLAIN, "c.JPEG": replace(PLAIN, size=7000),
    }  # fmt: skip
    choose = keeping(facts).choose
    assert choose([0, 1, 2]) == (0, "oldest: 1970-01-01")
    assert choose([2, 1]) == (1, "least compressed: 1.00 bytes per pixel")


def test_a_file_that_is_gone_never_stays(keeping, tmp_path):
    facts = {"a.jpg": replace(PLAIN, width=999), "b.jpg": PLAIN, "c.jpg": Facts(1, 1, 0, 0.0)}
    choose = keeping(facts).choose
    assert choose([0, 1, 2])[0] == 0
    (tmp_path / "a.jpg").unlink()  # after its header was read
    assert choose([0, 1, 2]) == (1, "the only file that is left")
    assert choose([0, 2]) == (0, "all files are gone")


@pytest.mark.parametrize(
    ("other", "covered"),
    [
        ({}, True), ({"changed": 1.0, "taken": 1.0, "turned": True}, True), ({"size": 9999}, False),
        ({"width": 101, "size": 1}, False), ({"camera": True}, False),
        ({"width": 50, "height": 40, "size": 100}, True),
        ({"width": 50, "size": 100}, False),
        ({"remark": "the first of several frames"}, False),
    ],
)  # fmt: skip
def test_what_is_lost_with_a_picture_that_goes(keeping, other, covered):
    other = replace(PLAIN, **other)
    facts = {"a.jpg": PLAIN, "b.JPEG": other, "c.heic": replace(other, size=1), "d.jpg": Facts(1, 1, 0, 0.0)}
    covers = keeping(facts).covers
    assert covers(0, 1) is covered
    assert not covers(0, 2) and not covers(3, 1)  # of another format nothing is known; of what is gone, too


@pytest.mark.parametrize("remark", HOLDS_MORE)
def test_a_file_that_holds_more_than_is_shown_does_not_go(keeping, remark):
    more = replace(PLAIN, remark=f"what is transparent is shown on white; {remark}")
    unknown = replace(PLAIN, width=1, height=1)
    may_go = keeping({"a.jpg": PLAIN, "b.gif": more, "c.jpg": unknown}).may_go
    assert [may_go(i) for i in range(3)] == [True, False, False]


def test_bars_are_no_pixels(keeping):
    screenshot = replace(PLAIN, height=200, content=0.4)
    assert keeping({"a.jpg": PLAIN, "b.png": screenshot}).choose([0, 1])[0] == 0


@pytest.mark.parametrize("seconds", [-1e11, 0.0, 1e18, 3.7e9])
def test_any_time_of_a_file_has_a_day(seconds):
    assert day(seconds).count("-") >= 2


def test_an_unknown_criterion_is_one_line_with_the_known_ones():
    with one_line_error(ValueError, "keep", *CRITERIA, "largest"):
        make(PhotosConfig, {"keep": ["pixels", "largest"]})
    with one_line_error(ValueError, "keep", "listed twice"):
        make(PhotosConfig, {"keep": "date, date"})
    assert make(PhotosConfig, {"keep": "date, pixels"}).keep == ["date", "pixels"]
    assert make(PhotosConfig, {}).keep == list(CRITERIA)
