"""Rows of pictures in a file that grows: what is known of a picture is not made again.

A record is a picture's key, a checksum and its row. One that was cut short or damaged has a wrong checksum:
its picture is not known. So there is no journal, and any process may write records of its own.
"""

import errno
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mgkit.data.images import place_in_class
from mgkit.machine.files import atomic_write, exclusive, remove_partial, sync, writing

BLOCK = 4096  # records that are checked or copied at a time
STEP = np.uint64(0x9E3779B97F4A7C15)  # odd: between the keys of a file that is listed several times


def distinct(prints: np.ndarray) -> np.ndarray:
    """Keys [N] uint64, all different, of `fingerprints` [N]: those of a file that is listed again differ."""
    order = np.argsort(prints, kind="stable")
    place = np.empty(len(prints), np.uint64)
    place[order] = place_in_class(prints[order])
    return prints + place * STEP  # modulo 2**64


@dataclass(frozen=True)
class Table:
    """A file of records.

    path: of the file; it need not exist.
    row: type of a row, with a shape or fields.
    """

    path: Path
    row: np.dtype

    @property
    def record(self) -> np.dtype:
        return np.dtype([("key", "<u8"), ("sum", "<u8"), ("row", self.row)])

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the table for writing, and remove what killed processes left; waits for another process.

        Only the holder may `arrange` the table; anyone may append to it.
        """
        with exclusive(self.path.with_suffix(".lock"), purpose=f"writing {self.path}"):
            remove_partial(self.path.parent)
            with writing(self.path), open(self.path, "ab") as file:
                file.truncate(len(self) * self.record.itemsize)
            yield

    def __len__(self) -> int:
        """The number of records, also of those that are not right."""
        return self.path.stat().st_size // self.record.itemsize if self.path.exists() else 0

    def records(self, count: int | None = None) -> np.ndarray:
        """The first `count` records, or all, mapped from the file."""
        count = len(self) if count is None else count
        if not count:
            return np.empty(0, self.record)
        return np.memmap(self.path, self.record, "r", shape=(count,))

    def rows(self, count: int) -> np.ndarray:
        """The first `count` rows, mapped from the file."""
        return self.records(count)["row"]

    def find(self, keys: np.ndarray) -> np.ndarray:
        """[N] int64: the position of each key's latest right record; -1 where there is none."""
        records = self.records()
        positions = np.flatnonzero(right(records))[::-1]
        known, first = np.unique(records["key"][positions], return_index=True)
        at = np.searchsorted(known, keys)
        found = at < len(known)
        found[found] = known[at[found]] == keys[found]
        result = np.full(len(keys), -1)
        result[found] = positions[first[at[found]]]
        return result

    def made(self, keys: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Records [n] of keys [n] and rows [n,...]."""
        records = np.zeros(len(keys), self.record)
        records["key"], records["row"] = keys, rows
        records["sum"] = sums(records)
        return records

    def append(self, keys: np.ndarray, rows: np.ndarray, *, lasting: bool = True) -> None:
        """Append records, which is one write.

        lasting: whether they are on disk afterwards, even if the power fails.
        """
        content = memoryview(self.made(keys, rows)).cast("B")
        with writing(self.path), open(self.path, "ab", buffering=0) as file:  # the system finds the end
            if file.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if lasting:
            sync(self.path)

    def arrange(self, keys: np.ndarray) -> None:
        """Put the records of keys [N], all of which must be there, first and in this order; others behind."""
        at = self.find(keys)
        if (at < 0).any():
            raise OSError(f"{self.path} has changed meanwhile: another program writes to it")
        if np.array_equal(at, np.arange(len(keys))):
            return
        records = self.records()
        others = np.flatnonzero(right(records) & ~np.isin(records["key"], keys))
        _, last = np.unique(records["key"][others[::-1]], return_index=True)
        order = np.concatenate([at, np.sort(others[::-1][last])])
        with atomic_write(self.path) as temporary, open(temporary, "wb") as file:
            for start in range(0, len(order), BLOCK):
                file.write(memoryview(records[order[start : start + BLOCK]]).cast("B"))


def sums(records: np.ndarray) -> np.ndarray:
    """Checksums [n] of records; no byte of them is counted but key and row."""
    content = records.view(np.uint8).reshape(len(records), -1)
    return np.array([zlib.crc32(each[16:], zlib.crc32(each[:8])) for each in content], np.uint64)


def right(records: np.ndarray) -> np.ndarray:
    """[n] bool: whether the checksum of each record is right."""
    found = np.zeros(len(records), bool)
    for start in range(0, len(records), BLOCK):
        block = np.array(records[start : start + BLOCK])
        found[start : start + BLOCK] = sums(block) == block["sum"]
    return found
