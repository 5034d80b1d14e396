"""Holidays as it is distributed: groups, queries, images turned upright."""

import pytest
from benchmark_trees import HOLIDAYS, HOLIDAYS_ANSWERS, holidays_tree, upright
from support import answers, file_name, one_line_error, ranked, written

from mgkit.benchmarks.instances.holidays import holidays, read_rotations
from mgkit.data.images import image_shapes


def test_holidays_down_to_the_last_group(tmp_path):
    found = holidays(holidays_tree(tmp_path))
    assert answers(found) == HOLIDAYS_ANSWERS
    assert ranked(found) == [f"{number}.jpg" for number in HOLIDAYS]
    assert (found.name, found.measure, found.images.exif) == ("holidays", "mAP", False)


@pytest.mark.parametrize(
    ("numbers", "culprit"),
    [(["100000", "100001", "100101", "100102"], "1001"), (["100000", "100100", "100101"], "1000")],
)
def test_a_holidays_group_without_query_or_with_only_it_is_named(tmp_path, numbers, culprit):
    with one_line_error(ValueError, f"group {culprit} ", tmp_path, "on_unreadable=skip"):
        holidays(holidays_tree(tmp_path, numbers))


@pytest.mark.parametrize(
    ("lost", "culprit"),
    [({"100000"}, "group 1000 lacks its query 100000.jpg"), ({"100101"}, "group 1001 has")],
)
def test_incomplete_groups_are_left_out_where_asked(tmp_path, capsys, lost, culprit):
    root = holidays_tree(tmp_path, [number for number in HOLIDAYS if number not in lost])
    upright(root, '{"100100.jpg": 180, "149900.jpg": 90}')
    found = holidays(root, incomplete="skip")
    [line] = capsys.readouterr().out.splitlines()
    assert culprit in line and "1 of 3 groups" in line and str(root) in line
    [group] = {number[:4] for number in lost}
    left = [number for number in HOLIDAYS if not number.startswith(group)]
    assert answers(found) == {
        query: others for query, others in HOLIDAYS_ANSWERS.items() if not query.startswith(group)
    }
    assert ranked(found) == [f"{number}.jpg" for number in left]
    turned = {file_name(found, i): view.turned for i, view in found.images.views.items()}
    assert turned == {name: by for name, by in (("100100.jpg", 180), ("149900.jpg", 90)) if name[:6] in left}


def test_holidays_without_a_whole_group_is_refused(tmp_path):
    with one_line_error(ValueError, tmp_path, "all 2 groups are incomplete"):
        holidays(holidays_tree(tmp_path, ["100000", "100101"]), incomplete="skip")


def test_holidays_are_turned_as_the_list_says(tmp_path, capsys):
    listed = (
        '{\n"100001.jpg": 90,\n"149900.jpg": 180,\n"149903.jpg": 270,\n"123400.jpg": 90,\n}'  # as distributed
    )
    found = holidays(upright(holidays_tree(tmp_path), listed))
    turned = {file_name(found, i): view.turned for i, view in found.images.views.items()}
    assert turned == {"100001.jpg": 90, "149900.jpg": 180, "149903.jpg": 270}
    assert answers(found) == HOLIDAYS_ANSWERS
    assert capsys.readouterr().out == ""
    sizes = [(16, 24) if turned.get(f"{n}.jpg") in (90, 270) else (24, 16) for n in HOLIDAYS]
    assert image_shapes(found.images) == [found.images.load(i).size for i in range(len(HOLIDAYS))] == sizes


def test_without_the_list_a_line_says_so_but_not_for_the_embedded_set(tmp_path, capsys):
    root = holidays_tree(tmp_path / "holidays")
    assert not holidays(root).images.views
    [line] = capsys.readouterr().out.splitlines()
    assert "holidays-rotate.yaml" in line and str(root) in line and "fetch holidays" in line
    (tmp_path / "mini.json").touch()
    holidays(root)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "content",
    [
        '{\n"100600.jpg": 90,\n"100700.jpg": 270,\n}', "100600.jpg: 90\n100700.JPEG: 270\n",
        "\ufeff100600.jpg: 90\r\n100700.jpg: 270\r\n", "100600.jpg: 90\r100700.jpg: 270\r".encode("utf-16"),
    ],
)  # fmt: skip
def test_rotations_are_read_by_number(tmp_path, content):
    assert read_rotations(written(tmp_path, content)) == {100600: 90, 100700: 270}


@pytest.mark.parametrize(
    "content",
    [
        "", "90", "[90, 180]", "100600.jpg: 45", "100600.jpg: 0", "100600.jpg: left", "100600.jpg: [90]",
        "100600.jpg: true", "100600.jpg: 90.0", "photo.jpg: 90", "90: 90", "a: b: c", "{", "\t- x",
        b"\xff\xfe\x00", "2001-99-99: 90", "x: 2001-99-99",
        "? [a]\n: 90", "!!python/object/apply:os.system ['true']: 90", "[" * 1000,
    ],
)  # fmt: skip
def test_a_wrong_list_of_rotations_is_named(tmp_path, content):
    path = written(tmp_path, content)
    with one_line_error(ValueError, path):
        read_rotations(path)
