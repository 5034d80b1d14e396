"""Seconds by kind of work: of a block without those within it, of generators, of processes; and no cost."""

import json
import os
import threading
import time
from itertools import islice

import pytest

from mgkit.machine.progress import FOR_RELAY
from mgkit.machine.timing import TIMES, each_timed, noted_in, timed


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of the records, which are asked for."""
    monkeypatch.setenv(TIMES, str(tmp_path))
    monkeypatch.delenv("RANK", raising=False)
    return tmp_path


def seconds_of(folder):
    return {one.kind: one.seconds for one in noted_in(folder)}


def test_a_block_is_noted_without_those_within_it(folder):
    with timed("training"):
        time.sleep(0.05)
        with timed("passes"):
            time.sleep(0.2)
    found = seconds_of(folder)
    assert list(found) == ["passes", "training"] and found["passes"] >= 0.2
    assert 0.05 <= found["training"] < found["passes"]


def test_of_a_generator_the_consumer_s_time_is_not_noted(folder):
    made = []

    @each_timed("passes")
    def items(count):
        for k in range(count):
            made.append(k)
            yield k

    began = time.perf_counter()
    for _ in islice(items(3), 2):
        time.sleep(0.1)
    assert sum(one.seconds for one in noted_in(folder)) < time.perf_counter() - began - 0.2
    assert made == [0, 1] and list(items(2)) == [0, 1]


def test_what_raises_is_noted_and_raises(folder):
    with pytest.raises(KeyError), timed("search"):
        raise KeyError
    assert list(seconds_of(folder)) == ["search"]


def test_nothing_is_noted_unless_asked_for_and_by_one_thread_of_one_rank(folder, monkeypatch):
    def block():
        with timed("search"):
            pass

    thread = threading.Thread(target=block)
    thread.start()
    thread.join()
    monkeypatch.setenv("RANK", "1")
    block()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv(TIMES)
    block()
    assert noted_in(folder) == []


def test_a_record_that_cannot_be_written_stops_nothing(folder, monkeypatch):
    monkeypatch.setenv(TIMES, str(folder / "gone"))
    with timed("search"):
        pass
    assert noted_in(folder / "gone") == []


def test_workers_say_that_they_are_and_half_written_lines_are_left_out(folder, monkeypatch):
    monkeypatch.setenv(FOR_RELAY, "1")
    with timed("training"):
        pass
    with open(folder / f"{os.getpid()}.jsonl", "a") as file:
        file.write(json.dumps(["training", 1.0])[:-3])
    [one] = noted_in(folder)
    assert one.worker and one.kind == "training"
