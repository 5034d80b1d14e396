"""Decode image files to RGB: formats, size limit, rotation tag, views; errors name the file."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from math import inf
from pathlib import Path
from typing import Literal

from PIL import Image, features
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH

from mgkit.data.pixels import Look, loaded, reduced, shown_range, to_rgb, transparent_colour, unsigned
from mgkit.machine.printable import shown_name

# PIL starts no other program for any of them. Their file names: `IMAGE_SUFFIXES` in folders.py.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP", "JPEG2000", "AVIF")  # MPO is read as JPEG
MOST_SIDE = 2**15  # px, of an image decoded with `least`
ROTATION_TAG = 0x0112  # of EXIF data
ALWAYS_TURNED = ("TIFF", "AVIF")  # their rotation is part of the format: viewers apply it in any case

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by the values of the rotation tag


class UnreadableImageError(OSError):
    """An image that cannot be decoded; the message names it and gives the reason."""


@dataclass(frozen=True)
class View:
    """The part of an image that is used: the image is turned, then cropped.

    turned: degrees clockwise, 0, 90, 180 or 270; moves pixels without loss.
    box: (x1, y1, x2, y2) in pixels of the turned image, rounded; black outside the image, as in PIL's crop.
    """

    turned: Literal[0, 90, 180, 270] = 0
    box: tuple[float, float, float, float] | None = None

    def of(self, image: Image.Image) -> Image.Image:
        """Turn and crop an image; ValueError for a box outside the image."""
        if self.turned:
            image = image.rotate(-self.turned, expand=True)
        return image.crop(self.bounds(image.size)) if self.box else image

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) of the view of an image of that (width, height); raises as `of`."""
        if self.turned in (90, 270):
            size = size[::-1]
        if not self.box:
            return size
        left, top, right, bottom = self.bounds(size)
        return right - left, bottom - top

    def bounds(self, size: tuple[int, int]) -> tuple[int, ...]:
        """The box in whole pixels; ValueError if it lies outside an image of that (width, height)."""
        left, top, right, bottom = bounds = tuple(map(round, self.box))
        if min(right, size[0]) <= max(left, 0) or min(bottom, size[1]) <= max(top, 0):
            raise ValueError(f"the box {self.box} holds no pixel of {size[0]} x {size[1]}")
        return bounds


WHOLE = View()


def load_image(
    source: str | Path | bytes,
    *,
    name: str | None = None,
    exif: bool = False,
    view: View = WHOLE,
    least: int | None = None,
    most_pixels: float = inf,
) -> Image.Image:
    """Decode an image as RGB, see `TO_RGB`: any transparency becomes white; no colour profile is applied.

    source: a path, or a file's content.
    name: what errors call the image; the path by default.
    exif: apply the rotation tag before the view; that of a TIFF or AVIF is applied in any case.
    view: the part that is used.
    least: shrink a whole image by an integer, its sides kept at `least` pixels or more and at 32,768 or less.
        A JPEG is decoded at 1/2, 1/4 or 1/8; of other formats only the decoded file is held at full size.
    most_pixels: no pixel of a larger image is decoded; PIL's own limit (179 megapixels) holds as well.

    Raises UnreadableImageError for a missing or damaged file, a format not in FORMATS, too many pixels, or a
    view outside the image.
    """
    name = source if name is None else name
    with (
        decoding(lambda error: shown_name(f"cannot read the image {name}: {reason(source, error)}")),
        opened(source, most_pixels) as image,
    ):
        shrink = least is not None and view == WHOLE
        if shrink:
            image.draft(None, (least, least))
        transparent = transparent_colour(image)
        image = loaded(image)
        look = Look(shown_range(image), transparent, unsigned(image))
        tag = rotation(image) if exif or image.format in ALWAYS_TURNED else 1
        if not shrink:
            return view.of(turned(to_rgb(image, look), tag))
        factor = max(1, min(image.size) // least, -(-max(image.size) // MOST_SIDE))
        return turned(reduced(image, look, factor), tag)


@contextmanager
def opened(source: str | Path | bytes, most_pixels: float = inf) -> Iterator[Image.Image]:
    """An image of one of FORMATS, its header read and no pixel decoded.

    Raises what PIL raises, and ValueError for more than `most_pixels`.
    """
    try:
        image = Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=readable())
    except Image.DecompressionBombError:
        limit = 2 * Image.MAX_IMAGE_PIXELS
        raise ValueError(too_large(f"more than {limit / 1e6:.0f}", min(most_pixels, limit))) from None
    with image:
        pixels = image.width * image.height
        if pixels > most_pixels:
            raise ValueError(too_large(f"{pixels / 1e6:.0f}", most_pixels))
        yield image


@cache
def readable() -> tuple[str, ...]:
    """Those of FORMATS that this build of PIL reads."""
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]
    return tuple(name for name in known if name != "AVIF" or features.check("avif"))


def too_large(megapixels: str, most_pixels: float) -> str:
    return f"it has {megapixels} megapixels, at most {most_pixels / 1e6:.0f} are read"


@contextmanager
def decoding(message: Callable[[Exception], str]) -> Iterator[None]:
    """Turn any error of the block into an UnreadableImageError with that message: PIL may raise anything.

    MemoryError is left as it is: the file is not at fault.
    """
    try:
        yield
    except (MemoryError, UnreadableImageError):
        raise
    except Exception as error:
        raise UnreadableImageError(message(error)) from None


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence PIL's warnings about large and damaged images; those that cannot be read raise anyway."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def reason(source: str | Path | bytes, error: Exception) -> str:
    """Why an image cannot be read, on one line."""
    if isinstance(error, Image.UnidentifiedImageError):
        size = len(source) if isinstance(source, bytes) else os.path.getsize(source)
        lacking = [name for name in FORMATS if name not in readable()]
        note = f" (the installed Pillow does not read {', '.join(lacking)})" if lacking else ""
        wanted = f"not an image in one of the formats {', '.join(readable())}{note}"
        return wanted if size else "the file is empty"
    return getattr(error, "strerror", None) or in_words(error)


def in_words(error: Exception) -> str:
    """An error's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def rotation(image: Image.Image) -> int:
    """The rotation tag, 1 to 8; 1 (upright) if it is missing or malformed, and for a loaded TIFF."""
    try:
        tag = image.getexif().get(ROTATION_TAG)
        return tag if tag in TURNS else 1
    except MemoryError:
        raise
    except Exception:  # malformed EXIF data may raise anything
        return 1


def turned(image: Image.Image, rotation: int) -> Image.Image:
    """Turn an image by the value of its rotation tag, and drop its tags.

    PIL's `exif_transpose` writes the other tags again, which fails if one is malformed.
    """
    if rotation not in TURNS:
        return image
    image = image.transpose(TURNS[rotation])
    image.info = {}
    return image


def image_shape(path: str, exif: bool, view: View) -> tuple[int, int]:
    """(width, height) of an image as `load_image` returns it, from the header; (1, 1) if unreadable."""
    try:
        with opened(path) as image:
            size = image.size
            if image.format == "TIFF":  # PIL turns it while loading; `size` may be that before or after
                size = (image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH])
            exif |= image.format in ALWAYS_TURNED
            swapped = exif and rotation(image) in (5, 6, 7, 8)
            return view.size(size[::-1] if swapped else size)
    except MemoryError:
        raise
    except Exception:  # a damaged file may raise anything
        return 1, 1
