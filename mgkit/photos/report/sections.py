"""What the report shows: sections of rows of pictures, by their indices.

Their numbers are bounded; the csv files beside the report are complete.
"""

from dataclasses import dataclass

import numpy as np

from mgkit.machine.printable import shown_name
from mgkit.photos.copies.groups import Group
from mgkit.photos.copies.pairs import GRADES, SAME_FILE, SAME_MOMENT
from mgkit.photos.found import FoundPhotos

MOST_GROUPS, MOST_MEMBERS = 40, 12  # of each grade
MOST_CLASSES, MOST_PER_CLASS = 12, 8
MOST_QUERIES, MOST_NEIGHBOURS = 50, 8
MOST_MISSING = 96
TURNS = {  # by the values of the rotation tag
    2: "mirrored", 3: "turned by 180°", 4: "mirrored, then turned by 180°",
    5: "mirrored, then turned by 90° counterclockwise", 6: "turned by 90° counterclockwise",
    7: "mirrored, then turned by 90° clockwise", 8: "turned by 90° clockwise",
}  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A picture by its index, its printable name, lines of text below it, and a mark such as `keep`."""

    i: int
    name: str
    lines: tuple[str, ...] = ()
    mark: str = ""


@dataclass(frozen=True)
class Row:
    """Pictures side by side, with a title or the query that they answer; `key` names a group in the page."""

    title: str
    pictures: list[Picture]
    query: Picture | None = None
    key: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the report; `key` names it in the page, `short` in the list of the parts."""

    key: str
    short: str
    title: str
    text: str
    rows: list[Row]

    def shown(self) -> list[int]:
        """Indices of the pictures."""
        return [each.i for row in self.rows for each in ([row.query] if row.query else []) + row.pictures]


def sections(found: FoundPhotos) -> list[Section]:
    """All sections, in the order of the page."""
    grades = [graded(found, SAME_FILE), graded(found, SAME_MOMENT)]
    if found.against is not None:
        grades.append(missing(found))
    return [*grades, more_like_this(found), by_class(found)]


# --- Near-duplicates

KEYS = {SAME_FILE: "same-file", SAME_MOMENT: "same-moment"}
EXPLAINED = {
    SAME_FILE: "Pictures that were made from each other: saved again, made smaller, cropped, turned or "
    "retouched. One of each group is proposed to stay. Nothing was "
    "changed or deleted. Look before you delete: pages of one form, and photographs that differ in a small "
    "part only, are taken for the same file.",
    SAME_MOMENT: "Different photographs of the same thing, as in a burst. These are no copies: look at them "
    "before you delete one.",
}
EXPLAINED_AGAINST = {
    SAME_FILE: "Each row begins with a picture of the folder that was searched; the other folder holds the "
    "same one, perhaps edited. Nothing was changed or deleted.",
    SAME_MOMENT: "Each row begins with a picture of the folder that was searched; the other folder does not "
    "hold it, but another photograph of the same thing.",
}


def graded(found: FoundPhotos, grade: int) -> Section:
    """The groups of a grade, numbered as in near_duplicates.csv."""
    groups = [(n, group) for n, group in enumerate(found.groups, 1) if group.grade == grade]
    parts = [(EXPLAINED if found.against is None else EXPLAINED_AGAINST)[grade]]
    if grade == SAME_FILE and groups:
        parts.append(f"{could_be_freed(found)} could be freed.")
    parts.append(shown_of(len(groups), MOST_GROUPS, "groups", "near_duplicates.csv"))
    name = GRADES[grade]
    title = first_upper(name if found.against is None else f"in the other folder: {name}")
    rows = [group_row(found, number, group) for number, group in groups[:MOST_GROUPS]]
    return Section(KEYS[grade], f"{first_upper(name)} ({len(groups):,})", title, " ".join(parts), rows)


def could_be_freed(found: FoundPhotos) -> str:
    """The bytes of the copies that are proposed to go, and their number."""
    count, size = found.could_go()
    return f"{readable_bytes(size)} ({count:,} copies)"


