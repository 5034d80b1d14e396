"""Killed at any moment, the next run completes what was begun, with the results of an undisturbed run."""

import multiprocessing
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from support import die_at, noise, starting
from torch import nn

from mgkit.backbones.backbone import Backbone
from mgkit.config import PhotosConfig
from mgkit.data.images import fingerprints
from mgkit.data.loader import UnreadableImages
from mgkit.features import to_descriptors
from mgkit.machine import files
from mgkit.model import MultiGrain
from mgkit.photos import looks
from mgkit.photos.embedding import growing, nearest, table, whitening
from mgkit.photos.folder import find_photos


def network() -> MultiGrain:
    """A small network, the same in every process."""
    torch.manual_seed(0)
    features = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=4, padding=2), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)
    )
    return MultiGrain(Backbone("tiny", features, 8), num_classes=3).eval()


def run(photos: Path, folder: Path, workers: int = 0, lines: int | None = None) -> None:
    """What a search keeps: facts, features, looks, a whitening and neighbours; the results go to a file."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # a fork server's workers would outlive a kill
    growing.WINDOW = 16
    net = network()
    if lines is not None:
        die_at(lines, files, looks, growing, nearest, table, whitening)
    images = find_photos([photos], side=32).images
    keys, options = fingerprints(images), {"folder": folder / "seen", "workers": workers}
    facts = looks.photo_facts(images, keys, **options)
    rows = growing.growing_features(
        net, images, size=32, p=3.0, folder=folder, prints=keys, workers=workers, description=None,
        unreadable=UnreadableImages("skip"), seen=looks.noting(keys, folder=folder / "seen"),
        shapes=lambda: list(zip(facts["width"].tolist(), facts["height"].tolist(), strict=True)),
    )  # fmt: skip
    seen = looks.photo_looks(images, keys, facts, **options)
    readable = np.flatnonzero(np.isfinite(rows[:, 0]))
    kept = whitening.KeptWhitening(folder / "whitening.npz", keys[readable])
    chosen, _ = whitening.choose_whitening(PhotosConfig(), net, np.array(rows[readable]), kept)
    descriptors = to_descriptors(rows, chosen)
    lists = nearest.KeptLists(folder / "neighbours.npz", whitening.identity_of(chosen))
    scores, indices = nearest.neighbours(PhotosConfig(), descriptors[readable], keys[readable], lists)
    sys.settrace(None)
    np.savez(
        folder / "found.npz", rows=rows, grey=seen.grey, aspects=seen.aspects, width=facts["width"],
        size=facts["size"], scores=scores, indices=indices,
    )  # fmt: skip


@pytest.fixture(scope="module")
def start():
    """A function that starts `run` in a process."""
    return starting(run)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """60 photos of three shapes and one that is broken."""
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(60):
        noise(seed, [(48, 32), (32, 48), (40, 40)][seed % 3]).save(folder / f"{seed:03d}.jpg")
    (folder / "025.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def undisturbed(start, photos, tmp_path_factory):
    """What an uninterrupted run finds, and its seconds."""
    folder = tmp_path_factory.mktemp("undisturbed")
    start(photos, folder / "first").join(300)  # waits for imports
    began = time.monotonic()
    process = start(photos, folder)
    process.join(300)
    assert process.exitcode == 0
    return dict(np.load(folder / "found.npz")), time.monotonic() - began


def completed(start, photos, folder, expected):
    """Run to the end; the results are those expected, up to the rounding of other batches."""
    process = start(photos, folder)
    process.join(300)
    assert process.exitcode == 0
    found = dict(np.load(folder / "found.npz"))
    for name in ("grey", "aspects", "width", "size"):
        np.testing.assert_array_equal(found[name], expected[name])
    np.testing.assert_allclose(found["rows"], expected["rows"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-3)
    assert (found["indices"] == expected["indices"]).mean() > 0.95  # but for those that are equally near
    assert not list(folder.rglob("*.partial"))


def test_killed_at_any_line(start, photos, undisturbed, tmp_path):
    expected, _ = undisturbed
    random, line, killed, kills = np.random.default_rng(), 0, True, 0
    while killed:
        folder = tmp_path / str(line)
        process = start(photos, folder, lines=line)
        process.join(300)
        killed = process.exitcode == -signal.SIGKILL
        assert killed or process.exitcode == 0
        completed(start, photos, folder, expected)
        kills += killed
        line += int(random.integers(1000, 1800))
    assert kills > 1


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_three_times_at_random(start, photos, undisturbed, tmp_path, workers):
    expected, seconds = undisturbed
    random = np.random.default_rng()
    for _ in range(3):
        process = start(photos, tmp_path / "kept", workers=workers)
        time.sleep(random.uniform(0, seconds))
        process.kill()  # and on at once, although its workers live on for a while
    completed(start, photos, tmp_path / "kept", expected)
