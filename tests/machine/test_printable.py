"""Names from outside: printable on one line, short enough for a figure, safe in csv and as file names."""

import csv
import io
import os
import re

import pytest

from mgkit.machine.printable import csv_name, file_stem, printable_errors, shortened, shown_name

ODD = {
    "a b.jpg": "a b.jpg",
    "naïve 👨‍👩‍👧 🏖️": "naïve 👨‍👩‍👧 🏖️",
    "שלום": "שלום",
    "$x$ <b> 100%": "$x$ <b> 100%",
    "line\nbreak\t": r"line\nbreak\t",
    "\u202egpj.exe\u2066": r"\u202egpj.exe\u2066",
    os.fsdecode(b"caf\xe9"): r"caf\xe9",
    "\ud800": r"\ud800",
    "\x1b[31m\x00\x7f": r"\x1b[31m\x00\x7f",
    "a\u2028b": r"a\u2028b",
}


@pytest.mark.parametrize("name", ODD)
def test_what_cannot_be_printed_is_escaped(name):
    shown = shown_name(name)
    assert shown == ODD[name] and shown_name(shown) == shown
    shown.encode("utf-8")
    assert len(shown.splitlines()) == 1


def test_a_long_name_keeps_its_beginning_and_its_end():
    assert shortened("short") == "short"
    assert shortened("x" * 100 + ".jpg", 10) == "xxxxxx…jpg"
    assert len(shortened("\n" * 255)) == 18


def test_names_in_a_csv_can_be_read_back_and_are_no_formulas():
    names = [os.fsdecode(b"\xff.jpg"), "\\xff.jpg", "a\nb", "=1+1", "-x", "+x", "@x", "\\n", "é,\"'"]
    file = io.StringIO()
    csv.writer(file).writerows([[csv_name(name)] for name in names])
    cells = [cell for (cell,) in csv.reader(io.StringIO(file.getvalue()))]
    assert not any(cell[0] in "=+-@" for cell in cells)
    assert len(set(cells)) == len(names) and cells[:2] == [r"\xff.jpg", r"\\xff.jpg"]
    assert cells[2:7] == [r"a\nb", "./=1+1", "./-x", "./+x", "./@x"]


@pytest.mark.parametrize("name", [*ODD, "../up", "x" * 300, "a/b\\c:*?", ".", ""])
def test_a_stem_is_a_file_name_anywhere(name, tmp_path):
    stem = file_stem(name)
    assert stem.strip("._") != ".." and not set(stem) & set('/\\:*?"<>|\n\0') and len(stem) <= 60
    (tmp_path / f"{stem}.png").touch()
    assert [path.name for path in tmp_path.iterdir()] == [f"{stem}.png"]


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, UnicodeError])
def test_an_error_becomes_one_printable_line_of_its_kind(kind):
    with pytest.raises(kind) as caught, printable_errors():
        raise kind(os.fsdecode(b"a\nb\xff"))
    assert str(caught.value) == r"a\nb\xff"
    with pytest.raises(FileNotFoundError, match=re.escape(r"a\nb\udcff")), printable_errors():
        os.stat(os.fsdecode(b"a\nb\xff"))
