"""Sections of a notebook that only show results: they never end a run whose results are written."""

from collections.abc import Iterator
from contextlib import contextmanager

from mgkit.machine.printable import shown_name


@contextmanager
def optional(section: str) -> Iterator[None]:
    """Have an error of the block end the block only; one line says which section is not shown, and why.

    section: what is shown, such as "the heat maps"

    Refusals (ValueError, OSError) are given by their message. Any other error is a fault of the kit: its type
    and place are given too.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        print(f"not shown: {section} ({shown_name(str(error)) or type(error).__name__})")
    except Exception as error:
        print(f"not shown: {section} ({type(error).__name__} in {place_of(error)}: {shown_name(str(error))})")


def place_of(error: Exception) -> str:
    """The line where an error was raised, as `module:line`."""
    last = error.__traceback__
    while last.tb_next:
        last = last.tb_next
    return f"{last.tb_frame.f_globals.get('__name__', '?')}:{last.tb_lineno}"
