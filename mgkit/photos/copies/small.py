"""Pictures made small, without bars and borders, in order to be laid over each other."""

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import uniform_filter

SIDE = 64  # of a small picture (px)
LOOKED_AT = 256  # longest side at which bars are looked for (px)
TOLERANCE = 12  # of 255, within which pixels have the colour of the bars, for the noise of compression
UNIFORM = 0.9  # share of a line's pixels that have the colour of the bars
LEAST = 0.25  # of the picture's area is kept
SURROUNDINGS = 15  # side of the square whose mean is removed from each pixel (px)
NOISE = 4.0  # contrast (of 255) that is not made larger

Box = tuple[float, float, float, float]  # left, top, right, bottom (px)

# By the number of the rotation tag: what brings a picture upright that bears it.
TURNS = {
    1: lambda x: x,
    2: lambda x: x[..., :, ::-1],
    3: lambda x: x[..., ::-1, ::-1],
    4: lambda x: x[..., ::-1, :],
    5: lambda x: x.swapaxes(-1, -2),
    6: lambda x: x.swapaxes(-1, -2)[..., :, ::-1],
    7: lambda x: x.swapaxes(-1, -2)[..., ::-1, ::-1],
    8: lambda x: x.swapaxes(-1, -2)[..., ::-1, :],
}
UNDONE = {turn: {6: 8, 8: 6}.get(turn, turn) for turn in TURNS}  # the turn that undoes one
SIDEWAYS = (5, 6, 7, 8)  # turns that exchange width and height


def small(image: Image.Image) -> tuple[np.ndarray, float]:
    """The content of a picture (RGB) as grey [64,64] uint8, squashed to a square, and its width / height.

    The content is what is left without bars and borders: see `content_box`.
    """
    return squashed(image, content_box(image))


def squashed(image: Image.Image, box: Box) -> tuple[np.ndarray, float]:
    """A part of a picture (RGB) as grey [64,64] uint8, squashed to a square, and its width / height."""
    left, top, right, bottom = box
    grey = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    return np.asarray(grey), (right - left) / (bottom - top)


def share_of(image: Image.Image, box: Box) -> float:
    """The share of a picture's area that lies in a box."""
    left, top, right, bottom = box
    return (right - left) * (bottom - top) / (image.width * image.height)


def content_box(image: Image.Image) -> Box:
    """(left, top, right, bottom) in px of a picture (RGB) without the bars of a screenshot and borders.

    Bars have one colour and lie on opposite sides, so that nothing is cut from a picture with a plain sky.
    Writing on them is cut as well. At least a quarter of the picture is kept, or else all of it.
    """
    scale = min(1.0, LOOKED_AT / max(image.size))
    size = [max(1, round(scale * side)) for side in image.size]
    pixels = np.asarray(image.resize(size, Image.Resampling.BOX), np.int16)  # [h,w,3]
    rows, columns = slice(0, size[1]), slice(0, size[0])
    for _ in range(2):  # bars on all sides may hide each other
        rows = between_bars(pixels[:, columns], rows)
        columns = between_bars(pixels[rows].swapaxes(0, 1), columns)
    if (rows.stop - rows.start) * (columns.stop - columns.start) < LEAST * size[0] * size[1]:
        return (0, 0, *image.size)
    across, down = image.width / size[0], image.height / size[1]
    return columns.start * across, rows.start * down, columns.stop * across, rows.stop * down


def between_bars(pixels: np.ndarray, part: slice) -> slice:
    """The longest run of lines that do not have the colour of both outermost ones; of pixels [h,w,3]."""
    lines = pixels[part]
    first, last = np.median(lines[0], axis=0), np.median(lines[-1], axis=0)
    if np.abs(first - last).max() > TOLERANCE:
        return part
    alike = (np.abs(lines - (first + last) / 2).max(2) <= TOLERANCE).mean(1) >= UNIFORM  # [h]
    if not (alike[0] and alike[-1]) or alike.all():
        return part
    edges = np.flatnonzero(np.diff(alike))  # before each change, from a bar to content and back
    lengths = edges[1::2] - edges[::2]
    longest = int(lengths.argmax())
    return slice(part.start + int(edges[2 * longest]) + 1, part.start + int(edges[2 * longest + 1]) + 1)


def as_turned(grey: np.ndarray, aspects: np.ndarray, turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Small pictures [P,s,s] as rotation tags of these numbers [P] turn them; their width / height [P]."""
    result = np.empty_like(grey)
    for turn in np.unique(turns):
        result[turns == turn] = TURNS[turn](grey[turns == turn])
    return result, np.where(np.isin(turns, SIDEWAYS), 1 / aspects, aspects)


def contrasts(grey: np.ndarray) -> torch.Tensor:
    """Grey pictures [P,s,s] uint8 -> how each pixel differs from its surroundings [P,1,s,s], about 1."""
    pixels = grey.astype(np.float32)
    difference = pixels - surroundings(pixels)
    return torch.from_numpy(difference / (np.sqrt(surroundings(difference**2)) + NOISE))[:, None]


def surroundings(pixels: np.ndarray) -> np.ndarray:
    """The mean around each pixel of [P,s,s]; twice by a square is nearly by a disc."""
    size = (1, SURROUNDINGS, SURROUNDINGS)
    return uniform_filter(uniform_filter(pixels, size, mode="nearest"), size, mode="nearest")
