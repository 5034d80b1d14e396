"""Near-duplicates: groups of images above a similarity threshold, which is calibrated on each collection.

The threshold is the similarity that most edited copies of the collection's own images have to their
originals. It is raised where unrelated images ("strangers") would exceed it too often. How often they do is
extrapolated from farther neighbours, since the nearest may be duplicates or other views of the same object,
in some collections of most images: the number of strangers above a similarity is taken to fall exponentially.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageEnhance
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mgkit.data.decoding import decoding, in_words
from mgkit.machine.printable import shown_name
from mgkit.photos.folder import PhotoList, load_photo

FEWEST = 20  # images needed to extrapolate strangers
NEAREST, FARTHEST = 8, 32  # rank of the farthest neighbour that they are extrapolated from
KEPT_COPIES = 0.95  # share of edited copies above the threshold, unless strangers are as similar
MOST = 0.999  # largest threshold: identical pictures have 1 up to rounding


# --- Edited copies


def recompressed(image: Image.Image) -> Image.Image:
    """JPEG compression of quality 20."""
    file = BytesIO()
    image.save(file, "JPEG", quality=20)
    return Image.open(file, formats=["JPEG"]).convert("RGB")


def cropped(image: Image.Image) -> Image.Image:
    """Centre crop of 80 % of the area, resized to the original size."""
    width, height = image.size
    margin = (1 - math.sqrt(0.8)) / 2
    box = (margin * width, margin * height, (1 - margin) * width, (1 - margin) * height)
    return image.resize(image.size, Image.Resampling.BILINEAR, box=box)


def brightened(image: Image.Image) -> Image.Image:
    """Brightness times 1.5, colour saturation times 0.6."""
    return ImageEnhance.Color(ImageEnhance.Brightness(image).enhance(1.5)).enhance(0.6)


def shrunk(image: Image.Image) -> Image.Image:
    """Resized to a quarter of the sides and back."""
    small = image.resize([max(1, side // 4) for side in image.size], Image.Resampling.BILINEAR)
    return small.resize(image.size, Image.Resampling.BILINEAR)


EDITS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG quality 20": recompressed,
    "a fifth cropped": cropped,
    "brighter, paler": brightened,
    "a quarter of the resolution": shrunk,
}


@dataclass(frozen=True)
class EditedPhotos(PhotoList):
    """Photos, each repeated once per edit in the order of EDITS; edits are made at twice the resolution."""

    edits: tuple[str, ...] = tuple(EDITS)

    def load(self, index: int, *, least: int | None = None) -> Image.Image:
        """As `PhotoList.load`, edited. Raises UnreadableImageError if that fails."""
        path, name = self.paths[index], self.edits[index % len(self.edits)]
        picture = load_photo(path, least=2 * self.side, exif=self.exif)
        with decoding(lambda error: f"{shown_name(path)} cannot be edited ({name}: {in_words(error)})"):
            return EDITS[name](picture).resize(self.fitted_size(index), Image.Resampling.BILINEAR)


def edited_copies(photos: PhotoList) -> EditedPhotos:
    """n photos -> n·E edited photos, the E edits of each in sequence."""
    repeated = photos.subset(np.repeat(np.arange(len(photos)), len(EDITS)))
    return EditedPhotos(**vars(repeated))


# --- The threshold


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


# --- Groups


@dataclass(frozen=True)
class Group:
    """Near-duplicates: indices of the images, and each one's similarity to the nearest of the others."""

    members: tuple[int, ...]
    similarities: tuple[float, ...]

    @property
    def strongest(self) -> float:
        return max(self.similarities)


def neighbours_without_self(scores: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours [N,k+1] of images among themselves -> [N,k], without the image itself.

    Without the last instead, where the image is not among them: it may have more than k identical ones.
    """
    itself = indices == np.arange(len(indices))[:, None]
    order = np.argsort(itself, axis=1, kind="stable")[:, :-1]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(indices, order, 1)


def near_duplicates(scores: np.ndarray, indices: np.ndarray, threshold: float) -> tuple[list[Group], int]:
    """Connected components of the pairs above the threshold, the strongest first, and the number of pairs.

    scores, indices: of the nearest neighbours ([N,k]); there may be more pairs (`pairs_beyond`).
    """
    i, column = np.nonzero(scores >= threshold)
    j, values = indices[i, column], scores[i, column]
    count = len(indices)
    pairs = {(min(a, b), max(a, b)) for a, b in zip(i.tolist(), j.tolist(), strict=True)}
    _, label = connected_components(coo_array((values, (i, j)), shape=(count, count)), directed=False)
    best = np.full(count, -np.inf)
    np.maximum.at(best, i, values)
    np.maximum.at(best, j, values)
    members = np.flatnonzero(best > -np.inf)
    by_label: dict[int, list[int]] = {}
    for image in members.tolist():
        by_label.setdefault(int(label[image]), []).append(image)
    groups = [Group(tuple(of), tuple(float(min(best[m], 1.0)) for m in of)) for of in by_label.values()]
    return sorted(groups, key=lambda group: (-group.strongest, group.members)), len(pairs)


def pairs_beyond(scores: np.ndarray, threshold: float) -> bool:
    """Whether all k neighbours of an image lie above the threshold, so that pairs may be missing."""
    count, k = scores.shape
    return 0 < k < count - 1 and bool((scores[:, -1] >= threshold).any())
