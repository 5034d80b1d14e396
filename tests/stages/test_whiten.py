"""03: the whitening of a network, what it leaves, and the check that folding keeps the classes."""

import numpy as np
import pytest
import torch
from support import one_line_error

from mgkit.checkpoints import load_checkpoint, save_checkpoint
from mgkit.config import WhitenConfig, make
from mgkit.data.layouts import labelled_images
from mgkit.engine.run import read_results
from mgkit.features import embed, pooled
from mgkit.finetune import set_p
from mgkit.model import get_multigrain
from mgkit.stages import whiten as module
from mgkit.stages.train import trained_network
from mgkit.stages.whiten import (
    check_folding,
    run_whitening,
    whiten_network,
    whitened_network,
    whitening_images,
)

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def config(mini_root, here):
    """A function that makes a config with an untrained network, but for the values given."""
    classes = labelled_images(mini_root)[0].classes
    torch.manual_seed(0)
    net = get_multigrain("resnet8", num_classes=len(classes))
    save_checkpoint(here / "net.pth", net, classes=classes)
    quick = {"experiment": "t", "data": str(mini_root), "checkpoint": "net.pth", "workers": 0}
    quick |= {"size": 32, "p": 2.0, "precision": "float32"}
    return lambda **values: make(WhitenConfig, quick | values)


def test_descriptors_are_whitened_as_by_numpy(config):
    """Centred, projected on principal components, divided by √variance; with shrunk variances."""
    found = whiten_network(config(shrinkage=0.25))
    before = set_p(trained_network(config())[0], 2.0)
    options = {"size": 32, "precision": "float32"}
    [rows] = pooled(before, whitening_images(config()), ps=[2.0], **options)  # [N,C]
    rows = np.concatenate([rows, np.ones_like(rows[:, :1])], axis=1, dtype=np.float64)  # [N,C+1]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    mean = rows.mean(0)
    values, vectors = np.linalg.eigh(np.cov(rows.T))
    np.testing.assert_allclose(found.variances[:20], values[::-1][:20], rtol=1e-3)
    shrunk = 0.75 * values + 0.25 * values.mean()
    expected = (rows - mean) @ vectors / np.sqrt(shrunk)
    ours = embed(found.net, whitening_images(config()), **options)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(ours @ ours.T, expected @ expected.T, atol=2e-3)  # whatever the signs


def test_the_checkpoint_and_the_results_tell_how_it_was_made(config, here):
    found = whiten_network(config())
    results, written = read_results(config()), load_checkpoint(found.checkpoint)
    assert found.checkpoint == here / "outputs/t/whiten/checkpoint.pth"
    assert (found.size, found.crop, found.p) == (32, "rect", 2.0)
    assert found.images == results["images"] == len(whitening_images(config()))
    assert results["variances"] == found.variances.tolist() and results["dimensions"] == len(found.variances)
    assert (written["p"], written["training_p"], written["size"]) == (2.0, 3.0, 32)
    assert tuple(written["classes"]) == trained_network(config())[0].classes
    again, _ = whitened_network(make(WhitenConfig, {"experiment": "t", "data": config().data}))
    state = found.net.state_dict()
    assert all(torch.equal(state[key], value) for key, value in again.state_dict().items())


def test_folding_keeps_the_classes(config):
    folding = whiten_network(config()).folding
    assert folding["same_class"] == 1 and folding["top1_before"] == folding["top1_after"]
    assert folding["relative_difference"] < 1e-3 and folding["val_images"] == 36


def test_a_classifier_that_was_not_folded_is_found(config):
    found = whiten_network(config())
    before = set_p(trained_network(config())[0], 2.0)
    with torch.no_grad():
        found.net.classifier.weight.copy_(torch.randn_like(found.net.classifier.weight))
    folding = check_folding(config(), before, found.net)
    assert folding["same_class"] < 1 and folding["relative_difference"] > 0.1


def test_without_labelled_images_the_check_is_left_out_in_a_line(config, mini_root, capsys):
    unlabelled = str(mini_root / "unlabelled/whiten")
    found = whiten_network(config(data=unlabelled, unlabelled=unlabelled))
    assert found.folding == {} and "not checked whether folding" in capsys.readouterr().out


def test_only_so_many_images_are_used_and_always_the_same(config):
    few = [whiten_network(config(images=20)) for _ in range(2)]
    assert few[0].images == 20 and np.array_equal(few[0].variances, few[1].variances)


def test_images_are_the_given_ones_or_those_for_whitening_or_for_training(config, mini_root):
    holidays = mini_root / "holidays/jpg"
    assert whitening_images(config(unlabelled=str(holidays))).root == holidays
    assert whitening_images(config()).root == mini_root / "unlabelled/whiten"
    training = whitening_images(config(data=str(mini_root / "imagenet")))
    assert len(training) == 72 and training.classes


def test_a_missing_folder_of_images_is_named(config, here):
    with one_line_error(FileNotFoundError, "nowhere"):
        whiten_network(config(unlabelled=str(here / "nowhere")))


def test_p_is_that_of_02_where_none_is_given(config, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "p_star", lambda config, net, **options: asked.append(options) or 1.5)
    found = whiten_network(config(p=None, crop="square"))
    assert asked == [{"size": 32, "crop": "square"}] and found.p == 1.5


def test_the_classes_of_a_published_network_are_kept(tiny_net, mini_root, here, monkeypatch, capsys):
    """They are the network's own: there is no checkpoint that names them."""
    tiny_net.classes = ("n01440764", "n01443537", "n01484850")
    monkeypatch.setattr(module, "trained_network", lambda config: (tiny_net, {}))
    values = {"experiment": "t", "data": str(mini_root), "size": 32, "p": 1.0, "workers": 0}
    run_whitening(make(WhitenConfig, values))
    content = load_checkpoint(here / "outputs/t/whiten/checkpoint.pth")
    assert content["classes"] == [*tiny_net.classes] and content["training_p"] == 3.0
    assert "not checked whether folding keeps the classes" in capsys.readouterr().out
