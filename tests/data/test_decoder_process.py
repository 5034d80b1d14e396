"""Decoding apart: the same pixels; a decoder that dies, hangs or hogs costs one file; the child ends."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import cache

import numpy as np
import psutil
import pytest
from PIL import Image
from support import noise, one_line_error, rotated_file, write_picture

from mgkit.data import decoder_process as module
from mgkit.data.decoder_process import Answer, header_apart, load_apart, shape_apart
from mgkit.data.decoding import WHOLE, UnreadableImageError, image_shape, load_image
from mgkit.data.headers import header_of
from mgkit.data.images import UNLABELLED
from mgkit.data.loader import ImageDataset, SeededBatches, batch_loader
from mgkit.photos.folder import PhotoList, find_photos
from mgkit.transforms import eval_transform

DANGEROUS = """
import ctypes, os, signal, sys, time
from mgkit.data import decoder_process as module
from mgkit.data.decoding import load_image

def dangerous(source, **options):
    kind = os.path.basename(str(options["name"])).split(".")[0]
    if kind == "segfault":
        ctypes.string_at(0)
    elif kind == "abort":
        os.abort()
    elif kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "hang":
        while True:
            pass
    elif kind == "hog":
        hoard = [bytes(2**28) for _ in range(1000)]  # not written to, which would take time
    elif kind == "exit":
        os._exit(3)
    elif kind == "talk":
        os.write(1, b"Warning: odd file\\n" * 1000)
        os.write(2, b"Warning: odd file\\n" * 1000)
    elif kind == "lie":
        os.write(module.TOLD, b"nonsense" * 100)
    return load_image(source, **options)

module.load_image = dangerous
module.SECONDS, module.MOST_MEMORY = 2, 2**30
module.TOLD = os.dup(1)
module.serve()
"""
REASONS = {
    "segfault": "its decoder crashed (SIGSEGV)",
    "abort": "its decoder crashed (SIGABRT)",
    "killed": "its decoder was killed (SIGKILL)",
    "hang": "its decoder took longer than 2 s",
    "hog": "its decoder wanted more than 1 GB of memory",
    "exit": "its decoder ended with exit status 3",
    "lie": "its decoder gave an answer that makes no sense",
}


@pytest.fixture
def dangerous(monkeypatch):
    """The child's decoder does what the name of a file says; a new child, which ends with the test."""
    monkeypatch.setattr(module, "COMMAND", (sys.executable, "-c", DANGEROUS))
    monkeypatch.setattr(module, "SECONDS", 2)  # for the message
    children = cache(lambda process: module.Child())
    monkeypatch.setattr(module, "child_of", children)
    yield children(os.getpid())
    process = children(os.getpid()).process
    if process:
        process.kill()
        process.wait()


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tif", "heic", "avif"])
def test_the_pixels_are_those_that_are_decoded_here(tmp_path, suffix):
    path = str(write_picture(tmp_path / f"a.{suffix}", size=(90, 60)))
    for least in (None, 20):
        here = load_image(path, least=least, exif=True, srgb=True)
        assert np.array_equal(load_apart(path, least=least), here)
        small = here.resize((31, 17), Image.Resampling.BILINEAR)
        assert np.array_equal(load_apart(path, least=least, size=(31, 17)), small)
    with open(path, "rb") as file:
        assert np.array_equal(load_apart(file.read(), name="x"), load_image(path))
    assert shape_apart(path, True) == image_shape(path, True, WHOLE) == (90, 60)
    assert header_apart(path, True) == header_of(path, True)


@pytest.mark.parametrize("exif", [True, False])
def test_headers_and_turns_are_those_that_are_read_here(tmp_path, exif):
    path = str(rotated_file(tmp_path / "a.jpg", 6))
    assert np.array_equal(load_apart(path, exif=exif), load_image(path, exif=exif))
    assert shape_apart(path, exif) == image_shape(path, exif, WHOLE)
    assert header_apart(path, exif) == header_of(path, exif)


