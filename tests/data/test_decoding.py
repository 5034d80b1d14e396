"""Decoding one image: modes, rotation tags, views, errors that name the file."""

import os
import shlex
import struct
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from support import (
    RED,
    WHITE,
    broken_file,
    noise,
    one_line_error,
    rotated_file,
    with_malformed_tag,
    write_picture,
)

from mgkit.data.decoding import WHOLE, UnreadableImageError, View, image_shape, load_image
from mgkit.data.images import image_shapes
from mgkit.data.layouts import plain_images


def palette(colours, **info):
    image = Image.new("P", (24, 16), 0)
    image.putpalette([value for colour in colours for value in colour])
    image.info.update(info)
    return image


ODD = {
    "grey.jpg": (Image.new("L", (24, 16), 100), (100, 100, 100)),
    "bilevel.png": (Image.new("1", (24, 16), 1), WHITE),
    "grey_alpha.png": (Image.new("LA", (24, 16), (100, 0)), WHITE),
    "grey_opaque.png": (Image.new("LA", (24, 16), (100, 255)), (100, 100, 100)),
    "cmyk.jpg": (Image.new("CMYK", (24, 16), (0, 255, 255, 0)), RED),
    "palette.gif": (palette([RED, WHITE]), RED),
    "palette_transparent.png": (palette([RED, RED], transparency=0), WHITE),
    "sixteen_bits.png": (Image.fromarray(np.full((16, 24), 128 * 257, np.uint16)), (128, 128, 128)),
    "transparent.png": (Image.new("RGBA", (24, 16), (0, 0, 0, 0)), WHITE),
    "half_transparent.png": (Image.new("RGBA", (24, 16), (0, 0, 0, 128)), (127, 127, 127)),
    "opaque.png": (Image.new("RGBA", (24, 16), (255, 0, 0, 255)), RED),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_modes_load_as_rgb_in_their_colours(tmp_path, name):
    image, colour = ODD[name]
    image.save(tmp_path / name)
    loaded = load_image(tmp_path / name)
    assert (loaded.mode, loaded.size) == ("RGB", (24, 16))
    assert np.abs(np.asarray(loaded).astype(int) - colour).max() <= 3


RED_SIDE = {1: "left", 2: "right", 3: "right", 4: "left", 5: "top", 6: "top", 7: "bottom", 8: "bottom"}


def red_side(image):
    width, height = image.size
    middles = {
        "left": (1, height // 2),
        "right": (width - 2, height // 2),
        "top": (width // 2, 1),
        "bottom": (width // 2, height - 2),
    }
    [side] = [side for side, at in middles.items() if image.getpixel(at)[0] > 128]
    return side


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_rotation_tag_is_applied_when_asked_and_only_then(tmp_path, orientation):
    path = rotated_file(tmp_path / "turned.jpg", orientation)
    assert load_image(path).size == (24, 16)
    assert red_side(load_image(path)) == "left"
    assert load_image(path, exif=True).size == ((24, 16) if orientation < 5 else (16, 24))
    assert red_side(load_image(path, exif=True)) == RED_SIDE[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_once_whether_asked_or_not(tmp_path, orientation):
    path = rotated_file(tmp_path / "turned.tif", orientation)
    for exif in (True, False):
        assert red_side(load_image(path, exif=exif)) == RED_SIDE[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_malformed_tag_beside_the_rotation_does_no_harm(tmp_path, kind, orientation):
    image = load_image(rotated_file(tmp_path / "plain.png", 1))
    path = tmp_path / f"tagged.{kind.lower()}"
    path.write_bytes(with_malformed_tag(image, kind, orientation=orientation))
    loaded = load_image(path, exif=True)
    assert red_side(loaded) == RED_SIDE[orientation] and red_side(load_image(path)) == "left"
    assert image_shape(str(path), True, WHOLE) == loaded.size


@pytest.mark.parametrize("error", [struct.error, OverflowError, TypeError, SyntaxError, RecursionError])
def test_exif_data_that_cannot_be_made_out_leaves_an_image_as_it_is(tmp_path, error, monkeypatch):
    path = rotated_file(tmp_path / "tagged.webp", 6)

    def fail(self):
        raise error("odd")

    monkeypatch.setattr(Image.Image, "getexif", fail)
    assert load_image(path, exif=True).size == image_shape(str(path), True, WHOLE) == (24, 16)


@pytest.mark.parametrize("error", [struct.error, OverflowError, TypeError, AssertionError, IndexError])
def test_whatever_pil_raises_names_the_file(tmp_path, error, monkeypatch):
    path = write_picture(tmp_path / "odd.png")

    def fail(*_):
        raise error("two\nlines")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with one_line_error(UnreadableImageError, path, "two lines"):
        load_image(path)
    monkeypatch.setattr(Image, "open", fail)
    assert image_shape(str(path), True, WHOLE) == (1, 1)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_what_is_not_the_file_s_fault_is_not_said_of_it(tmp_path, error, monkeypatch):
    path = write_picture(tmp_path / "whole.png")

    def fail(*_):
        raise error

    monkeypatch.setattr(Image, "open", lambda *_, **__: fail())
    with pytest.raises(error):
        load_image(path)
    with pytest.raises(error):
        image_shape(str(path), True, WHOLE)


BROKEN = [
    (suffix, kind) for suffix in ("jpg", "png", "gif", "bmp") for kind in ("truncated", "empty", "text")
]


@pytest.mark.parametrize(("suffix", "kind"), BROKEN)
def test_an_unreadable_image_is_named_in_one_line(tmp_path, suffix, kind):
    path = broken_file(tmp_path / f"broken.{suffix}", kind)
    with one_line_error(UnreadableImageError, path):
        load_image(path)
    assert len(image_shapes(plain_images(tmp_path))) == 1


def test_a_missing_image_is_named_in_one_line(tmp_path):
    with one_line_error(UnreadableImageError, tmp_path / "none.jpg"):
        load_image(tmp_path / "none.jpg")


@pytest.mark.parametrize("error", [Image.UnidentifiedImageError, struct.error])
def test_an_image_that_vanishes_while_it_is_read_is_named(tmp_path, error, monkeypatch):
    path = write_picture(tmp_path / "a.png")

    def vanish(*_, **__):
        path.unlink()
        raise error("odd")

    monkeypatch.setattr(Image, "open", vanish)
    with one_line_error(UnreadableImageError, path):
        load_image(path)


@pytest.mark.parametrize("cut", range(0, 700, 23))
def test_a_jpeg_cut_anywhere_gives_an_image_or_that_error(tmp_path, cut):
    path = tmp_path / "cut.jpg"
    noise(1, (16, 16)).save(path)
    path.write_bytes(path.read_bytes()[:cut])
    with one_line_error(UnreadableImageError, path):
        load_image(path, exif=True)


# --- Views


@pytest.mark.parametrize(("turned", "side"), [(0, "left"), (90, "top"), (180, "right"), (270, "bottom")])
def test_a_view_turns_clockwise_and_loses_nothing(tmp_path, turned, side):
    path = write_picture(tmp_path / "noise.png", size=(25, 16))
    pixels = np.asarray(load_image(path))
    assert np.array_equal(load_image(path, view=View(turned)), np.rot90(pixels, -turned // 90))
    assert red_side(load_image(rotated_file(tmp_path / "red.jpg", 1), view=View(turned))) == side


def test_the_rotation_tag_comes_first_then_the_turn_then_the_box(tmp_path):
    path = rotated_file(tmp_path / "tagged.jpg", 6)  # red on top once the tag is applied
    turned = load_image(path, exif=True, view=View(90))
    assert (turned.size, red_side(turned)) == ((24, 16), "right")
    cropped = load_image(path, exif=True, view=View(90, box=(14, 2, 24, 10)))
    assert np.array_equal(cropped, np.asarray(turned)[2:10, 14:24])


def test_a_thumbnail_needs_no_whole_decoding(tmp_path):
    path = write_picture(tmp_path / "large.jpg", size=(800, 480))
    assert load_image(path).size == (800, 480)
    assert load_image(path, least=100).size == (
        200,
        120,
    )  # the smallest of 1/1, 1/2, 1/4, 1/8 with sides >= 100
    assert load_image(path, least=500).size == (800, 480)
    assert load_image(rotated_file(tmp_path / "red.jpg", 6), exif=True, least=1).size[0] > 0
    boxed = View(box=(100, 0, 500, 400))
    assert np.array_equal(load_image(path, view=boxed, least=50), load_image(path, view=boxed))
    png = write_picture(tmp_path / "large.png", size=(800, 480))
    assert load_image(png, least=50).size == (89, 54)  # 480 // 50 = 9 pixels in one
    means = np.asarray(load_image(png)).reshape(48, 10, 80, 10, 3).mean((1, 3))  # [48,80,3]
    assert np.abs(np.asarray(load_image(png, least=48)) - means).max() <= 0.51


def test_a_box_is_rounded_and_black_outside_the_image(tmp_path):
    path = write_picture(tmp_path / "noise.png")
    pixels = np.asarray(load_image(path))  # [16,24,3]
    assert np.array_equal(load_image(path, view=View(box=(3.4, 0.6, 11.6, 9.5))), pixels[1:10, 3:12])
    beyond = np.asarray(load_image(path, view=View(box=(20.0, -2.0, 30.0, 4.0))))  # [6,10,3]
    assert (
        np.array_equal(beyond[2:, :4], pixels[:4, 20:]) and not beyond[:2].any() and not beyond[:, 4:].any()
    )


@pytest.mark.parametrize(
    "box", [(24, 0, 30, 10), (-9, 0, 0, 10), (0, 16, 5, 20), (5, 5, 5.4, 9), (9, 5, 2, 9), (0, 0, 6e4, 6e4)]
)
def test_a_box_that_shows_nothing_or_far_too_much_is_an_error_that_names_the_file(tmp_path, box):
    path = write_picture(tmp_path / "noise.png")
    with one_line_error(UnreadableImageError, path):
        load_image(path, view=View(box=box))
    assert len(image_shapes(replace(plain_images(tmp_path), views={0: View(box=box)}))) == 1


# --- What may be opened


@pytest.mark.parametrize("kind", ["EPS", "PDF", "SGI", "ICNS"])
def test_a_file_of_another_format_is_refused_whatever_its_name(tmp_path, kind):
    noise(0, (64, 64)).save(tmp_path / "innocent.jpg", format=kind)
    path = tmp_path / "innocent.jpg"
    for options in ({}, {"least": 20}, {"exif": True, "view": View(90)}):
        with one_line_error(UnreadableImageError, path, "not an image in one of the formats BMP, GIF, JPEG"):
            load_image(path, **options)
    assert image_shape(str(path), False, WHOLE) == (1, 1)


def test_no_file_starts_another_program(tmp_path, monkeypatch):
    started = shlex.quote(f"{tmp_path}/started")
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {started}\n", encoding="utf-8")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # PIL looks for it again
    noise(0).save(tmp_path / "page.jpg", format="EPS")
    with one_line_error(UnreadableImageError, tmp_path / "page.jpg"):
        load_image(tmp_path / "page.jpg")
    assert not (tmp_path / "started").exists()
    with Image.open(tmp_path / "page.jpg") as page, pytest.raises(OSError):
        page.load()
    assert (tmp_path / "started").exists()  # PIL by itself does


def test_a_file_in_memory_is_read_as_one_on_disk(tmp_path):
    path = rotated_file(tmp_path / "turned.jpg", 6)
    loaded = load_image(path.read_bytes(), name="mine.jpg", exif=True)
    assert np.array_equal(loaded, load_image(path, exif=True))
    for content, why in (
        (b"", "the file is empty"),
        (b"text", "not an image"),
        (path.read_bytes()[:400], ""),
    ):
        with one_line_error(UnreadableImageError, "cannot read the image mine.jpg: ", why):
            load_image(content, name="mine.jpg")


def test_an_image_of_too_many_pixels_is_not_decoded(tmp_path, monkeypatch):
    path = write_picture(tmp_path / "large.png", size=(2000, 1500))
    assert load_image(path, most_pixels=3_000_000).size == (2000, 1500)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    with one_line_error(UnreadableImageError, path, "it has 3 megapixels, at most 2 are read"):
        load_image(path, most_pixels=2_000_000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    with one_line_error(UnreadableImageError, path, "more than 2 megapixels, at most 2 are read"):
        load_image(path)
