"""The embedded data set: a drawn world in which class, instance and copy are all well defined.

A *class* is a family of shapes. An *instance* fixes the shape's parameters, its colours and its texture. A
*scene* fixes where the instance stands, how it is lit, what lies behind it and before it; a *view* nudges all
of that, as a photographer who takes a second picture does. A *copy* is an edit of one picture. `make_mini`
writes such pictures as JPEG files in the layouts of ImageNet, Holidays, UKBench and Copydays.

Every picture is a pure function of (seed, its names): no state is shared, so neither the order of drawing
nor the number of processes nor the size of the other sets can change a byte (for one NumPy and Pillow).
"""

import json
import multiprocessing
import os
import shutil
import uuid
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from mgkit.progress import progress as watched

VERSION = 2  # raise it whenever a picture changes: an older set on disk is then refused
CHUNK = 24  # pictures that a process draws before it reports

# What makes the world hard. Angles in degrees; the rest as fractions of the short side unless said otherwise.
ROTATION = 30.0  # in-plane rotation, plus or minus
FORESHORTEN = (0.7, 1.0)  # squeeze along one axis: a cheap rotation out of the plane
HABIT = 0.75  # how often a class wears its usual paints and textures, as kinds of thing in the world do
COVER = (0.65, 1.05)  # the object's diameter
OFF_BORDER = 0.1  # how much of its radius the object may run off the border
BACK_CLUTTER, FRONT_CLUTTER = (1, 5), (0, 3)  # number of distractors behind and in front of the object
FRONT_SIZE = (0.04, 0.1)  # size of those in front
LIGHT_GAIN, LIGHT_GAMMA, LIGHT_SLOPE = 0.22, 0.25, 0.3  # spread of each (log units, but for the slope)
NOISE = (1.0, 4.0)  # sensor noise, in grey levels
TEXTURE_FREQUENCY, TEXTURE_CONTRAST = (8.0, 20.0), (0.2, 0.6)
NUDGE = 0.45  # how far a view strays from its scene, as a fraction of the spread of scenes
DULL = (0.3, 0.55)  # how much of their colour backdrop and clutter keep; 1: as vivid as the objects
GREY = 0.04  # share of grey pictures

LONG_SIDE = (144, 256)  # pixels
ASPECTS = (1 / 1, 4 / 3, 3 / 4, 3 / 2, 2 / 3, 16 / 9)  # width / height
CROPS = (10, 15, 20, 30, 40, 50, 60, 70, 80)  # per cent of the area cut away
QUALITIES = (3, 5, 8, 10, 15, 20, 30, 50, 75)  # of the JPEG copies
TEXTURES = ("stripes", "waves", "dots", "checks", "blobs")
PALETTE = np.array(  # muted, as paint and cloth are; things, backdrops and clutter all draw from it
    [
        (152, 78, 62), (188, 116, 82), (202, 162, 88), (122, 128, 70), (84, 112, 76), (72, 122, 122),
        (84, 108, 142), (118, 84, 118), (206, 186, 152), (74, 74, 80), (196, 138, 138), (228, 218, 196),
    ],
    dtype=np.float32,
)  # fmt: skip


@dataclass(frozen=True)
class MiniSizes:
    """How many of each `make_mini` draws: images, except for groups, objects and originals."""

    train_per_class: int = 130
    val_per_class: int = 26
    holidays_groups: int = 60
    ukbench_objects: int = 50
    copydays_originals: int = 40
    whiten: int = 800
    distractors: int = 300


# What the digits of the file names can number.
_MOST = MiniSizes(99_999, 999_999, 900, 25_000, 1_000, 1_000_000, 1_000_000)


# --- Classes: each maps coordinates x, y (right, down; about the unit disc) and six numbers u in [0, 1]
# --- to two signed distances, negative inside: the silhouette and the marks upon it.


def _mix(low, high, t):
    return low + (high - low) * t


def _box(x, y, cx, cy, w, h, r=0.0):
    """Signed distance to a box of half sides w, h around (cx, cy), its corners rounded by r."""
    dx, dy = np.abs(x - cx) - (w - r), np.abs(y - cy) - (h - r)
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0) - r


