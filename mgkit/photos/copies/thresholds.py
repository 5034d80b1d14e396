"""The thresholds of near-duplicates, which are learned on each collection.

Edited copies of the collection's own pictures say what a threshold may be at most. Unrelated images
("strangers") say what it must be at least. How often they exceed it is extrapolated from farther neighbours,
since the nearest may be duplicates or other views of the same object, in some collections of most images: the
number of strangers above a similarity is taken to fall exponentially.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mgkit.photos.copies.edits import EDITS, EMBEDDED

FEWEST = 20  # images needed to extrapolate strangers
NEAREST, FARTHEST = 8, 32  # rank of the farthest neighbour that they are extrapolated from
LARGEST = 0.1  # share of the similarities to strangers that others are extrapolated from
KEPT_COPIES = 0.9  # share of the copies of each edit above the threshold, unless strangers are as similar
MOST = 0.999  # largest threshold: identical pictures have 1 up to rounding
USED = 0.9  # share of the copies of an edit that are compared with their originals, for it to count


@dataclass(frozen=True)
class Threshold:
    """The smallest similarity of near-duplicates, with what it was estimated from.

    value: the threshold.
    false_images: expected number of images with a stranger above it; NaN if unknown.
    found: share of the edited copies that are found with it, for each edit.
    copies: similarities of edited copies to their originals ([n,E]).
    nearest: similarity of images to their nearest stranger, where one was found ([m]).
    how: how the threshold was chosen, as text.
    images: number of images.
    """

    value: float
    false_images: float
    found: dict[str, float]
    copies: np.ndarray
    nearest: np.ndarray
    how: str
    images: int

    def describe(self) -> str:
        """Two sentences: the threshold and its false positives; the edited copies it finds."""
        expected = (
            f"expected false positives: {self.false_images:.1f} of {self.images:,} images"
            if math.isfinite(self.false_images)
            else "expected false positives: not known"
        )
        found = ", ".join(f"{name} {100 * share:.0f} %" for name, share in self.found.items())
        found = found or "none tried"
        return f"threshold {self.value:.3f}: {self.how}; {expected}. Edited copies found: {found}."


@dataclass(frozen=True)
class Thresholds:
    """The thresholds of the two grades.

    file: of the alignment, from which pictures are the same file.
    moment: of the cosine similarity, from which others show the same moment.
    floor: cosine similarity from which pictures are laid over each other.
    """

    file: Threshold
    moment: Threshold
    floor: float = -math.inf


def calibrated(
    copies: np.ndarray,
    scores: np.ndarray,
    *,
    edits: Sequence[str] = tuple(EDITS),
    compared: np.ndarray | None = None,
    strangers: "Strangers | None" = None,
    least: float = -math.inf,
    images: int | None = None,
    false_rate: float = 0.02,
    given: float | None = None,
) -> Threshold:
    """The threshold that 90 % of the copies of each edit reach, or higher if strangers exceed it too often.

    copies: similarities of the edited copies of n images to their originals ([n,E]); NaN if unknown.
    scores: similarities of images to their neighbours, descending; -inf if missed by an index ([N,k]).
    edits: names of the E edits.
    compared: whether each copy would be compared with its original ([n,E]); None: all. Edits of which fewer
        than 90 % would be do not count for the threshold.
    strangers: None: extrapolated from the scores.
    least: of the thresholds.
    images: number of images; None: those that have neighbours.
    false_rate: share of the images of which a stranger may exceed the threshold.
    given: a threshold to evaluate instead.

    Strangers are unknown if fewer than 20 images, or less than half, have 8 neighbours. Raises ValueError if
    there are neither copies nor strangers, nor a least threshold.
    """
    compared = np.ones(copies.shape, bool) if compared is None else compared
    counted = copies[:, compared.mean(0) >= USED] if len(copies) else copies
    counted = counted[:, np.isfinite(counted).any(0)]
    strangers = strangers or Strangers.beyond(scores)
    lowest = np.nanquantile(counted, 1 - KEPT_COPIES, axis=0)  # of each edit
    reached = min(float(lowest.min()), MOST) if counted.size else -math.inf
    exceeded = min(strangers.threshold(false_rate), MOST) if strangers else -math.inf
    if given is not None:
        value, how = given, "as given"
    elif not counted.size and strangers is None and math.isinf(least):
        raise ValueError(f"a threshold needs edited copies, or {FEWEST} images with neighbours")
    elif least > max(reached, exceeded):
        value, how = least, "unrelated pictures may reach less"
    elif exceeded > reached:
        value, how = exceeded, exceeded_by_strangers(exceeded, false_rate)
    else:
        share = f"{100 * KEPT_COPIES:g} %"
        value, how = reached, f"{share} of the copies of each edit that can be compared reach it"
    return judged(value, how, copies, scores, strangers, edits=edits, compared=compared, images=images)


def between_strangers(
    copies: np.ndarray,
    scores: np.ndarray,
    *,
    edits: Sequence[str] = tuple(EMBEDDED),
    false_rate: float = 0.02,
    given: float | None = None,
) -> Threshold:
    """The threshold that strangers exceed for a share `false_rate` of the images; else as `calibrated`.

    It finds as much as possible: how similar other views of the same moment are is not known. The parameters
    are as of `calibrated`.
    """
    strangers = Strangers.beyond(scores)
    if given is not None or strangers is None:
        return calibrated(copies, scores, edits=edits, false_rate=false_rate, given=given)
    value = min(strangers.threshold(false_rate), MOST)
    return judged(value, exceeded_by_strangers(value, false_rate), copies, scores, strangers, edits=edits)


def judged(
    value: float,
    how: str,
    copies: np.ndarray,
    scores: np.ndarray,
    strangers: "Strangers | None",
    *,
    edits: Sequence[str],
    compared: np.ndarray | None = None,
    images: int | None = None,
) -> Threshold:
    """A threshold with the errors to be expected of it."""
    nearest = scores[:, 0][np.isfinite(scores[:, 0])] if scores.shape[1] else np.empty(0, np.float32)
    images = len(nearest) if images is None else images
    false_images = images * strangers.rate(value) if strangers and value < MOST else math.nan
    above = (copies >= value) & (True if compared is None else compared)
    found = dict(zip(edits, above.mean(0).tolist(), strict=True)) if len(copies) else {}
    return Threshold(value, false_images, found, copies, nearest, how, images)


def exceeded_by_strangers(value: float, false_rate: float) -> str:
    if value == MOST:
        return "pictures that are no copies are as similar as copies, so only identical ones count"
    return f"a picture that is no copy exceeds it for {100 * false_rate:g} % of the images"


@dataclass(frozen=True)
class Strangers:
    """How similar strangers are: of image i, count·exp((last[i] - s) / scale) exceed a similarity s.

    last: similarity of the farthest neighbour looked at ([n]).
    count: its rank; of those that are looked at, the expected number.
    scale: similarity in which the number of strangers falls by a factor of e.
    """

    last: np.ndarray
    count: float
    scale: float

    @classmethod
    def beyond(cls, scores: np.ndarray) -> "Strangers | None":
        """Those of scores [N,k]; the nearest quarter of the neighbours may be no strangers. None: unknown.

        At most the nearer half of the collection, and at most 32 neighbours, are looked at.
        """
        enough = np.isfinite(scores).sum(0) >= max(FEWEST, len(scores) / 2)  # by rank
        count = min(FARTHEST, int(enough.sum()), len(scores) // 2)
        if count < NEAREST:
            return None
        last = scores[:, count - 1]
        known = np.isfinite(last)
        # Without images that have more near-duplicates than that, as in a burst: far out by Tukey's rule.
        low, high = np.quantile(last[known], (0.25, 0.75))
        known &= last <= high + 3 * (high - low)
        # The r-th and the next largest exponential values differ by scale / r in the mean (Rényi 1953).
        ranks = np.arange(1, count)
        gaps = ranks * -np.diff(scores[known, :count], axis=1)  # [n,count-1]
        scale = float(np.median(gaps[:, count // 4 :].mean(1)))
        return cls(last[known], count, max(scale, 1e-6))  # not 0 where all are equal

    @classmethod
    def among(cls, scores: np.ndarray) -> "Strangers | None":
        """Those of similarities to some of them [N,k], which need not be the nearest. None: unknown.

        They fall exponentially from the largest tenth on, as fast as from the median to there: the very
        largest may be no strangers.
        """
        known = scores[np.isfinite(scores)]
        if np.isfinite(scores).any(1).sum() < FEWEST:
            return None
        middle, last = np.quantile(known, (0.5, 1 - LARGEST)).tolist()
        scale = (last - middle) / math.log(0.5 / LARGEST)
        return cls(np.array([last]), LARGEST * scores.shape[1], max(scale, 1e-6))

    def threshold(self, share: float) -> float:
        """The similarity that a stranger exceeds for a share of the images (0..1)."""
        low, high = float(self.last.min()), float(self.last.max()) + 100 * self.scale
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.rate(middle) > share else (low, middle)
        return high

    def rate(self, similarity: float) -> float:
        """The share (0..1) of the images of which a stranger exceeds a similarity."""
        expected = self.count * np.exp(np.minimum((self.last - similarity) / self.scale, 50))
        return float(-np.expm1(-expected).mean())
