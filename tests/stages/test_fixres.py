"""FixRes beside p* in 02: the same images for all, what each costs, and what is refused."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from support import in_processes, one_line_error

from mgkit.config import FinetunePConfig, make
from mgkit.data.layouts import class_folders
from mgkit.engine.run import read_results, stage_folder
from mgkit.features import Passes, classifier_inputs
from mgkit.finetune import finetune_classifier, sweep_p
from mgkit.retrieval.protocols import accuracy_difference
from mgkit.stages.finetune_p import read_search, search_p
from mgkit.stages.fixres import adaptations, check_apart, fixres_classifiers

VALUES = {
    "experiment": "t", "sizes": [24, 40], "ps": [1.0], "lr": 20.0, "precision": "float32", "workers": 0,
    "images_per_class": 6, "fixres_epochs": 20, "fixres_lr": 3.0, "seed": 3,
}  # fmt: skip
METHODS = ["training p", "p*", "FixRes", "FixRes with p*"]


@pytest.fixture
def config():
    return make(FinetunePConfig, VALUES)


@pytest.fixture
def data(uneven_images, image_folders, monkeypatch):
    """Training and validation images, each in a folder of its own, as 02 finds them."""
    found = uneven_images, image_folders([(40, 30), (30, 40), (33, 33)])
    monkeypatch.setattr("mgkit.stages.finetune_p.training_data", lambda config: found)
    return found


def test_the_rivals_are_measured_on_the_same_images(tiny_net, data, config, here):
    train, val = data
    subset, before = train.first_per_class(6), copy.deepcopy(tiny_net.state_dict())
    found = search_p(config, tiny_net)
    assert [row.method for row in found.adaptations] == METHODS * 2
    for s, size in enumerate(config.sizes):
        trained, learned, fixres, both = found.adaptations[4 * s : 4 * s + 4]
        assert (trained.top1, learned.top1) == (found.top1_at_training_p[s], found.top1_at_p_star[s])
        assert learned.gain == found.gains[s]
        assert (trained.p, learned.p, fixres.p, both.p) == (3, found.p_star[s], 3, found.p_star[s])
        for row in (fixres, both):  # against a network that has the classifier, and a sweep of its own
            options = dict(size=size, ps=[row.p], passes=Passes.of(config))
            [rows] = classifier_inputs(tiny_net, subset, **options)
            tuned = copy.deepcopy(tiny_net)
            tuned.set_classifier(
                finetune_classifier(tiny_net.classifier, rows, subset.labels, epochs=20, lr=3, seed=3)
            )
            top1 = sweep_p(tuned, val, sizes=[size], ps=[row.p], precision="float32")[0, 0, 0]
            assert row.top1 == top1 and row.gain.value == pytest.approx(top1 - trained.top1)
            assert row.gain.low <= row.gain.value <= row.gain.high
            assert row.interval[0] <= row.top1 <= row.interval[1]
    assert any(row.gain.value for row in found.adaptations if "FixRes" in row.method)
    assert read_search(config).adaptations == found.adaptations
    assert all(torch.equal(value, before[key]) for key, value in tiny_net.state_dict().items())


def test_without_fixres_the_results_are_the_same_as_ever(tiny_net, data, config, here):
    found = search_p(config, tiny_net)
    without = search_p(replace(config, fixres_epochs=0), tiny_net)
    assert without.adaptations == [] and without.p_star == found.p_star
    assert without.top1_at_p_star == found.top1_at_p_star and np.array_equal(without.top1, found.top1)


def test_what_the_rivals_cost_is_counted(tiny_net, data, config, here):
    """8 channels and 3 classes: 27 weights. At a size, one pass gives the embeddings with both exponents."""
    rows = search_p(config, tiny_net).adaptations[:4]
    assert [(row.passes, row.learned) for row in rows] == [(0, 0), (1, 1), (1, 27), (2, 28)]


@pytest.mark.parametrize(("epochs", "passes"), [(0, 1), (1, 2), (50, 2)])
def test_the_backbone_sees_the_training_images_once_more(tiny_net, data, config, here, epochs, passes):
    train, val = data
    seen = []
    tiny_net.features.register_forward_hook(lambda module, inputs, maps: seen.append(len(maps)))
    search_p(replace(config, fixres_epochs=epochs), tiny_net)
    assert sum(seen) == 2 * (passes * 18 + len(val))  # at two sizes, six images of each class


def test_an_unreadable_image_is_left_out(tiny_net, image_folders, config):
    images = image_folders([(40, 30), (30, 40), (33, 33), (40, 30)])
    readable = images.subset([i for i in range(12) if i != 7])
    Path(images.paths[7]).write_bytes(b"")
    skipping = replace(config, sizes=[24], on_unreadable="skip")
    found, expected = (
        fixres_classifiers(skipping, tiny_net, of, [2.0], Passes.of(skipping))[0] for of in (images, readable)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.weight, other.weight)


def test_nan_of_an_unreadable_image_is_no_miss(tiny_net, uneven_images, config):
    hits = np.array([[[1, 0, math.nan], [1, 1, math.nan], [0, 0, math.nan], [1, 1, math.nan]]])
    rows = adaptations(replace(config, sizes=[24]), tiny_net, uneven_images, [2.0], hits)
    assert [row.top1 for row in rows] == [0.5, 1, 0, 1]
    assert rows[3].gain == accuracy_difference(hits[0, 0], hits[0, 3])


def trained_here(net, images, config):
    net = copy.deepcopy(net)
    found = fixres_classifiers(config, net, images, [2.0, 4.0], Passes.of(config))
    return [[classifier.weight.numpy() for classifier in of_size] for of_size in found]


def test_all_processes_learn_the_same(tiny_net, uneven_images, config):
    alone = trained_here(tiny_net, uneven_images, config)
    for found in in_processes(2, trained_here, tiny_net, uneven_images, config):
        np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-6)


# --- What is refused, and what is said


def test_images_that_were_learned_are_not_validated(tiny_net, uneven_images, config, here, monkeypatch):
    (here / "again").symlink_to(uneven_images.root)
    linked = class_folders(here / "again")
    check_apart(uneven_images.subset(range(5)), linked.subset(range(5, 24)))
    monkeypatch.setattr("mgkit.stages.finetune_p.training_data", lambda config: (uneven_images, linked))
    with one_line_error(ValueError, "fixres_epochs", "18 training images", uneven_images.paths[0], "val/"):
        search_p(config, tiny_net)
    assert not stage_folder(config).exists()


def test_an_error_leaves_no_results(tiny_net, data, config, here):
    with (
        patch("mgkit.stages.fixres.finetune_classifier", side_effect=ValueError("does not stay finite")),
        one_line_error(ValueError, "does not stay finite"),
    ):
        search_p(config, tiny_net)
    assert read_results(config) is None


def test_rivals_choose_among_the_classes_of_the_training_images(tiny_net, uneven_images, config, capsys):
    """As if the network had these classes only: none gains by learning that the others do not occur."""
    two = uneven_images.subset(np.flatnonzero(uneven_images.labels > 0))  # without the first class
    [*found, _], _ = fixres_classifiers(config, tiny_net, two, [2.0, 2.0], Passes.of(config))
    assert "2 of the network's 3 classes" in capsys.readouterr().out
    narrow = torch.nn.Linear(8, 2)
    narrow.weight.data, narrow.bias.data = tiny_net.classifier.weight[1:], tiny_net.classifier.bias[1:]
    [rows] = classifier_inputs(tiny_net, two, size=24, ps=[3.0], passes=Passes.of(config))
    expected = finetune_classifier(narrow, rows, two.labels - 1, epochs=20, lr=3, seed=3)
    for classifier, wanted in zip(found, (narrow, narrow, expected), strict=True):
        torch.testing.assert_close(classifier.weight[1:], wanted.weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(classifier.bias[1:], wanted.bias, rtol=1e-4, atol=1e-5)
        assert classifier.bias[0] < -1e8
    assert (expected.weight - narrow.weight).abs().max() > 0.01
    rows = adaptations(config, tiny_net, two, [2.0, 2.0], np.ones((2, 4, 5)))
    assert [row.learned for row in rows[:4]] == [0, 1, 18, 19]


def test_with_images_of_all_classes_nothing_is_said_of_them(tiny_net, uneven_images, config, capsys):
    found = fixres_classifiers(config, tiny_net, uneven_images, [2.0, 2.0], Passes.of(config))
    assert "classes" not in capsys.readouterr().out
    assert torch.equal(found[0][0].bias, tiny_net.classifier.bias)


@pytest.mark.parametrize(("lr", "rises"), [(0.1, False), (1000.0, True)])
def test_a_learning_rate_that_is_too_high_is_said(tiny_net, uneven_images, config, capsys, lr, rises):
    wanted = replace(config, sizes=[24], fixres_lr=lr)
    fixres_classifiers(wanted, tiny_net, uneven_images, [2.0], Passes.of(config))
    lines = [line for line in capsys.readouterr().out.splitlines() if "cross-entropy" in line]
    assert [("fixres_lr is too high" in line) for line in lines] == [rises] * 2