def _fold(x, y, n, turn=0.0):
    """The plane folded n-fold like a paper star: (x, y) in the wedge around the positive x axis, y >= 0."""
    radius, step = np.hypot(x, y), 2 * np.pi / n
    angle = np.abs(np.mod(np.arctan2(y, x) + turn + step / 2, step) - step / 2)
    return radius * np.cos(angle), radius * np.sin(angle)


def _lobes(u):
    """What star and flower share: number of lobes, depth of the notches, radius of the centre."""
    return 5 + int(3 * u[0]), _mix(0.5, 0.68, u[1]), _mix(0.14, 0.26, u[2])


def _star(x, y, u):
    n, notch, centre = _lobes(u)
    fx, fy = _fold(x, y, n, np.pi / 2)
    nx, ny = notch * np.cos(np.pi / n), notch * np.sin(np.pi / n)
    edge = ((1 - fx) * -ny + fy * (1 - nx)) / np.hypot(
        1 - nx, ny
    )  # to the line from the tip (1, 0) to the notch
    return np.maximum(edge, fx - 0.93), np.hypot(x, y) - centre


def _flower(x, y, u):
    n, notch, centre = _lobes(u)
    fx, fy = _fold(x, y, n, np.pi / 2)
    petal = notch * np.sin(np.pi / n) * _mix(1.0, 1.12, u[3])
    reach = 0.97 - petal
    capsule = np.hypot(fx - np.clip(fx, 0, reach), fy) - petal
    return np.minimum(capsule, np.hypot(x, y) - notch), np.hypot(x, y) - centre


def _annulus(radius, u):
    """What ring and gear share: the hole, and a groove as the mark."""
    hole = _mix(0.3, 0.52, u[0])
    return hole - radius, np.abs(radius - _mix(hole + 0.13, 0.8, u[1])) - _mix(0.02, 0.05, u[2])


def _ring(x, y, u):
    radius = np.hypot(x, y)
    hole, groove = _annulus(radius, u)
    return np.maximum(radius - _mix(0.9, 0.96, u[3]), hole), groove


def _gear(x, y, u):
    radius = np.hypot(x, y)
    hole, groove = _annulus(radius, u)
    teeth = np.tanh(2.5 * np.cos((10 + int(7 * u[3])) * np.arctan2(y, x)))
    return np.maximum(radius - 0.93 - _mix(0.035, 0.065, u[4]) * teeth, hole), groove


def _plate(x, y, u):
    """What button and vent share: a plate, square to round, its rim, and folded coordinates for the marks."""
    corner, n = _mix(0.5, 0.9, u[0]), 3 + int(4 * u[1])
    plate = _box(x, y, 0, 0, 0.92, _mix(0.78, 0.92, u[2]), corner * 0.85)
    rim = np.abs(plate + _mix(0.1, 0.18, u[3])) - 0.02
    return plate, rim, *_fold(x, y, n, np.pi / 2)


def _button(x, y, u):
    plate, rim, fx, fy = _plate(x, y, u)
    return plate, np.minimum(rim, np.hypot(fx - _mix(0.34, 0.46, u[4]), fy) - _mix(0.09, 0.14, u[5]))


def _vent(x, y, u):
    plate, rim, fx, fy = _plate(x, y, u)
    return plate, np.minimum(
        rim, _box(fx, fy, _mix(0.34, 0.46, u[4]), 0, _mix(0.15, 0.22, u[5]), 0.055, 0.05)
    )


def _lens(x, y, length, width):
    """A pointed oval of half length and half width, lying on its side: where two discs overlap."""
    radius = (length**2 + width**2) / (2 * width)
    return np.hypot(x, np.abs(y) + (radius - width)) - radius


def _fish(x, y, u):
    width, tail = _mix(0.32, 0.5, u[0]), _mix(0.26, 0.42, u[1])
    fork = np.maximum(np.abs(y) - tail * np.clip((-0.45 - x) / 0.5, 0, 1), -0.93 - x - 0.35 * np.abs(y))
    body = np.minimum(_lens(x - 0.2, y, 0.78, width), np.maximum(fork, x + 0.45))
    eye = np.hypot(x - _mix(0.55, 0.65, u[2]), y + 0.07) - _mix(0.045, 0.07, u[3])
    gill = np.maximum(np.abs(np.hypot(x - 0.75, y) - _mix(0.35, 0.5, u[4])) - 0.022, np.abs(y) - width * 0.6)
    return body, np.minimum(eye, np.maximum(gill, x - 0.5))


