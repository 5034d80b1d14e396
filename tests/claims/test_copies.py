"""Copies of validation images: made once, found again by their originals."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mgkit.claims import copies as module
from mgkit.claims.copies import EDITS, set_of_copies
from mgkit.stages.inputs import training_data

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def images(config):
    return training_data(config())[1]


def test_every_copy_is_looked_for_among_all_images(images):
    one = set_of_copies(images, 7, "t")
    assert len(one.queries) == 7 and np.array_equal(one.database, np.arange(len(images)))
    for k, (query, [answer]) in enumerate(zip(one.queries, one.positives, strict=True)):
        copy, original = one.images.load(query), images.load(answer)
        edited = EDITS[k % len(EDITS)]
        assert (copy.size == original.size) == (edited != "border")
        assert np.asarray(copy.resize((8, 8))).tolist() != np.asarray(original.resize((8, 8))).tolist()


def test_copies_are_made_once_and_are_always_the_same(images, monkeypatch):
    one = set_of_copies(images, 3, "t")
    again = [module.strong_copy(images, int(answers[0]), EDITS[k]) for k, answers in enumerate(one.positives)]
    for query, picture in zip(one.queries, again, strict=True):
        kept = Image.open(one.images.paths[query])
        assert np.abs(np.asarray(kept, int) - np.asarray(picture, int)).mean() < 6  # by its compression
    monkeypatch.setattr(module, "strong_copy", None)
    assert set_of_copies(images, 3, "t").images.paths == one.images.paths


def test_other_images_and_numbers_have_folders_of_their_own(images):
    set_of_copies(images, 3, "t")
    set_of_copies(images, 2, "t")
    set_of_copies(images.subset(range(5)), 2, "t")
    assert len(list(Path("outputs/t/copies").glob("*/of-*"))) == 3
    assert not list(Path("outputs/t/copies").glob("*/*.partial*"))
