"""Thumbnails: small, decoded once, kept for the next report, made again where a file has changed."""

import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import noise

from mgkit.photos.report import thumbnails as module
from mgkit.photos.report.thumbnails import MOST_BYTES, SIDE, Thumbnails


@pytest.fixture
def images(found):
    return found(["a.jpg", "b.jpg", "c.jpg"]).images


def test_a_thumbnail_is_made_once_and_read_by_the_next_report(images, tmp_path):
    first = Thumbnails(images, tmp_path)
    assert [first.jpeg(i) for i in (0, 1, 0)] and first.made == 2
    first.save()
    second = Thumbnails(images, tmp_path)
    assert second.jpeg(0) == first.jpeg(0) and second.jpeg(1) == first.jpeg(1) and not second.made
    second.jpeg(2)
    second.save()
    assert len(Thumbnails(images, tmp_path).kept) == 3


def test_a_changed_file_has_a_new_thumbnail(images, tmp_path):
    first = Thumbnails(images, tmp_path)
    before = first.jpeg(0)
    first.save()
    noise(9, (80, 60)).save(images.paths[0])
    assert Thumbnails(images, tmp_path).jpeg(0) != before


def test_a_file_that_has_gone_has_none_and_none_is_kept(images, tmp_path):
    Path(images.paths[0]).unlink()
    each = Thumbnails(images, tmp_path)
    assert each.jpeg(0) == b""
    each.save()
    assert not Thumbnails(images, tmp_path).kept


def test_the_worst_picture_makes_a_small_file(images, tmp_path):
    noise(0, (600, 600)).save(images.paths[0], quality=100)
    jpeg = Thumbnails(images, tmp_path).jpeg(0)
    assert len(jpeg) <= MOST_BYTES and max(Image.open(BytesIO(jpeg)).size) == SIDE


@pytest.mark.parametrize("damage", ["cut", "text", "other arrays", "objects", "no JPEG", "wrong ends"])
def test_a_damaged_file_counts_as_empty(images, tmp_path, damage):
    path = tmp_path / "thumbnails.npz"
    first = Thumbnails(images, tmp_path)
    first.jpeg(0)
    first.save()
    key = np.array(list(first.used), np.uint64)
    if damage == "cut":
        os.truncate(path, path.stat().st_size // 2)
    elif damage == "text":
        path.write_text("not an archive")
    elif damage == "other arrays":
        np.savez(path, keys=key)
    elif damage == "objects":
        np.savez(path, keys=key, ends=np.array([3]), content=np.array([{}], dtype=object))
    elif damage == "no JPEG":
        np.savez(path, keys=key, ends=np.array([3]), content=np.frombuffer(b"abc", np.uint8))
    else:
        np.savez(path, keys=key, ends=np.array([[3]]), content=np.frombuffer(b"\xff\xd8\xff", np.uint8))
    assert not Thumbnails(images, tmp_path).kept
    assert Thumbnails(images, tmp_path).jpeg(0) == first.jpeg(0)


def test_the_file_does_not_grow_without_end(images, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_KEPT", 2)
    each = Thumbnails(images, tmp_path)
    for i in range(3):
        each.jpeg(i)
    each.save()
    assert list(Thumbnails(images, tmp_path).kept) == list(each.used)[1:]
