"""Finding the pictures in a user's folders, and decoding them in bounded memory."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import noise, one_line_error, with_malformed_tag, write_empty, write_picture, write_tree

from mgkit.data import folders
from mgkit.data.decoding import UnreadableImageError, load_image, without_warnings
from mgkit.data.images import image_shapes
from mgkit.photos.folder import find_photos, load_photo, shown_name
from mgkit.transforms import fitted_shape


def names(folder):
    return [os.path.relpath(path, folder.images.root) for path in folder.images.paths]


def gradient(width, height):
    """A picture whose red grows to the right and green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=2).astype(np.uint8))


# --- What is found


def test_pictures_of_all_sub_folders_are_found_and_the_rest_is_counted(tmp_path):
    write_empty(
        tmp_path,
        "b/2.JPG",
        "a.png",
        "b/c/3.webp",
        "note.txt",
        "b/4.JXL",
        "b/5.JXL",
        "Makefile",
        ".hidden.jpg",
    )
    found = find_photos([tmp_path], side=96)
    assert names(found) == ["a.png", "b/2.JPG", "b/c/3.webp"]
    assert found.others == {".jxl": 2, ".txt": 1, "no suffix": 1} and not found.left_out
    line = found.describe()
    assert "3 pictures" in line and "4 files of other kinds" in line and ".jxl 2" in line and "\n" not in line


def test_several_folders_and_links_give_each_file_once(tmp_path):
    write_tree(tmp_path, "a/1.jpg", "a/in/2.jpg", "b/3.jpg")
    (tmp_path / "b" / "link.jpg").symlink_to(tmp_path / "a" / "1.jpg")
    os.link(tmp_path / "b" / "3.jpg", tmp_path / "b" / "hard.jpg")
    found = find_photos([tmp_path / "a", tmp_path / "b", tmp_path / "a" / "in"], side=96)
    assert names(found) == ["a/1.jpg", "a/in/2.jpg", "b/3.jpg"]
    assert [Path(path).name for path in found.left_out] == ["hard.jpg", "link.jpg"]
    assert all("another name of" in why for why in found.left_out.values())


def test_a_link_that_leads_nowhere_is_a_picture_that_cannot_be_read(tmp_path):
    write_tree(tmp_path, "1.jpg")
    (tmp_path / "2.jpg").symlink_to(tmp_path / "gone.jpg")
    found = find_photos([tmp_path], side=96)
    assert names(found) == ["1.jpg", "2.jpg"]
    with one_line_error(UnreadableImageError, "2.jpg", "No such file"):
        found.images.load(1)


def test_a_pipe_is_left_out_with_a_line_and_never_opened(tmp_path):
    write_tree(tmp_path, "a/1.jpg")
    (tmp_path / "b").mkdir()
    for folder in ("a", "b"):
        os.mkfifo(tmp_path / folder / "pipe.jpg")
    found = find_photos([tmp_path], side=16)
    assert names(found) == ["a/1.jpg"] and not found.others
    assert found.left_out == {
        str(tmp_path / folder / "pipe.jpg"): "a pipe, a socket or a device, not a file" for folder in "ab"
    }
    with one_line_error(ValueError, "photos", tmp_path / "b", "holds no pictures", "pipe.jpg", "a pipe"):
        find_photos([tmp_path / "b"], side=16)


def test_a_missing_folder_a_file_and_an_empty_folder_are_one_clear_line(tmp_path):
    with one_line_error(FileNotFoundError, "photos", tmp_path / "gone"):
        find_photos([tmp_path / "gone"], side=96)
    file = write_picture(tmp_path / "one.jpg")
    with one_line_error(NotADirectoryError, "photos", file):
        find_photos([file], side=96)
    (tmp_path / "empty").mkdir()
    with one_line_error(ValueError, "photos", tmp_path / "empty", "holds no pictures"):
        find_photos([tmp_path / "empty"], side=96)
    write_empty(tmp_path / "phone", "1.jxl", "2.jxl", "3.mov")
    with one_line_error(ValueError, "2 files of kind .jxl", "1 files of kind .mov"):
        find_photos([tmp_path / "phone"], side=96)


# --- Folders against folders


def test_the_pictures_of_photos_come_first_and_then_those_of_against(tmp_path):
    write_empty(tmp_path, "z/1.jpg", "z/in/2.jpg", "a/1.jpg", "a/note.txt", "b/4.jpg")
    found = find_photos([tmp_path / "z"], side=96, against=[tmp_path / "b", tmp_path / "a"])
    assert names(found) == ["z/1.jpg", "z/in/2.jpg", "a/1.jpg", "b/4.jpg"] and found.own == 2
    assert "4 pictures" in found.describe() and "2 of photos and 2 of against" in found.describe()
    assert find_photos([tmp_path], side=96).own is None