def _leaf(x, y, u):
    width, slant = _mix(0.32, 0.5, u[0]), _mix(0.5, 1.1, u[2])
    stalk = _box(x, y, -0.75, 0, 0.22, _mix(0.03, 0.05, u[1]), 0.03)
    vein = np.mod(x - np.abs(y) * slant, _mix(0.2, 0.32, u[3])) - 0.035
    rib = np.minimum(np.abs(y) - 0.025, np.maximum(vein, np.abs(y) - width * 0.7))
    return np.minimum(_lens(x - 0.2, y, 0.78, width), stalk), rib


def _band(y, u):
    """What mug and bottle share: a painted band around the belly."""
    return np.abs(y - _mix(0.05, 0.4, u[4])) - _mix(0.04, 0.14, u[5])


def _mug(x, y, u):
    width, taper, side = _mix(0.42, 0.56, u[0]), _mix(-0.05, 0.16, u[1]), 1 if u[2] < 0.5 else -1
    cup = _box(x * (1 + taper * y), y, -0.18 * side, 0, width, _mix(0.6, 0.85, u[3]), 0.1)
    thick = _mix(0.06, 0.1, u[1])
    handle = np.abs(np.hypot((x - side * (width - 0.14)) * 0.95, y) - _mix(0.3, 0.4, u[3])) - thick
    outside = side * x < width - 0.2
    return np.minimum(cup, np.where(outside, 1.0, handle)), _band(y, u)


def _bottle(x, y, u):
    width, neck = _mix(0.34, 0.52, u[0]), _mix(0.12, 0.22, u[1])
    shoulder = _mix(-0.35, 0.0, u[2])
    belly = _box(x, y, 0, (0.95 + shoulder) / 2, width, (0.95 - shoulder) / 2, _mix(0.12, 0.3, u[3]))
    return np.minimum(belly, _box(x, y, 0, -0.4, neck, 0.54, 0.05)), _band(y, u)


def _key(x, y, u):
    head, shaft = _mix(0.32, 0.42, u[0]), _mix(0.07, 0.12, u[1])
    bow = np.abs(np.hypot(x + 0.95 - head, y) - head * 0.72) - head * _mix(0.24, 0.36, u[2])
    pitch = _mix(0.17, 0.24, u[3])
    bits = _box(np.mod(x - 0.9, pitch) - pitch / 2, y, 0, shaft + 0.08, pitch * 0.28, _mix(0.1, 0.18, u[4]))
    bits = np.maximum(bits, _mix(0.3, 0.5, u[5]) - x)
    rod = _box(x, y, 0.25, 0, 0.68, shaft, 0.03)
    return np.minimum(bow, np.minimum(rod, np.maximum(bits, x - 0.9))), np.abs(x + _mix(0, 0.15, u[5])) - 0.04


def _arrow(x, y, u):
    head, half = _mix(0.45, 0.7, u[0]), _mix(0.4, 0.6, u[1])
    slope = half / head
    tip = np.maximum((np.abs(y) - (0.95 - x) * slope) / np.hypot(1, slope), 0.95 - head - x + 0.2 * np.abs(y))
    rod = _box(x, y, -0.25, 0, 0.68, _mix(0.1, 0.2, u[2]), 0.03)
    return np.minimum(tip, rod), np.abs(x + _mix(0.3, 0.6, u[3])) - _mix(0.03, 0.06, u[4])


_SHAPES = {
    "star": _star, "flower": _flower,  # pointed or round lobes
    "ring": _ring, "gear": _gear,  # smooth or finely toothed
    "button": _button, "vent": _vent,  # one silhouette: round holes or slots
    "fish": _fish, "leaf": _leaf,  # one pointed oval: tail and eye, or stalk and veins
    "mug": _mug, "bottle": _bottle,
    "key": _key, "arrow": _arrow,
}  # fmt: skip
CLASS_NAMES: tuple[str, ...] = tuple(_SHAPES)


