"""Texts from outside, such as names of files and classes, made printable on one line."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

SHOWN_AS_THEY_ARE = "\u200d"  # joins emoji; not printable by itself
FORMULA = "=+-@"  # a spreadsheet takes a cell that starts with one of these for a formula
UNDECODED = range(0xDC80, 0xDD00)  # what Python makes of the bytes of a name that is not UTF-8


def shown_name(name: str | os.PathLike[str]) -> str:
    """A name or message as printable text on one line; other bytes and characters are escaped.

    A text that is printable is returned as it is. Letters of any script and emoji are printable; line breaks,
    control characters, marks that change the direction of writing, and undecoded bytes are not.
    """
    text = os.fspath(name)
    return "".join(c if c.isprintable() or c in SHOWN_AS_THEY_ARE else escape(c) for c in text)


def escape(character: str) -> str:
    """The escape of a character in Python's notation; of an undecoded byte `\\xNN`."""
    code = ord(character)
    if code in UNDECODED:
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def shortened(name: str | os.PathLike[str], length: int = 18) -> str:
    """`shown_name` of at most `length` characters; of a longer one the beginning and the end."""
    shown, end = shown_name(name), length // 3
    return shown if len(shown) <= length else f"{shown[: length - 1 - end]}…{shown[-end:]}"


def csv_name(path: str) -> str:
    r"""A relative path for a csv: printable, no formula to a spreadsheet, and it can be read back.

    Escapes are those of `shown_name`, with `\\` for a backslash, so that no two paths look the same; `./`
    stands before a path that begins like a formula.
    """
    shown = shown_name(path.replace("\\", "\\\\") if os.sep != "\\" else path)
    return f"./{shown}" if shown[:1] in tuple(FORMULA) else shown


def file_stem(name: str, length: int = 60) -> str:
    """A name as a part of a file name that any system takes: letters, digits, `-`, `_` and dots within."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in shown_name(name))
    return kept[:length].strip(".") or "_"


@cache
def say_once(line: str) -> None:
    """Print a line once per process; those that are not the main one print nothing."""
    print(shown_name(line))


@contextmanager
def printable_errors() -> Iterator[None]:
    """Make the message of a ValueError or OSError of the block, or function, printable on one line."""
    try:
        yield
    except (ValueError, OSError) as error:
        shown = shown_name(str(error))
        if shown != str(error):
            error.args = (shown,)
        raise
