"""What a picture's header tells besides its size: the camera's data, and what is shown otherwise."""

from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timezone
from typing import NamedTuple

from PIL import Image
from PIL.ExifTags import IFD, Base

from mgkit.data.decoding import is_raw, opened, rotation, shown_size
from mgkit.data.pixels import ALPHA, profile_to_srgb

RAW_PREVIEW, FIRST_FRAME = "the preview embedded in a RAW file", "the first of several frames"
MAIN_IMAGE = "the main one of several images"
HOLDS_MORE = (RAW_PREVIEW, FIRST_FRAME, MAIN_IMAGE)  # remarks on files that hold more than is shown


class Header(NamedTuple):
    """What a picture's header tells.

    size: (width, height) as shown (px); (1, 1) if the picture cannot be read.
    taken: when it was photographed (s since 1970), by the camera's data; None if it has none.
    camera: whether it names the camera.
    turned: whether it is stored in another direction than it is shown, by its rotation tag.
    remark: what is shown that is more, less or other than what is stored; empty: nothing.
    """

    size: tuple[int, int] = (1, 1)
    taken: float | None = None
    camera: bool = False
    turned: bool = False
    remark: str = ""


def header_of(path: str, exif: bool) -> Header:
    """Read a header; exif: whether the rotation tag is applied, see `load_image`."""
    try:
        with opened(path) as image:
            said = "; ".join(remarks(image, raw=is_raw(path)))
            # Of a HEIF, the tag that stands beside the marks by which it is turned.
            turned = (rotation(image), image.info.get("original_orientation") or 1) != (1, 1)
            size = shown_size(image, exif)
            return Header(size, taken(image), names_camera(image), turned, said)
    except MemoryError:
        raise
    except Exception:  # a damaged file may raise anything
        return Header()


def remarks(image: Image.Image, *, raw: bool) -> Iterator[str]:
    """The remarks on an image that is not loaded, each without a `;`."""
    if raw:
        yield RAW_PREVIEW
    # The further images of an MPO are for other devices: depth, brightness, the other eye.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        yield MAIN_IMAGE if image.format == "HEIF" else FIRST_FRAME
    if image.mode in ALPHA or "transparency" in image.info:
        yield "what is transparent is shown on white"
    try:
        profile_to_srgb(image)
    except ValueError:
        yield "its colour profile cannot be used"


def taken(image: Image.Image) -> float | None:
    """When a picture was photographed (s since 1970), by the camera's data; in UTC if they name no zone."""
    try:
        of_camera = Image.Image.getexif(image).get_ifd(IFD.Exif)
        tags = Base.DateTimeOriginal, Base.SubsecTimeOriginal, Base.OffsetTimeOriginal
        time, fraction, offset = (str(of_camera.get(tag, "")).strip("\0 ") for tag in tags)
        moment = datetime.strptime(time[:19], "%Y:%m:%d %H:%M:%S")
        moment = moment.replace(microsecond=int(f"{fraction:0<6}"[:6]) if fraction.isdecimal() else 0)
    except Exception:  # malformed EXIF data may raise anything
        return None
    try:
        zone = datetime.strptime(offset, "%z").tzinfo
    except ValueError:
        zone = timezone.utc
    return moment.replace(tzinfo=zone).timestamp() or None  # LibRaw writes 1970 where nothing is said


def names_camera(image: Image.Image) -> bool:
    """Whether a picture's EXIF data name the camera's maker or model."""
    with suppress(Exception):
        exif = Image.Image.getexif(image)
        return any(str(exif.get(tag, "")).strip("\0 ") for tag in (Base.Make, Base.Model))
    return False
