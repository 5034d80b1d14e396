"""Values read back from files: whole and as expected, or one line that names the file and the field."""

import math

import pytest
from pydantic import BaseModel, PositiveInt
from support import one_line_error

from mgkit.machine.records import check_values, read_json, read_yaml, shown


class Two(BaseModel, strict=True):
    sizes: list[PositiveInt]
    crop: str = "rect"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 5000], ids=range(5))
def test_a_damaged_json_file_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with one_line_error(ValueError, tmp_path / "a.json", "damaged"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("a: [", "damaged"),
        ("\0", "damaged"),
        ("a: !!python/object/apply:os.mkdir [evil]", "damaged"),
        ("[" * 5000, "damaged"),
        ("a: 1\n" * 2**18, "too large"),
    ],
    ids=range(5),
)
def test_a_damaged_yaml_file_is_named_and_nothing_in_it_runs(tmp_path, monkeypatch, content, found):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(content)
    with one_line_error(ValueError, tmp_path / "a.yaml", found):
        read_yaml(tmp_path / "a.yaml")
    assert not (tmp_path / "evil").exists()


def test_aliases_of_aliases_are_not_written_out(tmp_path):
    lines = ["a0: &a0 [x]", *(f"a{k}: &a{k} [{','.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 40))]
    (tmp_path / "a.yaml").write_text("\n".join(lines))
    values = read_yaml(tmp_path / "a.yaml")
    assert len(shown(values)) < 300
    with one_line_error(ValueError, "a.yaml: sizes.0"):
        check_values("a.yaml", Two, {"sizes": values["a39"]})


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({}, "f.json: sizes is missing"),
        ({"sizes": 3}, "f.json: sizes: Input should be a valid list, got 3"),
        ({"sizes": [1, 0]}, "f.json: sizes.1: Input should be greater than 0, got 0"),
        ({"sizes": [1], "crop": None}, "f.json: crop: Input should be a valid string, got None"),
        ([], "f.json: "),
    ],
)
def test_a_wrong_field_is_named_with_its_file(values, found):
    with one_line_error(ValueError, found):
        check_values("f.json", Two, values)


@pytest.mark.parametrize(
    "value", [10**5000, "a" * 5000, [[[[[[]]]]]], {"a": math.nan}, b"x" * 5000, "a\nb"], ids=range(6)
)
def test_any_value_is_shown_on_one_short_line(value):
    assert "\n" not in shown(value) and len(shown(value)) < 200
