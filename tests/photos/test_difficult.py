"""Files that are hard to read, of MGKIT_REAL/difficult and made here, beside their rendering by Chromium."""

import base64
import os
from io import BytesIO

import numpy as np
import pytest
from browsers import chromium
from colour_profiles import ADOBE_RGB, DISPLAY_P3, cmyk_profile, grey_profile, rgb_profile
from PIL import Image
from support import noise

from mgkit.data.decoding import UnreadableImageError, readable
from mgkit.photos.folder import find_photos, load_photo

readable()  # the plugin for HEIF writes, too
DRAW = """async (address) => {
  const image = new Image();
  image.src = address;
  try { await image.decode(); } catch (error) { return null; }
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0);
  return canvas.toDataURL("image/png");
}"""
MEDIA = {"jpg": "jpeg", "mpo": "jpeg", "tif": "tiff", "heif": "heif", "heic": "heif"}  # else: the suffix


@pytest.fixture(scope="module")
def rendered():
    """A function: how Chromium renders a file; None if it does not."""
    with chromium() as browser:
        page = browser.new_page()

        def render(path):
            with open(path, "rb") as file:
                content = base64.b64encode(file.read()).decode()
            suffix = os.path.splitext(path)[1][1:].lower()
            drawn = page.evaluate(DRAW, f"data:image/{MEDIA.get(suffix, suffix)};base64,{content}")
            return drawn and Image.open(BytesIO(base64.b64decode(drawn.partition(",")[2]))).convert("RGB")

        yield render


def difference(first, second):
    """Mean absolute difference of two pictures' thumbnails of 64 × 64 px, of 255."""
    small = [np.asarray(image.resize((64, 64), Image.Resampling.BOX), float) for image in (first, second)]
    return np.abs(small[0] - small[1]).mean()


@pytest.fixture(scope="session")
def difficult(real):
    return find_photos([real / "difficult"], side=224).images


def test_every_difficult_file_is_read_or_refused_with_its_reason(difficult):
    refused = {}
    for i, path in enumerate(difficult.paths):
        try:
            assert difficult.load(i).mode == "RGB" and min(difficult.shape(i)) > 1
        except UnreadableImageError as error:
            refused[os.path.basename(path)] = str(error)
    assert len(difficult) >= 13 and [*refused] == ["corrupted.heic"]
    assert "a damaged HEIF" in refused["corrupted.heic"]


def test_difficult_files_look_as_in_a_browser(difficult, rendered):
    compared = []
    for i, path in enumerate(difficult.paths):
        shown = rendered(path)
        if shown:
            assert shown.size == difficult.shape(i), path
            found = difference(load_photo(path, least=512), shown)
            print(f"{os.path.basename(path):24} {found:.2f}")
            assert found < 8, path
            compared.append(os.path.basename(path))
    assert {"alpha.avif", "ten_bit.avif", "turned.avif", "cmyk.jpg", "two_frames.mpo"} <= set(compared)


def test_difficult_heif_files_look_as_libheif_gives_them(difficult):
    import pillow_heif

    for path in difficult.paths:
        if path.endswith((".heic", ".heif")) and "corrupted" not in path:
            given = pillow_heif.open_heif(path, convert_hdr_to_8bit=True).to_pillow().convert("RGB")
            assert difference(load_photo(path, least=512), given) < 1, path


def picture():
    return noise(0, (12, 8)).resize((180, 120), Image.Resampling.BICUBIC)


def faded():
    image = picture().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


MADE = {
    "p3.jpg": (picture, {"icc_profile": rgb_profile(DISPLAY_P3)}),
    "adobe.png": (picture, {"icc_profile": rgb_profile(ADOBE_RGB)}),
    "p3.avif": (picture, {"icc_profile": rgb_profile(DISPLAY_P3)}),
    "grey.jpg": (lambda: picture().convert("L"), {"icc_profile": grey_profile(1.2)}),
    "grey.png": (lambda: picture().convert("L"), {"icc_profile": grey_profile(1.2)}),
    "inks.jpg": (lambda: picture().convert("CMYK"), {}),
    "profiled inks.jpg": (lambda: picture().convert("CMYK"), {"icc_profile": cmyk_profile()}),
    "damaged profile.png": (picture, {"icc_profile": b"no profile" * 30}),
    "profile of grey.png": (picture, {"icc_profile": grey_profile(1.2)}),
    "faded.png": (faded, {"icc_profile": rgb_profile(ADOBE_RGB)}),
    "faded.webp": (faded, {}),
    "faded.avif": (faded, {}),
    "described.avif": (picture, {"xmp": b'<x:xmpmeta tiff:Orientation="6"/>'}),
    **{f"turned {o}.avif": (picture, {"exif": turned(o)}) for o in range(2, 9)},
    **{f"turned {o}.png": (picture, {"exif": turned(o)}) for o in (3, 6)},
    **{f"turned {o}.jpg": (picture, {"exif": turned(o)}) for o in (5, 8)},
    "animated.gif": (picture, {"save_all": True, "append_images": [Image.new("RGB", (180, 120), "red")]}),
    "animated.png": (picture, {"save_all": True, "append_images": [Image.new("RGB", (180, 120), "red")]}),
    "animated.webp": (picture, {"save_all": True, "append_images": [Image.new("RGB", (180, 120), "red")]}),
}  # fmt: skip


def test_files_made_here_look_as_in_a_browser(tmp_path, rendered):
    for name, (make, options) in MADE.items():
        make().save(tmp_path / name, **options)
        shown, ours = rendered(tmp_path / name), load_photo(str(tmp_path / name), least=64)
        assert shown and shown.size == ours.size, name
        found = difference(shown, ours)
        print(f"{name:24} {found:.2f}")
        assert found < 8, name
