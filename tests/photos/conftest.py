"""What was found in a folder of pictures, for the tests of figures and report."""

import os
from collections import Counter

import numpy as np
import pytest
from support import noise

from mgkit.config import PhotosConfig, make
from mgkit.features import Passes
from mgkit.photos.copies import calibration
from mgkit.photos.copies.edits import EDITS
from mgkit.photos.copies.groups import Group
from mgkit.photos.copies.pairs import SAME_FILE
from mgkit.photos.copies.thresholds import Thresholds, calibrated
from mgkit.photos.folder import PhotoFolder, find_photos
from mgkit.photos.found import FoundPhotos
from mgkit.photos.looks import read_facts
from mgkit.photos.task import PhotoTask


@pytest.fixture(autouse=True)
def few_copies(monkeypatch):
    """Thresholds are learned on a few copies, which is quicker."""
    monkeypatch.setattr(calibration, "ALIGNED", 4)


def copies(members):
    """A group of the same file, whose first picture stays."""
    members = tuple(members)
    count = len(members)
    return Group(
        members, (0.9,) * count, grade=SAME_FILE, tightness=0.9, turns=(1,) * count, reason="most pixels",
        going=members[1:],
    )  # fmt: skip


@pytest.fixture
def found(tmp_path, tiny_net):
    """A function: what was found in a folder of pictures of these names, made up but for the pictures."""

    def of(names, *, own=None, groups=(), left_out=(), labels=None, others=(), **values):
        folder = tmp_path / "<my> pictures"
        folder.mkdir()
        for seed, name in enumerate(names):
            path = os.path.join(folder, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                noise(seed, (40, 30)).save(file, "JPEG")
        images = find_photos([folder], side=32).images
        rng = np.random.default_rng(0)
        descriptors = rng.normal(size=(len(images), 16)).astype(np.float32)
        descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
        photo_folder, config = PhotoFolder(images, {}, Counter(dict(others)), own), make(PhotosConfig, values)
        task = PhotoTask(config, photo_folder, tiny_net, 3.0, Passes.of(config))
        threshold = calibrated(np.full((3, len(EDITS)), 0.8), rng.uniform(0, 0.5, (100, 1)))
        labels = np.zeros((len(images), 1), int) if labels is None else np.asarray(labels)[:, None]
        probabilities = np.linspace(0.2, 0.9, len(images))[:, None]
        return FoundPhotos(
            task, descriptors, None, "no whitening", Thresholds(threshold, threshold),
            [g if isinstance(g, Group) else copies(g) for g in groups], len(groups),
            labels, probabilities, tuple(f"class <{k}>" for k in range(30)), "they fit", dict(left_out),
            lambda i: read_facts(images.paths[i]),
        )  # fmt: skip

    return of
