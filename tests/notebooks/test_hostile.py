"""All notebooks on a folder of odd names and odd files: each ends well, and says what it left out.

The cells run in this process, one notebook after the other: a kernel for each would take minutes.
"""

import os

import numpy as np
import pytest
from notebook_support import QUICK
from PIL import Image
from support import noise

from mgkit.checkpoints import save_checkpoint
from mgkit.model import get_multigrain

CLASSES = [
    b"a b", b"it's \"quoted\"", b"line\nbreak", "naïve 🏖️".encode(), ("é" * 127 + "x").encode(), b"caf\xe9",
    "\u202egnp.exe".encode(), "שלום".encode(), b"$x$ $", b"<b>&amp;", b"100% {0} %s", b"-rf", b"=1+1",
]  # fmt: skip
FILES = [
    b"two words.jpg", b"'\".jpg", b"new\nline.jpg", "🏖️.jpg".encode(), ("é" * 125 + ".jpg").encode(),
    b"\xff\xfe.jpg", "\u202egpj.jpg".encode(), "שלום.jpg".encode(), b"$y$.jpg", b"<b>.jpg", b"%d.jpg",
    b"-x.jpg", b"=2.jpg",
]  # fmt: skip
UNREADABLE = ("truncated.png", "empty.jpg", "postscript.jpg")  # in each notebook that reads the whole folder


def saved(image, **options):
    """A function that writes the image to a file."""
    return lambda path: image.save(path, **options)


def odd_pictures():
    """{file name: what writes it}, for pictures of unusual shapes and modes, all readable."""
    picture, deep = noise(1, (40, 30)), np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50
    clear = picture.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(picture.size))
    return {
        "1x1.png": saved(noise(2, (1, 1))),
        "1x4000.png": saved(noise(3, (1, 4000))),
        "4000x1.png": saved(noise(4, (4000, 1))),
        "9x96.png": saved(noise(5, (9, 96))),
        "deep.png": saved(Image.fromarray(deep)),
        "cmyk.jpg": saved(picture.convert("CMYK")),
        "clear.png": saved(clear),
        "clear grey.png": saved(clear.convert("LA")),
        "clear colour.png": saved(picture, transparency=(0, 0, 0)),
        "clear palette.png": saved(picture.quantize(16), transparency=0),
        "clear.gif": saved(picture.quantize(16), transparency=3),
        "clear.webp": saved(clear, lossless=True),
        "animated.gif": saved(picture, save_all=True, append_images=[noise(6, (40, 30))]),
        "animated.webp": saved(picture, save_all=True, append_images=[noise(6, (40, 30))]),
    }


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The folder: classes and files of odd names, and in the first class odd and unreadable files."""
    root = tmp_path_factory.mktemp("hostile") / "tree"
    for seed, name in enumerate(CLASSES):
        folder = os.path.join(os.fsencode(root), name)
        os.makedirs(folder)
        for k, file in enumerate((FILES[seed], b"1.jpg", b"2.jpg", b"3.jpg")):
            with open(os.path.join(folder, file), "wb") as target:
                noise(4 * seed + k, (48, 32 + 8 * (k % 2))).save(target, "JPEG")
    first = root / "a b"
    for name, write in odd_pictures().items():
        write(first / name)
    noise(7, (64, 64)).save(first / "truncated.png")
    with open(first / "truncated.png", "r+b") as file:
        file.truncate(2000)
    (first / "empty.jpg").touch()
    (first / "postscript.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    (first / "x.jpg").mkdir()
    (first / "gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(first / "pipe.jpg")
    return root


@pytest.fixture
def run(hostile, here, run_here):
    """A function that runs a notebook on the hostile folder; returns what it printed."""

    def of(name, **parameters):
        shared = {"experiment": "odd", "data": str(hostile), "on_unreadable": "skip"}
        text, figures = run_here(name, **(shared | QUICK.get(name, {}) | parameters))
        text.encode("utf-8")
        assert figures, text
        return text

    return of


@pytest.mark.filterwarnings("error:Glyph")
def test_every_notebook_ends_well_on_a_hostile_folder(run, hostile, here):
    said = {}
    own = {"06_search_your_photos": {"photos": [str(hostile)]}, "07_claims": {"seeds": [0]}}
    for name in ("00_start_here", *QUICK):
        said[name] = run(name, **own.get(name, {}))
        assert "Error in mgkit" not in said[name], said[name]  # of an optional section, by a fault of the kit
    for name in ("00_start_here", "01_train", "05_evaluate_retrieval"):
        for file in UNREADABLE:
            assert file in said[name], (name, said[name])
    stage = here / "outputs" / "odd" / "search_photos"
    left_out = (stage / "left_out.csv").read_text(encoding="utf-8", errors="surrogateescape")
    for file in (*UNREADABLE, "gone.jpg", "pipe.jpg"):
        assert file in left_out, left_out
    (stage / "report.html").read_text(encoding="utf-8")


def written_pictures(folder, count):
    for k in range(count):
        folder.mkdir(parents=True, exist_ok=True)
        noise(k, (40, 30)).save(folder / f"{k}.png")


def test_what_cannot_be_shown_of_little_data_is_said(run, here):
    """One picture a class to retrieve; one picture in all."""
    for split, count in {"train": 3, "val": 1}.items():
        for name in ("moss", "sand"):
            written_pictures(here / "few" / split / name, count)
    written_pictures(here / "one", 1)
    net = get_multigrain("resnet8", num_classes=2)
    save_checkpoint(here / "net.pth", net, classes=["moss", "sand"])
    network = {"checkpoint": str(here / "net.pth")}
    text = run("02_finetune_p", data=str(here / "few"), **network)
    assert "not shown: neighbours for any p (" in text and "no group has two images" in text
    text = run("05_evaluate_retrieval", data=str(here / "one"), **network)
    assert "not shown: matching regions of any query (one: " in text and "Error in" not in text
    text = run("06_search_your_photos", photos=[str(here / "one")], k=50, **network)
    assert "1 pictures as descriptors" in text and text.count("not shown") == 1
    assert "not shown: the map (there are too few different pictures" in text
