"""The results of 06 as one self-contained HTML file; every name is escaped.

Its size is bounded: at most 40 groups of 12, 12 classes of 8, 50 pictures with 8 neighbours and 500 names of
files left out. The csv files beside it are complete.
"""

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from mgkit.data.decoding import UnreadableImageError
from mgkit.engine.run import opened_folder, stage_folder
from mgkit.explore.style import data_uri
from mgkit.machine.files import write_text
from mgkit.machine.printable import shown_name
from mgkit.photos.copies.groups import Group
from mgkit.photos.found import FoundPhotos

MOST_GROUPS, MOST_MEMBERS = 40, 12
MOST_CLASSES, MOST_PER_CLASS = 12, 8
MOST_QUERIES, MOST_NEIGHBOURS = 50, 8
MOST_LEFT_OUT = 500
SIDE = 128  # of a thumbnail, px
QUALITY = 75  # of its JPEG


@dataclass(frozen=True)
class Picture:
    """A thumbnail as a data URI (empty if the file is gone), the file's name and lines of text below it."""

    uri: str
    name: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """Pictures side by side, with a title or the query that they answer."""

    title: str
    pictures: list[Picture]
    query: Picture | None = None


@dataclass(frozen=True)
class Section:
    title: str
    text: str
    rows: list[Row]


def save_report(found: FoundPhotos) -> Path:
    """Write the report atomically into the folder of its run, and return its path.

    Of several machines, the first one writes.
    """
    config = found.task.config
    if config.node_rank:
        return stage_folder(config) / "report.html"
    text = report_text(found)
    with opened_folder(config) as folder:
        write_text(folder / "report.html", text)
    return folder / "report.html"


def report_text(found: FoundPhotos) -> str:
    """The report as HTML."""
    report = Report(found)
    loader = PackageLoader("mgkit.photos.report", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    left_out = list(found.left_out.items())
    return environment.get_template("page.html").render(
        title=f"{len(found.readable):,} pictures below {shown_name(found.images.root.name)}",
        side=SIDE,
        facts=report.facts(),
        sections=[report.near_duplicates(), report.more_like_this(), report.by_class()],
        left_out=[(shown_name(file), why) for file, why in left_out[:MOST_LEFT_OUT]],
        left_out_text=left_out_text(found),
    )


class Report:
    """The sections of the report."""

    def __init__(self, found: FoundPhotos):
        self.found = found
        self.uri = lru_cache(maxsize=None)(self.uri)  # a picture may appear several times

    def facts(self) -> list[tuple[str, str]]:
        """(name, value) of what the results depend on."""
        found, task = self.found, self.found.task
        return [
            ("Folder", shown_name(str(found.images.root))),
            ("Network", task.network),
            ("Descriptor", f"{found.descriptors.shape[1]} dimensions, {found.whitened}"),
            ("Near-duplicates", f"{found.describe()}; {found.threshold.describe()}"),
            ("Classes", found.fit),
        ]

    def near_duplicates(self) -> Section:
        """The groups, the strongest first; in each the picture with most pixels first."""
        groups = self.found.groups
        text = (
            "Each picture is at least as similar as the threshold to another of its group; the one with "
            f"most pixels comes first. {shown_of(len(groups), MOST_GROUPS, 'groups', 'near_duplicates.csv')}"
        )
        rows = [self.group(number, group) for number, group in enumerate(groups[:MOST_GROUPS], 1)]
        return Section("Near-duplicates and copies", text, rows)

    def group(self, number: int, group: Group) -> Row:
        sizes = [self.size(i) for i in group.members]
        order = sorted(range(len(sizes)), key=lambda m: -sizes[m][0] * sizes[m][1])
        pictures = [
            self.picture(
                group.members[m],
                f"{sizes[m][0]} × {sizes[m][1]} px, {kilobytes(self.found.images.paths[group.members[m]])}",
                f"similarity {group.similarities[m]:.3f}",
            )
            for m in order[:MOST_MEMBERS]
        ]
        more = len(order) - len(pictures)
        hidden = f", {more} not shown" if more else ""
        return Row(f"Group {number}: {len(order)} pictures{hidden}", pictures)

    def more_like_this(self) -> Section:
        """A sample of the pictures, each with its nearest neighbours."""
        config = self.found.task.config
        chosen = self.found.sample(min(config.queries, MOST_QUERIES))
        collection = self.found.collection(chosen) if chosen else None
        rows = []
        for i in chosen:
            answers = collection.answers(i, min(config.k, MOST_NEIGHBOURS))
            pairs = zip(answers.neighbours, answers.scores, strict=True)
            pictures = [self.picture(j, f"similarity {score:.2f}") for j, score in pairs]
            lines = [f"{name} {100 * probability:.0f} %" for name, probability in answers.classes[:2]]
            rows.append(Row("", pictures, self.picture(i, *lines)))
        text = f"{len(chosen)} pictures, evenly spaced in the folder, each with the most similar ones."
        return Section("More like this", text, rows)

    def by_class(self) -> Section:
        """The most frequent predicted classes, each with its most probable pictures."""
        found = self.found
        if not found.class_names:
            return Section("Classes", f"{found.fit[:1].upper()}{found.fit[1:]}.", [])
        everything = len(np.unique(found.labels[found.readable, 0]))
        text = (
            "Predicted classes, the most probable pictures first. A picture of anything else is assigned "
            f"to one of these classes, too. {shown_of(everything, MOST_CLASSES, 'classes', '')}"
        )
        rows = [
            Row(
                f"{name}: {count:,} pictures",
                [self.picture(i, f"{100 * found.probabilities[i, 0]:.0f} %") for i in surest],
            )
            for name, count, surest in found.by_class(classes=MOST_CLASSES, each=MOST_PER_CLASS)
        ]
        return Section("Classes", text, rows)

    def picture(self, i: int, *lines: str) -> Picture:
        return Picture(self.uri(i), self.found.name(i), lines)

    def uri(self, i: int) -> str:
        """A picture's thumbnail as a data URI; empty if the file can no longer be read."""
        try:
            small = self.found.images.load(i, least=SIDE)
        except UnreadableImageError:
            return ""
        small.thumbnail((SIDE, SIDE))
        return data_uri(small, "jpeg", quality=QUALITY)

    def size(self, i: int) -> tuple[int, int]:
        """(width, height) of a picture, px."""
        return self.found.images.shape(i)


def shown_of(there: int, most: int, what: str, complete: str) -> str:
    """A sentence: how many there are, how many of them are shown, and which file lists all."""
    if there <= most:
        return f"There are {there:,} {what}."
    where = f"; all of them are in {complete}" if complete else ""
    return f"There are {there:,} {what}, of which {most} are shown{where}."


def kilobytes(path: str) -> str:
    try:
        return f"{os.path.getsize(path) / 1000:,.0f} kB"
    except OSError:
        return "gone"


def left_out_text(found: FoundPhotos) -> str:
    """How many files were left out, and how many are not images, by suffix."""
    left_out, others = len(found.left_out), found.task.folder.others
    text = shown_of(left_out, MOST_LEFT_OUT, "files and folders that were left out", "left_out.csv")
    if others:
        kinds = ", ".join(f"{shown_name(kind)} {n:,}" for kind, n in others.most_common(12))
        text += f" {others.total():,} files do not have an image's suffix: {kinds}."
    return text


def summary(path: Path) -> str:
    """One line: the report's path and size."""
    if not path.is_file():
        return f"{shown_name(path)} is written by the notebook of the first machine"
    return f"{shown_name(path)}: {path.stat().st_size / 1e6:.1f} MB, one file; open it in any browser"
