"""Near-duplicates and copies: how similar edited copies of a collection's own images are, and strangers; groups above a threshold.

The threshold is learned anew for every collection, because a cosine of 0.7 says one thing of holiday pictures and another of scans.
Every image has a nearest other one. Of most images that is a stranger, so the lower half of those similarities tells how near
strangers come to each other; extrapolated as the largest of many values is distributed (Gumbel), it gives the similarity that the
nearest stranger of a given share of the images exceeds. True duplicates lie above the median and move the fit little; where about
half of the images have one, the threshold comes out too strict rather than too loose; where all have one, the
second nearest is taken.
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
from mgkit.photos.folder import PhotoList, load_photo

FEWEST = 20  # images, for quantiles to mean something
QUANTILES = 0.1, 0.5  # of the nearest others, between which strangers are looked at
KEPT_COPIES = 0.9  # of the edited copies, where strangers are too few to say anything
ORDINALS = ("", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")  # nearest others
MOST = 0.999  # a threshold above it would depend on rounding: the very same picture has 1


# --- Edited copies


def recompressed(image: Image.Image) -> Image.Image:
    """Saved as a JPEG of quality 20."""
    file = BytesIO()
    image.save(file, "JPEG", quality=20)
    return Image.open(file).convert("RGB")


def cropped(image: Image.Image) -> Image.Image:
    """A fifth of the area cut away around."""
    width, height = image.size
    margin = (1 - math.sqrt(0.8)) / 2
    box = (margin * width, margin * height, (1 - margin) * width, (1 - margin) * height)
    return image.resize(image.size, Image.Resampling.BILINEAR, box=box)


def brightened(image: Image.Image) -> Image.Image:
    """Each value half as large again, with less colour."""
    return ImageEnhance.Color(ImageEnhance.Brightness(image).enhance(1.5)).enhance(0.6)


def shrunk(image: Image.Image) -> Image.Image:
    """A quarter of the sides, and back."""
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
    """Pictures of which each stands there once for every edit, in the order of EDITS; edited at twice the resolution."""

    edits: tuple[str, ...] = tuple(EDITS)

    def load(self, index: int, *, least: int | None = None) -> Image.Image:
        """As `PhotoList.load`, edited; UnreadableImageError too for a picture that cannot be."""
        path, name = self.paths[index], self.edits[index % len(self.edits)]
        picture = load_photo(path, least=2 * self.side, exif=self.exif)
        with decoding(lambda error: f"{path} cannot be edited ({name}: {in_words(error)})"):
            return self.fitted(index, EDITS[name](picture))


def edited_copies(photos: PhotoList) -> EditedPhotos:
    """[n] photos -> [n·E], the E edits of one side by side."""
    repeated = photos.subset(np.repeat(np.arange(len(photos)), len(EDITS)))
    return EditedPhotos(**vars(repeated))


# --- The threshold


@dataclass(frozen=True)
class Threshold:
    """A similarity from which on two images count as near-duplicates, and what it was drawn from.

    false_images: of how many of the images a stranger is expected above it; NaN where too few images could say so. found: share of
    the edited copies above it, for each edit. copies [n,E]: similarities of edited copies to their originals. nearest [m]: of each
    image to the nearest other one that is taken for a stranger, where that was found. how: in words.
    """

    value: float
    false_images: float
    found: dict[str, float]
    copies: np.ndarray
    nearest: np.ndarray
    how: str

    def describe(self) -> str:
        """Two sentences: what the threshold is and rests on; what it costs and finds."""
        expected = (
            f"strangers are expected above it for about {self.false_images:.1f} of {len(self.nearest):,} images"
            if math.isfinite(self.false_images)
            else "how many strangers lie above it is not known"
        )
        found = ", ".join(f"{name} {100 * share:.0f} %" for name, share in self.found.items())
        return f"threshold {self.value:.3f}: {self.how}; {expected}. Edited copies found at it: {found or 'none tried'}."


def calibrated(
    copies: np.ndarray, scores: np.ndarray, *, false_rate: float = 0.02, given: float | None = None
) -> Threshold:
    """The threshold that the nearest stranger of a share `false_rate` of the images exceeds.

    copies [n,E]: similarities of the edited copies of n images, E = len(EDITS), to their originals. scores [N,k]: similarities of
    every image to its nearest others, best first, -inf for those that an index missed; k may be 0. given: a threshold to judge in
    place of it. Where fewer than 20 images, or less than half of them, have neighbours, the threshold that nine in ten copies
    reach. Raises ValueError for no copies at all where they decide.
    """
    rank, nearest = strangers(scores, false_rate)
    known = are_enough(len(nearest), len(scores))
    if given is not None:
        value, how = given, "as given"
    elif known and rank is None:
        value, known = MOST, False
        how = (
            "most pictures have near-duplicates, so that strangers are not seen, and only the very same count"
        )
    elif known:
        value = stranger_quantile(nearest, 1 - false_rate)
        which = f" (its {ORDINALS[rank]} nearest, for most have near-duplicates before it)" if rank else ""
        how = f"the nearest stranger{which} of {100 * false_rate:g} % of the images exceeds it"
    elif copies.size:
        value = min(float(np.quantile(copies, 1 - KEPT_COPIES)), MOST)
        what = "images" if len(scores) < FEWEST else "neighbours found by the index"
        how = f"too few {what} to know strangers by, so what {100 * KEPT_COPIES:.0f} % of the edited copies reach"
    else:
        raise ValueError(f"a threshold needs edited copies, or {FEWEST} images with neighbours")
    false_images = len(nearest) * stranger_rate(nearest, value) if known else math.nan
    found = dict(zip(EDITS, (copies >= value).mean(0).tolist(), strict=True)) if copies.size else {}
    return Threshold(value, false_images, found, copies, nearest, how)


def strangers(scores: np.ndarray, false_rate: float) -> tuple[int | None, np.ndarray]:
    """(rank, similarities [m]) of the first of the nearest others [N,k] that is a stranger for most images; None: not seen.

    Where every picture is there twice, the second nearest is. It shows as a gap: most images are more alike to their r-th
    nearest than strangers, had they begun behind it, ever are. Only the m images count whose neighbour of that rank was found,
    and only ranks at which those are enough.
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
    """Whether so many images with a neighbour tell how near strangers come to all of them."""
    return found >= max(FEWEST, images / 2)