def group_row(found: FoundPhotos, number: int, group: Group) -> Row:
    """A group; the picture that is proposed to stay comes first, or, of two folders, the one searched for."""
    first = group.kept if found.against is None else 0
    order = [first, *(m for m in range(len(group.members)) if m != first)]
    pictures = [member(found, group, m) for m in order[:MOST_MEMBERS]]
    parts = [f"Group {number}: {len(order)} pictures"]
    if len(order) > MOST_MEMBERS:
        parts.append(f"{len(order) - MOST_MEMBERS} of them not shown")
    if np.isfinite(group.tightness):
        parts.append(f"mean similarity {group.tightness:.2f}")
    if group.grade == SAME_FILE and group.going:
        freed = sum(map(found.freed_by, group.going))
        parts.append(f"{readable_bytes(freed)} could be freed")
    return Row(", ".join(parts), pictures, key=f"group-{number}")


def member(found: FoundPhotos, group: Group, m: int) -> Picture:
    """A picture of a group with what its file is like, and how it is related to the one that stays."""
    i, stays = group.members[m], m == group.kept
    lines = [
        size_of(found, i),
        TURNS.get(group.turns[m], "") if group.turns else "",
        found.facts(i).remark,
        "" if found.against is None or i < found.against else "in the other folder",
        group.reason if stays else f"similarity {group.similarities[m]:.3f}",
    ]
    return picture(found, i, *filter(None, lines), mark="keep" if stays else "")


def size_of(found: FoundPhotos, i: int) -> str:
    """The size of a picture in pixels and bytes."""
    facts = found.facts(i)
    return f"{facts.width} × {facts.height} px, {readable_bytes(facts.size)}" if facts.size else "gone"


# --- One folder against another


def missing(found: FoundPhotos) -> Section:
    """The pictures of the first folder that the other one does not hold, as they are or edited."""
    there = {group.members[0] for group in found.of_grade(SAME_FILE)}
    absent = [i for i in found.readable[found.readable < found.against].tolist() if i not in there]
    text = shown_of(len(absent), MOST_MISSING, "pictures that are not there", "against.csv")
    row = Row("", [picture(found, i, size_of(found, i)) for i in absent[:MOST_MISSING]])
    title = "Not in the other folder"
    return Section("missing", f"{title} ({len(absent):,})", title, text, [row] if absent else [])


# --- Similar pictures, classes


def more_like_this(found: FoundPhotos) -> Section:
    """A sample of the pictures, each with its nearest neighbours."""
    config = found.task.config
    chosen = found.sample(min(config.queries, MOST_QUERIES))
    collection = found.collection(chosen) if chosen else None
    rows = []
    for i in chosen:
        answers = collection.answers(i, min(config.k, MOST_NEIGHBOURS))
        pairs = zip(answers.neighbours, answers.scores, strict=True)
        pictures = [picture(found, j, f"similarity {score:.2f}") for j, score in pairs]
        lines = [f"{name} {100 * probability:.0f} %" for name, probability in answers.classes[:2]]
        rows.append(Row("", pictures, picture(found, i, *lines, mark="like this one")))
    text = f"{len(chosen)} pictures, evenly spaced in the folder, each with the most similar ones."
    return Section("like", "More like this", "More like this", text, rows)


def by_class(found: FoundPhotos) -> Section:
    """The most frequent predicted classes, each with its most probable pictures."""
    if not found.class_names:
        return Section("classes", "Classes", "Classes", f"{first_upper(found.fit)}.", [])
    everything = len(np.unique(found.labels[found.readable, 0]))
    text = (
        "Predicted classes, the most probable pictures first. A picture of anything else is assigned "
        f"to one of these classes, too. {shown_of(everything, MOST_CLASSES, 'classes', '')}"
    )
    rows = [
        Row(
            f"{name}: {count:,} pictures",
            [picture(found, i, f"{100 * found.probabilities[i, 0]:.0f} %") for i in surest],
        )
        for name, count, surest in found.by_class(classes=MOST_CLASSES, each=MOST_PER_CLASS)
    ]
    return Section("classes", "Classes", "Classes", text, rows)


# --- Texts


def picture(found: FoundPhotos, i: int, *lines: str, mark: str = "") -> Picture:
    return Picture(i, found.name(i), tuple(map(shown_name, lines)), mark)


def shown_of(there: int, most: int, what: str, complete: str) -> str:
    """A sentence: how many there are, how many of them are shown, and which file lists all."""
    if there <= most:
        return f"There are {there:,} {what}."
    where = f"; all of them are in {complete}" if complete else ""
    return f"There are {there:,} {what}, of which {most} are shown{where}."


def readable_bytes(size: float) -> str:
    """A number of bytes in kB, MB or GB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{size / 1e3:,.0f} kB"


def first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]
