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

import numpy as np
from PIL import Image, ImageCms, features
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    IMAGELENGTH,
    IMAGEWIDTH,
    PHOTOMETRIC_INTERPRETATION,
    SAMPLEFORMAT,
)

from mgkit.machine.printable import shown_name

# PIL starts no other program for any of them. Their file names: `IMAGE_SUFFIXES` in folders.py.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP", "JPEG2000", "AVIF")  # MPO is read as JPEG
MOST_SIDE = 2**15  # px, of an image decoded with `least`
STRIP_PIXELS = 2**21  # converted at a time
ROTATION_TAG = 0x0112  # of EXIF data
ALWAYS_TURNED = ("TIFF", "AVIF")  # their rotation is part of the format: viewers apply it in any case
MAX_SAMPLE_VALUE = 281  # a tag of a TIFF
DEPTHS = (8, 10, 12, 16)  # bits of the values in a 16-bit file that does not state them

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


# --- Pixels


@dataclass(frozen=True)
class Look:
    """What the conversion of a part of an image to RGB needs to know of the whole.

    limits: the values shown as black and as white, of a mode with more than 8 bits.
    transparent: the grey level or RGB colour that is transparent; None without one.
    unsigned: see `unsigned`.
    """

    limits: tuple[float, float] = (0, 255)
    transparent: int | tuple[int, ...] | None = None
    unsigned: bool = False


def grey_levels(image: Image.Image, unsigned: bool) -> np.ndarray:
    """The values of an image of more than 8 bits, [H,W]; PIL reads unsigned integers of 32 bits as signed."""
    values = np.asarray(image)
    return values.view(np.uint32) if unsigned else values


def unsigned(image: Image.Image) -> bool:
    """Whether an image holds unsigned integers of 32 bits, as a deep TIFF does unless it says otherwise."""
    if image.mode != "I" or image.format != "TIFF":
        return False
    return (image.tag_v2.get(SAMPLEFORMAT, (1,))[0], image.tag_v2.get(BITSPERSAMPLE, (1,))[0]) == (1, 32)


def converted(image: Image.Image, look: Look) -> Image.Image:
    """Any mode that PIL converts by itself, with at most one transparent colour."""
    rgb = image.convert("RGB")
    if look.transparent is not None:
        same = np.asarray(rgb) == np.uint8(look.transparent)  # [H,W,3]
        rgb.paste("white", mask=Image.fromarray(same.all(-1)))
    return rgb


def on_white(image: Image.Image, look: Look) -> Image.Image:
    """A mode with alpha, premultiplied in `La` and `RGBa`."""
    image = image.convert(image.mode.upper()).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def from_palette(image: Image.Image, look: Look) -> Image.Image:
    """A palette, which may hold the alpha of each colour."""
    transparent = "transparency" in image.info or image.palette.mode.endswith("A")
    return on_white(image.convert("RGBA"), look) if transparent else image.convert("RGB")


def scaled(image: Image.Image, look: Look) -> Image.Image:
    """Grey levels of more than 8 bits: the limits become 0 and 255; what is not a number is black."""
    values = grey_levels(image, look.unsigned)
    black, white = look.limits
    levels = (values.astype(np.float64) - black) * (255 / ((white - black) or 1))
    levels = np.rint(np.nan_to_num(levels, nan=0, posinf=255, neginf=0).clip(0, 255)).astype(np.uint8)
    if look.transparent is not None:
        levels[values == look.transparent] = 255
    return Image.fromarray(levels).convert("RGB")


def from_lab(image: Image.Image, look: Look) -> Image.Image:
    """CIELAB, as sRGB."""
    profiles = (ImageCms.createProfile(name) for name in ("LAB", "sRGB"))
    return ImageCms.profileToProfile(image, *profiles, outputMode="RGB")


SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
TO_RGB = {
    **dict.fromkeys(("1", "L", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"), converted),
    **dict.fromkeys(("LA", "La", "PA", "RGBA", "RGBa"), on_white),
    **dict.fromkeys((*SIXTEEN_BITS, "I", "F"), scaled),
    "P": from_palette,
    "LAB": from_lab,
}  # by PIL's mode


def to_rgb(image: Image.Image, look: Look) -> Image.Image:
    """An image, or a part of it, as RGB; ValueError for a mode that is not in TO_RGB."""
    if image.mode not in TO_RGB:
        raise ValueError(f"its mode {image.mode} is not one of {', '.join(TO_RGB)}")
    return TO_RGB[image.mode](image, look)


def loaded(image: Image.Image) -> Image.Image:
    """Load an image, of an animation the first frame on white; PIL turns a TIFF here.

    The frame may be smaller than the image. PIL fills the rest with black or the palette's first colour.
    """
    if image.format == "WEBP" and image.is_animated and image.rawmode == "RGBX":
        image.rawmode = image._mode = "RGBA"  # its alpha is 0 outside the frame
    frame = image.tile[0][1] if image.format == "GIF" else None
    image.load()
    if frame in (None, (0, 0, *image.size)) or "transparency" in image.info:
        return image
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(image.crop(frame), frame[:2])
    return canvas


def transparent_colour(image: Image.Image) -> int | tuple[int, ...] | None:
    """The one transparent grey level or RGB colour of an image that is not loaded, in its mode's values."""
    key = image.info.get("transparency")
    if key is None or image.mode not in ("1", "L", "RGB", "I", *SIXTEEN_BITS):
        return None
    stored = image.tile[0][3] if image.format == "PNG" else ""
    if stored == "RGB;16B":  # PIL drops the lower bytes
        return tuple(value >> 8 for value in key)
    if image.mode == "1":  # 1 or 255, by PIL's version
        return 255 if key else 0
    return key * {"L;2": 85, "L;4": 17}.get(stored, 1) if isinstance(key, int) else key


def shown_range(image: Image.Image) -> tuple[float, float]:
    """The values of a loaded image that are shown as black and white, of its whole area.

    16 bits: 0 and the largest value that the file states; else the largest of the fewest bits of DEPTHS that
        hold its values, as cameras and scanners write 12 bits without saying so.
    Floats within 0..1: 0 and 1. Other floats and 32-bit integers: the least and the largest finite value.
    """
    if image.mode not in (*SIXTEEN_BITS, "I", "F"):
        return 0, 255
    black, white = finite_range(image)
    if image.format in ("PPM", "PNG") and image.mode == "I":  # 16 bits; PIL has applied the maxval of a PPM
        black, white = 0, 2**16 - 1 if image.format == "PPM" else full_scale(white)
    elif image.mode in SIXTEEN_BITS:
        black, white = 0, stated_maximum(image) or full_scale(white)
    elif image.mode == "F" and black >= 0 and white <= 1:
        black, white = 0, 1
    min_is_white = image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0
    return (white, black) if min_is_white else (black, white)


def full_scale(largest: float) -> int:
    """The largest value of the fewest bits of DEPTHS that hold a value."""
    return next(2**bits - 1 for bits in DEPTHS if largest < 2**bits)


def stated_maximum(image: Image.Image) -> int | None:
    """The largest value of a 16-bit TIFF by its tags; None if they leave it open."""
    if image.format != "TIFF":
        return None
    bits = image.tag_v2.get(BITSPERSAMPLE, (16,))[0]
    most = image.tag_v2.get(MAX_SAMPLE_VALUE)
    most = most[0] if isinstance(most, tuple) else most
    return most or (2**bits - 1 if bits < 16 else None)


def finite_range(image: Image.Image) -> tuple[float, float]:
    """The least and the largest finite value; 0 and 0 if there is none."""
    extremes = []
    for _, strip in strips(image):
        values = grey_levels(strip, unsigned(image))
        values = values[np.isfinite(values)]
        extremes += [values.min(), values.max()] if len(values) else []
    return (float(min(extremes)), float(max(extremes))) if extremes else (0.0, 0.0)


def strips(image: Image.Image, factor: int = 1) -> Iterator[tuple[int, Image.Image]]:
    """Yield (top, strip) of an image in strips of a multiple of `factor` rows."""
    rows = factor * max(1, STRIP_PIXELS // (image.width * factor))
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def reduced(image: Image.Image, look: Look, factor: int) -> Image.Image:
    """Any PIL image -> RGB, factor × factor pixels averaged; in strips, to hold one full-size image only."""
    width, height = (-(-side // factor) for side in image.size)
    small = Image.new("RGB", (width, height))
    for top, strip in strips(image, factor):
        small.paste(to_rgb(strip, look).reduce(factor), (0, top // factor))
    return small


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
