"""The csv files: the very paths, whatever the names; the columns; nothing that a spreadsheet would run."""

import csv
import os

import pytest

from mgkit.machine.files import write_text
from mgkit.photos.copies.groups import Group
from mgkit.photos.copies.pairs import SAME_FILE, SAME_MOMENT
from mgkit.photos.copies.table import against_csv, duplicates_csv, left_out_csv
from mgkit.photos.looks import Facts

NAMES = [
    "a b.jpg", "it's \"quoted\".jpg", '"', "line\nbreak.jpg", "\rreturn.jpg", "line\r\nbreak.jpg",
    "tab\t.jpg",
    "naïve 🏖️👨‍👩‍👧.jpg", os.fsdecode("é".encode() * 125 + b".jpg"), "-rf.jpg", "=1+1.jpg", "@x.jpg",
    "\u202egpj.exe.jpg", "e\u0301.jpg", "\u00e9.jpg", os.fsdecode(b"\xff\xfe.jpg"), "a,b;c.jpg", "\\n.jpg",
    " .jpg", "NA", "null", "0001", "#.jpg", "\u2028.jpg", "\x0b\x0c\x1c\x85.jpg",
]  # fmt: skip
PATHS = [f"/home/me/{name}" for name in NAMES]


def facts(i):
    return Facts(10, 10, 1000 + i, 0.0)


@pytest.fixture
def written(tmp_path):
    def write(text):
        write_text(tmp_path / "x.csv", text)
        return tmp_path / "x.csv"

    return write


def read(path):
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def groups_of_all():
    members = tuple(range(len(PATHS)))
    scores, turns = tuple(1 - i / 100 for i in members), tuple(1 + i % 8 for i in members)
    return [
        Group(members, scores, SAME_FILE, 0.5, turns, 2, 'most "pixels", of all', members[:2] + members[3:])
    ]


def test_python_s_csv_gives_the_very_paths_back(written):
    rows = read(written(duplicates_csv(groups_of_all(), PATHS, facts)))
    assert [row["path"] for row in rows] == PATHS
    assert [os.fsencode(row["path"]) for row in rows] == [os.fsencode(path) for path in PATHS]
    left_out = dict.fromkeys(PATHS, "the file is empty")
    assert [row["path"] for row in read(written(left_out_csv(left_out)))] == PATHS
    rows = read(written(against_csv([], PATHS, len(PATHS), set(range(3)))))
    assert [row["path"] for row in rows] == PATHS and [row["found"] for row in rows[:4]] == ["no"] * 3 + [
        "not read"
    ]


def test_pandas_gives_the_very_paths_back(written):
    pandas = pytest.importorskip("pandas")
    path = written(duplicates_csv(groups_of_all(), PATHS, facts))
    table = pandas.read_csv(path, encoding_errors="surrogateescape")
    assert table["path"].tolist() == PATHS
    assert table["bytes"].sum() == sum(1000 + i for i in range(len(PATHS)))
    assert (table["keep"] == "yes").sum() == 1 and table["similarity"].dtype == float


def test_the_columns_of_a_group(written):
    group = Group((1, 3), (0.98765, 0.98765), SAME_MOMENT, 0.9, (1, 6), 1, "camera data", (1,))
    [first, second] = read(written(duplicates_csv([group], PATHS, facts)))
    assert list(first)[:6] == ["group", "path", "keep", "reason", "similarity", "bytes"]
    assert first == {
        "group": "1", "path": PATHS[1], "keep": "no", "reason": "", "similarity": "0.9877", "bytes": "1001",
        "grade": "the same moment", "tightness": "0.9", "turned": "1",
    }  # fmt: skip
    assert (second["keep"], second["reason"], second["turned"]) == ("yes", "camera data", "6")


def test_a_file_that_is_gone_has_no_size(written):
    group = Group((0, 1), (0.9, 0.9), SAME_FILE, 0.9, (1, 1), 1, "the only file that is left", (0,))
    rows = read(written(duplicates_csv([group], PATHS, lambda i: Facts(1, 1, 100 * i, 0.0))))
    assert [row["bytes"] for row in rows] == ["", "100"]


def test_a_line_for_each_picture_that_was_looked_for_elsewhere(written):
    groups = [
        Group((0, 4, 5), (0.95, 0.9, 0.95), SAME_FILE, 0.9, (1, 1, 1)),
        Group((2, 6), (0.7, 0.7), SAME_MOMENT, 0.7, (1, 1)),
    ]
    rows = read(written(against_csv(groups, PATHS, 4, {0, 1, 2, 4, 5, 6})))
    assert [list(row.values()) for row in rows] == [
        [PATHS[0], "the same file", PATHS[5], "0.95"],
        [PATHS[1], "no", "", ""],
        [PATHS[2], "the same moment", PATHS[6], "0.7"],
        [PATHS[3], "not read", "", ""],
    ]
    assert list(rows[0]) == ["path", "found", "match", "similarity"]


def test_no_cell_begins_like_a_formula(written):
    for row in read(written(duplicates_csv(groups_of_all(), PATHS, facts))):
        assert not any(cell.startswith(tuple("=+-@\t\r")) for cell in row.values())
