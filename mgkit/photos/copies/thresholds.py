"""The similarity threshold of near-duplicates, which is calibrated on each collection.

The threshold is the similarity that most edited copies of the collection's own images have to their
originals. It is raised where unrelated images ("strangers") would exceed it too often. How often they do is
extrapolated from farther neighbours, since the nearest may be duplicates or other views of the same object,
in some collections of most images: the number of strangers above a similarity is taken to fall exponentially.
"""

import math
from dataclasses import dataclass

import numpy as np

from mgkit.photos.copies.edits import EDITS

FEWEST = 20  # images needed to extrapolate strangers
NEAREST, FARTHEST = 8, 32  # rank of the farthest neighbour that they are extrapolated from
KEPT_COPIES = 0.95  # share of edited copies above the threshold, unless strangers are as similar
MOST = 0.999  # largest threshold: identical pictures have 1 up to rounding


@dataclass(frozen=True)
class Threshold:
    """The smallest similarity of near-duplicates, with what it was estimated from.

    value: the threshold (cosine similarity).
    false_images: expected number of images with a stranger above it; NaN if unknown.
    found: share of the edited copies above it, for each edit.
    copies: similarities of edited copies to their originals ([n,E]).
    nearest: similarity of each image to its nearest stranger, where one was found ([m]).
    how: how the threshold was chosen, as text.
    """

    value: float
    false_images: float
    found: dict[str, float]
    copies: np.ndarray
    nearest: np.ndarray
    how: str

    def describe(self) -> str:
        """Two sentences: the threshold and its false positives; the edited copies it finds."""
        expected = (
            f"expected false positives: {self.false_images:.1f} of {len(self.nearest):,} images"
            if math.isfinite(self.false_images)
            else "expected false positives: not known"
        )
        found = ", ".join(f"{name} {100 * share:.0f} %" for name, share in self.found.items())
        found = found or "none tried"
        return f"threshold {self.value:.3f}: {self.how}; {expected}. Edited copies found: {found}."


@dataclass(frozen=True)
class Thresholds:
    """The thresholds of the two grades: SAME_FILE and SAME_MOMENT."""

    file: Threshold
    moment: Threshold


def calibrated(
    copies: np.ndarray, scores: np.ndarray, *, false_rate: float = 0.02, given: float | None = None
) -> Threshold:
    """The threshold that 95 % of the edited copies reach, or a higher one if strangers exceed it too often.

    copies: similarities of the edited copies of n images to their originals ([n,E], E = len(EDITS)).
    scores: similarities to the nearest neighbours, descending; -inf if missed by an index ([N,k]).
    false_rate: share of the images of which a stranger may exceed the threshold.
    given: a threshold to evaluate instead.

    Strangers are unknown if fewer than 20 images, or less than half, have 8 neighbours. Raises ValueError if
    there are neither copies nor strangers.
    """
    nearest = scores[:, 0][np.isfinite(scores[:, 0])] if scores.shape[1] else np.empty(0, np.float32)
    strangers = Strangers.beyond(scores)
    reached = min(float(np.quantile(copies, 1 - KEPT_COPIES)), MOST) if copies.size else -math.inf
    exceeded = min(strangers.threshold(false_rate), MOST) if strangers else -math.inf
    if given is not None:
        value, how = given, "as given"
    elif not copies.size and strangers is None:
        raise ValueError(f"a threshold needs edited copies, or {FEWEST} images with neighbours")
    elif exceeded > reached:
        value = exceeded
        how = f"a picture that is no copy exceeds it for {100 * false_rate:g} % of the images"
        if value == MOST:
            how = "pictures that are no copies are as similar as copies, so only identical ones count"
    else:
        value, how = reached, f"{100 * KEPT_COPIES:g} % of the edited copies reach it"
    false_images = len(nearest) * strangers.rate(value) if strangers else math.nan
    found = dict(zip(EDITS, (copies >= value).mean(0).tolist(), strict=True)) if copies.size else {}
    return Threshold(value, false_images, found, copies, nearest, how)


@dataclass(frozen=True)
class Strangers:
    """How similar strangers are: of image i, count·exp((last[i] - s) / scale) exceed a similarity s.

    last: similarity of the farthest neighbour looked at ([n]).
    count: its rank.
    scale: similarity in which the number of strangers falls by a factor of e.
    """

    last: np.ndarray
    count: int
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
