"""Pixels of every mode against slow renderings in numpy, whole and reduced."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features
from support import WHITE, noise, one_line_error, rotated_file

from mgkit.data import decoding, pixels
from mgkit.data.decoding import WHOLE, UnreadableImageError, image_shape, load_image

RAMP = np.linspace(0, 1, 64)[None].repeat(48, 0)  # [48,64]


def grey(levels):
    """[H,W] in 0..1 -> [H,W,3] in 0..255."""
    return np.rint(255 * levels)[..., None].repeat(3, -1)


def on_white(colours, alpha):
    """[H,W,3] in 0..255 and [H,W] in 0..1 -> [H,W,3]."""
    return colours * alpha[..., None] + 255 * (1 - alpha[..., None])


def compare(path, expected, tolerance=1):
    """The image as loaded, whole, reduced, and reduced in strips of a few rows."""
    loaded = np.asarray(load_image(path)).astype(float)
    assert loaded.shape == expected.shape and np.abs(loaded - expected).max() <= tolerance
    assert image_shape(str(path), True, WHOLE) == loaded.shape[1::-1]
    factor = 4
    height, width = expected.shape[0] // factor, expected.shape[1] // factor
    small = expected.reshape(height, factor, width, factor, 3).mean((1, 3))
    with pytest.MonkeyPatch.context() as patch:
        for held in (pixels.STRIP_PIXELS, 600):
            patch.setattr(pixels, "STRIP_PIXELS", held)
            least = min(height, width)
            assert np.abs(np.asarray(load_image(path, least=least)) - small).max() <= tolerance + 0.51


def png(path, colour, depth, rows, *chunks):
    """A PNG of chunks written by hand; rows: bytes of each row."""

    def chunk(name, content):
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    width = len(rows[0]) * 8 // (depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour])
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [chunk(b"IHDR", header), *(chunk(*each) for each in chunks), chunk(b"IDAT", content)]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b""))
    return path


def packed(values, depth):
    """[H,W] integers -> bytes of each row, `depth` bits per value."""
    bits = (values[..., None] >> np.arange(depth - 1, -1, -1)) & 1  # [H,W,depth]
    return [np.packbits(row.reshape(-1).astype(np.uint8)).tobytes() for row in bits]


# --- More than 8 bits


@pytest.mark.parametrize("most", [255, 1023, 4095, 65535])
@pytest.mark.parametrize("suffix", ["pgm", "png", "tif"])
def test_16_bits_are_scaled_by_the_maximum_or_by_the_bits_in_use(tmp_path, suffix, most):
    values = np.rint(RAMP * most).astype(np.uint16)
    path = tmp_path / f"grey.{suffix}"
    if suffix == "pgm":
        kind = ">u2" if most > 255 else "u1"
        path.write_bytes(b"P5 64 48 %d\n" % most + values.astype(kind).tobytes())
    else:
        Image.fromarray(values).save(path)
    compare(path, grey(RAMP))


def test_the_maximum_in_the_header_counts_not_the_brightest_pixel(tmp_path):
    values = np.rint(RAMP * 800).astype(">u2")
    (tmp_path / "dark.pgm").write_bytes(b"P5 64 48 4095\n" + values.tobytes())
    compare(tmp_path / "dark.pgm", grey(RAMP * 800 / 4095))
    stated = {281: 4095}
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "dark.tif", tiffinfo=stated)
    compare(tmp_path / "dark.tif", grey(RAMP * 800 / 4095))


@pytest.mark.parametrize(
    ("low", "high", "kind"),
    [(0, 65535, np.int32), (-500, 900, np.int32), (0, 2**31 - 1, np.int32), (3, 40, np.int32)]
    + [(0, 1, np.float32), (-2, 5, np.float32), (0, 65535, np.float32), (1e-3, 1e6, np.float32)],
)
def test_32_bits_are_scaled_by_their_own_range(tmp_path, low, high, kind):
    values = (low + RAMP * (high - low)).astype(kind)
    Image.fromarray(values).save(tmp_path / "deep.tif")
    shown = (values.astype(float) - low) / (high - low)
    compare(tmp_path / "deep.tif", grey(shown))


def test_floats_within_0_and_1_are_shown_as_they_are(tmp_path):
    Image.fromarray((0.25 + RAMP / 2).astype(np.float32)).save(tmp_path / "mild.tif")
    compare(tmp_path / "mild.tif", grey(0.25 + RAMP / 2))
    (tmp_path / "mild.pfm").write_bytes(
        b"Pf\n64 48\n-1.0\n" + (0.25 + RAMP / 2)[::-1].astype("<f4").tobytes()
    )
    compare(tmp_path / "mild.pfm", grey(0.25 + RAMP / 2))


def test_values_that_are_not_finite_are_black_or_white(tmp_path):
    values = RAMP.astype(np.float32) * 20
    values[:4], values[4:8], values[8:12] = np.nan, np.inf, -np.inf
    Image.fromarray(values).save(tmp_path / "odd.tif")
    expected = grey(RAMP)
    expected[:4], expected[4:8], expected[8:12] = 0, 255, 0
    compare(tmp_path / "odd.tif", expected)


@pytest.mark.parametrize("value", [0, 7, np.nan, np.inf])
def test_an_image_of_one_value_is_read(tmp_path, value):
    Image.fromarray(np.full((48, 64), value, np.float32)).save(tmp_path / "flat.tif")
    assert len(np.unique(load_image(tmp_path / "flat.tif"))) == 1


def test_a_tiff_of_unsigned_32_bits(tmp_path):
    path = tiff(tmp_path / "deep.tif", (RAMP * (2**32 - 1)).astype("<u4")[..., None])
    compare(path, grey(RAMP))


def test_a_tiff_whose_least_value_is_white(tmp_path):
    for name, values in {"a": (RAMP * 65535).astype(np.uint16), "b": RAMP.astype(np.float32)}.items():
        Image.fromarray(values).save(tmp_path / f"{name}.tif")
        content = (tmp_path / f"{name}.tif").read_bytes()
        tag = struct.pack("<HHIH", 262, 3, 1, 1)
        assert content.count(tag) == 1
        (tmp_path / f"{name}.tif").write_bytes(content.replace(tag, struct.pack("<HHIH", 262, 3, 1, 0)))
        compare(tmp_path / f"{name}.tif", grey(1 - RAMP))


# --- Transparency, told in every way


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_transparent_grey_level_of_a_png(tmp_path, depth):
    most = 2**depth - 1
    values = np.rint(RAMP * most).astype(np.int64)
    key = int(values[0, 40])
    path = png(tmp_path / "grey.png", 0, depth, packed(values, depth), (b"tRNS", struct.pack(">H", key)))
    expected = grey(values / most)
    expected[values == key] = 255
    compare(path, expected)


@pytest.mark.parametrize("depth", [8, 16])
def test_the_transparent_colour_of_a_png(tmp_path, depth):
    values = np.rint(np.stack([RAMP, RAMP[:, ::-1], RAMP * 0.5], -1) * 255).astype(np.int64)  # [48,64,3]
    stored = values * 257 if depth == 16 else values
    key = struct.pack(">HHH", *stored[0, 40].tolist())
    path = png(tmp_path / "rgb.png", 2, depth, packed(stored.reshape(48, -1), depth), (b"tRNS", key))
    expected = values.astype(float)
    expected[:, 40] = 255
    compare(path, expected)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_the_transparent_entries_of_a_palette(tmp_path, depth):
    count = 2**depth
    rng = np.random.default_rng(depth)
    colours, alpha = rng.integers(0, 256, (count, 3)), rng.integers(0, 256, count)
    indices = rng.integers(0, count, (48, 64))
    chunks = (b"PLTE", bytes(colours.reshape(-1).tolist())), (b"tRNS", bytes(alpha.tolist()))
    path = png(tmp_path / "palette.png", 3, depth, packed(indices, depth), *chunks)
    compare(path, on_white(colours[indices], alpha[indices] / 255))


@pytest.mark.parametrize("colour", [4, 6])
@pytest.mark.parametrize("depth", [8, 16])
def test_the_alpha_of_a_png(tmp_path, colour, depth):
    channels = [RAMP, RAMP.T.repeat(2, 1)[:48, :64] if colour == 4 else RAMP[:, ::-1], RAMP**2, RAMP[::-1]]
    channels = np.stack(channels[: colour // 2] if colour == 4 else channels, -1)
    alpha = np.linspace(0, 1, 48)[:, None].repeat(64, 1)
    channels[..., -1] = alpha
    stored = np.rint(channels * (2**depth - 1)).astype(np.int64)
    path = png(tmp_path / "alpha.png", colour, depth, packed(stored.reshape(48, -1), depth))
    colours = grey(RAMP) if colour == 4 else 255 * channels[..., :3]
    compare(path, on_white(colours, alpha), tolerance=2)


@pytest.mark.parametrize("suffix", ["webp", "avif", "tif", "jp2", "gif", "png"])
def test_the_alpha_of_other_formats_and_of_animations(tmp_path, suffix):
    if suffix == "avif" and "AVIF" not in decoding.readable():
        pytest.skip("this Pillow reads no AVIF")
    pixels = np.zeros((48, 64, 4), np.uint8)
    pixels[:, :32] = (200, 30, 60, 255)
    image = Image.fromarray(pixels)
    options = {"webp": {"lossless": True}, "avif": {"quality": 100, "subsampling": "4:4:4"}}.get(suffix, {})
    if suffix in ("webp", "gif", "png"):
        options |= {"save_all": True, "append_images": [image.rotate(180)]}
    image.save(tmp_path / f"half.{suffix}", **options)
    compare(tmp_path / f"half.{suffix}", on_white(pixels[..., :3], pixels[..., 3] / 255), tolerance=4)


def test_a_first_frame_smaller_than_the_image_lies_on_white(tmp_path):
    pixels = np.zeros((24, 32, 3), np.uint8) + np.uint8([200, 30, 60])
    Image.fromarray(pixels).save(tmp_path / "small.gif")
    content = bytearray((tmp_path / "small.gif").read_bytes())
    content[6:10] = struct.pack("<HH", 64, 48)
    (tmp_path / "small.gif").write_bytes(content)
    expected = np.full((48, 64, 3), 255.0)
    expected[:24, :32] = pixels
    compare(tmp_path / "small.gif", expected)


def tiff(path, samples, extra=(), photometric=1):
    """An uncompressed TIFF of [H,W,C] samples, without SampleFormat; extra: values of ExtraSamples."""
    height, width, channels = samples.shape
    tags = [
        (256, width),
        (257, height),
        (258, *[8 * samples.itemsize] * channels),
        (259, 1),
        (262, photometric),
        (273, 8),
        (277, channels),
        (278, height),
    ] + ([(338, *extra)] if extra else [])
    content, entries, at = samples.tobytes(), b"", 8 + samples.nbytes
    for tag, *values in tags:
        data = struct.pack(f"<{len(values)}H", *values) if tag != 273 else struct.pack("<I", 8)
        if len(data) > 4:
            content, data, at = content + data, struct.pack("<I", at), at + len(data)
        entries += struct.pack("<HHI", tag, 4 if tag == 273 else 3, len(values)) + data.ljust(4, b"\0")
    index = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    path.write_bytes(b"II*\0" + struct.pack("<I", at) + content + index)
    return path


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_a_tiff_with_premultiplied_plain_or_no_alpha(tmp_path, extra):
    alpha = np.linspace(0.2, 1, 48)[:, None].repeat(64, 1)
    colours = np.stack([RAMP, RAMP[:, ::-1], RAMP / 2], -1) * 255  # [48,64,3]
    stored = colours * alpha[..., None] if extra == 1 else colours
    samples = np.rint(np.concatenate([stored, 255 * alpha[..., None]], -1)).astype(np.uint8)
    expected = on_white(colours, alpha) if extra else colours
    compare(tiff(tmp_path / "extra.tif", samples, [extra], 2), expected, tolerance=3)


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA", "LAB", "HSV", "YCbCr", "CMYK", "I;16B", "I;16L"])
def test_modes_in_memory(mode):
    colours = Image.fromarray(np.stack([RAMP, RAMP[:, ::-1], RAMP / 2], -1).__mul__(255).astype(np.uint8))
    if mode == "LAB":
        image = Image.frombytes("LAB", (64, 48), b"\xff\0\0" * (64 * 48))
        shown = pixels.to_rgb(image, pixels.Look())
        assert np.abs(np.asarray(shown).astype(int) - 255).max() <= 3
        return
    if mode.startswith("I"):
        kind = ">u2" if mode == "I;16B" else "<u2"
        image = Image.frombytes(mode, (64, 48), (RAMP * 65535).astype(kind).tobytes())
        look = pixels.Look(pixels.shown_range(image))
        assert np.abs(np.asarray(pixels.to_rgb(image, look)) - grey(RAMP)).max() <= 1
        return
    source = {"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode)
    image = (colours.convert(source) if source else colours).convert(mode)
    shown = pixels.to_rgb(image, pixels.Look())
    expected = np.asarray(colours.convert("L" if mode == "La" else "RGB").convert("RGB")).astype(int)
    assert np.abs(np.asarray(shown) - expected).max() <= (60 if mode == "PA" else 6)


# --- Formats


def test_the_two_pictures_of_a_camera_s_mpo_are_its_first(tmp_path):
    first, second = noise(0, (160, 120)), noise(1, (160, 120))
    first.save(tmp_path / "3d.mpo", save_all=True, append_images=[second], quality=95)
    (tmp_path / "3d.jpg").write_bytes((tmp_path / "3d.mpo").read_bytes())
    first.save(tmp_path / "plain.jpg", quality=95)
    for name in ("3d.mpo", "3d.jpg"):
        for least in (None, 30):
            assert np.array_equal(
                load_image(tmp_path / name, least=least), load_image(tmp_path / "plain.jpg", least=least)
            )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_rotation_of_an_avif_is_applied_in_any_case(tmp_path, orientation):
    if "AVIF" not in decoding.readable():
        pytest.skip("this Pillow reads no AVIF")
    expected = load_image(rotated_file(tmp_path / "turned.png", orientation), exif=True)
    path = rotated_file(tmp_path / "turned.avif", orientation)
    for exif in (True, False):
        loaded = load_image(path, exif=exif)
        assert loaded.size == expected.size == image_shape(str(path), exif, WHOLE)
        assert np.abs(np.asarray(loaded).astype(int) - np.asarray(expected)).mean() < 20


def test_a_pillow_without_avif_says_so(tmp_path, monkeypatch):
    (tmp_path / "1.avif").write_bytes(b"\0\0\0 ftypavif" + bytes(40))
    decoding.readable.cache_clear()
    monkeypatch.setattr(features, "check", lambda name: False)
    try:
        with one_line_error(UnreadableImageError, tmp_path / "1.avif", "Pillow does not read AVIF"):
            load_image(tmp_path / "1.avif")
    finally:
        decoding.readable.cache_clear()


def test_white_is_where_nothing_is(tmp_path):
    Image.new("LA", (64, 48), (0, 0)).save(tmp_path / "none.png")
    assert load_image(tmp_path / "none.png").getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("least", [None, 8])
def test_a_palette_image_without_its_palette_is_unreadable(tmp_path, least):
    path = tmp_path / "1.png"
    Image.new("P", (20, 10)).save(path)
    content = path.read_bytes()
    start = content.index(b"PLTE") - 4
    length = struct.unpack(">I", content[start : start + 4])[0] + 12
    path.write_bytes(content[:start] + content[start + length :])
    with one_line_error(UnreadableImageError, path, "it has no palette"):
        load_image(path, least=least)
