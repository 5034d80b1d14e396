"""One image file -> RGB pixels: rotation, colour modes, crops, and errors that name the file."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH

ROTATION_TAG = 0x0112  # of EXIF data

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
    """An image file that cannot be decoded; the message names it and says why."""


@dataclass(frozen=True)
class View:
    """What of an image file is taken: the whole, or else turned, then cropped.

    turned: degrees clockwise, 0, 90, 180 or 270, which moves pixels and loses none. box: (x1, y1, x2, y2) in pixels of the turned
    image, rounded to whole ones; what of it lies outside the image is black, as PIL crops.
    """

    turned: Literal[0, 90, 180, 270] = 0
    box: tuple[float, float, float, float] | None = None

    def of(self, image: Image.Image) -> Image.Image:
        """The view of an image; ValueError for a box without a pixel of it."""
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
        """The box in whole pixels; ValueError unless it holds one of an image of that (width, height)."""
        left, top, right, bottom = bounds = tuple(map(round, self.box))
        if min(right, size[0]) <= max(left, 0) or min(bottom, size[1]) <= max(top, 0):
            raise ValueError(f"the box {self.box} holds no pixel of {size[0]} x {size[1]}")
        return bounds


WHOLE = View()


def load_image(
    path: str | Path, *, exif: bool = False, view: View = WHOLE, least: int | None = None
) -> Image.Image:
    """The image as RGB: grey, palette, CMYK, 16-bit and transparent ones are converted (transparent on white).

    exif: first of all, the rotation tag is applied; a TIFF's always is, by PIL. view: what is taken of the image. least: for a
    thumbnail, sides of so many pixels will do; a whole JPEG is then decoded at 1/2, 1/4 or 1/8, in a fraction of time and memory.
    Raises UnreadableImageError, naming the file, for a missing, truncated or non-image one, and for a view that shows nothing of it.
    """
    with decoding(lambda error: cannot_read(path, error)), Image.open(path) as image:
        if least is not None and view == WHOLE:
            image.draft(None, (least, least))
        image.load()
        return view.of(turned(to_rgb(image), rotation(image) if exif else 1))


@contextmanager
def decoding(message: Callable[[Exception], str]) -> Iterator[None]:
    """Whatever error PIL raises in the block becomes an UnreadableImageError with its message: a damaged file may raise anything.

    Too little memory is not the file's fault, and stays a MemoryError.
    """
    try:
        yield
    except (MemoryError, UnreadableImageError):
        raise
    except Exception as error:
        raise UnreadableImageError(message(error)) from None


def cannot_read(path: str | Path, error: Exception) -> str:
    return f"cannot read the image {path}: {reason(path, error)}"


def reason(path: str | Path, error: Exception) -> str:
    """Why a file cannot be read, for a person, on one line."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image" if os.path.getsize(path) else "the file is empty"
    return getattr(error, "strerror", None) or in_words(error)


def in_words(error: Exception) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def rotation(image: Image.Image) -> int:
    """The value 1 to 8 of an opened image's rotation tag; 1, which leaves it as it is, where there is none or it cannot be made out.

    A TIFF that is loaded is turned, and has no such tag any more.
    """
    try:
        tag = image.getexif().get(ROTATION_TAG)
        return tag if tag in TURNS else 1
    except MemoryError:
        raise
    except Exception:  # malformed EXIF data may raise anything
        return 1


def turned(image: Image.Image, rotation: int) -> Image.Image:
    """The image turned as a rotation tag of that value says, with no tags left that would have it turned again.

    PIL's own `exif_transpose` writes the other tags anew, which fails where one is malformed.
    """
    if rotation not in TURNS:
        return image
    image = image.transpose(TURNS[rotation])
    image.info = {}
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL mode -> RGB."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):  # 16-bit grey: PIL would clip instead of scale
        return Image.fromarray((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def image_shape(path: str, exif: bool, view: View) -> tuple[int, int]:
    """`image_shapes` of one file."""
    try:
        with Image.open(path) as image:
            size = image.size
            if image.format == "TIFF":  # PIL turns it in any case, and may say so in `size` beforehand
                size, exif = (image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH]), True
            swapped = exif and rotation(image) in (5, 6, 7, 8)
            return view.size(size[::-1] if swapped else size)
    except MemoryError:
        raise
    except Exception:  # a damaged file may raise anything
        return 1, 1
