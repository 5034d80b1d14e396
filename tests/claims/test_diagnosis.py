"""The diagnosis of an embedding: known distances and ranks."""

import numpy as np
import pytest
import torch
from support import training_config

from mgkit.claims.diagnosis import BATCHES, DrawnBatches, diagnosis, drawn_uniformly, effective_rank
from mgkit.model import get_multigrain
from mgkit.stages.inputs import training_data

pytestmark = pytest.mark.usefixtures("here")


def test_the_effective_rank_counts_equal_directions():
    rng = np.random.default_rng(0)
    rows = np.zeros((4000, 10))
    rows[:, :4] = rng.normal(size=(4000, 4))
    assert effective_rank(rows + 5) == pytest.approx(4, abs=0.05)
    assert effective_rank(np.ones((5, 3))) == 1


def test_a_collapsed_embedding_has_no_distances(mini_root):
    config = training_config(mini_root, len_factor=10.0)
    net = get_multigrain("resnet8", p=3.0, num_classes=4)
    with torch.no_grad():  # whatever the image, the embedding is the bias of the last batch norm
        for name, weight in net.named_parameters():
            if "layer3" in name and "bn2" in name:
                weight.fill_(0.0 if name.endswith("weight") else 1.0)
            if "layer3" in name and "downsample.1" in name:
                weight.fill_(0.0)
    found = diagnosis(net, 1.2, DrawnBatches(training_data(config)[0]), config)
    assert found["distance"] == pytest.approx(0, abs=1e-3)
    assert found["effective rank"] == pytest.approx(1, abs=1.0)
    assert found["positives that cost"] == 0 and found["negatives that cost"] == 1


def test_a_row_whose_weights_vanish_beside_a_close_pair_is_drawn_uniformly():
    """In 256 dimensions, 1/d^254 of a negative at 1.2 is below float32 beside one at 0.5."""
    close, far = torch.zeros(4, 256), torch.zeros(4, 256)
    for k, rows in enumerate((close, far)):
        rows[:, 0] = 1.0
        for row in range(4):
            rows[row, 1 + 4 * k + row] = 0.36 if k == 0 else 1.2
    e = torch.nn.functional.normalize(torch.cat([close, far]))
    instance = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7])
    uniform = drawn_uniformly(e, instance)
    assert not uniform[:4].any() and uniform[4:].all()


def test_an_arm_without_the_margin_loss_has_no_costs_but_distances(mini_root):
    config = training_config(mini_root, lambda_=1.0, repetitions=1, len_factor=10.0)
    net = get_multigrain("resnet8", p=3.0, num_classes=4)
    found = diagnosis(net, 1.2, DrawnBatches(training_data(config)[0]), config)
    distances = {"positive distance", "negative distance", "distance"}
    assert set(found) == {*distances, "drawn uniformly", "effective rank"}
    assert 0 < found["positive distance"] < found["negative distance"]
    assert BATCHES * config.batch_size / 3 >= found["effective rank"] > 1


def test_arms_of_one_seed_share_batches_and_get_the_same_values(mini_root, monkeypatch):
    """Whether they are shared or drawn anew; another seed has others."""
    joint = training_config(mini_root, len_factor=10.0)
    plain = training_config(mini_root, len_factor=10.0, lambda_=1.0, repetitions=1)
    other = training_config(mini_root, len_factor=10.0, seed=joint.seed + 1)
    images = training_data(joint)[0]
    monkeypatch.setattr("mgkit.claims.diagnosis.BATCHES", 2)
    torch.manual_seed(0)
    net = get_multigrain("resnet8", p=3.0, num_classes=4)
    shared = DrawnBatches(images)
    found = [diagnosis(net, 1.2, shared, config) for config in (joint, plain, other)]
    assert shared.draw(net, other) is shared.kept
    assert found == [diagnosis(net, 1.2, DrawnBatches(images), config) for config in (joint, plain, other)]
    assert found[0]["distance"] == found[1]["distance"] != found[2]["distance"]
    monkeypatch.setattr("mgkit.claims.diagnosis.MOST_KEPT", 0)
    assert diagnosis(net, 1.2, shared, plain) == found[1]
    assert not shared.kept