# --- Instances, scenes and views


def _rng(seed, name):
    """The stream of random numbers of a name: the whole name is the entropy, so that no two collide."""
    return np.random.default_rng([seed, *name.encode()])


def _habit(rng, class_index, stride, count):
    """One of `count` choices: as a rule one of the three that the class shares with some others, else any."""
    usual = (stride * class_index + rng.integers(3)) % count
    return usual if rng.uniform() < HABIT else rng.integers(count)


def _paint(rng, vivid=1.0, choice=None):
    """A colour of the palette, a little off, and dulled towards a dark grey: float32 (3,) in 0..255."""
    choice = rng.integers(len(PALETTE)) if choice is None else choice
    colour = PALETTE[choice] * np.exp(rng.normal(0, 0.06, 3)).astype(np.float32)
    return _mix(np.float32(72), colour, np.float32(vivid))


def _pattern(kind, x, y, frequency, angle, phase):
    """A texture of that kind on coordinates x, y: float32 like x, in 0..1."""
    c, s = frequency * np.cos(angle), frequency * np.sin(angle)
    a, b = np.float32(c) * x + np.float32(s) * y + np.float32(phase), np.float32(c) * y - np.float32(s) * x
    if kind == "stripes":
        wave = np.sin(a)
    elif kind == "waves":
        wave = np.sin(a + 1.3 * np.sin(0.8 * b))
    elif kind == "dots":
        wave = np.cos(a) + np.cos(b) - 0.7
    elif kind == "checks":
        wave = 1.5 * np.sin(a * 0.7) * np.sin(b * 0.7)
    else:
        wave = np.sin(a * 0.6 + 1.7 * np.sin(0.4 * b)) + np.sin(b * 0.5 + 1.5 * np.sin(0.6 * a))
    return 0.5 + 0.5 * np.clip(2.5 * wave, -1, 1)


@dataclass(frozen=True)
class _Instance:
    shape: object
    u: np.ndarray  # (6,) the shape's parameters, each in 0..1
    colours: np.ndarray  # (3, 3) float32: body, texture, marks
    texture: tuple  # kind, frequency, angle, phase


def _instance(seed, class_index, name, family):
    """The instance of that name. Siblings, those of one family, share paint and kind of texture."""
    kin, own = _rng(seed, "family " + family), _rng(seed, "instance " + name)
    body, other = (_paint(kin, choice=_habit(kin, class_index, 5, len(PALETTE))) for _ in range(2))
    marks = body * 0.42 if body.mean() > 105 else 150 + body * 0.4
    texture = _mix(body, other, np.float32(kin.uniform(*TEXTURE_CONTRAST)))
    kind = TEXTURES[_habit(kin, class_index, 2, len(TEXTURES))]
    look = (kind, own.uniform(*TEXTURE_FREQUENCY), own.uniform(0, np.pi), own.uniform(0, 6.28))
    return _Instance(
        _SHAPES[CLASS_NAMES[class_index]], own.uniform(size=6), np.stack([body, texture, marks]), look
    )


def _size(rng):
    """A picture's (height, width) in pixels."""
    long, aspect = rng.uniform(*LONG_SIDE), ASPECTS[rng.integers(len(ASPECTS))]
    return round(long * min(1, 1 / aspect)), round(long * min(1, aspect))


def _spread(base, nudge, n=None):
    """Numbers in -1..1 that the scene draws and the view nudges."""
    return np.clip(base.uniform(-1, 1, n) + NUDGE * nudge.uniform(-1, 1, n), -1, 1)


def _between(low_high, t):
    """Map t in -1..1 onto an interval."""
    return _mix(*low_high, (t + 1) / 2)


def _planes(image):
    """The image as float32 (bands, height, width): NumPy is several times faster with the bands first."""
    return np.asarray(image).transpose(2, 0, 1).astype(np.float32, order="C")


