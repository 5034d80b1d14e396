"""Edited copies of pictures, on which thresholds are calibrated."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageEnhance

from mgkit.data.decoding import decoding, in_words
from mgkit.machine.printable import shown_name
from mgkit.photos.folder import PhotoList, load_photo


def recompressed(image: Image.Image) -> Image.Image:
    """JPEG compression of quality 20."""
    file = BytesIO()
    image.save(file, "JPEG", quality=20)
    return Image.open(file, formats=["JPEG"]).convert("RGB")


def cropped(image: Image.Image) -> Image.Image:
    """Centre crop of 80 % of the area, resized to the original size."""
    width, height = image.size
    margin = (1 - math.sqrt(0.8)) / 2
    box = (margin * width, margin * height, (1 - margin) * width, (1 - margin) * height)
    return image.resize(image.size, Image.Resampling.BILINEAR, box=box)


def brightened(image: Image.Image) -> Image.Image:
    """Brightness times 1.5, colour saturation times 0.6."""
    return ImageEnhance.Color(ImageEnhance.Brightness(image).enhance(1.5)).enhance(0.6)


def shrunk(image: Image.Image) -> Image.Image:
    """Resized to a quarter of the sides and back."""
    small = image.resize([max(1, side // 4) for side in image.size], Image.Resampling.BILINEAR)
    return small.resize(image.size, Image.Resampling.BILINEAR)


EDITS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG quality 20": recompressed,
    "a fifth cropped": cropped,
    "brighter, paler": brightened,
    "a quarter of the resolution": shrunk,
}


@dataclass(frozen=True)
class EditedPhotos(PhotoList):
    """Photos, each repeated once per edit in the order of EDITS; edits are made at twice the resolution."""

    edits: tuple[str, ...] = tuple(EDITS)

    def load(self, index: int, *, least: int | None = None) -> Image.Image:
        """As `PhotoList.load`, edited. Raises UnreadableImageError if that fails."""
        path, name = self.paths[index], self.edits[index % len(self.edits)]
        picture = load_photo(path, least=2 * self.side, exif=self.exif)
        with decoding(lambda error: f"{shown_name(path)} cannot be edited ({name}: {in_words(error)})"):
            return EDITS[name](picture).resize(self.fitted_size(index), Image.Resampling.BILINEAR)


def edited_copies(photos: PhotoList) -> EditedPhotos:
    """n photos -> n·E edited photos, the E edits of each in sequence."""
    repeated = photos.subset(np.repeat(np.arange(len(photos)), len(EDITS)))
    return EditedPhotos(**vars(repeated))
