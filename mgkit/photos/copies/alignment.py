"""How well one picture can be laid over another: how alike they are where they overlap.

A copy fits its original, or a part of it, up to light; another view of the same object does not, since near
and far things have moved against each other. All shifts are tried at low resolution and some scales, as a
correlation by FFT; the best is refined by Gauss-Newton steps, as in the alignment of Lucas and Kanade (1981).

A place [P,4] says where one picture lies in the frame of another, which is [-1,1] × [-1,1]: half of its width
and height, and its centre (x, y).
"""

import math

import numpy as np
import torch
from torch.nn.functional import avg_pool2d, grid_sample, interpolate

from mgkit.photos.copies.small import as_turned, contrasts

COARSE = 32  # side at which all shifts are tried (px)
SCALES = np.geomspace(0.42, 1.0, 9)  # tried: of the picture that is laid over the other
MIDDLE = 0.65  # of its sides must lie within the other; of a picture cut to a square, less is left
LEAST_OVERLAP = 0.5  # of the smaller one's area
STEPS = 5  # of the refinement
LARGEST_STEP = 0.1
WINDOW, STRIDE = 9, 3  # squares in which two pictures are compared (px)
PLAIN = 0.02  # variance of a square in which there is nothing to be seen
SEEN = 0.1  # share of the squares in which there must be something to be seen
PAIRS_AT_ONCE = 32
TURNED_AT_ONCE = 512


