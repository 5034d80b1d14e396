"""The thresholds of both grades, learned on edited copies of a folder's own pictures."""

import math

import numpy as np

from mgkit.photos.copies.alignment import aligned, alignments
from mgkit.photos.copies.edits import EDITS, EMBEDDED, FRAMES, small_copies
from mgkit.photos.copies.small import as_turned
from mgkit.photos.copies.thresholds import Strangers, Thresholds, between_strangers, calibrated
from mgkit.photos.copies.turned import ALIKE, best_turns, low_resolution
from mgkit.photos.folder import PhotoList

ALIGNED = 100  # pictures whose edited copies are laid over them
STRANGERS = 16  # farther neighbours that each of these is laid over
LEAST = 0.8  # alignment of copies: of 1,600 unrelated photographs, none had more than 0.77 with another
FOUND = 0.98  # share of the cropped copies that are compared with their originals

Looks = tuple[np.ndarray, np.ndarray]


def learn_thresholds(
    photos: PhotoList,
    looks: Looks,
    scores: np.ndarray,
    chosen: np.ndarray,
    farther: np.ndarray,
    cosines: np.ndarray,
    *,
    false_rate: float = 0.02,
    given: float | None = None,
) -> Thresholds:
    """The thresholds of N pictures.

    looks: small pictures and their width / height, as by `small` ([N,64,64], [N]).
    scores: similarities of each readable one to its nearest others ([n,k]); -inf if missed by an index.
    chosen: indices of the pictures whose edited copies are looked at ([m]).
    farther: indices of their farther neighbours ([m,k]); -1 if missed.
    cosines: of their embedded copies to them ([m,F], F = len(EMBEDDED)); without a network [0,F].
    false_rate: share of the pictures of which a stranger may exceed a threshold.
    given: the threshold of the similarity, if it is not learned.

    Raises ValueError as `calibrated`.
    """
    moment = between_strangers(cosines, scores, false_rate=false_rate, given=given)
    names = [name for name in EDITS if len(cosines) or name not in EMBEDDED]
    crops = [k for k, name in enumerate(EMBEDDED) if name not in FRAMES]
    known = cosines[:, crops][np.isfinite(cosines[:, crops])]
    floor = min(float(np.quantile(known, 1 - FOUND)), moment.value) if known.size else -math.inf
    chosen, farther, cosines = chosen[:ALIGNED], farther[:ALIGNED, -STRANGERS:], cosines[:ALIGNED]
    fits, compared = laid_copies(photos, looks, chosen)
    for k, name in enumerate(EMBEDDED):
        if name in EDITS and len(cosines):
            compared[:, list(EDITS).index(name)] |= cosines[:, k] >= floor
    columns = [list(EDITS).index(name) for name in names]
    others = fits_of_others(looks, chosen, farther)
    file = calibrated(
        fits[:, columns], others, edits=names, compared=compared[:, columns],
        strangers=Strangers.among(others), least=LEAST, images=len(scores), false_rate=false_rate,
    )  # fmt: skip
    return Thresholds(file, moment, floor)


def laid_copies(photos: PhotoList, looks: Looks, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Alignments [m,E] of edited copies of chosen pictures to them, and whether they look alike [m,E]."""
    grey, aspects = (each[chosen].repeat(len(EDITS), axis=0) for each in looks)
    copies, copy_aspects = small_copies(photos.subset(chosen))
    copies = copies.reshape(grey.shape)
    alike, turns = best_turns(low_resolution(grey), low_resolution(copies))
    copies, copy_aspects = as_turned(copies, copy_aspects.ravel(), np.where(alike >= ALIKE, turns, 1))
    fits = alignments(grey, copies, aspects, copy_aspects)
    return fits.reshape(-1, len(EDITS)), (alike >= ALIKE).reshape(-1, len(EDITS))


def fits_of_others(looks: Looks, chosen: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Alignments of pictures [m] to others [m,k], descending; -inf for plain ones and where others are -1."""
    known = others >= 0
    first = np.broadcast_to(chosen[:, None], known.shape)[known]
    pairs = np.stack([first, others[known], np.ones_like(first)], 1)
    fits = np.full(known.shape, -np.inf, np.float32)
    fits[known] = np.nan_to_num(aligned(*looks, pairs), nan=-np.inf)
    return -np.sort(-fits, axis=1)
