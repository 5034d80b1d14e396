"""Decode image files to RGB: formats, size limit, rotation tag, views, profiles; errors name the file."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from math import inf
from pathlib import Path
from typing import BinaryIO, Literal

from PIL import Image, features
from PIL.ImageCms import ImageCmsTransform
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH
from pillow_heif import register_heif_opener

from mgkit.data.avif import with_one_association
from mgkit.data.pixels import (
    Look,
    loaded,
    profile_to_srgb,
    reduced,
    shown_range,
    to_rgb,
    transparent_colour,
    unsigned,
)
from mgkit.machine.printable import shown_name

# PIL starts no other program for any of them. Their file names: `IMAGE_SUFFIXES` in folders.py.
# MPO is read as JPEG. HEIF comes last: its reader takes some AVIF files for its own.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP", "JPEG2000", "AVIF", "HEIF")
# Files of cameras, of which the embedded preview is read; PIL takes most for TIFFs, and shows the smallest.
RAW = """.cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .dng .raf .orf .rw2 .raw .pef .srw .x3f .3fr .iiq .erf .mrw
    .kdc .dcr .rwl"""
RAW_SUFFIXES = frozenset(RAW.split())
BRANDS = {b"avif": "AVIF", b"avis": "AVIF", **dict.fromkeys((b"heic", b"heix", b"mif1"), "HEIF")}
MOST_SIDE = 2**15  # px, of an image decoded with `least`
ROTATION_TAG = 0x0112  # of EXIF data
ALWAYS_TURNED = ("TIFF", "AVIF", "HEIF")  # rotation is part of the format: viewers apply it in any case

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by the values of the rotation tag
TAGS_BY_FLIP = (1, 2, 4, 3, 5, 8, 6, 7)  # values of the rotation tag by LibRaw's `flip`


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
    srgb: bool = False,
) -> Image.Image:
    """Decode an image as RGB, see `TO_RGB`: any transparency becomes white.

    Of several frames the first is taken, of several images in a HEIF the main one, of a RAW file the preview.

    source: a path, or a file's content.
    name: what errors call the image, with the suffix of a RAW file; the path by default.
    exif: apply the rotation tag before the view; a TIFF, AVIF or HEIF is turned in any case.
    view: the part that is used.
    least: shrink a whole image by an integer, its sides kept at `least` pixels or more and at 32,768 or less.
        A JPEG is decoded at 1/2, 1/4 or 1/8; of other formats only the decoded file is held at full size.
    most_pixels: no pixel of a larger image is decoded; PIL's own limit (179 megapixels) holds as well.
    srgb: convert by the colour profile to sRGB, as browsers do; False keeps the values in the file. A profile
        that cannot be used is ignored.

    Raises UnreadableImageError for a missing or damaged file, a format not in FORMATS, too many pixels, or a
    view outside the image.
    """
    name = source if name is None else name
    with (
        decoding(lambda error: shown_name(f"cannot read the image {name}: {reason(source, error)}")),
        opened(source, most_pixels, name=name) as image,
    ):
        shrink = least is not None and view == WHOLE
        if shrink:
            image.draft(None, (least, least))
        transparent = transparent_colour(image)
        profile = usable_profile(image) if srgb else None
        tag = rotation(image) if (exif or image.format in ALWAYS_TURNED) and image.format != "TIFF" else 1
        image = loaded(image)  # and turned, if it is a TIFF
        look = Look(shown_range(image), transparent, unsigned(image), profile)
        if not shrink:
            return view.of(turned(to_rgb(image, look), tag))
        factor = max(1, min(image.size) // least, -(-max(image.size) // MOST_SIDE))
        return turned(reduced(image, look, factor), tag)


@contextmanager
def opened(
    source: str | Path | bytes, most_pixels: float = inf, *, name: str | Path | None = None
) -> Iterator[Image.Image]:
    """An image of one of FORMATS, or the preview in a RAW file, its header read and no pixel decoded.

    Raises what PIL raises, and ValueError for more than `most_pixels` and for a RAW file without a preview.
    """
    try:
        image = embedded_preview(source) if is_raw(source if name is None else name) else in_format(source)
    except Image.DecompressionBombError:
        limit = 2 * Image.MAX_IMAGE_PIXELS
        raise ValueError(too_large(f"more than {limit / 1e6:.0f}", min(most_pixels, limit))) from None
    with image:
        pixels = image.width * image.height
        if pixels > most_pixels:
            raise ValueError(too_large(f"{pixels / 1e6:.0f}", most_pixels))
        yield image


def in_format(source: str | Path | bytes) -> Image.Image:
    """An image of one of FORMATS, its header read."""
    try:
        return Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=readable())
    except Image.UnidentifiedImageError:
        mended = with_one_association(beginning(source, None)) if brand(beginning(source)) == "AVIF" else None
        if mended is None:
            raise
        return Image.open(BytesIO(mended), formats=readable())


def beginning(source: str | Path | bytes, count: int | None = 12) -> bytes:
    """The first bytes of a file; None: all."""
    if isinstance(source, bytes):
        return source[:count]
    with open(source, "rb") as file:
        return file.read(count)


def brand(start: bytes) -> str | None:
    """`AVIF` or `HEIF` by the first 12 bytes of a file that says to be one; None for others."""
    return BRANDS.get(start[8:]) if start[4:8] == b"ftyp" else None


@cache
def readable() -> tuple[str, ...]:
    """Those of FORMATS that this build of PIL reads, and HEIF, which a plugin reads."""
    Image.init()
    # Only what is in the picture itself: an embedded thumbnail may be one of before its last edit.
    register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
    known = [name for name in FORMATS if name in Image.OPEN]
    return tuple(name for name in known if name != "AVIF" or features.check("avif"))


def is_raw(name: str | Path | bytes) -> bool:
    """Whether a file has the suffix of a RAW file; a content without a name has none."""
    return not isinstance(name, bytes) and os.path.splitext(name)[1].lower() in RAW_SUFFIXES


def embedded_preview(source: str | Path | bytes) -> Image.Image:
    """The largest preview in a RAW file, turned by its rotation tag as the picture is.

    Raises ValueError for a file without one, or that LibRaw does not read; OSError for a missing file.
    """
    import rawpy  # with the first RAW file; most folders have none

    try:
        with readable_by_libraw(source) as file, rawpy.imread(file) as raw:
            preview, flip = raw.extract_thumb(), raw.sizes.flip
    except (rawpy.LibRawNoThumbnailError, rawpy.LibRawUnsupportedThumbnailError):
        raise ValueError("a RAW file without an embedded preview, and RAW itself is not developed") from None
    except rawpy.LibRawError:
        raise ValueError("not a RAW file that LibRaw reads") from None
    if preview.format == rawpy.ThumbFormat.JPEG:
        image = Image.open(BytesIO(preview.data), formats=["JPEG"])
    else:
        image = Image.fromarray(preview.data)
    with suppress(Exception):  # malformed EXIF data may raise anything
        if ROTATION_TAG not in image.getexif():
            image.getexif()[ROTATION_TAG] = TAGS_BY_FLIP[flip]
    return image


@contextmanager
def readable_by_libraw(source: str | Path | bytes) -> Iterator[str | BinaryIO]:
    """A path, of which LibRaw reads some parts only; a file in memory, or under a name that is no UTF-8."""
    if isinstance(source, bytes):
        yield BytesIO(source)
        return
    with open(source, "rb") as file:  # a missing file is an error by the system's words
        try:
            os.fspath(source).encode()
        except UnicodeEncodeError:
            yield file
        else:
            yield os.fspath(source)


def usable_profile(image: Image.Image) -> ImageCmsTransform | None:
    """`profile_to_srgb`; None for a profile that cannot be used."""
    try:
        return profile_to_srgb(image)
    except ValueError:
        return None


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
        try:
            return unidentified(beginning(source))
        except OSError as gone:  # meanwhile
            error = gone
    return getattr(error, "strerror", None) or in_words(error)


def unidentified(start: bytes) -> str:
    """Why no reader takes a file for its own, by the file's first 12 bytes."""
    if not start:
        return "the file is empty"
    if brand(start) in readable():
        return f"a damaged {brand(start)}, which its reader refuses"
    lacking = [name for name in FORMATS if name not in readable()]
    note = f" (the installed Pillow does not read {', '.join(lacking)})" if lacking else ""
    return f"not an image in one of the formats {', '.join(readable())}{note}"


def in_words(error: Exception) -> str:
    """An error's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def rotation(image: Image.Image) -> int:
    """The rotation tag of an image that is not loaded, 1 to 8; 1 (upright) if there is none, and for a HEIF.

    libheif turns a HEIF by the boxes that its format has for that, and viewers ignore a tag beside them. PIL
    turns an AVIF's boxes into the tag's value.
    """
    if image.format == "HEIF":
        return 1
    try:
        image.info.pop("xmp", None)  # where PIL looks for a tag as well, but no browser does
        # That of a PNG would decode the image, in search of a tag behind the pixels.
        exif = Image.Image.getexif(image) if image.format == "PNG" else image.getexif()
        tag = exif.get(ROTATION_TAG)
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
            return view.size(shown_size(image, exif))
    except MemoryError:
        raise
    except Exception:  # a damaged file may raise anything
        return 1, 1


def shown_size(image: Image.Image, exif: bool) -> tuple[int, int]:
    """(width, height) of an image that is not loaded, once it is turned."""
    size = image.size
    if image.format == "TIFF":  # PIL turns it while loading; `size` may be that before or after
        size = (image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH])
    exif |= image.format in ALWAYS_TURNED
    return size[::-1] if exif and rotation(image) in (5, 6, 7, 8) else size