@pytest.mark.parametrize(
    ("photos", "against", "how"),
    [
        ("a", "a/in", "lies in"),
        ("a/in", "a", "holds"),
        ("a", "a", "is"),
        ("a", "a/../a", "is"),
        ("a", "link", "is"),
    ],
)
def test_folders_that_overlap_cannot_be_held_against_each_other(tmp_path, photos, against, how):
    write_empty(tmp_path, "a/1.jpg", "a/in/2.jpg", "ab/3.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with one_line_error(ValueError, "against", tmp_path / "a", f" {how} "):
        find_photos([tmp_path / photos], side=96, against=[tmp_path / against])
    assert find_photos([tmp_path / "a"], side=96, against=[tmp_path / "ab"]).own == 2


def test_folders_of_against_are_named_with_their_purpose(tmp_path):
    write_empty(tmp_path, "a/1.jpg", "empty/note.txt", "file.jpg")
    for name, error in {
        "gone": FileNotFoundError, "empty": ValueError, "file.jpg": NotADirectoryError,
    }.items():  # fmt: skip
        with one_line_error(error, "against", tmp_path / name):
            find_photos([tmp_path / "a"], side=96, against=[tmp_path / name])


def test_a_hard_link_is_there_too_but_a_link_to_a_photo_is_no_copy(tmp_path):
    """Whoever removes the photo keeps the file by the first, and loses it by the second."""
    write_tree(tmp_path, "a/1.jpg", "a/2.jpg", "b/3.jpg")
    os.link(tmp_path / "a/1.jpg", tmp_path / "b/hard.jpg")
    (tmp_path / "b/link.jpg").symlink_to(tmp_path / "a/2.jpg")
    (tmp_path / "a/link.jpg").symlink_to(tmp_path / "b/3.jpg")
    found = find_photos([tmp_path / "a"], side=96, against=[tmp_path / "b"])
    assert names(found) == ["a/1.jpg", "a/2.jpg", "a/link.jpg", "b/3.jpg", "b/hard.jpg"]
    assert found.left_out == {str(tmp_path / "b/link.jpg"): f"a link to {tmp_path / 'a/2.jpg'} of photos"}


def test_links_from_against_to_a_folder_of_photos_are_no_copies(tmp_path):
    write_empty(tmp_path, "a/in/1.jpg", "b/2.jpg")
    (tmp_path / "b/way").symlink_to(tmp_path / "a/in")
    found = find_photos([tmp_path / "a"], side=96, against=[tmp_path / "b"])
    assert names(found) == ["a/in/1.jpg", "b/2.jpg"] and len(found.left_out) == 1


def test_a_folder_that_is_given_twice_counts_once_and_is_named(tmp_path):
    write_empty(tmp_path, "a/1.jpg", "a/in/2.jpg")
    found = find_photos([tmp_path / "a", tmp_path / "a/../a", tmp_path / "a/in"], side=96)
    assert names(found) == ["1.jpg", "in/2.jpg"] and not found.left_out
    assert [line.split(str(tmp_path))[0] for line in found.notes] == ["photos: "] * 2
    assert "is given twice" in found.describe() and "lies in" in found.describe()


def test_what_vanishes_while_it_is_looked_for_is_left_out(tmp_path, monkeypatch):
    write_tree(tmp_path, "1.jpg", "a/2.jpg", "b/3.jpg")
    scandir = os.scandir

    def slow(path):
        if path == str(tmp_path / "b"):
            os.rename(path, f"{tmp_path} gone")
        return scandir(path)

    monkeypatch.setattr(folders.os, "scandir", slow)
    found = find_photos([tmp_path], side=96)
    assert names(found) == ["1.jpg", "a/2.jpg"]
    assert found.left_out == {str(tmp_path / "b"): "the folder cannot be read (No such file or directory)"}
    (tmp_path / "1.jpg").unlink()
    with one_line_error(UnreadableImageError, "1.jpg", "No such file"):
        found.images.load(0)


@pytest.fixture
def locked(monkeypatch):
    """A function: from here on the folder cannot be read, as root can be told too."""

    def lock(folder):
        scandir = os.scandir

        def refuse(path):
            if Path(path) == folder:
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(folders.os, "scandir", refuse)

    return lock


def test_a_folder_without_permission_is_one_clear_line(tmp_path, locked):
    write_tree(tmp_path, "1.jpg")
    locked(tmp_path)
    with one_line_error(PermissionError, "photos", tmp_path, "Permission denied"):
        find_photos([tmp_path], side=96)


def test_a_sub_folder_without_permission_is_left_out_and_named(tmp_path, locked):
    write_tree(tmp_path, "1.jpg", "private/2.jpg", "z/3.jpg")
    locked(tmp_path / "private")
    found = find_photos([tmp_path], side=96)
    assert names(found) == ["1.jpg", "z/3.jpg"]
    assert found.left_out == {str(tmp_path / "private"): "the folder cannot be read (Permission denied)"}
    assert "1 left out" in found.describe() and "private" in found.describe()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_found_and_cannot_be_read(tmp_path):
    write_tree(tmp_path, "1.jpg")
    (tmp_path / "1.jpg").chmod(0)
    found = find_photos([tmp_path], side=96)
    with one_line_error(UnreadableImageError, "1.jpg", "Permission denied"):
        found.images.load(0)


ODD = [
    "a b.jpg", "it's \"quoted\".jpg", "<b>&amp;.jpg", "naïve 🏖️👨‍👩‍👧.jpg", "line\nbreak\t.jpg",
    "\u202egpj.exe.jpg", "100%.jpg", "$x$.jpg", "-rf.jpg", "=1+1.jpg", "@x, y; z.jpg",
    "e\u0301.jpg", "\u00e9.jpg", "é" * 125 + ".jpg",
]  # fmt: skip


def test_odd_names_are_found_read_and_shown_on_one_line(tmp_path):
    for seed, name in enumerate(ODD):
        write_picture(tmp_path / name, seed=seed)
    undecodable = os.fsencode(tmp_path) + b"/\xff\xfe.jpg"
    with open(undecodable, "wb") as file:
        noise(99).save(file, "JPEG")
    found = find_photos([tmp_path], side=16)
    assert len(found.images) == len(ODD) + 1
    for i, path in enumerate(found.images.paths):
        assert found.images.load(i).size == (16, 10)
        shown = shown_name(path)
        shown.encode("utf-8")
        assert all(c.isprintable() or c == "\u200d" for c in shown)
    assert any(shown_name(path).endswith(r"\xff\xfe.jpg") for path in found.images.paths)
    assert shown_name("line\nbreak") == r"line\nbreak" and shown_name("👨‍👩‍👧 é") == "👨‍👩‍👧 é"


# --- Pictures of every kind


KINDS = {
    "grey.png": lambda image: image.convert("L"),
    "bits.png": lambda image: image.convert("1"),
    "palette.png": lambda image: image.quantize(64),
    "deep.png": lambda image: Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257),
    "cmyk.jpg": lambda image: image.convert("CMYK"),
    "clear.png": lambda image: image.convert("RGBA"),
    "grey clear.png": lambda image: image.convert("LA"),
    "plain.webp": lambda image: image,
    "photo.tif": lambda image: image,
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_picture_is_read_at_full_and_at_reduced_size(tmp_path, name):
    picture = gradient(640, 480)
    KINDS[name](picture).save(tmp_path / name)
    grey = KINDS[name](picture).mode in ("L", "1", "I;16", "LA")
    expected = np.asarray((picture.convert("L").convert("RGB") if grey else picture).resize((64, 48)), float)
    found = find_photos([tmp_path], side=64)
    loaded = found.images.load(0)
    assert (loaded.mode, loaded.size) == ("RGB", (64, 48))
    off = np.abs(np.asarray(loaded, float) - expected).mean()
    assert off < (40 if name == "bits.png" else 12), off
    assert load_photo(found.images.paths[0], least=4000).size == (640, 480)


def test_transparent_parts_are_white_and_animations_their_first_frame(tmp_path):
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(tmp_path / "a.png")
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("blue", "red")]
    frames[0].save(tmp_path / "b.gif", save_all=True, append_images=frames[1:])
    found = find_photos([tmp_path], side=16)
    assert found.images.load(0).getpixel((8, 8)) == (255, 255, 255)
    assert found.images.load(1).getpixel((8, 8)) == (0, 0, 255)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_the_camera_s_rotation_is_applied_unless_told_otherwise(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    gradient(400, 200).save(tmp_path / f"a.{suffix}", exif=exif)
    turned, held = (find_photos([tmp_path], side=40, exif=exif).images for exif in ("auto", "ignore"))
    assert turned.load(0).size == (20, 40) and held.load(0).size == (40, 20)
    assert turned.load(0, least=50).size == (50, 100) if suffix == "jpg" else True
    red = np.asarray(turned.load(0), float)[..., 0]
    assert red[-1].mean() > red[0].mean() + 150  # what grew to the right grows downwards


@pytest.mark.parametrize("exif", ["auto", "ignore"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_a_rotated_picture_is_that_of_the_benchmark_sets(tmp_path, suffix, orientation, exif):
    tag = Image.Exif()
    tag[0x0112] = orientation
    gradient(64, 32).save(tmp_path / f"a.{suffix}", exif=tag, quality=95)
    images = find_photos([tmp_path], side=64, exif=exif).images
    expected = load_image(images.paths[0], exif=images.exif)
    for found in (images.load(0), images.load(0, least=64)):
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_malformed_tag_beside_the_rotation_does_no_harm(tmp_path, kind):
    (tmp_path / f"a.{kind.lower()}").write_bytes(with_malformed_tag(gradient(60, 40), kind))
    images = find_photos([tmp_path], side=60).images
    expected = load_image(images.paths[0], exif=True)
    assert images.load(0).size == image_shapes(images)[0] == expected.size == (40, 60)
    np.testing.assert_array_equal(np.asarray(images.load(0)), np.asarray(expected))


def test_the_shape_is_the_one_that_embedding_expects(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(60):
        noise(i, tuple(rng.integers(20, 700, 2).tolist())).save(tmp_path / f"{i}.{['jpg', 'png'][i % 2]}")
    images = find_photos([tmp_path], side=96).images
    for i, shape in enumerate(image_shapes(images)):
        assert images.load(i).size[::-1] == fitted_shape(*shape, 96, longest=True)


@pytest.mark.parametrize("size", [(300_000, 2), (3, 200_000), (70_000, 100)])
def test_a_very_long_thin_picture_has_a_bounded_side(tmp_path, size):
    Image.new("RGB", size, "red").save(tmp_path / "x.png")
    images = find_photos([tmp_path], side=96).images
    for picture in (images.load(0, least=128), load_photo(images.paths[0], least=192)):
        assert 20_000 < max(picture.size) <= 2**15 and picture.getpixel((0, 0)) == (255, 0, 0)
    width, height = image_shapes(images)[0]
    assert images.load(0).size[::-1] == fitted_shape(width, height, 96, longest=True)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("empty.jpg", b"", "the file is empty"),
        ("text.png", b"this is no picture", "not an image"),
        ("page.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", "not an image"),
    ],
)  # the last would have PIL start Ghostscript
def test_what_is_no_picture_is_refused_in_one_line(tmp_path, name, content, why):
    (tmp_path / name).write_bytes(content)
    with one_line_error(UnreadableImageError, name, why):
        load_photo(str(tmp_path / name), least=64)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tif", "bmp"])
def test_cut_off_and_damaged_files_are_read_or_refused_never_anything_else(tmp_path, suffix):
    noise(0, (120, 90)).save(tmp_path / f"whole.{suffix}")
    whole = (tmp_path / f"whole.{suffix}").read_bytes()
    path = tmp_path / f"damaged.{suffix}"
    path.write_bytes(whole[: len(whole) // 2])
    with one_line_error(UnreadableImageError, path.name):
        load_photo(str(path), least=64)
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 300), 4):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        with without_warnings():
            image_shapes(find_photos([tmp_path], side=32).images)
        try:
            load_photo(str(path), least=64)
        except UnreadableImageError as error:
            assert path.name in str(error)


MEASURE = """
import resource, sys
from mgkit.data.decoding import load_image, without_warnings
for path in sys.argv[1:]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with without_warnings():
        picture = load_image(path, least=192)  # as the process apart does
    print(picture.mode, *picture.size, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_hundred_megapixels_take_little_memory(tmp_path):
    for name, mode in (("large.jpg", "L"), ("large.png", "P")):
        Image.new(mode, (12_500, 8_000), 7).save(tmp_path / name, compress_level=1)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "large.jpg"), str(tmp_path / "large.png")]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not told.stderr  # no warning of PIL's
    for line, most in zip(told.stdout.splitlines(), (100, 250), strict=True):
        mode, width, height, megabytes = line.split()
        assert mode == "RGB" and int(height) >= 192 and int(width) < 1600
        assert int(megabytes) < most


def test_more_than_128_megapixels_are_refused_before_any_is_decoded(tmp_path):
    Image.new("1", (14_000, 10_000)).save(tmp_path / "a.png")
    Image.new("1", (20_000, 10_000)).save(tmp_path / "b.png")
    for name, megapixels in (("a.png", "140 megapixels"), ("b.png", "more than 179 megapixels")):
        with one_line_error(UnreadableImageError, name, megapixels, "at most 128"):
            load_photo(str(tmp_path / name), least=64)


def test_nothing_is_written_and_a_read_only_folder_will_do(tmp_path):
    write_tree(tmp_path, "a/1.jpg", "a/2.png")
    before = {path: (path.stat().st_mtime_ns, path.stat().st_mode) for path in tmp_path.rglob("*")}
    modes = {folder: folder.stat().st_mode for folder in (tmp_path, tmp_path / "a")}
    for folder in reversed(modes):
        folder.chmod(0o555)
    try:
        images = find_photos([tmp_path], side=32).images
        assert [images.load(i).mode for i in range(2)] == ["RGB", "RGB"]
    finally:
        for folder, mode in modes.items():
            folder.chmod(mode)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_mode) for path in tmp_path.rglob("*")} == before
