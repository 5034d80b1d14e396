"""Which picture of a group is proposed to stay."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mgkit.data.headers import HOLDS_MORE
from mgkit.photos.looks import Facts

SAME_SHAPE = 0.01  # largest difference of width / height of pictures that have one shape
# Of one picture at one quality they have different sizes: bytes tell something within a family only.
FAMILIES = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".mpo"), "JPEG"),
    **dict.fromkeys((".heic", ".heif", ".hif", ".avif", ".avifs"), "HEIF"),
    **dict.fromkeys((".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"), "JPEG 2000"),
    **dict.fromkeys((".png", ".apng"), "PNG"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
}


def pixels(facts: Facts) -> int:
    """The pixels of a picture without its bars and borders, of which a screenshot has many."""
    return round(facts.width * facts.height * round(facts.content, 2))


def bytes_per_pixel(facts: Facts) -> float:
    return facts.size / max(pixels(facts), 1)


def date(facts: Facts) -> float:
    return facts.changed if facts.taken is None else facts.taken


# name: (the largest value stays, what is said of the one that stays)
CRITERIA: dict[str, tuple[Callable[[Facts], float], Callable[[Facts], str]]] = {
    "pixels": (pixels, lambda facts: f"most pixels: {facts.width} x {facts.height}"),
    "camera": (lambda facts: facts.camera, lambda facts: "camera data"),
    "date": (lambda facts: -date(facts), lambda facts: f"oldest: {day(date(facts))}"),
    "compression": (
        bytes_per_pixel,
        lambda facts: f"least compressed: {bytes_per_pixel(facts):.2f} bytes per pixel",
    ),
    "upright": (lambda facts: not facts.turned, lambda facts: "not turned"),
}


@dataclass(frozen=True)
class Keeping:
    """The choice of the picture that stays.

    order: names of CRITERIA, compared one after the other; pictures that are equal in all, by path.
    paths: of the pictures.
    facts: index of a picture -> what is known of its file.
    """

    order: Sequence[str]
    paths: Sequence[str]
    facts: Callable[[int], Facts]

    def choose(self, members: Sequence[int]) -> tuple[int, str]:
        """The position of the picture that stays, of those with these indices, and why in a few words.

        How much files are compressed is compared only among files of one format. A file that is gone stays
        only where all are.
        """
        known = [(place, self.facts(i)) for place, i in enumerate(map(int, members)) if not self.gone(i)]
        if not known:
            return 0, "all files are gone"
        reason = "the only file that is left" if len(known) < len(members) else ""
        for name in self.order if len(known) > 1 else ():
            if name == "compression" and len({self.family(members[place]) for place, _ in known}) > 1:
                continue
            value, said = CRITERIA[name]
            best = max(value(facts) for _, facts in known)
            rest = [(place, facts) for place, facts in known if value(facts) == best]
            if len(rest) < len(known):
                known, reason = rest, said(rest[0][1])
            if len(known) == 1:
                break
        if len(known) > 1:
            known, reason = [min(known, key=lambda each: self.paths[members[each[0]]])], "first by path"
        return known[0][0], reason

    def may_go(self, i: int) -> bool:
        """Whether a picture's file is known to hold nothing but what is shown: no RAW data, one frame."""
        facts = self.facts(i)
        return facts.width * facts.height > 1 and not any(part in facts.remark for part in HOLDS_MORE)

    def covers(self, kept: int, other: int) -> bool:
        """Whether nothing is lost with another picture: not pixels, bytes of its format, or camera data.

        It must not be cropped or turned by 90 degrees either.
        """
        ours, theirs = self.facts(kept), self.facts(other)
        shapes = ours.width * theirs.height, ours.height * theirs.width
        if not self.may_go(other) or abs(shapes[0] - shapes[1]) > SAME_SHAPE * max(shapes):
            return False
        fine = self.family(kept) == self.family(other) and ours.size >= theirs.size
        large = pixels(ours) >= pixels(theirs) and ours.camera >= theirs.camera
        return fine and large and not self.gone(kept)

    def gone(self, i: int) -> bool:
        return not self.facts(i).size or not os.path.exists(self.paths[i])

    def family(self, i: int) -> str:
        suffix = os.path.splitext(self.paths[i])[1].lower()
        return FAMILIES.get(suffix, suffix)


def day(seconds: float) -> str:
    """The date (UTC) of seconds since 1970, however far away."""
    return str(np.datetime64(int(seconds), "s").astype("datetime64[D]"))
