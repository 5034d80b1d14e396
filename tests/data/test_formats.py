"""HEIC, AVIF and RAW files: turned once, in their colours; colour profiles; bombs that are not decoded."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from colour_profiles import ADOBE_RGB, DISPLAY_P3, SRGB, cmyk_profile, grey_profile, in_srgb, rgb_profile
from PIL import Image
from raw_files import dng
from support import RED, WHITE, noise, one_line_error, rotated_file

from mgkit.data.decoding import WHOLE, UnreadableImageError, image_shape, load_image, readable
from mgkit.data.headers import header_of

readable()  # the plugin for HEIF writes, too
TILES = np.kron(np.random.default_rng(0).integers(0, 256, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)


def tag_of(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def apart(image, colours):
    """The largest difference of an image to a colour or array of colours."""
    return np.abs(np.asarray(image).astype(float) - colours).max()


# --- Turned once


@pytest.mark.parametrize("exif", [True, False])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["heic", "avif"])
def test_the_marks_of_the_format_turn_a_picture_once(tmp_path, suffix, orientation, exif):
    upright = Image.new("RGB", (96, 64), "blue")
    upright.paste("red", (0, 0, 32, 64))
    plain = tmp_path / "a.png"
    upright.save(plain, exif=tag_of(orientation))
    path = tmp_path / f"a.{suffix}"
    upright.save(path, exif=tag_of(orientation).tobytes(), quality=90)
    expected = load_image(plain, exif=True)
    for options in ({}, {"least": 30}):
        loaded = load_image(path, exif=exif, **options)
        small = np.asarray(expected.resize(loaded.size), float)
        assert loaded.size[0] / loaded.size[1] == expected.size[0] / expected.size[1]
        assert np.abs(np.asarray(loaded, float) - small).mean() < 12
    assert image_shape(str(path), exif, WHOLE) == expected.size
    assert header_of(str(path), exif).turned == (orientation != 1)


def test_a_heif_holds_both_marks_and_a_tag(tmp_path):
    """What the test above relies on: a tag beside the marks, which would turn the picture again."""
    noise(0, (96, 64)).save(tmp_path / "a.heic", exif=tag_of(6).tobytes())
    content = (tmp_path / "a.heic").read_bytes()
    assert b"irot" in content and b"Exif" in content


def test_a_description_beside_the_picture_does_not_turn_an_avif(tmp_path):
    noise(0, (96, 64)).save(tmp_path / "a.avif", xmp=b'<x:xmpmeta tiff:Orientation="6"/>')
    assert load_image(tmp_path / "a.avif", exif=True).size == (96, 64)
    assert image_shape(str(tmp_path / "a.avif"), True, WHOLE) == (96, 64)


def test_the_size_of_a_png_is_read_without_decoding_it(tmp_path, monkeypatch):
    noise(0, (90, 60)).save(tmp_path / "a.png", exif=tag_of(6))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    assert image_shape(str(tmp_path / "a.png"), True, WHOLE) == (60, 90)
    assert header_of(str(tmp_path / "a.png"), True).size == (60, 90)


# --- What HEIC and AVIF hold


@pytest.mark.parametrize("suffix", ["heic", "avif"])
def test_transparency_is_white_and_said(tmp_path, suffix):
    image = Image.new("RGBA", (96, 64), (0, 0, 0, 0))
    image.paste((*RED, 255), (0, 0, 48, 64))
    image.save(tmp_path / f"a.{suffix}", quality=95)
    loaded = load_image(tmp_path / f"a.{suffix}")
    assert apart(loaded.getpixel((80, 30)), WHITE) <= 3 and apart(loaded.getpixel((20, 30)), RED) <= 12
    assert header_of(str(tmp_path / f"a.{suffix}"), True).remark == "what is transparent is shown on white"


def test_ten_bits_and_grey(tmp_path):
    import pillow_heif

    levels = np.linspace(0, 65535, 96 * 64 * 3).reshape(64, 96, 3).astype(np.uint16)
    pillow_heif.encode("RGB;16", (96, 64), levels.tobytes(), str(tmp_path / "deep.heic"), quality=-1)
    assert pillow_heif.open_heif(tmp_path / "deep.heic").info["bit_depth"] == 10
    assert apart(load_image(tmp_path / "deep.heic"), levels / 257) <= 4
    grey = noise(0, (12, 8)).convert("L").resize((96, 64))
    grey.save(tmp_path / "grey.heic", quality=95)
    assert apart(load_image(tmp_path / "grey.heic"), np.asarray(grey)[..., None]) <= 30


def test_of_several_images_the_main_one_is_taken_and_said(tmp_path):
    frames = [Image.new("RGB", (96, 64), colour) for colour in ("blue", "red", "lime")]
    frames[0].save(tmp_path / "a.heic", save_all=True, append_images=frames[1:], primary_index=1)
    assert apart(load_image(tmp_path / "a.heic").getpixel((5, 5)), RED) <= 3
    assert header_of(str(tmp_path / "a.heic"), True).remark == "the main one of several images"
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "a.mpo", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "a.jpg")
    assert header_of(str(tmp_path / "a.gif"), True).remark == "the first of several frames"
    assert not header_of(str(tmp_path / "a.mpo"), True).remark
    assert header_of(str(tmp_path / "a.jpg"), True) == header_of(str(tmp_path / "a.mpo"), True)


def test_a_heif_under_the_common_mark_of_both_formats_is_read(tmp_path):
    noise(0, (96, 64)).save(tmp_path / "a.heic")
    content = bytearray((tmp_path / "a.heic").read_bytes())
    assert content[4:12] == b"ftypheic"
    content[8:12] = b"mif1"
    (tmp_path / "b.heic").write_bytes(content)
    assert np.array_equal(load_image(tmp_path / "a.heic"), load_image(tmp_path / "b.heic"))


def box(content, kind):
    """(start, end) of the box of that type."""
    start = content.index(kind) - 4
    return start, start + struct.unpack_from(">I", content, start)[0]


def with_two_associations(content):
    """An AVIF with alpha as cavif wrote it until 2022: a box of properties for each of the two images."""
    start, end = box(content, b"ipma")
    head, entries, places = content[start + 8 : start + 12], [], start + 16
    for _ in range(2):
        entries.append(content[places : places + 3 + content[places + 2]])
        places += len(entries[-1])
    assert places == end
    one = struct.pack(">I", 1)
    two = b"".join(struct.pack(">I4s", 16 + len(e), b"ipma") + head + one + e for e in entries)
    grown, more = bytearray(content[:start] + two + content[end:]), len(two) - (end - start)
    iloc, _ = box(grown, b"iloc")  # for each image: item, data reference, extents, offset, length
    lengths = [box(grown, kind)[0] for kind in (b"meta", b"iprp")]
    for place in (*lengths, iloc + 22, iloc + 36):
        struct.pack_into(">I", grown, place, struct.unpack_from(">I", grown, place)[0] + more)
    return bytes(grown)


def test_an_avif_of_an_early_encoder_is_mended(tmp_path):
    image = noise(0, (12, 8)).resize((96, 64)).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize((96, 64)))
    image.save(tmp_path / "a.avif")
    content = with_two_associations((tmp_path / "a.avif").read_bytes())
    with pytest.raises(Image.UnidentifiedImageError):
        Image.open(BytesIO(content), formats=["AVIF"])
    (tmp_path / "b.avif").write_bytes(content)
    assert np.array_equal(load_image(tmp_path / "a.avif"), load_image(tmp_path / "b.avif"))
    assert np.array_equal(load_image(tmp_path / "a.avif"), load_image(content, name="b"))


@pytest.mark.parametrize("suffix", ["heic", "avif"])
def test_what_is_damaged_is_named_with_its_format(tmp_path, suffix):
    noise(0, (96, 64)).save(tmp_path / f"a.{suffix}")
    content = (tmp_path / f"a.{suffix}").read_bytes()
    (tmp_path / f"b.{suffix}").write_bytes(content[:200])
    name = {"heic": "HEIF", "avif": "AVIF"}[suffix]
    with one_line_error(UnreadableImageError, f"b.{suffix}", f"a damaged {name}"):
        load_image(tmp_path / f"b.{suffix}")
    rng = np.random.default_rng(0)
    for whole in (content, with_alpha(tmp_path)) if suffix == "avif" else (content,):
        for _ in range(60):
            damaged = bytearray(whole)
            for place in rng.integers(8, min(len(whole), 600), 4):
                damaged[place] = rng.integers(256)
            path = tmp_path / f"damaged.{suffix}"
            path.write_bytes(damaged)
            header_of(str(path), True)
            try:
                load_image(path, most_pixels=10**7)
            except UnreadableImageError as error:
                assert path.name in str(error)


def with_alpha(folder):
    image = noise(0, (96, 64)).convert("RGBA")
    image.putalpha(100)
    image.save(folder / "alpha.avif")
    return with_two_associations((folder / "alpha.avif").read_bytes())


# --- RAW


def preview():
    image = Image.new("RGB", (240, 160), "blue")
    image.paste("red", (0, 0, 80, 160))
    return image


def jpeg(image, **options):
    file = BytesIO()
    image.save(file, "JPEG", quality=95, **options)
    return file.getvalue()


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("kind", ["jpeg", "bitmap", "jpeg with data of its own"])
def test_the_preview_of_a_raw_file_is_turned_once(tmp_path, kind, orientation):
    own = Image.Exif()
    own[0x0131] = "a program"
    content = {"jpeg": jpeg(preview()), "bitmap": preview().tobytes()}.get(kind, jpeg(preview(), exif=own))
    path = tmp_path / "a.DNG"
    path.write_bytes(dng(content, (240, 160), orientation=orientation))
    turned = rotated_file(tmp_path / "a.jpg", orientation)
    loaded, expected = load_image(path, exif=True), load_image(turned, exif=True)
    assert image_shape(str(path), True, WHOLE) == loaded.size
    assert loaded.size == ((240, 160) if orientation < 5 else (160, 240))
    assert np.abs(np.asarray(loaded.resize(expected.size), float) - expected).mean() < 25
    assert load_image(path).size == load_image(path.read_bytes(), name="b.dng").size == (240, 160)
    header = header_of(str(path), True)
    assert header.remark == "the preview embedded in a RAW file" and header.turned == (orientation != 1)


def test_names_that_are_no_utf_8_are_read(tmp_path):
    import os

    name = os.fsencode(tmp_path) + b"/\xff.dng"
    with open(name, "wb") as file:
        file.write(dng(jpeg(preview()), (240, 160)))
    assert load_image(os.fsdecode(name)).size == (240, 160)


def test_a_raw_file_without_a_preview_says_so(tmp_path):
    (tmp_path / "a.dng").write_bytes(dng())
    with one_line_error(UnreadableImageError, "a.dng", "without an embedded preview", "not developed"):
        load_image(tmp_path / "a.dng")
    for content in (b"", b"II*\0" + bytes(300), jpeg(preview()), dng(jpeg(preview()), (240, 160))[:3000]):
        (tmp_path / "b.nef").write_bytes(content)
        with one_line_error(UnreadableImageError, "b.nef"):
            load_image(tmp_path / "b.nef")
    with one_line_error(UnreadableImageError, "gone.cr2", "No such file"):
        load_image(tmp_path / "gone.cr2")


# --- Colour profiles


@pytest.mark.parametrize("primaries", [DISPLAY_P3, ADOBE_RGB, SRGB])
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_colours_are_converted_by_the_profile_where_that_is_asked(tmp_path, suffix, primaries):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(TILES).save(path, icc_profile=rgb_profile(primaries), lossless=True)
    assert apart(load_image(path, srgb=True), in_srgb(TILES, primaries)) <= 2
    assert np.array_equal(load_image(path), TILES)
    means = in_srgb(TILES, primaries).reshape(6, 8, 8, 8, 3).mean((1, 3))  # of each tile
    assert apart(load_image(path, srgb=True, least=6), means) <= 2
    assert not header_of(str(path), True).remark


def test_grey_cmyk_transparent_and_palette_pictures_have_profiles_too(tmp_path):
    grey = Image.fromarray(TILES[..., 0])
    expected = in_srgb(np.asarray(grey)[..., None].repeat(3, -1), SRGB, 1.2)
    grey.save(tmp_path / "grey.png", icc_profile=grey_profile(1.2))
    grey.save(tmp_path / "grey as rgb.png", icc_profile=rgb_profile(SRGB, 1.2))
    for name in ("grey.png", "grey as rgb.png"):
        assert apart(load_image(tmp_path / name, srgb=True), expected) <= 2
    inks = Image.new("CMYK", (24, 16), (255, 0, 0, 0))
    inks.save(tmp_path / "inks.tif", icc_profile=cmyk_profile())
    shown = np.asarray(load_image(tmp_path / "inks.tif", srgb=True))
    assert np.ptp(shown[0, 0]) <= 4 and 60 < shown[0, 0, 0] < 120  # by this profile, cyan is a dark grey
    assert load_image(tmp_path / "inks.tif").getpixel((0, 0)) == (0, 255, 255)
    colours = Image.fromarray(TILES).convert("RGBA")
    colours.save(tmp_path / "alpha.png", icc_profile=rgb_profile(ADOBE_RGB))
    assert apart(load_image(tmp_path / "alpha.png", srgb=True), in_srgb(TILES, ADOBE_RGB)) <= 2
    few = Image.fromarray(TILES).quantize(64)
    few.save(tmp_path / "few.png", icc_profile=rgb_profile(ADOBE_RGB))
    assert apart(load_image(tmp_path / "few.png", srgb=True), in_srgb(few.convert("RGB"), ADOBE_RGB)) <= 2


@pytest.mark.parametrize(
    "profile", [b"no profile" * 30, grey_profile(1.2), cmyk_profile(), rgb_profile(SRGB)[:300]],
    ids=["nonsense", "of grey", "of inks", "cut"],
)  # fmt: skip
def test_a_profile_that_cannot_be_used_is_ignored_and_said(tmp_path, profile):
    Image.fromarray(TILES).save(tmp_path / "a.png", icc_profile=profile)
    assert np.array_equal(load_image(tmp_path / "a.png", srgb=True), TILES)
    assert header_of(str(tmp_path / "a.png"), True).remark == "its colour profile cannot be used"


# --- Camera data


def test_the_time_and_the_camera_are_read(tmp_path):
    exif = Image.Exif()
    exif[0x010F], exif[0x0132] = "Kit", "2001:01:01 00:00:00"
    exif.get_ifd(0x8769)[0x9003], exif.get_ifd(0x8769)[0x9011] = "1970:01:02 01:00:10", "+01:00"
    exif.get_ifd(0x8769)[0x9291] = "25"  # of a second
    for suffix in ("jpg", "heic", "avif", "png", "webp"):
        noise(0, (96, 64)).save(tmp_path / f"a.{suffix}", exif=exif.tobytes())
        header = header_of(str(tmp_path / f"a.{suffix}"), True)
        assert (header.taken, header.camera, header.turned) == (86410.25, True, False), suffix
    for time in ("", "yesterday", "0000:00:00 00:00:00"):
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9003] = time
        noise(0).save(tmp_path / "b.jpg", exif=exif)
        assert header_of(str(tmp_path / "b.jpg"), True)[1:] == (None, False, False, "")
    (tmp_path / "c.jpg").write_text("no picture")
    assert header_of(str(tmp_path / "c.jpg"), True) == ((1, 1), None, False, False, "")


# --- Bombs


def bomb(folder, kind):
    """A small file of 60,000 × 60,000 px by its header."""
    side = struct.pack(">2I", 60_000, 60_000)
    if kind == "png":
        noise(0).save(folder / "a.png")
        content = bytearray((folder / "a.png").read_bytes())
        content[16:24] = side
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    elif kind == "grid":
        noise(0, (240, 160)).save(folder / "a.heic", tile_size=64)
        content = bytearray((folder / "a.heic").read_bytes())
        assert b"grid" in content
        content = content.replace(struct.pack(">2I", 240, 160), side)
        content = content.replace(struct.pack(">2H", 240, 160), struct.pack(">2H", 60_000, 60_000))
    else:
        noise(0, (240, 160)).save(folder / f"a.{kind}")
        content = (folder / f"a.{kind}").read_bytes().replace(struct.pack(">2I", 240, 160), side)
    assert side in content
    return bytes(content)


@pytest.mark.parametrize("kind", ["png", "heic", "grid", "avif"])
def test_a_bomb_of_any_format_is_refused_without_being_decoded(tmp_path, kind, monkeypatch):
    path = tmp_path / f"bomb.{'heic' if kind == 'grid' else kind}"
    path.write_bytes(bomb(tmp_path, kind))
    monkeypatch.setattr("PIL.Image.core.new", lambda *_: pytest.fail("decoded"))
    with one_line_error(UnreadableImageError, path.name):
        load_image(path, least=100, most_pixels=128_000_000)