def _backdrop(rng, size, window):
    """A smooth play of two colours under a grain: float32 (3, height, width) in 0..255."""
    height, width = size
    share = rng.uniform(0, 1, (4, 4, 1))
    colours = _mix(_paint(rng, DULL[0]), _paint(rng, DULL[0]), share) * rng.uniform(0.8, 1.15, (4, 4, 1))
    grid = Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8))
    smooth = grid.resize((width, height), Image.Resampling.BICUBIC, box=tuple(window * 4))
    rows, columns = np.exp(rng.uniform(np.log(8), np.log(72), 2)).astype(
        int
    )  # unlike numbers give wood or cloth
    grain = Image.fromarray(rng.integers(0, 256, (rows, columns), dtype=np.uint8))
    box = tuple(window * (columns, rows, columns, rows))
    grain = np.asarray(grain.resize((width, height), Image.Resampling.BICUBIC, box=box), dtype=np.float32)
    strength = np.float32(rng.uniform(0.08, 0.3) / 255)
    return _planes(smooth) * (1 + strength * (grain - 127))


def _clutter(rng, size, window, count, extent):
    """Blobs, polygons and strokes of no class: colours (3, height, width) and coverage (height, width)."""
    height, width = size
    layer = Image.new("RGBA", (2 * width, 2 * height))  # twice as large, so that halving it smooths the edges
    pen, (left, top, right, bottom) = ImageDraw.Draw(layer), window
    unit = 2 * min(size) / (right - left)
    for _ in range(count):
        centre = (rng.uniform(0, 1, 2) - (left, top)) / (right - left, bottom - top) * (2 * width, 2 * height)
        kind, scale, paint = (
            rng.integers(3),
            unit * rng.uniform(*extent),
            (*_paint(rng, DULL[1]).astype(int).tolist(), 255),
        )
        corners = 22 if kind == 0 else int(rng.integers(3, 6))
        angle = rng.uniform(0, 6.28) + np.arange(corners) / corners * 2 * np.pi
        waves = [rng.normal(0, 0.3 / k) * np.cos(k * angle + rng.uniform(0, 6.28)) for k in (1, 2, 3, 4)]
        radius = (
            scale * np.exp(np.sum(waves, axis=0)) if kind == 0 else scale * rng.uniform(0.5, 1.4, corners)
        )
        points = centre + np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1) * rng.uniform(
            0.5, 1, 2
        )
        points = [tuple(point) for point in points.tolist()]
        if kind == 2:
            pen.line(points, fill=paint, width=max(2, int(scale * rng.uniform(0.12, 0.35))), joint="curve")
        else:
            pen.polygon(points, fill=paint)
    pixels = _planes(layer.reduce(2))
    return pixels[:3], pixels[3] / 255


def _over(below, colour, alpha):
    """Paint `colour` with coverage `alpha` (height, width) over `below` (3, height, width)."""
    mixed = (colour - below) * alpha
    mixed += below  # in place: new arrays are what takes time
    return mixed


def _cover(distance, width):
    """Coverage in 0..1 of the inside of a signed distance, with an edge `width` wide."""
    return np.clip(0.5 - distance / width, 0, 1)


def _coordinates(size, base, nudge):
    """Object coordinates x, y of every pixel, float32 (height, width), and the width of a pixel in them."""
    height, width = size
    turn, squeeze, axis, cover, px, py, tilt_x, tilt_y = _spread(base, nudge, 8)
    radius = _between(COVER, cover) * min(size) / 2
    margin = (1 - OFF_BORDER) * radius
    cx, cy = _between((margin, width - margin), px), _between((margin, height - margin), py)
    along, turn = axis * np.pi / 2, np.radians(turn * ROTATION)
    axis_x, axis_y = np.cos(along), np.sin(along)
    stretch = 1 / _between(FORESHORTEN, squeeze) - 1
    unsqueeze = np.eye(2) + stretch * np.outer((axis_x, axis_y), (axis_x, axis_y))
    matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) @ unsqueeze / radius
    (a, b), (c, d) = matrix.astype(np.float32)
    i, j = np.arange(height, dtype=np.float32)[:, None] - np.float32(cy), np.arange(width) - np.float32(cx)
    j = j.astype(np.float32)
    x, y = a * j + b * i, c * j + d * i
    depth = 1 + np.clip(np.float32(0.15 * tilt_x) * x + np.float32(0.15 * tilt_y) * y, -0.5, 0.5)
    return x * depth, y * depth, float(np.sqrt(abs(np.linalg.det(matrix))))