def aligned(grey: np.ndarray, aspects: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """`alignments` [P] of pairs of a collection's pictures, the second of which are turned.

    grey: small pictures ([N,s,s] uint8, may be memory-mapped).
    aspects: their width / height ([N]).
    pairs: (first, second, turn) ([P,3]).
    """
    found = [np.empty(0, np.float32)]
    for start in range(0, len(pairs), TURNED_AT_ONCE):
        first, second, turns = pairs[start : start + TURNED_AT_ONCE].T
        others, other_aspects = as_turned(grey[second], aspects[second], turns)
        found.append(alignments(grey[first], others, aspects[first], other_aspects))
    return np.concatenate(found)


def alignments(
    first: np.ndarray, second: np.ndarray, aspects: np.ndarray, other_aspects: np.ndarray
) -> np.ndarray:
    """The alignment of P pairs [P]: 1 for equal pictures, about 0.2 for two that have nothing in common.

    It is the median of the correlations in small squares of the overlap, so that what was drawn over a part
    of a picture does not count. NaN for plain pictures.

    first, second: grey pictures, squashed to squares ([P,s,s] uint8).
    aspects, other_aspects: their width / height ([P]).
    """
    found = np.empty(len(first), np.float32)
    for start in range(0, len(first), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        a, b = contrasts(first[part]), contrasts(second[part])
        ratio = torch.from_numpy(other_aspects[part] / aspects[part]).float()
        small_a, small_b = coarse(a), coarse(b)
        fit, place = best_places(small_a, small_b, ratio)
        fit_back, place_back = best_places(small_b, small_a, 1 / ratio)
        swapped = fit_back > fit
        picked = swapped[:, None, None, None]
        below, above = torch.where(picked, b, a), torch.where(picked, a, b)
        place = torch.where(swapped[:, None], place_back, place)
        found[part] = agreement(below, *laid(above, refined(below, above, place))).numpy()
    return found


def coarse(pictures: torch.Tensor) -> torch.Tensor:
    return interpolate(pictures, size=(COARSE, COARSE), mode="area")


def laid(picture: torch.Tensor, place: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture [P,1,s,s] in the frame of another at a place [P,4], and where it lies there (0 or 1)."""
    at = coordinates(place, picture.shape[-1])  # [P,2,s]
    grid = torch.stack(torch.broadcast_tensors(at[:, 0, None], at[:, 1, :, None]), -1)  # [P,s,s,2]
    return grid_sample(picture, grid, padding_mode="border", align_corners=False), covered(at)


def coordinates(place: torch.Tensor, side: int) -> torch.Tensor:
    """Where the columns and rows of a frame of `side` px lie in the picture at each place: x, y [P,2,s]."""
    return (pixel_centres(side) - place[:, 2:, None]) / place[:, :2, None]


def pixel_centres(side: int) -> torch.Tensor:
    """Where the centres of `side` pixels lie in [-1,1]: [s]."""
    return (torch.arange(side) + 0.5) * 2 / side - 1


def covered(at: torch.Tensor) -> torch.Tensor:
    """Whether the picture lies at each pixel, 0 or 1 [P,1,s,s], by its `coordinates`."""
    x, y = (at.abs() <= 1).unbind(1)
    return (x[:, None] & y[:, :, None])[:, None].float()


def best_places(
    below: torch.Tensor, above: torch.Tensor, ratio: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best correlation [P] with the middle of a picture, over scales and shifts, and its place [P,4].

    below, above: [P,1,s,s], the second of which is laid over the first.
    ratio: of the second one's width / height to the first one's ([P]).
    """
    side = below.shape[-1]
    spectra = spectrum(below), spectrum(below**2)
    best, best_place = torch.full_like(ratio, -1.0), torch.ones(len(ratio), 4)
    for scale in SCALES:
        sides = torch.stack([scale * ratio.sqrt(), scale / ratio.sqrt()], 1)  # width, height
        sides = sides / sides.amax(1, keepdim=True).clamp(min=1)
        centred = torch.cat([sides, torch.zeros_like(sides)], 1)
        template = laid(above, centred)[0]
        middle = covered(coordinates(centred * MIDDLE, side))
        fits = correlations(spectra, template, middle)  # [P,2s,2s], by shift
        fit, at = fits.flatten(1).max(1)
        shift = torch.stack([at % (2 * side), at // (2 * side)], 1)  # x, y
        shift = torch.where(shift >= side, shift - 2 * side, shift)
        place = torch.cat([sides, shift * 2 / side], 1)
        better = fit > best
        best, best_place = torch.where(better, fit, best), torch.where(better[:, None], place, best_place)
    return best, best_place


def spectrum(pictures: torch.Tensor) -> torch.Tensor:
    """[P,1,s,s] -> [P,2s,s+1], padded so that nothing comes round from the other side."""
    return torch.fft.rfft2(pictures[:, 0], s=(2 * pictures.shape[-1],) * 2)


def correlations(
    below: tuple[torch.Tensor, torch.Tensor], template: torch.Tensor, inside: torch.Tensor
) -> torch.Tensor:
    """Correlations of a masked template with the picture below at each shift [P,2s,2s]; -1 beyond its edge.

    below: spectra of the picture and its square.
    """
    side = template.shape[-1]
    count = inside.sum((1, 2, 3)).clamp(min=1)[:, None, None]
    template = (template - (template * inside).sum((2, 3), keepdim=True) / count[:, None]) * inside
    ours, mask = spectrum(template).conj(), spectrum(inside).conj()
    products, sums, squares = torch.fft.irfft2(
        torch.stack([below[0] * ours, below[0] * mask, below[1] * mask]), s=(2 * side, 2 * side)
    )
    spread = (squares - sums**2 / count).clamp(min=PLAIN * side)
    own = (template**2).sum((1, 2, 3)).clamp(min=PLAIN * side)[:, None, None]
    shifts = torch.arange(2 * side)
    distance = torch.minimum(shifts, 2 * side - shifts)
    lengths = [inside.amax((1, axis)).sum(-1)[:, None] for axis in (3, 2)]  # of the mask: height, width
    rows, columns = (distance <= (side - length) // 2 for length in lengths)
    return (products / (spread * own).sqrt()).masked_fill(~(rows[:, :, None] & columns[:, None]), -1)


def refined(below: torch.Tensor, above: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """The place [P,4] where the overlap fits best, from one nearby; the ratio of the sides is kept."""
    axis = pixel_centres(below.shape[-1])
    best, best_place = torch.full((len(place),), -math.inf), place
    for _ in range(STEPS):
        picture, inside = laid(above, place)
        ours, theirs = normalised(below, inside), normalised(picture, inside)
        fit = (ours * theirs).sum((1, 2, 3)).masked_fill(overlap(place) < LEAST_OVERLAP, -1)
        better = fit > best
        best, best_place = torch.where(better, fit, best), torch.where(better[:, None], place, best_place)
        down, across = torch.gradient(theirs, spacing=2 / below.shape[-1], dim=(2, 3))
        x, y = place[:, 2, None, None, None], place[:, 3, None, None, None]
        larger = (axis - x) * across + (axis[:, None] - y) * down
        slopes = -(torch.cat([larger, across, down], 1) * inside).flatten(2)  # [P,3,s²]
        normal = slopes @ slopes.transpose(1, 2) + 1e-3 * torch.eye(3)
        step = torch.linalg.solve(normal, slopes @ (ours - theirs).flatten(2).transpose(1, 2))[..., 0]
        step = step.clamp(-LARGEST_STEP, LARGEST_STEP)
        place = torch.cat([place[:, :2] * step[:, :1].exp(), place[:, 2:] + step[:, 1:]], 1)
    return best_place


def normalised(picture: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Without its mean and of unit length over the pixels inside, 0 elsewhere; [P,1,s,s]."""
    mean = (picture * inside).sum((2, 3), keepdim=True) / inside.sum((2, 3), keepdim=True).clamp(min=1)
    centred = (picture - mean) * inside
    return centred / centred.square().sum((2, 3), keepdim=True).sqrt().clamp(min=1e-3)


def overlap(place: torch.Tensor) -> torch.Tensor:
    """The share of the smaller picture's area that lies within the other [P]."""
    half, centre = place[:, :2], place[:, 2:]
    sides = (torch.minimum(centre + half, torch.ones(())) - (centre - half).clamp(min=-1)).clamp(min=0) / 2
    return sides.prod(1) / half.prod(1).clamp(max=1)


def agreement(below: torch.Tensor, above: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """The median of the correlations [P] of two pictures in squares of their overlap; NaN for plain ones."""
    weight = avg_pool2d(inside, WINDOW, STRIDE)

    def mean(values: torch.Tensor) -> torch.Tensor:
        return avg_pool2d(values * inside, WINDOW, STRIDE) / weight.clamp(min=1e-3)

    ours, theirs = mean(below), mean(above)
    spread, other_spread = mean(below**2) - ours**2, mean(above**2) - theirs**2
    both = (spread.clamp(min=0) * other_spread.clamp(min=0)).clamp(min=PLAIN**2)
    fits = (mean(below * above) - ours * theirs) / both.sqrt()
    whole = weight > 0.7
    seen = whole & (torch.minimum(spread, other_spread) > PLAIN)
    median = fits.masked_fill(~seen, math.nan).flatten(1).nanmedian(1).values
    enough = seen.sum((1, 2, 3)) >= SEEN * whole.sum((1, 2, 3))
    return median.masked_fill(~enough, math.nan)
