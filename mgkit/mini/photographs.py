"""A small retrieval set of photographs that come with Python packages, and may be shown and changed.

A *group* is a photograph with its edited copies; one has a second photograph, of a stereo pair. *Strangers*
are photographs without copies. `make_photographs` writes JPEG files with a `groups.csv`, which notebook 05
reads, and a `sources.csv` with the source and the licence of each photograph.
"""

import csv
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageEnhance, ImageOps

from mgkit.mini.once import made_once

RECORD = "photographs.json"  # the file that says that a folder holds this set
VERSION = 1  # increase when any image changes: older sets are then refused
SIDE = 320  # the longest side of a file (px)
QUALITY = 90  # of the JPEG files
STRANGERS = "strangers"  # their folder
LANCZOS = Image.Resampling.LANCZOS


class Photograph(NamedTuple):
    """A photograph in a package.

    package, file: its name in the package index, and the file from its folder of modules
    source: who made it
    licence: the terms of showing and changing it
    """

    package: str
    file: str
    source: str
    licence: str


def _skimage(name: str, source: str, licence: str) -> Photograph:
    return Photograph("scikit-image", f"skimage/data/{name}", source, licence)


def _sklearn(name: str, source: str, licence: str) -> Photograph:
    return Photograph("scikit-learn", f"sklearn/datasets/images/{name}", source, licence)


CC0, PUBLIC, CC_BY = "CC0", "public domain", "CC BY 2.0"
NO_KNOWN = "no known copyright restrictions"
PAIR = "Middlebury stereo 2014 (Scharstein et al., GCPR 2014)"
PUBLISHED = "may be used and published, the paper to be cited"
GROUPS = {
    "astronaut": _skimage("astronaut.png", "NASA", PUBLIC),
    "cat": _skimage("chelsea.png", "Stefan van der Walt", CC0),
    "coffee": _skimage("coffee.png", "Rachel Michetti", CC0),
    "flower": _sklearn("flower.jpg", "flickr.com/photos/vultilion", CC_BY),
    "motorcycle": _skimage("motorcycle_left.png", PAIR, PUBLISHED),
    "officer": Photograph(
        "matplotlib", "matplotlib/mpl-data/sample_data/grace_hopper.jpg", "US Navy", PUBLIC
    ),
    "pavilion": _sklearn("china.jpg", "flickr.com/photos/danielbuechele", CC_BY),
    "rocket": _skimage("rocket.jpg", "SpaceX", PUBLIC),
}
SECOND_VIEWS = {"motorcycle": _skimage("motorcycle_right.png", PAIR, PUBLISHED)}
ALONE = {
    "bricks": _skimage("brick.png", "cc0textures.com", CC0),
    "cameraman": _skimage("camera.png", "Lav Varshney", CC0),
    "clock": _skimage("clock_motion.png", "Stefan van der Walt", PUBLIC),
    "coins": _skimage("coins.png", "Brooklyn Museum", NO_KNOWN),
    "formula": _skimage("text.png", "Wikipedia, File:Corner.png", PUBLIC),
    "grass": _skimage("grass.png", "linolafett, deviantart.com", CC0),
    "gravel": _skimage("gravel.png", "cc0textures.com", CC0),
    "retina": _skimage("retina.jpg", "Mikael Häggström", CC0),
    "stars": _skimage("hubble_deep_field.jpg", "NASA, Hubble Space Telescope", PUBLIC),
}


def _centre(image: Image.Image, share: float) -> Image.Image:
    """Return the centre of an image with that share of both sides."""
    width, height = image.size
    x, y = round(width * (1 - share) / 2), round(height * (1 - share) / 2)
    return image.crop((x, y, width - x, height - y))


def _bordered(image: Image.Image) -> Image.Image:
    """Return the image at half its sides, on a white page, as in a screenshot."""
    width, height = image.size
    page = Image.new("RGB", image.size, "white")
    page.paste(image.resize((width // 2, height // 2), LANCZOS), (width // 4, height // 4))
    return page


Edit = Callable[[Image.Image], Image.Image]
# With the original eight versions: 06 looks at the eight nearest images of each.
EDITS: dict[str, Edit] = {
    "small": lambda image: image.resize((image.width // 3, image.height // 3), LANCZOS),
    "cropped": lambda image: _centre(image, 0.8),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.6),
    "grey": lambda image: image.convert("L"),
    "mirrored": ImageOps.mirror,
    "turned": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "bordered": _bordered,
}


def packaged(photograph: Photograph) -> Path:
    """Return the file of a photograph, found without importing its package.

    Raises FileNotFoundError, with pip's command, if it is not installed.
    """
    module, _, name = photograph.file.partition("/")
    spec = find_spec(module)
    paths = [Path(folder, name) for folder in spec.submodule_search_locations or ()] if spec else []
    found = next(filter(Path.is_file, paths), None)
    if found is None:
        raise FileNotFoundError(
            f"{photograph.file} is not installed: run `pip install --force-reinstall {photograph.package}`"
        )
    return found


def _versions(name: str) -> Iterator[tuple[str, Image.Image]]:
    """Yield each image of a group, with its name."""
    original = _opened(GROUPS[name])
    yield "original", original
    if name in SECOND_VIEWS:
        yield "second view", _opened(SECOND_VIEWS[name])
    for edit, change in EDITS.items():
        yield edit, change(original)


def _opened(photograph: Photograph) -> Image.Image:
    """Return a photograph in RGB, at most SIDE pixels wide and high."""
    with Image.open(packaged(photograph), formats=["JPEG", "PNG"]) as file:
        image = file.convert("RGB")
    image.thumbnail((SIDE, SIDE), LANCZOS)
    return image


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    image.save(path, "JPEG", quality=QUALITY)


def _rows(path: Path, rows: list[tuple[str, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _write(folder: Path) -> dict:
    """Write all images and lists to a folder; return the number of images."""
    groups, sources = [("image", "group")], [("photograph", "package", "source", "licence")]
    for name in GROUPS:
        for version, image in _versions(name):
            path = f"{name}/{version}.jpg"
            _save(image, folder / path)
            groups.append((path, name))
    for name, photograph in ALONE.items():
        path = f"{STRANGERS}/{name}.jpg"
        _save(_opened(photograph), folder / path)
        groups.append((path, ""))  # searched, but not a query
    for name, photograph in {**GROUPS, **ALONE}.items():
        sources.append((name, photograph.package, photograph.source, photograph.licence))
    _rows(folder / "groups.csv", groups)
    _rows(folder / "sources.csv", sources)
    return {"files": len(groups) - 1}


def make_photographs(root: str | Path) -> Path:
    """Create the set under `root` and return its path; do nothing if it exists.

    root: folder; it appears when the set is complete, an interrupted call leaves nothing

    Raises ValueError if `root` holds another version of the set, FileExistsError if it holds something else,
    FileNotFoundError, with pip's command, if a package lacks a photograph.
    """
    return made_once(root, RECORD, {"version": VERSION}, _write)