def _object(picture, thing, x, y, pixel, lamp):
    """Paint the instance on the picture, with a soft shadow and a bevel lit from the angle `lamp`."""
    body, marks = thing.shape(x, y, thing.u)
    shadow = _cover(body, 14 * pixel)
    offset = round(3 * np.sin(lamp)), round(3 * np.cos(lamp))
    picture = picture * (1 - 0.45 * np.roll(shadow, offset, (0, 1)))
    paint, pattern, ink = thing.colours[:, :, None, None]
    colour = _over(paint, pattern, _pattern(thing.texture[0], x, y, *thing.texture[1:]))
    colour = _over(colour, ink, _cover(marks, 1.5 * pixel))
    down, right = np.gradient(np.maximum(body, -7 * pixel))
    bevel = (down * np.float32(np.sin(lamp)) + right * np.float32(np.cos(lamp))) / np.float32(pixel)
    colour = colour * (1 - 0.28 * np.clip(bevel, -1, 1))
    return _over(picture, colour, _cover(body, 1.5 * pixel))


def _light(picture, base, nudge):
    """What light and sensor make of the picture (3, height, width): uint8 (height, width, 3)."""
    height, width = picture.shape[1:]
    gain = np.exp(LIGHT_GAIN * (_spread(base, nudge) + 0.35 * _spread(base, nudge, 3)))
    gamma, angle = np.exp(LIGHT_GAMMA * _spread(base, nudge)), np.pi * _spread(base, nudge)
    down, right = (
        np.linspace(-0.5, 0.5, height)[:, None] * np.sin(angle),
        np.linspace(-0.5, 0.5, width) * np.cos(angle),
    )
    slope = (3 * (1 + LIGHT_SLOPE * (down + right))).astype(
        np.float32
    )  # a level is 3 steps of the curves below
    steps = np.clip(picture * slope, 0, 1023).astype(np.intp)
    curves = (
        255 * np.clip(np.arange(1024) / (3 * 255) * gain[:, None], 0, 1) ** gamma
    )  # of each band: a power a pixel is slow
    noise = nudge.standard_normal((height, width), dtype=np.float32) * np.float32(nudge.uniform(*NOISE))
    lit = (
        np.stack([np.take(curve, step) for curve, step in zip(curves.astype(np.float32), steps, strict=True)])
        + noise
    )
    return np.ascontiguousarray(np.clip(lit, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def _picture(seed, class_index, instance, family, scene, view):
    """Draw one picture: the same names give the same."""
    thing = _instance(seed, class_index, instance, family)
    pose, around, sun = (_rng(seed, f"{part} {scene}") for part in ("pose", "around", "sun"))
    nudge = _rng(seed, "view " + view)
    size = _size(pose)
    stray = (
        0.25 * NUDGE
    )  # the part of the surroundings that this view shows: left, top, right, bottom in 0..1
    window = np.array([stray, stray, 1 - stray, 1 - stray]) + stray * nudge.uniform(-0.99, 0.99, 4)
    x, y, pixel = _coordinates(size, pose, nudge)
    picture = _backdrop(around, size, window)
    things, where = _clutter(around, size, window, around.integers(*BACK_CLUTTER), (0.08, 0.35))
    weave = _pattern(
        TEXTURES[around.integers(5)], x, y, around.uniform(*TEXTURE_FREQUENCY), around.uniform(0, 3), 0
    )
    picture = _over(picture, things * (0.9 + 0.2 * weave), where)
    picture = _object(picture, thing, x, y, pixel, _between((0.2, 2.9), _spread(sun, nudge)) + np.pi)
    if count := around.integers(*FRONT_CLUTTER):
        picture = _over(picture, *_clutter(around, size, window, count, FRONT_SIZE))
    return Image.fromarray(_light(picture, sun, nudge))


# --- Copies


def _cropped(image, percent):
    """The centre of the picture, `percent` of its area cut away, blown up to the old size."""
    keep = (1 - percent / 100) ** 0.5
    w, h = image.size
    box = (w * (1 - keep) / 2, h * (1 - keep) / 2, w * (1 + keep) / 2, h * (1 + keep) / 2)
    return image.resize(image.size, Image.Resampling.LANCZOS, box=box)


def _snipped(image, rng):
    """A corner of it: 60 to 80 per cent of each side."""
    w, h = (np.array(image.size) * rng.uniform(0.6, 0.8, 2)).astype(int).tolist()
    left, top = int(rng.uniform(0, image.width - w)), int(rng.uniform(0, image.height - h))
    return image.crop((left, top, left + w, top + h))


def _printed(image, rng):
    """Printed and photographed again: another exposure and gamma, a tint, grain."""
    pixels = np.asarray(image, dtype=np.float32) / 255
    pixels = pixels ** np.exp(rng.uniform(-0.35, 0.35)) * np.exp(rng.uniform(-0.35, 0.35))
    pixels = pixels * np.exp(rng.uniform(-0.08, 0.08, 3))
    grain = rng.normal(0, rng.uniform(0.005, 0.02), (image.height, image.width, 1))
    return Image.fromarray((np.clip(pixels + grain, 0, 1) * 255).astype(np.uint8))


def _blurred(image, rng):
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.7, 1.6)))


