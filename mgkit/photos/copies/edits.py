"""Edited copies of pictures, as people have them, on which thresholds are calibrated."""

import hashlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from mgkit.data.decoding import UnreadableImageError, decoding, in_words
from mgkit.machine.printable import shown_name
from mgkit.photos.copies.small import SIDE, small
from mgkit.photos.folder import PhotoList, load_photo

Edit = Callable[[Image.Image, np.random.Generator], Image.Image]

SCREEN = (9, 19.5)  # width : height
FRAME_LEFT = 0.94  # of the sides, when a camera that moves a little has taken another frame


def recompressed(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """JPEG compression of quality 20."""
    return compressed(image, quality=20)


def compressed(image: Image.Image, *, quality: int) -> Image.Image:
    file = BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file, formats=["JPEG"]).convert("RGB")


def shrunk(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Resized to a quarter of the sides and back."""
    small = image.resize([max(1, side // 4) for side in image.size], Image.Resampling.BILINEAR)
    return small.resize(image.size, Image.Resampling.BILINEAR)


def cropped(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """A fifth of the area cropped."""
    return random_crop(image, math.sqrt(0.8), random)


def cropped_more(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Two fifths of the area cropped."""
    return random_crop(image, math.sqrt(0.6), random)


def random_crop(image: Image.Image, kept: float, random: np.random.Generator) -> Image.Image:
    """A part of the picture with a share `kept` of its sides, anywhere, resized to the original size."""
    width, height = image.size
    left, top = random.uniform(0, 1 - kept, 2)
    box = (left * width, top * height, (left + kept) * width, (top + kept) * height)
    return image.resize(image.size, Image.Resampling.BILINEAR, box=box)


def brightened(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Brightness times 1.5, colour saturation times 0.6."""
    return ImageEnhance.Color(ImageEnhance.Brightness(image).enhance(1.5)).enhance(0.6)


def retouched(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """A patch of one colour and a line of text drawn over it, somewhere."""
    picture, (width, height) = image.copy(), image.size
    draw = ImageDraw.Draw(picture)
    left, top = random.uniform(0, 0.75, 2) * image.size
    colour = tuple(random.integers(0, 256, 3).tolist())
    draw.rectangle((left, top, left + width / 4, top + height / 5), colour)
    size = max(8, height // 8)
    font = {"font_size": size, "stroke_width": max(1, size // 12), "stroke_fill": "black"}
    place = random.uniform(0, 0.3) * width, random.uniform(0, 0.9) * height
    draw.text(place, "Summer holidays", "white", **font)
    return picture


def bordered(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """A border of one colour around it, of 4 to 12 % of the longer side."""
    colour = [(255, 255, 255), (0, 0, 0), (214, 196, 160)][random.integers(3)]
    return ImageOps.expand(image, max(1, round(random.uniform(0.04, 0.12) * max(image.size))), colour)


def screenshot(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Shown on the whole width of a telephone, with bars above and below, the time and a few signs."""
    colour, ink = [("black", "white"), ("white", "black")][random.integers(2)]
    width = max(image.width, math.ceil(image.height * SCREEN[0] / SCREEN[1] / 0.8), 2)
    height = math.ceil(width * SCREEN[1] / SCREEN[0])
    screen = Image.new("RGB", (width, height), colour)
    screen.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    draw, unit = ImageDraw.Draw(screen), width / 20
    draw.text((unit, unit / 2), "12:45", ink, font_size=max(4, unit))
    for left in (2 * unit, 9 * unit, 16 * unit):
        draw.ellipse((left, height - 3 * unit, left + unit, height - 2 * unit), outline=ink)
    return screen


def turned(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Turned by a multiple of 90° or mirrored, one of the seven ways, and compressed again."""
    return compressed(image.transpose(random.choice(list(Image.Transpose))), quality=80)


def another_frame(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """As a camera in the hand takes it a moment later: moved, turned and lit a little differently."""
    turned = image.rotate(random.uniform(-2, 2), Image.Resampling.BILINEAR)
    margin = (1 - FRAME_LEFT) / 2
    left, top = random.uniform(0, 2 * margin, 2) * image.size
    box = (left, top, left + FRAME_LEFT * image.width, top + FRAME_LEFT * image.height)
    frame = turned.resize(image.size, Image.Resampling.BILINEAR, box=box)
    return ImageEnhance.Brightness(frame).enhance(random.uniform(0.9, 1.1))


EDITS: dict[str, Edit] = {  # of the same file
    "JPEG quality 20": recompressed,
    "a quarter of the resolution": shrunk,
    "a fifth cropped": cropped,
    "two fifths cropped": cropped_more,
    "brighter, paler": brightened,
    "retouched": retouched,
    "border": bordered,
    "screenshot": screenshot,
    "turned or mirrored": turned,
}
FRAMES: dict[str, Edit] = {"another frame": another_frame}  # of the same moment
# What the network is needed for: other copies look like their originals at low resolution.
EMBEDDED: dict[str, Edit] = {name: EDITS[name] for name in ("a fifth cropped", "two fifths cropped")} | FRAMES


def edit(name: str, picture: Image.Image, path: str) -> Image.Image:
    """A picture, edited; what is random depends on its path. Raises UnreadableImageError if that fails."""
    seed = int.from_bytes(hashlib.blake2b(os.fsencode(path), digest_size=8).digest(), "big")
    with decoding(lambda error: f"{shown_name(path)} cannot be edited ({name}: {in_words(error)})"):
        return (EDITS | FRAMES)[name](picture, np.random.default_rng(seed))


@dataclass(frozen=True)
class EditedPhotos(PhotoList):
    """Photos, each repeated once per edit in the order of EMBEDDED; made at twice the resolution."""

    edits: tuple[str, ...] = tuple(EMBEDDED)

    def load(self, index: int, *, least: int | None = None) -> Image.Image:
        """As `PhotoList.load`, edited. Raises UnreadableImageError if that fails."""
        path, name = self.paths[index], self.edits[index % len(self.edits)]
        picture = edit(name, load_photo(path, least=2 * self.side, exif=self.exif), path)
        return picture.resize(self.fitted_size(index), Image.Resampling.BILINEAR)


def edited_copies(photos: PhotoList) -> EditedPhotos:
    """n photos -> n·F edited photos to be embedded, the F edits of each in sequence."""
    repeated = photos.subset(np.repeat(np.arange(len(photos)), len(EMBEDDED)))
    return EditedPhotos(**vars(repeated))


def small_copies(photos: PhotoList) -> tuple[np.ndarray, np.ndarray]:
    """n photos -> all their edited copies as by `small`: grey [n,E,64,64] uint8 and width / height [n,E].

    Those of a photo that cannot be read any more are plain.
    """
    grey, aspects = (
        np.zeros((len(photos), len(EDITS), SIDE, SIDE), np.uint8),
        np.ones((len(photos), len(EDITS))),
    )
    for i, path in enumerate(photos.paths):
        try:
            picture = photos.load(i)
            for k, name in enumerate(EDITS):
                grey[i, k], aspects[i, k] = small(edit(name, picture, path))
        except UnreadableImageError:
            grey[i], aspects[i] = 0, 1
    return grey, aspects