def gumbel(nearest: np.ndarray) -> tuple[float, float]:
    """Location and scale of the Gumbel distribution with the QUANTILES of the similarities [N]."""
    low, high = np.quantile(nearest, QUANTILES)
    low_y, high_y = (-math.log(-math.log(q)) for q in QUANTILES)
    scale = max((high - low) / (high_y - low_y), 1e-6)  # all the same: anything above is rare
    return float(high - scale * high_y), float(scale)


def stranger_quantile(nearest: np.ndarray, share: float) -> float:
    """The similarity below which the nearest stranger of such a share (0..1) of the images lies."""
    location, scale = gumbel(nearest)
    return location - scale * math.log(-math.log(share))


def stranger_rate(nearest: np.ndarray, value: float) -> float:
    """The share of the images, 0..1, whose nearest stranger lies above a similarity."""
    location, scale = gumbel(nearest)
    return -math.expm1(-math.exp(min((location - value) / scale, 700.0)))


# --- Groups


@dataclass(frozen=True)
class Group:
    """Images each of which is a near-duplicate of another: indices, and each one's similarity to the nearest of the others."""

    members: tuple[int, ...]
    similarities: tuple[float, ...]

    @property
    def strongest(self) -> float:
        return max(self.similarities)


def neighbours_without_self(scores: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours [N,k+1] of all images among themselves -> [N,k], the image itself left out, or else the last.

    Of many identical images the first k + 1 need not hold the one that asks.
    """
    itself = indices == np.arange(len(indices))[:, None]
    order = np.argsort(itself, axis=1, kind="stable")[:, :-1]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(indices, order, 1)


def near_duplicates(scores: np.ndarray, indices: np.ndarray, threshold: float) -> tuple[list[Group], int]:
    """Groups, the strongest first, and how many pairs join them, from neighbours [N,k] with similarities.

    Two images are in one group if a chain of pairs above the threshold leads from one to the other. Of pairs there may be more
    (`pairs_beyond`).
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
    """Whether pairs above the threshold may be missing from the neighbours [N,k]: an image has k of them, and there are more images."""
    count, k = scores.shape
    return 0 < k < count - 1 and bool((scores[:, -1] >= threshold).any())
