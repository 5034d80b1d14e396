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
FOUND = 0.98  # share of the cropped copies that are compared with their originals

Looks = tuple[np.ndarray, np.ndarray]


def learn_thresholds(
    photos: PhotoList,
    looks: Looks,
    neighbours: tuple[np.ndarray, np.ndarray],
    chosen: np.ndarray,
    cosines: np.ndarray,
    *,
    false_rate: float = 0.02,
    given: float | None = None,
) -> Thresholds:
    """The thresholds of N pictures.

    looks: small pictures and their width / height, as by `small` ([N,64,64], [N]).
    neighbours: similarities and indices of each one's nearest ([N,k]).
    chosen: indices of the pictures whose edited copies are looked at ([m]).
    cosines: similarities of their embedded copies to them ([m,F], F = len(EMBEDDED)); [0,F] without a network.
    false_rate: share of the pictures of which a stranger may exceed a threshold.
    given: the threshold of the similarity, if it is not learned.

    Raises ValueError as `calibrated`.
    """
    moment = between_strangers(cosines, neighbours[0], false_rate=false_rate, given=given)
    names = [name for name in EDITS if len(cosines) or name not in EMBEDDED]
    crops = [k for k, name in enumerate(EMBEDDED) if name not in FRAMES]
    known = cosines[:, crops][np.isfinite(cosines[:, crops])]
    floor = min(float(np.quantile(known, 1 - FOUND)), moment.value) if known.size else -math.inf
    chosen, cosines = chosen[:ALIGNED], cosines[:ALIGNED]
    fits, compared = laid_copies(photos, looks, chosen)
    for k, name in enumerate(EMBEDDED):
        if name in EDITS and len(cosines):
            compared[:, list(EDITS).index(name)] |= cosines[:, k] >= floor
    columns = [list(EDITS).index(name) for name in names]
    scores = strangers_of(looks, neighbours, chosen)
    file = calibrated(
        fits[:, columns], scores, edits=names, compared=compared[:, columns],
        strangers=Strangers.among(scores), images=len(looks[0]), false_rate=false_rate,
    )  # fmt: skip
    return Thresholds(file, moment, floor)


def laid_copies(photos: PhotoList, looks: Looks, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Alignments of the edited copies of m chosen pictures to them, and whether they look alike; [m,E] each."""
    grey, aspects = (each[chosen].repeat(len(EDITS), axis=0) for each in looks)
    copies, copy_aspects = small_copies(photos.subset(chosen))
    copies = copies.reshape(grey.shape)
    alike, turns = best_turns(low_resolution(grey), low_resolution(copies))
    copies, copy_aspects = as_turned(copies, copy_aspects.ravel(), np.where(alike >= ALIKE, turns, 1))
    fits = alignments(grey, copies, aspects, copy_aspects)
    return fits.reshape(-1, len(EDITS)), (alike >= ALIKE).reshape(-1, len(EDITS))


def strangers_of(looks: Looks, neighbours: tuple[np.ndarray, np.ndarray], chosen: np.ndarray) -> np.ndarray:
    """Alignments of chosen pictures to their farther neighbours, descending; -inf for plain pictures [m,16]."""
    scores, nearest = (each[chosen, -STRANGERS:] for each in neighbours)
    known = np.isfinite(scores)
    query = np.broadcast_to(chosen[:, None], known.shape)[known]
    fits = np.full(known.shape, -np.inf, np.float32)
    pairs = np.stack([query, nearest[known], np.ones_like(query)], 1)
    fits[known] = np.nan_to_num(aligned(*looks, pairs), nan=-np.inf)
    return -np.sort(-fits, axis=1)
