"""Tables that grow: what was written is found, in any order; what was cut or damaged is not."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mgkit.photos.embedding import table as module
from mgkit.photos.embedding.table import Table, distinct, right

ROW = np.dtype(("<f4", 3))


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 4)
    return Table(tmp_path / "made" / "some.rows", ROW)


def keys(*values):
    return np.array(values, np.uint64)


def rows_of(which):
    """The row of key k is k, k + 1/2 and -k."""
    values = which.astype(np.float32)
    return np.stack([values, values + 0.5, -values], 1)


def filled(table, *of_calls):
    with table.locked():
        for which in of_calls:
            table.append(keys(*which), rows_of(keys(*which)))
    return table


def test_rows_are_found_and_put_in_any_order(table):
    filled(table, [7, 3, 9], [2**64 - 1], [4, 5, 6, 8])
    assert table.find(keys(9, 1, 2**64 - 1, 7)).tolist() == [2, -1, 3, 0]
    wanted = keys(8, 9, 3, 2**64 - 1)
    table.arrange(wanted)
    assert np.array_equal(table.rows(4), rows_of(wanted))
    assert len(table) == 8 and (table.find(keys(4, 5, 6, 7)) >= 4).all()


def test_nothing_is_written_where_the_order_is_right(table):
    filled(table, [1, 2, 3])
    before = table.path.stat()
    table.arrange(keys(1, 2))
    assert table.path.stat().st_mtime_ns == before.st_mtime_ns and table.path.stat().st_ino == before.st_ino


def test_the_latest_row_of_a_key_counts(table):
    filled(table, [1, 2])
    table.append(keys(1), np.full((1, 3), 5))
    table.arrange(keys(2, 1))
    assert table.rows(2)[1].tolist() == [5, 5, 5] and len(table) == 2


def test_an_empty_table_holds_nothing(table):
    assert len(table) == 0 and table.find(keys(0, 1)).tolist() == [-1, -1] and len(table.rows(0)) == 0
    with pytest.raises(OSError, match="has changed meanwhile"):
        table.arrange(keys(1))


@pytest.mark.parametrize("place", range(28))
def test_a_changed_byte_costs_its_record_only(table, place):
    filled(table, [1, 2, 3])
    content = bytearray(table.path.read_bytes())
    content[28 + place] ^= 1
    table.path.write_bytes(content)
    assert table.find(keys(1, 2, 3)).tolist() == [0, -1, 2]


@pytest.mark.parametrize("cut", [1, 27, 28, 50])
def test_after_a_cut_further_records_are_whole(table, cut):
    filled(table, [1, 2, 3])
    content = table.path.read_bytes()
    table.path.write_bytes(content[:-cut])
    filled(table, [4])
    assert (table.find(keys(1, 4)) >= 0).all() and right(table.records()).all()


def test_zeros_are_no_record(table):
    filled(table, [1])
    with open(table.path, "ab") as file:
        file.write(bytes(56))
    assert table.find(keys(0, 1)).tolist() == [-1, 0]


def test_many_write_at_once(table):
    filled(table)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda k: table.append(keys(k), rows_of(keys(k)), lasting=False), range(200)))
    every = keys(*range(200))
    table.arrange(every)
    assert np.array_equal(table.rows(200), rows_of(every))


def test_keys_of_repeated_files_are_distinct():
    prints = keys(5, 9, 5, 2**64 - 1, 5, 9)
    found = distinct(prints)
    assert len(set(found.tolist())) == 6
    assert found[[0, 1, 3]].tolist() == prints[[0, 1, 3]].tolist()
    assert np.array_equal(distinct(prints[:3]), found[:3])
