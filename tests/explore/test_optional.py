"""Sections that only show something."""

import pytest

from mgkit.explore.optional import optional


def test_a_refusal_is_said_in_one_line(capsys):
    with optional("the heat maps"):
        raise ValueError("no group has\ntwo images")
    assert capsys.readouterr().out == "not shown: the heat maps (no group has\\ntwo images)\n"
    with optional("the heat maps"):
        raise TimeoutError
    assert capsys.readouterr().out == "not shown: the heat maps (TimeoutError)\n"


def test_a_fault_is_said_with_its_type_and_place(capsys):
    with optional("the heat maps"):
        [][0]
    said = capsys.readouterr().out
    assert said.startswith("not shown: the heat maps (IndexError in ") and "test_optional:" in said


def test_an_interruption_is_not_held_back():
    with pytest.raises(KeyboardInterrupt), optional("the heat maps"):
        raise KeyboardInterrupt
