"""A toy batch is one of repeated augmentation, and its losses are those of a training."""

import numpy as np
import pytest
import torch
from support import one_line_error, write_picture

from mgkit.config import TrainConfig, make
from mgkit.data.layouts import class_folders
from mgkit.explore.toys.batch import COPIES, SAMPLES, ToyBatches, trained_toys
from mgkit.losses import JointLoss


@pytest.fixture
def toys(tiny_net, uneven_images):
    return ToyBatches(tiny_net, uneven_images, size=24, crop_scale=0.3)


@pytest.mark.parametrize("copies", COPIES)
def test_pairs_and_triplets(toys, copies):
    batch = toys.draw(copies)
    assert len(batch.pictures) == SAMPLES and len(set(batch.images)) == SAMPLES // copies
    assert all(len(set(batch.images[i : i + copies])) == 1 for i in range(0, SAMPLES, copies)), "side by side"
    assert batch.pairs == SAMPLES * (copies - 1) // 2 and batch.triplets == SAMPLES * (copies - 1)
    assert f"{SAMPLES // copies} images × {copies} cop" in batch.counts()
    for picture in batch.pictures:
        assert picture.shape == (24, 24, 3) and 0 <= picture.min() <= picture.max() <= 1
    assert len({picture.tobytes() for picture in batch.pictures}) == SAMPLES, "no copy is like another"


@pytest.mark.parametrize("copies", [2, 3])
def test_the_losses_are_those_of_the_joint_loss(toys, tiny_net, copies):
    batch = toys.draw(copies)
    mean, std = (torch.tensor(values)[:, None, None] for values in (tiny_net.mean, tiny_net.std))
    inputs = torch.stack([(torch.from_numpy(p).permute(2, 0, 1) - mean) / std for p in batch.pictures])
    with torch.no_grad():
        output = tiny_net(inputs)
    labels = torch.from_numpy(toys.dataset.images.labels[batch.images])
    found = JointLoss(0.3)(
        output, labels, torch.tensor(batch.images), generator=torch.Generator().manual_seed(0)
    )
    assert batch.cross_entropy.item() == pytest.approx(found["cross_entropy"].item(), abs=1e-3)
    assert batch.margin.item() == pytest.approx(found["margin"].item(), abs=1e-3)
    assert batch.loss(0.3) == pytest.approx(found["loss"].item(), abs=1e-3)


def test_the_share_of_the_classes_grows_with_lambda(toys):
    batch = toys.draw(3)
    shares = [batch.share(lambda_) for lambda_ in np.linspace(0, 1, 11)]
    assert shares[0] == 0 and shares[-1] == 1 and all(np.diff(shares) > 0)
    g, h = (
        torch.autograd.grad(loss, batch.embedding, retain_graph=True)[0].norm(dim=1).mean().item()
        for loss in (batch.cross_entropy, batch.margin)
    )
    assert shares[3] == pytest.approx(0.3 * g / (0.3 * g + 0.7 * h), abs=1e-5)


def test_without_copies_the_classes_pull_alone(toys):
    batch = toys.draw(1)
    assert batch.triplets == 0 and batch.margin.item() == 0 and batch.share(0.1) == 1
    assert batch.loss(0.5) == pytest.approx(batch.cross_entropy.item() / 2)


def test_batches_by_number(toys):
    assert toys.draw(3).images == toys.draw(3).images
    assert np.array_equal(toys.draw(3).pictures, toys.draw(3).pictures)
    assert toys.draw(3).images != toys.draw(3, number=1).images


def test_the_network_stays_as_it_is(tiny_net, uneven_images):
    before = {key: value.clone() for key, value in tiny_net.state_dict().items()}
    ToyBatches(tiny_net.train(), uneven_images, size=24).draw(2)
    assert all(torch.equal(value, before[key]) for key, value in tiny_net.state_dict().items())
    assert all(parameter.grad is None for parameter in tiny_net.parameters())


def test_fewer_images_than_samples(tiny_net, uneven_images):
    few = uneven_images.subset([0, 9])
    batch = ToyBatches(tiny_net, few, size=24).draw(3)
    assert len(batch.pictures) == SAMPLES and batch.triplets >= 24
    assert np.isfinite(batch.loss(0.5))


def test_copies_that_do_not_divide_are_an_error(toys):
    with one_line_error(ValueError, "copies", 5):
        toys.draw(5)


def test_an_unreadable_image_makes_a_smaller_batch(tiny_net, tmp_path):
    for seed, name in enumerate(["a/0.png", "a/1.png", "b/0.png", "b/1.png"]):
        write_picture(tmp_path / name, seed=seed)
    (tmp_path / "a" / "1.png").write_bytes(b"no image")
    batch = ToyBatches(tiny_net, class_folders(tmp_path), size=16).draw(3)
    assert len(batch.pictures) == 9 and 1 not in batch.images
    assert batch.triplets == 18 and "9 samples are 3 images" in batch.counts()


def test_the_toys_of_a_training(chain, mini_root):
    config = make(TrainConfig, {"experiment": "t", "data": str(mini_root), "size": 32})
    toys = trained_toys(config, chain.folder / "outputs" / "t" / "train" / "checkpoint.pth", beta=0.9)
    assert len(toys.dataset) == 72 and toys.loss.margin_loss.beta.item() == pytest.approx(0.9)
    batch = toys.draw(3)
    assert batch.pictures[0].shape == (32, 32, 3) and batch.cross_entropy.item() < 12
