"""Progress in a log: whole lines, few of them."""

import io
import re
import sys
import time

import pytest

from mgkit.machine import progress as module
from mgkit.machine.progress import print_anything, progress, show_relayed


@pytest.fixture(autouse=True)
def log(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)


def printed(capsys, iterable, seconds=0.0, **options):
    """The items that came, and the lines that were printed meanwhile."""
    items = []
    for item in progress(iterable, "working", **options):
        time.sleep(seconds)
        items.append(item)
    text = capsys.readouterr().out
    assert "\r" not in text and "\x1b" not in text
    assert text == "" or text.endswith("\n")
    return items, text.splitlines()


def test_a_short_loop_prints_nothing(capsys):
    assert printed(capsys, range(20)) == (list(range(20)), [])


def test_a_long_loop_prints_whole_lines_with_where_it_stands(capsys, monkeypatch):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.1)
    items, lines = printed(capsys, range(30), seconds=0.02)
    assert items == list(range(30))
    assert len(lines) >= 2
    counts = [re.match(r"working: (\d+)/30 batch, .* passed", line) for line in lines]
    assert all(counts), lines
    numbers = [int(count[1]) for count in counts]
    assert numbers == sorted(numbers) and numbers[-1] == 30


def test_there_is_at_most_one_line_an_interval(capsys, monkeypatch):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.2)
    start = time.perf_counter()
    _, lines = printed(capsys, range(100), seconds=0.008)
    elapsed = time.perf_counter() - start
    assert 2 <= len(lines) <= elapsed / 0.2 + 1  # and the last, which says that it is done


def test_a_state_is_printed_once_and_bars_within_bars_leave_no_empty_lines(capsys, monkeypatch):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.01)
    for _ in progress(range(2), "outer"):
        for _ in progress(range(3), "inner"):
            time.sleep(0.02)
    text = capsys.readouterr().out
    assert "\x1b" not in text and "" not in text.splitlines()
    assert [line.split(",")[0] for line in text.splitlines()] == [
        *(f"inner: {n}/3 batch" for n in (1, 2, 3)),
        "outer: 1/2 batch",
        *(f"inner: {n}/3 batch" for n in (1, 2, 3)),
        "outer: 2/2 batch",
    ]


def test_an_iterable_without_length_may_be_given_one(capsys, monkeypatch):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.01)
    items, lines = printed(capsys, iter("abc"), seconds=0.02, total=3, unit="step")
    assert items == ["a", "b", "c"]
    assert lines[-1].startswith("working: 3/3 step")


def test_a_loop_that_fails_raises_its_own_error(capsys):
    with pytest.raises(RuntimeError, match="within"):
        for _ in progress(range(3), "working"):
            raise RuntimeError("within")
    assert "\r" not in capsys.readouterr().out


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_bar_that_redraws_itself(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    assert list(progress(range(3), "working")) == [0, 1, 2]
    assert "\r" in terminal.getvalue() and "working" in terminal.getvalue()


@pytest.mark.parametrize(("delay", "shown"), [(0.0, True), (60.0, False)])
def test_a_bar_may_wait_until_a_loop_turns_out_to_be_long(monkeypatch, delay, shown):
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    assert list(progress(iter("abc"), "working", delay=delay)) == ["a", "b", "c"]
    assert ("working" in terminal.getvalue()) == shown
    assert shown or terminal.getvalue() == ""


def test_a_loop_of_unknown_length_says_how_far_it_came(capsys, monkeypatch):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.01)
    _, lines = printed(capsys, iter("abc"), seconds=0.02, unit="steps")
    assert re.match(r"working: 3 steps, \S+ passed, ", lines[-1])


# --- Bars of another process


def relayed_lines(monkeypatch, capsys, seconds=0.0, **options):
    """What a process whose lines are relayed prints around and in a loop of five."""
    with monkeypatch.context() as there:
        there.setenv(module.FOR_RELAY, "1")
        print("before")
        for _ in progress(range(5), "reading", **options):
            time.sleep(seconds)
        print("after")
    return list(io.StringIO(capsys.readouterr().out))


def test_lines_of_another_process_come_as_they_are_and_its_bars_as_bars(monkeypatch, capsys):
    lines = relayed_lines(monkeypatch, capsys)
    assert lines[0] == "before\n" and lines[-1] == "after\n" and len(lines) > 2
    states = [module.bar_state(line) for line in lines[1:-1]]
    assert states[-1]["n"] == 5 and states[-1]["closed"] and all(s["total"] == 5 for s in states)
    show_relayed(lines)
    assert capsys.readouterr().out == "before\nafter\n"  # a short loop has no line


def test_a_long_loop_of_another_process_ends_with_one_line(monkeypatch, capsys):
    lines = relayed_lines(monkeypatch, capsys, initial=2, total=7)
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.0)

    def slowly():
        for line in lines:
            time.sleep(0.01)
            yield line

    show_relayed(slowly())
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "before" and shown[-1] == "after"
    assert [line for line in shown if "7/7 batch" in line] == [shown[-2]]


def test_a_line_that_was_cut_off_is_shown_as_text(capsys):
    show_relayed([module.MARK + '{"description": "rea', "done\n"])
    assert capsys.readouterr().out.endswith("done\n")


def test_bars_that_another_process_left_open_are_closed_with_its_end(monkeypatch, capsys):
    lines = relayed_lines(monkeypatch, capsys)[:-2]  # as after a kill
    show_relayed(lines)
    assert capsys.readouterr().out == "before\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_what_the_output_cannot_encode_is_printed_all_the_same(monkeypatch, encoding):
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    monkeypatch.setattr(sys, "stdout", output)
    show_relayed(["β 1.2\n"])  # in a script that has not prepared its output
    print("a\udcff")
    for _ in progress(range(2), "λ"):
        pass
    beta = "β" if encoding == "utf-8" else "\\u03b2"
    assert output.buffer.getvalue().decode(encoding).split("\n")[:2] == [f"{beta} 1.2", "a\\udcff"]


def test_an_output_without_an_encoding_of_its_own_is_left_as_it_is(monkeypatch):
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    print_anything()
    print("β", end="")
    assert output.getvalue() == "β"
