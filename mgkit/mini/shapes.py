"""Shapes of the objects in the embedded dataset."""

import numpy as np

# A class maps coordinates x, y (right, down; about the unit disc) and six numbers u in [0, 1] to two signed
# distances, negative inside: of the silhouette and of the marks on it.


def blend(low, high, t):
    return low + (high - low) * t


def _box(x, y, cx, cy, w, h, r=0.0):
    """Return the signed distance to a box of half sides w, h around (cx, cy) with corner radius r."""
    dx, dy = np.abs(x - cx) - (w - r), np.abs(y - cy) - (h - r)
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0) - r


def _fold(x, y, n, turn=0.0):
    """Fold the plane n-fold by rotation and reflection: (x, y) in the wedge at the x axis, y >= 0."""
    radius, step = np.hypot(x, y), 2 * np.pi / n
    angle = np.abs(np.mod(np.arctan2(y, x) + turn + step / 2, step) - step / 2)
    return radius * np.cos(angle), radius * np.sin(angle)


def _lobes(u):
    """Return the number of lobes, depth of notches and centre radius of stars and flowers."""
    return 5 + int(3 * u[0]), blend(0.5, 0.68, u[1]), blend(0.14, 0.26, u[2])


def _star(x, y, u):
    n, notch, centre = _lobes(u)
    fx, fy = _fold(x, y, n, np.pi / 2)
    nx, ny = notch * np.cos(np.pi / n), notch * np.sin(np.pi / n)
    # Distance to the line from the tip (1, 0) to the notch.
    edge = ((1 - fx) * -ny + fy * (1 - nx)) / np.hypot(1 - nx, ny)
    return np.maximum(edge, fx - 0.93), np.hypot(x, y) - centre


def _flower(x, y, u):
    n, notch, centre = _lobes(u)
    fx, fy = _fold(x, y, n, np.pi / 2)
    petal = notch * np.sin(np.pi / n) * blend(1.0, 1.12, u[3])
    reach = 0.97 - petal
    capsule = np.hypot(fx - np.clip(fx, 0, reach), fy) - petal
    return np.minimum(capsule, np.hypot(x, y) - notch), np.hypot(x, y) - centre


def _annulus(radius, u):
    """Return the hole and groove of rings and gears."""
    hole = blend(0.3, 0.52, u[0])
    return hole - radius, np.abs(radius - blend(hole + 0.13, 0.8, u[1])) - blend(0.02, 0.05, u[2])


def _ring(x, y, u):
    radius = np.hypot(x, y)
    hole, groove = _annulus(radius, u)
    return np.maximum(radius - blend(0.9, 0.96, u[3]), hole), groove


def _gear(x, y, u):
    radius = np.hypot(x, y)
    hole, groove = _annulus(radius, u)
    teeth = np.tanh(2.5 * np.cos((10 + int(7 * u[3])) * np.arctan2(y, x)))
    return np.maximum(radius - 0.93 - blend(0.035, 0.065, u[4]) * teeth, hole), groove


def _plate(x, y, u):
    """Return the plate (square to round), its rim, and folded coordinates of buttons and vents."""
    corner, n = blend(0.5, 0.9, u[0]), 3 + int(4 * u[1])
    plate = _box(x, y, 0, 0, 0.92, blend(0.78, 0.92, u[2]), corner * 0.85)
    rim = np.abs(plate + blend(0.1, 0.18, u[3])) - 0.02
    return plate, rim, *_fold(x, y, n, np.pi / 2)


def _button(x, y, u):
    plate, rim, fx, fy = _plate(x, y, u)
    return plate, np.minimum(rim, np.hypot(fx - blend(0.34, 0.46, u[4]), fy) - blend(0.09, 0.14, u[5]))


def _vent(x, y, u):
    plate, rim, fx, fy = _plate(x, y, u)
    slots = _box(fx, fy, blend(0.34, 0.46, u[4]), 0, blend(0.15, 0.22, u[5]), 0.055, 0.05)
    return plate, np.minimum(rim, slots)


def _lens(x, y, length, width):
    """Return the signed distance to the intersection of two discs, with half sides length and width."""
    radius = (length**2 + width**2) / (2 * width)
    return np.hypot(x, np.abs(y) + (radius - width)) - radius


