"""A line of the table of `make gpu`, and the table."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from measuring import Row

HEAD = ("row", "measured", "floor", "ratio", "of rounds", "wanted", "met", "of the limit", "memory", "remark")
ERROR, FAILED, SKIPPED, LEFT_OUT = "error", "failed", "skipped", "left out"


@dataclass(frozen=True)
class Line:
    """A row beside its floor, or something in words.

    name: what is measured or checked.
    row: both sides and their ratio; None where there is nothing to compare.
    text: what stands in the column `measured` instead, such as a rate, `passed`, or one of the words above.
    spread: least and largest value over the rounds of a rate without a floor, in words.
    limit, share: a limit of the machine, and which part of it was reached (0..1).
    memory: peak on the device (GiB).
    remark: what else there is to say.
    known: values that later rows need, by name.
    seconds: that the row took, with those that belong to it.
    """

    name: str
    row: Row | None = None
    text: str = ""
    spread: str = ""
    limit: str = ""
    share: float | None = None
    memory: float | None = None
    remark: str = ""
    known: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def bad(self) -> bool:
        """Whether it is a test that failed, or a row that could not be measured."""
        return self.text in (ERROR, FAILED)

    def cells(self) -> list[str]:
        of_limit = "" if self.share is None else f"{100 * self.share:.3g} % {self.limit}"
        memory = "" if self.memory is None else f"{self.memory:.3g} GiB"
        if self.row is None:
            return [self.name, self.text, "", "", self.spread, "", "", of_limit, memory, self.remark]
        _, measured, floor, ratio, over, _, wanted, met = self.row.cells()
        return [self.name, measured, floor, ratio, over, wanted, met, of_limit, memory, self.remark]

    def plain(self) -> dict:
        values = asdict(self)
        return values | {"row": self.row.plain() if self.row else None}


def report(lines: Sequence[Line]) -> str:
    """The lines as a table."""
    every = [list(HEAD), *(line.cells() for line in lines)]
    widths = [max(len(cells[k]) for cells in every) for k in range(len(HEAD))]
    padded = [[cell.ljust(width) for cell, width in zip(cells, widths, strict=True)] for cells in every]
    return "\n".join("  ".join(cells).rstrip() for cells in padded)