def test_what_cannot_be_read_has_the_reason_that_it_has_here(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    for name in ("text.png", "gone.png"):
        path = str(tmp_path / name)
        with one_line_error(UnreadableImageError, path):
            load_image(path)
        reasons = []
        for load in (load_image, load_apart):
            with pytest.raises(UnreadableImageError) as caught:
                load(path)
            reasons.append(str(caught.value))
        assert reasons[0] == reasons[1]
        assert shape_apart(path, True) == (1, 1) and header_apart(path, True).size == (1, 1)


@pytest.mark.parametrize("name", [b"\xff\xfe.png", "a\nb 🏖.png".encode(), b"-x \"'.png"])
def test_any_name_is_asked_for(tmp_path, name):
    path = os.path.join(os.fsencode(tmp_path), name)
    with open(path, "wb") as file:
        noise(0).save(file, "PNG")
    assert np.array_equal(load_apart(os.fsdecode(path)), noise(0))
    assert shape_apart(os.fsdecode(path), True) == (24, 16)


# --- Decoders that go wrong


@pytest.mark.parametrize("kind", REASONS)
def test_a_decoder_that_goes_wrong_is_the_reason_of_its_file(tmp_path, dangerous, kind):
    before, bad, after = (str(write_picture(tmp_path / f"{n}.png")) for n in ("before", kind, "after"))
    assert np.array_equal(load_apart(before), noise(0))
    for _ in range(2):
        with one_line_error(UnreadableImageError, f"cannot read the image {bad}", REASONS[kind]):
            load_apart(bad)
        assert np.array_equal(load_apart(after), noise(0))


def test_what_a_decoder_prints_disturbs_nothing(tmp_path, dangerous, capfd):
    path = str(write_picture(tmp_path / "talk.png"))
    assert np.array_equal(load_apart(path), noise(0))
    assert capfd.readouterr() == ("", "")


def test_a_child_that_was_ended_meanwhile_is_no_file_s_fault(tmp_path, dangerous):
    path = str(write_picture(tmp_path / "a.png"))
    load_apart(path)
    dangerous.process.kill()
    dangerous.process.wait()
    assert np.array_equal(load_apart(path), noise(0))


def test_an_interrupted_question_leaves_no_answer_for_the_next(tmp_path, dangerous, monkeypatch):
    first, second = (str(write_picture(tmp_path / f"{n}.png", seed=n)) for n in (1, 2))
    read = Answer.read
    load_apart(first)

    def interrupted(pipe):
        monkeypatch.setattr(Answer, "read", read)
        raise KeyboardInterrupt

    monkeypatch.setattr(Answer, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_apart(first)
    assert np.array_equal(load_apart(second), noise(2))


def test_a_child_that_does_not_start_is_no_file_s_fault(tmp_path, dangerous, monkeypatch):
    monkeypatch.setattr(module, "COMMAND", (sys.executable, "-c", "raise SystemExit(5)"))
    with one_line_error(RuntimeError, "did not start", "exit status 5"):
        load_apart(str(write_picture(tmp_path / "a.png")))


def test_files_that_vanish_or_change_are_read_as_they_are_then(tmp_path):
    path = write_picture(tmp_path / "a.png", size=(40, 20))
    write_picture(tmp_path / "b.png")
    images = find_photos([tmp_path], side=20).images
    assert images.shape(0) == (40, 20)
    write_picture(path, seed=1, size=(20, 40))
    assert images.load(0).size == (10, 20) and images.shape(0) == (20, 40)
    path.unlink()
    with one_line_error(UnreadableImageError, path, "No such file"):
        images.load(0)
    assert images.load(1).size == (20, 13)


# --- Processes


def test_every_process_has_a_child_of_its_own(tmp_path):
    paths = [str(write_picture(tmp_path / f"{n}.png", seed=n)) for n in range(12)]
    images = PhotoList(tmp_path, tuple(paths), np.full(12, UNLABELLED), side=24)
    images.load(0)
    batches = SeededBatches([[n] for n in range(12)])
    loader = batch_loader(ImageDataset(images, eval_transform(24, "rect")), batches, workers=2)
    here = ImageDataset(images, eval_transform(24, "rect"))
    for n, batch in enumerate(loader):
        assert not batch.unreadable and np.array_equal(batch.image[0], here[n][0])
    own = module.child_of(os.getpid()).process
    assert own.poll() is None and np.array_equal(load_apart(paths[3]), noise(3))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_that_may_have_no_children_of_multiprocessing_have_one(tmp_path, method):
    path = str(write_picture(tmp_path / "a.png"))
    load_apart(path)
    with multiprocessing.get_context(method).Pool(1) as pool:  # of daemons, as the workers of a loader
        assert np.array_equal(pool.apply(load_apart, (path,)), noise(0))


PARENT = """
import os, sys, time
from mgkit.data import decoder_process as module
module.load_apart(sys.argv[1])
print(module.child_of(os.getpid()).process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_the_child_ends_with_its_parent(tmp_path, end):
    path = write_picture(tmp_path / "a.png")
    with subprocess.Popen([sys.executable, "-c", PARENT, path], stdout=subprocess.PIPE, text=True) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running() and child.num_threads() == 1
        parent.send_signal(end)
        parent.wait()
        child.wait(timeout=10)
    assert not child.is_running()


def test_the_child_knows_no_torch(tmp_path):
    code = "import sys, mgkit.data.decoder_process; print('torch' in sys.modules, 'rawpy' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "False False\n"


def test_a_hundred_megapixels_come_in_little_time_and_memory(tmp_path):
    Image.new("L", (11_300, 11_300), 7).save(tmp_path / "a.png", compress_level=1)
    began = time.monotonic()
    assert load_apart(str(tmp_path / "a.png"), least=480).getpixel((5, 5)) == (7, 7, 7)
    assert time.monotonic() - began < module.SECONDS