def _fish(x, y, u):
    width, tail = blend(0.32, 0.5, u[0]), blend(0.26, 0.42, u[1])
    fork = np.maximum(np.abs(y) - tail * np.clip((-0.45 - x) / 0.5, 0, 1), -0.93 - x - 0.35 * np.abs(y))
    body = np.minimum(_lens(x - 0.2, y, 0.78, width), np.maximum(fork, x + 0.45))
    eye = np.hypot(x - blend(0.55, 0.65, u[2]), y + 0.07) - blend(0.045, 0.07, u[3])
    gill = np.maximum(np.abs(np.hypot(x - 0.75, y) - blend(0.35, 0.5, u[4])) - 0.022, np.abs(y) - width * 0.6)
    return body, np.minimum(eye, np.maximum(gill, x - 0.5))


def _leaf(x, y, u):
    width, slant = blend(0.32, 0.5, u[0]), blend(0.5, 1.1, u[2])
    stalk = _box(x, y, -0.75, 0, 0.22, blend(0.03, 0.05, u[1]), 0.03)
    vein = np.mod(x - np.abs(y) * slant, blend(0.2, 0.32, u[3])) - 0.035
    rib = np.minimum(np.abs(y) - 0.025, np.maximum(vein, np.abs(y) - width * 0.7))
    return np.minimum(_lens(x - 0.2, y, 0.78, width), stalk), rib


def _band(y, u):
    """Return the painted band of mugs and bottles."""
    return np.abs(y - blend(0.05, 0.4, u[4])) - blend(0.04, 0.14, u[5])


def _mug(x, y, u):
    width, taper, side = blend(0.42, 0.56, u[0]), blend(-0.05, 0.16, u[1]), 1 if u[2] < 0.5 else -1
    cup = _box(x * (1 + taper * y), y, -0.18 * side, 0, width, blend(0.6, 0.85, u[3]), 0.1)
    thick = blend(0.06, 0.1, u[1])
    handle = np.abs(np.hypot((x - side * (width - 0.14)) * 0.95, y) - blend(0.3, 0.4, u[3])) - thick
    outside = side * x < width - 0.2
    return np.minimum(cup, np.where(outside, 1.0, handle)), _band(y, u)


def _bottle(x, y, u):
    width, neck = blend(0.34, 0.52, u[0]), blend(0.12, 0.22, u[1])
    shoulder = blend(-0.35, 0.0, u[2])
    belly = _box(x, y, 0, (0.95 + shoulder) / 2, width, (0.95 - shoulder) / 2, blend(0.12, 0.3, u[3]))
    return np.minimum(belly, _box(x, y, 0, -0.4, neck, 0.54, 0.05)), _band(y, u)


def _key(x, y, u):
    head, shaft = blend(0.32, 0.42, u[0]), blend(0.07, 0.12, u[1])
    bow = np.abs(np.hypot(x + 0.95 - head, y) - head * 0.72) - head * blend(0.24, 0.36, u[2])
    pitch = blend(0.17, 0.24, u[3])
    bits = _box(np.mod(x - 0.9, pitch) - pitch / 2, y, 0, shaft + 0.08, pitch * 0.28, blend(0.1, 0.18, u[4]))
    bits = np.maximum(bits, blend(0.3, 0.5, u[5]) - x)
    rod = _box(x, y, 0.25, 0, 0.68, shaft, 0.03)
    marks = np.abs(x + blend(0, 0.15, u[5])) - 0.04
    return np.minimum(bow, np.minimum(rod, np.maximum(bits, x - 0.9))), marks


def _arrow(x, y, u):
    head, half = blend(0.45, 0.7, u[0]), blend(0.4, 0.6, u[1])
    slope = half / head
    tip = np.maximum((np.abs(y) - (0.95 - x) * slope) / np.hypot(1, slope), 0.95 - head - x + 0.2 * np.abs(y))
    rod = _box(x, y, -0.25, 0, 0.68, blend(0.1, 0.2, u[2]), 0.03)
    return np.minimum(tip, rod), np.abs(x + blend(0.3, 0.6, u[3])) - blend(0.03, 0.06, u[4])


SHAPES = {
    "star": _star, "flower": _flower,  # pointed or round lobes
    "ring": _ring, "gear": _gear,  # smooth or finely toothed
    "button": _button, "vent": _vent,  # one silhouette: round holes or slots
    "fish": _fish, "leaf": _leaf,  # one pointed oval: tail and eye, or stalk and veins
    "mug": _mug, "bottle": _bottle,
    "key": _key, "arrow": _arrow,
}  # fmt: skip

CLASS_NAMES: tuple[str, ...] = tuple(SHAPES)
