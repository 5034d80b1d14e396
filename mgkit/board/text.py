"""The board as text."""

from collections.abc import Sequence
from itertools import groupby
from string import ascii_lowercase

from mgkit.board.entries import Elsewhere, Entry


def table(entries: list[Entry], elsewhere: Sequence[Elsewhere] = ()) -> str:
    """Format the board: a line for each row and size of the paper's tables, then the runs cited.

    elsewhere: newer figures, a block of their own at the end
    """
    lines, sources = [], {}
    for name, of_table in groupby(entries, key=lambda entry: entry.table):
        lines += [f"{name}", f"{'':50}{'measure':30}{'paper':>20}{'measured':>21}{'difference':>21}"]
        for (row, size), group in groupby(of_table, key=lambda entry: (entry.row, entry.size)):
            group = list(group)
            columns = [" / ".join(shown) for shown in zip(*map(cells, group), strict=True)]
            if not any(figure.measured for figure in group):
                columns[2:] = ["not measured", ""]
            label = f"{row}, {size} px"
            line = f"{label:50}{columns[0]:30}{columns[1]:>20}{columns[2]:>21}{columns[3]:>21}"
            lines.append((line + marks(group, sources)).rstrip())
        lines.append("")
    if entries and not sources:
        lines.append("Nothing has been measured yet: notebooks/recipes/ has the commands.")
    lines += [f"[{number}] {source}" for source, number in sources.items()]
    if elsewhere:
        lines += ["", *newer(elsewhere)]
    return "\n".join(lines)


def newer(figures: Sequence[Elsewhere]) -> list[str]:
    """Format newer figures, a line for each network and set, then their sources, lettered."""
    lines = ["Elsewhere (newer, other training or data; not comparable)"]
    letters = dict(zip(dict.fromkeys(figure.source for figure in figures), ascii_lowercase, strict=False))
    for name, of_set in groupby(figures, key=lambda figure: figure.set):
        lines.append(f"{name:50}{'measure':30}{'published':>20}")
        for (row, size, source), group in groupby(of_set, key=lambda f: (f.row, f.size, f.source)):
            group = list(group)
            label = f"{row}, {size} px" if size else row
            measures = " / ".join(figure.measure for figure in group)
            values = " / ".join(f"{figure.value:.1f}" for figure in group)
            lines.append(f"{label:50}{measures:30}{values:>20} [{letters[source]}]")
        lines.append("")
    return lines + [f"[{letter}] {source}" for source, letter in letters.items()]


def cells(entry: Entry) -> tuple[str, str, str, str]:
    """Format an entry's measure, printed value, measured value and difference; - if not measured."""
    digits = 2 if entry.measure == "ukbench" else 1
    paper = f"{entry.paper:.{digits}f}"
    if entry.measured is None:
        return entry.measure, paper, "-", "-"
    return entry.measure, paper, f"{entry.measured.value:.{digits}f}", f"{entry.difference:+.{digits}f}"


def marks(group: list[Entry], sources: dict[str, int]) -> str:
    """Format references to the runs of a line, numbered in `sources`, and a note on incomplete sets."""
    text = ""
    for measured in dict.fromkeys(entry.measured for entry in group if entry.measured):
        checkpoint = f"checkpoint {measured.checkpoint[:12]}" if measured.checkpoint else "no checkpoint file"
        source = f"{measured.command}\n    {checkpoint}, {measured.folder}"
        number = sources.setdefault(source, len(sources) + 1)
        if f"[{number}]" not in text:
            text += f" [{number}]"
        if not measured.complete and "images" not in text:
            text += f" on {measured.images} images only, not the paper's"
    return text
