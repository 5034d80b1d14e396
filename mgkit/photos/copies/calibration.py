"""The thresholds of both grades, learned on edited copies of a folder's own pictures."""

import math

import numpy as np

from mgkit.photos.comparisons import Comparisons
from mgkit.photos.copies.edits import EDITS, EMBEDDED, FRAMES
from mgkit.photos.copies.thresholds import Strangers, Thresholds, between_strangers, calibrated
from mgkit.photos.folder import PhotoList

ALIGNED = 100  # pictures whose edited copies are laid over them
STRANGERS = 16  # farther neighbours that each of these is laid over
LEAST = 0.8  # alignment of copies: of 1,600 unrelated photographs, none had more than 0.77 with another
FOUND = 0.98  # share of the cropped copies that are compared with their originals


def learn_thresholds(
    photos: PhotoList,
    comparisons: Comparisons,
    scores: np.ndarray,
    chosen: np.ndarray,
    farther: np.ndarray,
    cosines: np.ndarray,
    *,
    similar: np.ndarray | None = None,
    false_rate: float = 0.02,
    given: float | None = None,
) -> Thresholds:
    """The thresholds of N pictures.

    comparisons: of the pictures.
    scores: similarities of each readable one to its nearest others ([n,k]); -inf if missed by an index.
    chosen: indices of the pictures whose edited copies are looked at ([m]).
    farther: indices of their farther neighbours ([m,k]); -1 if missed.
    cosines: of their embedded copies to them ([m,F], F = len(EMBEDDED)); without a network [0,F].
    similar: similarities of the farther neighbours ([m,k]): those that may be copies are no strangers.
    false_rate: share of the pictures of which a stranger may exceed a threshold.
    given: the threshold of the similarity, if it is not learned.

    Raises ValueError as `calibrated`.
    """
    moment = between_strangers(cosines, scores, false_rate=false_rate, given=given)
    names = [name for name in EDITS if len(cosines) or name not in EMBEDDED]
    crops = [k for k, name in enumerate(EMBEDDED) if name not in FRAMES]
    known = cosines[:, crops][np.isfinite(cosines[:, crops])]
    floor = min(float(np.quantile(known, 1 - FOUND)), moment.value) if known.size else -math.inf
    if similar is not None and math.isfinite(floor):
        farther = np.where(similar < floor, farther, -1)
    chosen, farther, cosines = chosen[:ALIGNED], farther[:ALIGNED, -STRANGERS:], cosines[:ALIGNED]
    fits, compared = comparisons.of_copies(photos, chosen)
    for k, name in enumerate(EMBEDDED):
        if name in EDITS and len(cosines):
            compared[:, list(EDITS).index(name)] |= cosines[:, k] >= floor
    columns = [list(EDITS).index(name) for name in names]
    others = fits_of_others(comparisons, chosen, farther)
    file = calibrated(
        fits[:, columns], others, edits=names, compared=compared[:, columns],
        strangers=Strangers.among(others), least=LEAST, images=len(scores), false_rate=false_rate,
    )  # fmt: skip
    return Thresholds(file, moment, floor)


def fits_of_others(comparisons: Comparisons, chosen: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Alignments of pictures [m] to others [m,k], descending; -inf for plain ones and where others are -1."""
    known = others >= 0
    first = np.broadcast_to(chosen[:, None], known.shape)[known]
    pairs = np.stack([first, others[known], np.ones_like(first)], 1)
    fits = np.full(known.shape, -np.inf, np.float32)
    fits[known] = np.nan_to_num(comparisons.aligned(pairs), nan=-np.inf)
    return -np.sort(-fits, axis=1)
