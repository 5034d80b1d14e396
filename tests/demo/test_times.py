"""The table of times: kinds sum to all of it, workers' own work is not their start."""

import os
from datetime import datetime, timezone

import nbformat
import pytest

from mgkit.demo.times import KINDS, recorded, times, times_table
from mgkit.machine.timing import TIMES, Noted

BEGAN = 1_000_000.0


@pytest.fixture
def copy(tmp_path):
    """An executed notebook whose second cell imports the kit, and ends 12 s after the beginning."""
    end = datetime.fromtimestamp(BEGAN + 12, timezone.utc).replace(tzinfo=None).isoformat()
    cells = [nbformat.v4.new_code_cell("n: int = 1"), nbformat.v4.new_code_cell("from mgkit import model")]
    for cell in cells:
        cell.metadata["papermill"] = {"end_time": end}
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "n.ipynb")
    return tmp_path / "n.ipynb"


def test_the_kinds_sum_to_all_of_it(copy):
    noted = [
        Noted("passes", 3.0, BEGAN + 11, False),  # in the cell that imports
        Noted("workers", 30.0, BEGAN + 50, False),
        Noted("training", 18.0, BEGAN + 40, True),
        Noted("passes", 2.0, BEGAN + 41, True),
        Noted("figures", 4.0, BEGAN + 55, False),
    ]
    found = times(copy, noted, began=BEGAN, ended=BEGAN + 60)
    assert list(found) == list(KINDS) and sum(found.values()) == pytest.approx(60)
    expected = {
        "start": 9,
        "workers": 10,
        "training": 18,
        "passes": 5,
        "search": 0,
        "figures": 4,
        "other": 14,
    }
    assert found == pytest.approx(expected)


def test_the_table_has_a_line_per_notebook_and_their_sum():
    one = dict.fromkeys(KINDS, 2.0)
    *_, first, second, every = times_table({"00_a": one, "01_b": one}).splitlines()
    assert first.split() == ["00_a", *["2"] * 7, "14"] and second.split()[0] == "01_b"
    assert every.split() == ["all", *["4"] * 7, "28"]


def test_records_are_asked_for_within_the_block_only(monkeypatch):
    monkeypatch.delenv(TIMES, raising=False)
    with recorded() as folder:
        assert os.environ[TIMES] == str(folder) and folder.is_dir()
    assert TIMES not in os.environ and not folder.exists()
