"""Facts and looks of pictures: found once, from headers and from pictures that are loaded anyway."""

import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from support import noise, one_line_error, with_malformed_tag

from mgkit.data.images import fingerprints
from mgkit.machine.files import RefusedError
from mgkit.photos import looks as module
from mgkit.photos.copies.small import small
from mgkit.photos.embedding.growing import growing_features
from mgkit.photos.folder import PhotoList, find_photos
from mgkit.photos.looks import Facts, noting, photo_facts, photo_looks, read_facts


def camera_jpeg(path, *, size=(40, 30), turn=1, taken="2021:05:06 07:08:09", offset=None, seed=0):
    tags = Image.Exif()
    tags[0x0112], tags[0x010F] = turn, "Maker"
    of_camera = tags.get_ifd(0x8769)
    of_camera[0x9003] = taken
    if offset:
        of_camera[0x9011] = offset
    noise(seed, size).save(path, "JPEG", exif=tags)
    return str(path)


@pytest.fixture
def album(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(6):
        camera_jpeg(folder / f"{i}.jpg", seed=i, turn=6 if i == 3 else 1)
    noise(7, (50, 20)).save(folder / "7.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture
def seen(album, tmp_path):
    """A function: facts and looks of what is in the album."""

    def of(workers=0):
        images = find_photos([album], side=32).images
        keys, options = fingerprints(images), {"folder": tmp_path / "seen", "workers": workers}
        facts = photo_facts(images, keys, **options)
        return images, photo_looks(images, keys, facts, **options)

    return of


@pytest.fixture
def loaded(monkeypatch):
    """The names of the pictures that are loaded from here on."""
    names, load = [], PhotoList.load

    def noted(self, index, **options):
        names.append(os.path.basename(self.paths[index]))
        return load(self, index, **options)

    monkeypatch.setattr(PhotoList, "load", noted)
    return names


# --- Facts


def test_facts_of_a_photograph(tmp_path):
    path = camera_jpeg(tmp_path / "a.jpg", turn=6)
    os.utime(path, (10, 1234.5))
    taken = 1620284889.0  # 2021-05-06 07:08:09 UTC
    size = os.path.getsize(path)
    assert read_facts(path) == Facts(30, 40, size, 1234.5, taken, True, True)
    assert read_facts(path, exif=False) == Facts(40, 30, size, 1234.5, taken, True, False)


@pytest.mark.parametrize(
    ("taken", "offset", "seconds"),
    [
        ("2021:05:06 07:08:09", "+02:00", 1620284889.0 - 7200),
        ("2021:05:06 07:08:09\0", "nonsense", 1620284889.0),
        ("0000:00:00 00:00:00", None, None),
        ("    :  :     :  :  ", None, None),
        ("yesterday", None, None),
    ],
)
def test_when_a_photograph_was_taken(tmp_path, taken, offset, seconds):
    assert read_facts(camera_jpeg(tmp_path / "a.jpg", taken=taken, offset=offset)).taken == seconds


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_malformed_tags_are_no_facts(tmp_path, kind):
    path = tmp_path / "a"
    path.write_bytes(with_malformed_tag(noise(0, (40, 30)), kind))
    facts = read_facts(str(path))
    assert {facts.width, facts.height} == {30, 40} and facts.taken is None


def test_what_cannot_be_read_has_the_facts_of_its_file(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    facts = read_facts(str(tmp_path / "a.jpg"))
    assert (facts.width, facts.height, facts.size, facts.camera) == (1, 1, 10, False)
    assert read_facts(str(tmp_path / "gone.jpg")) == Facts(1, 1, 0, 0.0)


# --- In tables


@pytest.mark.parametrize("workers", [0, 2])
def test_facts_and_looks_of_a_folder(seen, monkeypatch, workers):
    monkeypatch.setattr(module, "FEW", 2)
    images, looks = seen(workers)
    for i, path in enumerate(images.paths):
        assert looks.facts(i) == read_facts(path)
        readable = not path.endswith("broken.jpg")
        assert looks.readable[i] == readable
        if readable:
            grey, aspect = small(images.load(i, least=256))
            assert np.array_equal(looks.grey[i], grey) and looks.aspects[i] == aspect


@pytest.mark.parametrize("workers", [0, 2])
def test_a_disk_that_is_full_is_one_clear_line(seen, monkeypatch, workers):
    def full(*_, **__):
        raise RefusedError("the disk is full")

    monkeypatch.setattr(module, "FEW", 2)
    monkeypatch.setattr(module, "note_facts", full)
    with one_line_error(RefusedError, "the disk is full"):
        seen(workers)


def test_only_what_is_new_or_changed_is_opened(seen, album, loaded, monkeypatch):
    seen()
    assert sorted(loaded) == sorted(os.listdir(album))
    read, loaded[:] = [], []
    facts_of = module.read_facts
    monkeypatch.setattr(module, "read_facts", lambda path, *rest: read.append(path) or facts_of(path, *rest))
    before = seen()[1]
    assert not loaded and read == [str(album / "broken.jpg")]  # which may be readable by now
    read.clear()
    camera_jpeg(album / "0a.jpg", seed=20)
    camera_jpeg(album / "4.jpg", seed=21, size=(60, 40))
    (album / "1.jpg").unlink()
    images, looks = seen()
    assert loaded == ["0a.jpg", "4.jpg"]
    assert list(map(os.path.basename, read)) == ["0a.jpg", "4.jpg", "broken.jpg"]
    assert looks.facts(images.paths.index(str(album / "4.jpg"))).width == 60
    assert np.array_equal(looks.grey[0], before.grey[0])
    assert len(looks.grey) == len(looks.aspects) == len(images) == 8


@pytest.mark.parametrize("workers", [0, 2])
def test_looks_are_noted_while_pictures_are_embedded(seen, album, tmp_path, tiny_net, loaded, workers):
    images = find_photos([album], side=32).images
    keys = fingerprints(images)
    growing_features(
        tiny_net, images.subset(range(7)), size=32, p=3.0, folder=tmp_path / "store", description=None,
        seen=noting(keys, folder=tmp_path / "seen"), workers=workers,
    )  # fmt: skip
    loaded.clear()
    _, looks = seen()
    assert loaded == ["broken.jpg"]
    for i in range(7):
        grey, aspect = small(replace(images, side=32).load(i))
        assert np.array_equal(looks.grey[i], grey) and looks.aspects[i] == aspect


def test_the_headers_give_the_shapes_of_batches(album, tmp_path, tiny_net, headers):
    images = find_photos([album], side=32).images
    facts = photo_facts(images, fingerprints(images), folder=tmp_path / "seen")
    shapes = list(zip(facts["width"].tolist(), facts["height"].tolist(), strict=True))
    options = dict(size=32, p=3.0, description=None)
    some = images.subset(range(7))
    rows = growing_features(tiny_net, some, folder=tmp_path / "a", shapes=lambda: shapes[:7], **options)
    assert not headers.call_count
    assert np.array_equal(rows, growing_features(tiny_net, some, folder=tmp_path / "b", **options))
