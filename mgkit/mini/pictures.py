"""Draw images of instances: pose, light, clutter, edits."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from mgkit.mini.shapes import CLASS_NAMES, SHAPES, blend

# Difficulty of the dataset. Angles in degrees, others as fractions of the short side unless noted.
ROTATION = 30.0  # in-plane rotation, plus or minus
FORESHORTEN = (0.7, 1.0)  # scale along one axis, approximates a rotation out of the plane
HABIT = 0.75  # probability that an instance has colours and textures typical of its class
COVER = (0.65, 1.05)  # the object's diameter
OFF_BORDER = 0.1  # part of its radius that the object may extend beyond the border
BACK_CLUTTER, FRONT_CLUTTER = (1, 5), (0, 3)  # number of distractors behind and in front of the object
FRONT_SIZE = (0.04, 0.1)  # size of those in front
LIGHT_GAIN, LIGHT_GAMMA, LIGHT_SLOPE = 0.22, 0.25, 0.3  # ranges, in log units except for the slope
NOISE = (1.0, 4.0)  # sensor noise, in grey levels
TEXTURE_FREQUENCY, TEXTURE_CONTRAST = (8.0, 20.0), (0.2, 0.6)
NUDGE = 0.45  # variation of views within a scene, relative to that of scenes
DULL = (0.3, 0.55)  # saturation of backdrop and clutter relative to objects
GREY = 0.04  # share of grey images
LONG_SIDE = (144, 256)  # pixels
ASPECTS = (1 / 1, 4 / 3, 3 / 4, 3 / 2, 2 / 3, 16 / 9)  # width / height
TEXTURES = ("stripes", "waves", "dots", "checks", "blobs")
PALETTE = np.array(  # muted colours of objects, backdrops and clutter
    [
        (152, 78, 62), (188, 116, 82), (202, 162, 88), (122, 128, 70), (84, 112, 76), (72, 122, 122),
        (84, 108, 142), (118, 84, 118), (206, 186, 152), (74, 74, 80), (196, 138, 138), (228, 218, 196),
    ],
    dtype=np.float32,
)  # fmt: skip


# --- Instances, scenes and views


def generator_of(seed, name):
    """Return the random generator of a name, seeded by the whole name, so that no two collide."""
    return np.random.default_rng([seed, *name.encode()])


def _habit(rng, class_index, stride, count):
    """Return one of `count` choices, by default one of three that are typical of the class, else any."""
    usual = (stride * class_index + rng.integers(3)) % count
    return usual if rng.uniform() < HABIT else rng.integers(count)


def _paint(rng, vivid=1.0, choice=None):
    """Return a perturbed palette colour, blended with dark grey: float32 (3,) in 0..255."""
    choice = rng.integers(len(PALETTE)) if choice is None else choice
    colour = PALETTE[choice] * np.exp(rng.normal(0, 0.06, 3)).astype(np.float32)
    return blend(np.float32(72), colour, np.float32(vivid))


def _pattern(kind, x, y, frequency, angle, phase):
    """Return a texture at coordinates x, y: float32 like x, in 0..1."""
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
    """Return the instance of that name; instances of one family share colours and kind of texture."""
    kin, own = generator_of(seed, "family " + family), generator_of(seed, "instance " + name)
    body, other = (_paint(kin, choice=_habit(kin, class_index, 5, len(PALETTE))) for _ in range(2))
    marks = body * 0.42 if body.mean() > 105 else 150 + body * 0.4
    texture = blend(body, other, np.float32(kin.uniform(*TEXTURE_CONTRAST)))
    kind = TEXTURES[_habit(kin, class_index, 2, len(TEXTURES))]
    look = (kind, own.uniform(*TEXTURE_FREQUENCY), own.uniform(0, np.pi), own.uniform(0, 6.28))
    return _Instance(
        SHAPES[CLASS_NAMES[class_index]], own.uniform(size=6), np.stack([body, texture, marks]), look
    )


def _size(rng):
    """Return the (height, width) of an image (px)."""
    long, aspect = rng.uniform(*LONG_SIDE), ASPECTS[rng.integers(len(ASPECTS))]
    return round(long * min(1, 1 / aspect)), round(long * min(1, aspect))


def _spread(base, nudge, n=None):
    """Return numbers in -1..1, drawn by the scene and perturbed by the view."""
    return np.clip(base.uniform(-1, 1, n) + NUDGE * nudge.uniform(-1, 1, n), -1, 1)


def _between(low_high, t):
    """Map t in -1..1 onto an interval."""
    return blend(*low_high, (t + 1) / 2)


def _planes(image):
    """Convert an image to float32 (bands, height, width); NumPy is several times faster with bands first."""
    return np.asarray(image).transpose(2, 0, 1).astype(np.float32, order="C")


def _backdrop(rng, size, window):
    """Draw a smooth blend of two colours with grain: float32 (3, height, width) in 0..255."""
    height, width = size
    share = rng.uniform(0, 1, (4, 4, 1))
    colours = blend(_paint(rng, DULL[0]), _paint(rng, DULL[0]), share) * rng.uniform(0.8, 1.15, (4, 4, 1))
    grid = Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8))
    smooth = grid.resize((width, height), Image.Resampling.BICUBIC, box=tuple(window * 4))
    rows, columns = np.exp(rng.uniform(np.log(8), np.log(72), 2)).astype(int)  # unequal: like wood or cloth
    grain = Image.fromarray(rng.integers(0, 256, (rows, columns), dtype=np.uint8))
    box = tuple(window * (columns, rows, columns, rows))
    grain = np.asarray(grain.resize((width, height), Image.Resampling.BICUBIC, box=box), dtype=np.float32)
    strength = np.float32(rng.uniform(0.08, 0.3) / 255)
    return _planes(smooth) * (1 + strength * (grain - 127))


def _clutter(rng, size, window, count, extent):
    """Draw blobs, polygons and strokes: colours (3, height, width) and coverage (height, width)."""
    height, width = size
    layer = Image.new("RGBA", (2 * width, 2 * height))  # twice the size, for antialiasing
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
    mixed += below  # in place, to save time
    return mixed


def _cover(distance, width):
    """Return the coverage in 0..1 of a shape by its signed distance, with an edge `width` wide."""
    return np.clip(0.5 - distance / width, 0, 1)


def _coordinates(size, base, nudge):
    """Return object coordinates x, y of all pixels, float32 (height, width), and the width of a pixel."""
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
    """Paint the instance on the image, with a soft shadow and a bevel lit from the angle `lamp`."""
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
    """Apply light and sensor noise to an image (3, height, width): uint8 (height, width, 3)."""
    height, width = picture.shape[1:]
    gain = np.exp(LIGHT_GAIN * (_spread(base, nudge) + 0.35 * _spread(base, nudge, 3)))
    gamma, angle = np.exp(LIGHT_GAMMA * _spread(base, nudge)), np.pi * _spread(base, nudge)
    down = np.linspace(-0.5, 0.5, height)[:, None] * np.sin(angle)
    right = np.linspace(-0.5, 0.5, width) * np.cos(angle)
    slope = (3 * (1 + LIGHT_SLOPE * (down + right))).astype(np.float32)  # a level is 3 steps of the curves
    steps = np.clip(picture * slope, 0, 1023).astype(np.intp)
    # Curves are tabulated by band, since a power per pixel is slow.
    curves = 255 * np.clip(np.arange(1024) / (3 * 255) * gain[:, None], 0, 1) ** gamma
    noise = nudge.standard_normal((height, width), dtype=np.float32) * np.float32(nudge.uniform(*NOISE))
    bands = zip(curves.astype(np.float32), steps, strict=True)
    lit = np.stack([np.take(curve, step) for curve, step in bands]) + noise
    return np.ascontiguousarray(np.clip(lit, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def draw_picture(seed, class_index, instance, family, scene, view):
    """Draw the image of these names; equal names give equal images."""
    thing = _instance(seed, class_index, instance, family)
    pose, around, sun = (generator_of(seed, f"{part} {scene}") for part in ("pose", "around", "sun"))
    nudge = generator_of(seed, "view " + view)
    size = _size(pose)
    stray = 0.25 * NUDGE
    # The part of the surroundings in this view: left, top, right, bottom in 0..1.
    window = np.array([stray, stray, 1 - stray, 1 - stray]) + stray * nudge.uniform(-0.99, 0.99, 4)
    x, y, pixel = _coordinates(size, pose, nudge)
    picture = _backdrop(around, size, window)
    things, where = _clutter(around, size, window, around.integers(*BACK_CLUTTER), (0.08, 0.35))
    texture = TEXTURES[around.integers(5)], x, y, around.uniform(*TEXTURE_FREQUENCY), around.uniform(0, 3)
    weave = _pattern(*texture, 0)
    picture = _over(picture, things * (0.9 + 0.2 * weave), where)
    picture = _object(picture, thing, x, y, pixel, _between((0.2, 2.9), _spread(sun, nudge)) + np.pi)
    if count := around.integers(*FRONT_CLUTTER):
        picture = _over(picture, *_clutter(around, size, window, count, FRONT_SIZE))
    return Image.fromarray(_light(picture, sun, nudge))


# --- Copies


def cropped(image, percent):
    """Crop the centre, removing `percent` of the area, and resize it to the original size."""
    keep = (1 - percent / 100) ** 0.5
    w, h = image.size
    box = (w * (1 - keep) / 2, h * (1 - keep) / 2, w * (1 + keep) / 2, h * (1 + keep) / 2)
    return image.resize(image.size, Image.Resampling.LANCZOS, box=box)


def _snipped(image, rng):
    """Crop a random part with 60 to 80 per cent of each side."""
    w, h = (np.array(image.size) * rng.uniform(0.6, 0.8, 2)).astype(int).tolist()
    left, top = int(rng.uniform(0, image.width - w)), int(rng.uniform(0, image.height - h))
    return image.crop((left, top, left + w, top + h))


def _printed(image, rng):
    """Simulate print and photograph: exposure, gamma, tint and grain."""
    pixels = np.asarray(image, dtype=np.float32) / 255
    pixels = pixels ** np.exp(rng.uniform(-0.35, 0.35)) * np.exp(rng.uniform(-0.35, 0.35))
    pixels = pixels * np.exp(rng.uniform(-0.08, 0.08, 3))
    grain = rng.normal(0, rng.uniform(0.005, 0.02), (image.height, image.width, 1))
    return Image.fromarray((np.clip(pixels + grain, 0, 1) * 255).astype(np.uint8))


def _blurred(image, rng):
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.7, 1.6)))


def strong_edit(image, rng):
    """Make a copy that is hard to recognise: a crop, printed and photographed, half of them blurred."""
    copy = _printed(_snipped(image, rng), rng)
    return _blurred(copy, rng) if rng.random() < 0.5 else copy
