"""Real photographs with planted copies, through the whole of 06: those are found, and nothing else is."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from mgkit.config import PhotosConfig, make
from mgkit.data.decoding import readable
from mgkit.photos.copies.pairs import SAME_FILE
from mgkit.photos.search import embed_photos, photo_task, search_photos

EACH = 3  # copies of a kind
TURN = Image.Transpose


def cropped(picture):
    width, height = picture.size
    return picture.crop((width // 10, 0, width, int(0.9 * height)))


def on_a_telephone(picture):
    screen = Image.new("RGB", (picture.width, 2 * picture.width), "black")
    screen.paste(picture, (0, (screen.height - picture.height) // 2))
    return screen


KINDS = {
    "heic": ("heic", lambda x: x, {"quality": 60}),
    "avif": ("avif", lambda x: x, {"quality": 50}),
    "webp": ("webp", lambda x: x, {"quality": 50}),
    "jpeg": ("jpg", lambda x: x, {"quality": 20}),
    "half": ("jpg", lambda x: x.resize((x.width // 2, x.height // 2)), {}),
    "cropped": ("jpg", cropped, {}),
    "border": ("jpg", lambda x: ImageOps.expand(x, x.width // 12, "white"), {}),
    "screenshot": ("png", on_a_telephone, {}),
    "mirrored": ("jpg", lambda x: x.transpose(TURN.FLIP_LEFT_RIGHT), {}),
    "turned by 90": ("jpg", lambda x: x.transpose(TURN.ROTATE_90), {}),
    "turned by 180": ("jpg", lambda x: x.transpose(TURN.ROTATE_180), {}),
    "turned by 270": ("jpg", lambda x: x.transpose(TURN.ROTATE_270), {}),
}


def thing(path):
    """What a picture shows: of UKBench, in whose order of names four views of an object follow each other."""
    views = sorted(os.listdir(Path(path).parent))
    return views.index(Path(path).name) // 4 if "ukbench" in path else path


@pytest.fixture
def planted(tmp_path, real):
    """A folder of 80 pictures (of 20 objects four views) and 36 copies, and {copy: (original, kind)}."""
    readable()  # the plugin for HEIF writes, too
    views = sorted((real / "ukbench/full").glob("*.jpg"))[:40]
    pictures = views + sorted((real / "imagenet-sample/val").rglob("*.*"))[::25]
    names = {path: tmp_path / "album" / f"{k:03}.jpg" for k, path in enumerate(pictures)}
    (tmp_path / "album").mkdir()
    for path, name in names.items():
        name.symlink_to(path)
    chosen = np.random.default_rng(0).permutation(len(pictures))
    truth = {}
    for number, kind in enumerate(list(KINDS) * EACH):
        suffix, change, options = KINDS[kind]
        original = pictures[chosen[number]]
        copy = tmp_path / "album" / f"copy {number:02}.{suffix}"
        with Image.open(original) as picture:
            change(picture.convert("RGB")).save(copy, **options)
        truth[str(copy)] = (os.path.realpath(original), kind)
    return tmp_path / "album", truth


def test_planted_copies_of_each_kind_are_found_as_the_same_file(planted, here):
    folder, truth = planted
    task = photo_task(make(PhotosConfig, {"photos": [str(folder)], "size": 128, "experiment": "t"}))
    embed_photos(task)
    found = search_photos(task)
    paths = [os.path.realpath(path) for path in found.images.paths]
    group_of = {paths[i]: group for group in found.of_grade(SAME_FILE) for i in group.members}
    together = {kind: 0 for kind in KINDS}
    for copy, (original, kind) in truth.items():
        group = group_of.get(copy)
        together[kind] += group is not None and group is group_of.get(original)
    assert min(together.values()) >= EACH - 1 and sum(together.values()) >= 0.9 * len(truth), together
    origin = {copy: original for copy, (original, _) in truth.items()}
    for group in found.of_grade(SAME_FILE):
        assert len({thing(origin.get(paths[i], paths[i])) for i in group.members}) == 1