def _strong(image, rng):
    """A copy that is hard to recognise: a corner of the picture, printed and photographed again, half of them out of focus."""
    copy = _printed(_snipped(image, rng), rng)
    return _blurred(copy, rng) if rng.random() < 0.5 else copy


# --- Files


class _Job(NamedTuple):
    """One picture to write; `strong` > 0 asks for a Copydays original's copies too, that many strong ones."""

    path: str
    class_index: int
    instance: str
    family: str
    scene: str
    strong: int = 0

    @property
    def files(self):
        return 1 + (len(CROPS) + len(QUALITIES) + self.strong if self.strong else 0)


def _single(path, class_index, strong=0):
    """A picture whose instance and scene occur nowhere else."""
    return _Job(path, class_index, path, path, path, strong)


def _plan(sizes):
    """Every picture of a set of those sizes, as a list of `_Job`."""
    classes, jobs = len(CLASS_NAMES), []
    for c in range(classes):
        wnid = f"n{1000001 + c:08d}"
        jobs += [
            _single(f"imagenet/train/{wnid}/{wnid}_{n}.JPEG", c) for n in range(1, sizes.train_per_class + 1)
        ]
        numbers = [n * classes + c + 1 for n in range(sizes.val_per_class)]
        jobs += [_single(f"imagenet/val/{wnid}/ILSVRC2012_val_{n:08d}.JPEG", c) for n in numbers]
    for g in range(sizes.holidays_groups):  # two by two siblings: paint alone does not find the group
        kin, name = f"holidays/family/{g // 2}", f"holidays/{g}"
        files = [f"holidays/jpg/{100000 + 100 * g + n}.jpg" for n in range(2 + g % 4)]
        jobs += [_Job(path, g // 2 % classes, name, kin, name) for path in files]
    for o in range(sizes.ukbench_objects):
        files = [f"ukbench/full/ukbench{4 * o + n:05d}.jpg" for n in range(4)]
        jobs += [_Job(path, o % classes, f"ukbench/{o}", f"ukbench/{o}", path) for path in files]
    originals = range(sizes.copydays_originals)
    jobs += [_single(f"copydays/original/{200000 + 100 * g}.jpg", g % classes, 1 + g % 3) for g in originals]
    for part in ("whiten", "distractors"):
        count = range(getattr(sizes, part))
        jobs += [_single(f"unlabelled/{part}/{n // 100:02d}/{n:06d}.jpg", n * 5 % classes) for n in count]
    return jobs


def _save(image, path, quality):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "JPEG", quality=quality)


def _write(folder, seed, job):
    """Draw and save the picture of a job, and its copies."""
    path, rng = Path(folder, job.path), _rng(seed, "file " + job.path)
    image = _picture(seed, job.class_index, job.instance, job.family, job.scene, job.path)
    if rng.uniform() < GREY:
        image = image.convert("L")
    _save(image, path, int(rng.integers(80, 93)))
    if not job.strong:
        return
    with Image.open(path) as file:  # a copy starts from the file, as the real ones did
        image = file.convert("RGB")
    home, name = path.parents[1], path.name
    for percent in CROPS:
        _save(_cropped(image, percent), home / f"crops/{percent}" / name, 90)
    for quality in QUALITIES:
        _save(image, home / f"jpegqual/{quality}" / name, quality)
    for n in range(1, job.strong + 1):
        _save(_strong(image, rng), home / f"strong/{int(path.stem) + n}.jpg", 85)


def _write_all(folder, seed, jobs):
    """Write the files of the jobs; returns how many they are."""
    for job in jobs:
        _write(folder, seed, job)
    return sum(job.files for job in jobs)


def _written(folder, seed, jobs, workers):
    """Write the files of the jobs with that many processes; yields the number of files chunk by chunk."""
    chunks = [jobs[i : i + CHUNK] for i in range(0, len(jobs), CHUNK)]
    if workers == 1:
        yield from (_write_all(folder, seed, chunk) for chunk in chunks)
        return
    context = multiprocessing.get_context(
        "spawn"
    )  # a fork of a process with threads (torch, Jupyter) may hang
    pool = ProcessPoolExecutor(min(workers, len(chunks)), mp_context=context)
    try:
        for future in as_completed([pool.submit(_write_all, folder, seed, chunk) for chunk in chunks]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _checked(sizes, seed, workers):
    """Raise ValueError, naming the field, for a number that cannot be."""
    limits = {f"sizes.{f.name}": (getattr(sizes, f.name), 1, getattr(_MOST, f.name)) for f in fields(sizes)}
    limits |= {"seed": (seed, 0, 2**63), "workers": (workers, 1, 1024)}
    for name, (value, least, most) in limits.items():
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"{name} must be a whole number from {least} to {most}, not {value!r}")


def _complete(root, record):
    """Whether the set of that record is at root; raises if something else is there."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    if not (root / "mini.json").is_file():
        raise FileExistsError(f"{root} exists and is not a drawn set (no mini.json): choose another folder")
    found = json.loads((root / "mini.json").read_text())
    unlike = [
        f"{key} {found.get(key)!r} instead of {record[key]!r}"
        for key in record
        if found.get(key) != record[key]
    ]
    if unlike:
        raise ValueError(
            f"{root} holds another set ({'; '.join(unlike)}): delete the folder or choose another"
        )
    return True


def make_mini(root, *, seed=0, sizes=None, workers=None, progress=False) -> Path:
    """Draw the set under `root` and return its path; at once if that very set is there already.

    `sizes` is a `MiniSizes` (None: the default one). `workers` processes draw (None: one for each core; 1:
    this one): a script that calls this with more than one needs the usual `if __name__ == "__main__":`.
    `progress` shows a bar. The set appears under `root` only when whole: an interrupted call leaves nothing
    and may be repeated.

    Raises ValueError for sizes, a seed or workers that cannot be, or if `root` holds a set of another seed,
    sizes or version; FileExistsError if it holds anything else.
    """
    root, sizes = Path(root).absolute(), MiniSizes() if sizes is None else sizes
    workers = (os.cpu_count() or 1) if workers is None else workers
    _checked(sizes, seed, workers)
    jobs = _plan(sizes)
    record = {"version": VERSION, "seed": seed, "sizes": asdict(sizes)}
    if _complete(root, record):
        return root
    partial = root.with_name(f"{root.name}.partial-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        partial.mkdir(parents=True)
        done = _written(partial, seed, jobs, workers)
        if progress:
            chunks = -(-len(jobs) // CHUNK)
            done = watched(done, "drawing the embedded dataset", total=chunks, unit="chunk")
        total = sum(done)
        names = "".join(f"n{1000001 + c:08d} {name}\n" for c, name in enumerate(CLASS_NAMES))
        (partial / "imagenet/classes.txt").write_text(names)
        (partial / "mini.json").write_text(json.dumps(record | {"files": total}, indent=1) + "\n")
        try:
            os.rename(partial, root)
        except OSError:
            if not _complete(root, record):  # else another process was faster, and its set is the same
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root
