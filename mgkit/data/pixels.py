"""From PIL's modes to RGB: deep greys are scaled, transparency becomes white, colour profiles are applied."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT

STRIP_PIXELS = 2**21  # converted at a time
MAX_SAMPLE_VALUE = 281  # a tag of a TIFF
DEPTHS = (8, 10, 12, 16)  # bits of the values in a 16-bit file that does not state them


@dataclass(frozen=True)
class Look:
    """What the conversion of a part of an image to RGB needs to know of the whole.

    limits: the values shown as black and as white, of a mode with more than 8 bits.
    transparent: the grey level or RGB colour that is transparent; None without one.
    unsigned: see `unsigned`.
    profile: of the image's colours to sRGB, see `profile_to_srgb`; None leaves them as they are.
    """

    limits: tuple[float, float] = (0, 255)
    transparent: int | tuple[int, ...] | None = None
    unsigned: bool = False
    profile: ImageCms.ImageCmsTransform | None = None


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
ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
TO_RGB = {
    **dict.fromkeys(("1", "L", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"), converted),
    **dict.fromkeys(ALPHA, on_white),
    **dict.fromkeys((*SIXTEEN_BITS, "I", "F"), scaled),
    "P": from_palette,
    "LAB": from_lab,
}  # by PIL's mode


def to_rgb(image: Image.Image, look: Look, factor: int = 1) -> Image.Image:
    """An image, or a part of it, as RGB, factor × factor pixels averaged.

    Raises ValueError for a mode that is not in TO_RGB.
    """
    if image.mode not in TO_RGB:
        raise ValueError(f"its mode {image.mode} is not one of {', '.join(TO_RGB)}")
    inks = look.profile is not None and image.mode == "CMYK"
    small = image if inks else TO_RGB[image.mode](image, look)
    if factor > 1:
        small = small.reduce(factor)
    if look.profile is None:
        return small
    # On few pixels, after they are averaged: a profile takes 10 ns a pixel.
    return ImageCms.applyTransform(small.convert(look.profile.input_mode), look.profile)


# --- Colour profiles


GREYS = ("1", "L", "LA", "La", *SIXTEEN_BITS, "I", "F")
PROFILED = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # PIL's mode by the colour space of a profile
UNNOTICED = 2  # of 255; what sRGB profiles of several makers differ by


def profile_to_srgb(image: Image.Image) -> ImageCms.ImageCmsTransform | None:
    """The conversion by an image's colour profile to sRGB, from the header.

    None if the image has no profile, or one of sRGB. Raises ValueError for a profile that cannot be used: it
    is damaged, or one of other colours than those of the image.
    """
    profile = image.info.get("icc_profile")
    if not profile or image.mode == "LAB":
        return None
    kind = "CMYK" if image.mode == "CMYK" else "grey" if image.mode in GREYS else "RGB"
    return conversion(profile, {"CMYK": ("CMYK",), "grey": ("L", "RGB"), "RGB": ("RGB",)}[kind])


@lru_cache(maxsize=16)  # the pictures of a camera have the same
def conversion(profile: bytes, modes: tuple[str, ...]) -> ImageCms.ImageCmsTransform | None:
    """`profile_to_srgb` for a profile of colours that have one of these modes."""
    try:
        opened = ImageCms.ImageCmsProfile(BytesIO(profile))
        mode = PROFILED.get(opened.profile.xcolor_space.strip())
        if mode not in modes:
            raise ValueError(f"a profile of {opened.profile.xcolor_space}")
        transform = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), mode, "RGB")
        return None if mode == "RGB" and changes_nothing(transform) else transform
    except (OSError, ImageCms.PyCMSError) as error:
        raise ValueError(f"a damaged profile ({error})") from None


def changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether a transform leaves RGB colours as they are, but for rounding."""
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(27, 27, 3)  # 9³ colours
    same = np.asarray(ImageCms.applyTransform(Image.fromarray(colours), transform))
    return int(np.abs(same.astype(int) - colours).max()) <= UNNOTICED


def loaded(image: Image.Image) -> Image.Image:
    """Load an image, of an animation the first frame on white; PIL turns a TIFF here.

    The frame may be smaller than the image. PIL fills the rest with black or the palette's first colour.
    """
    if image.format == "WEBP" and image.is_animated and image.rawmode == "RGBX":
        image.rawmode = image._mode = "RGBA"  # its alpha is 0 outside the frame
    frame = image.tile[0][1] if image.format == "GIF" else None
    image.load()
    if image.mode == "P" and image.palette is None:
        raise ValueError("it has no palette")
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
        small.paste(to_rgb(strip, look, factor), (0, top // factor))
    return small
