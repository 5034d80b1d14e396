"""Near-duplicates: groups of images above a similarity threshold, which is calibrated on each collection.

Most images have no duplicate, so the lower half of the nearest-neighbour similarities is that of unrelated
images ("strangers"). A Gumbel distribution, that of the largest of many values, is fitted to it; the
threshold is the similarity that the nearest stranger of a given share of the images exceeds. Duplicates lie
above the median and change the fit little. If about half of the images have one, the threshold is too strict;
if most have one, the second nearest neighbour is used instead.
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

FEWEST = 20  # images needed to fit quantiles
QUANTILES = 0.1, 0.5  # of the nearest-neighbour similarities, which the Gumbel distribution is fitted to
KEPT_COPIES = 0.9  # share of edited copies above the threshold where strangers are too few for a fit
ORDINALS = ("", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")  # nearest neighbours
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
    """The threshold that the nearest stranger of a share `false_rate` of the images exceeds.

    copies: similarities of the edited copies of n images to their originals ([n,E], E = len(EDITS)).
    scores: similarities to the nearest neighbours, descending; -inf if missed by an index ([N,k]).
    given: a threshold to evaluate instead.

    If fewer than 20 images, or less than half, have neighbours: the threshold that 90 % of the copies reach.
    Raises ValueError if that is needed and there are no copies.
    """
    rank, nearest = strangers(scores, false_rate)
    known = are_enough(len(nearest), len(scores))
    if given is not None:
        value, how = given, "as given"
    elif known and rank is None:
        value, known = MOST, False
        how = "most pictures have near-duplicates, so strangers are unknown and only identical ones count"
    elif known:
        value = stranger_quantile(nearest, 1 - false_rate)
        which = f" (the {ORDINALS[rank]} nearest neighbour: most have near-duplicates)" if rank else ""
        how = f"the nearest stranger{which} of {100 * false_rate:g} % of the images exceeds it"
    elif copies.size:
        value = min(float(np.quantile(copies, 1 - KEPT_COPIES)), MOST)
        what = "images" if len(scores) < FEWEST else "neighbours found by the index"
        how = f"too few {what} to estimate strangers; {100 * KEPT_COPIES:.0f} % of the edited copies reach it"
    else:
        raise ValueError(f"a threshold needs edited copies, or {FEWEST} images with neighbours")
    false_images = len(nearest) * stranger_rate(nearest, value) if known else math.nan
    found = dict(zip(EDITS, (copies >= value).mean(0).tolist(), strict=True)) if copies.size else {}
    return Threshold(value, false_images, found, copies, nearest, how)


def strangers(scores: np.ndarray, false_rate: float) -> tuple[int | None, np.ndarray]:
    """(rank, similarities [m]) of the nearest neighbour, of scores [N,k], that is a stranger for most images.

    The rank is the first r > 0 for which most similarities of rank r - 1 exceed the threshold fitted to
    rank r (1 if every picture is there twice), else 0; None if no neighbour is a stranger. m counts the
    images whose neighbour of that rank was found; ranks with too few are skipped.
    """
    found = [np.isfinite(column) for column in scores.T[: len(ORDINALS)]]  # by rank, [N]
    nearest = [scores[there, rank] for rank, there in enumerate(found)]
    ranks = [rank for rank, values in enumerate(nearest) if are_enough(len(values), len(scores))]
    if not ranks:
        return None, nearest[0] if nearest else np.empty(0, np.float32)
    reach = {rank: stranger_quantile(nearest[rank], 1 - false_rate) for rank in ranks}
    rank = next((rank for rank in ranks[1:] if np.median(scores[found[rank], rank - 1]) > reach[rank]), 0)
    return (rank if reach[rank] <= MOST else None), nearest[rank]


def are_enough(found: int, images: int) -> bool:
    """Whether enough images have a neighbour to estimate the distribution of strangers."""
    return found >= max(FEWEST, images / 2)


def gumbel(nearest: np.ndarray) -> tuple[float, float]:
    """Location and scale of the Gumbel distribution that fits the QUANTILES of the similarities [N]."""
    low, high = np.quantile(nearest, QUANTILES)
    low_y, high_y = (-math.log(-math.log(q)) for q in QUANTILES)
    scale = max((high - low) / (high_y - low_y), 1e-6)  # not 0 where all are equal
    return float(high - scale * high_y), float(scale)


def stranger_quantile(nearest: np.ndarray, share: float) -> float:
    """The similarity below which the nearest stranger lies for a share (0..1) of the images."""
    location, scale = gumbel(nearest)
    return location - scale * math.log(-math.log(share))


def stranger_rate(nearest: np.ndarray, value: float) -> float:
    """The share (0..1) of the images whose nearest stranger lies above a similarity."""
    location, scale = gumbel(nearest)
    return -math.expm1(-math.exp(min((location - value) / scale, 700.0)))


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
