"""The method on a device without float64, by a stand-in for MPS: the same values as on the CPU."""

import copy

import numpy as np
import pytest
import torch
from mps_stand_in import CPU, MPS, on_mps
from support import training_config

from mgkit.engine.loop import Training, validate
from mgkit.explore.repooling import match
from mgkit.features import Passes, classify, embed, feature_maps
from mgkit.finetune import finetune_p, sweep_hits
from mgkit.losses import sample_triplets
from mgkit.machine.device import pick_device, place, to_float64
from mgkit.metrics import topk_accuracy
from mgkit.model import append_one
from mgkit.retrieval.search import top_k
from mgkit.stages.inputs import training_data
from mgkit.stages.train import first_network
from mgkit.training import STATISTICS, parts_of
from mgkit.whitening import fit_pca_whitening, moments, whiten


def on_both(work):
    """What `work` returns with a device: on the CPU, then on MPS, and the functions called there."""
    expected = work(CPU)
    with on_mps() as mode:
        return expected, work(MPS), mode.names


def test_the_stand_in_fails_as_mps_does():
    with on_mps():
        x = torch.ones(2, 3).to(pick_device())
        assert x.device == MPS and (x @ x.T).device == MPS and x.cpu().device == CPU
        for wrong in (
            x.double, lambda: x.to(CPU, torch.float64), lambda: x.sum(0, dtype=torch.float64), x.numpy,
            lambda: torch.zeros(2, dtype=torch.float64, device=MPS), lambda: torch.ones(2).double().to(MPS),
        ):  # fmt: skip
            with pytest.raises(TypeError):
                wrong()
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(2, 3)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_steps_and_validation_are_those_of_the_cpu(mini_root, accumulate):
    config = training_config(
        mini_root, repetitions=3, precision="float32", gradient_share_every=1, accumulate=accumulate
    )

    def train(device):
        images = training_data(config)
        net = first_network(config, images[0].classes)
        training = Training(config, net, images, None, None, lambda step: False)
        assert training.device.type == device.type
        training.batches.set_epoch(0)
        training.train_mode()
        shares = training.shares(training.loader)
        for _ in range(2):
            batch, counts = next(shares)
            training.step(batch, parts_of(counts, accumulate))
        shares.close()
        sums = training.recent.take()
        validated = validate(training.net, images[1], config, training.unreadable)
        return sums, validated, [w.detach().cpu() for w in training.net.parameters()]

    (sums, validated, weights), ours, names = on_both(train)
    assert {"conv2d", "exponential_", "backward", "nonzero"} <= names
    assert ours[1] == pytest.approx(validated, rel=1e-3)
    for step, expected in sums.items():
        assert {*ours[0][step]} == {*STATISTICS} and ours[0][step]["margin"] > 0
        assert ours[0][step] == pytest.approx(expected, rel=1e-4)
    for weight, expected in zip(ours[2], weights, strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-3, atol=1e-3)


def test_the_least_probable_negatives_are_drawn_as_on_the_cpu():
    e = torch.nn.functional.normalize(torch.randn(24, 512, generator=torch.Generator().manual_seed(0)))
    instance = torch.arange(8).repeat_interleave(3)

    def sample(device):
        generator = torch.Generator(device).manual_seed(1)
        triplets = sample_triplets(e.to(device), instance.to(device), generator)
        assert all(index.device == device for index in triplets)
        return torch.stack(triplets).cpu()

    expected, ours, _ = on_both(sample)
    assert torch.equal(ours, expected)


def test_descriptors_classes_p_star_and_the_sweep_are_those_of_the_cpu(tiny_net, uneven_images):
    def measure(device):
        net = place(copy.deepcopy(tiny_net), device)
        options = {"size": 32, "precision": "float32"}
        found = [embed(net, uneven_images, ps=[1.0, 3.0], **options)]
        found += [classify(net, uneven_images, **options)[0]]
        sizes = {"sizes": [32, 48], "ps": [1.0, 3.0, float("inf")], "precision": "float32"}
        found += [sweep_hits(net, uneven_images, **sizes)]
        found += [finetune_p(net, uneven_images, lr=0.1, **options)]
        passes = Passes(precision="float32")
        maps = next(feature_maps(net, uneven_images, size=32, passes=passes))[0]
        shown = match(maps[0], maps[1], 3.0)
        return [*map(np.asarray, found), shown.first, shown.second, topk_accuracy_of(net, uneven_images)]

    expected, ours, _ = on_both(measure)
    for x, y in zip(ours, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)


def topk_accuracy_of(net, images):
    """Top-1 of made-up embeddings, from logits on the network's device."""
    device = net.classifier.weight.device
    rows = torch.rand(len(images), net.width, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        logits = net.head(rows)["classifier_output"]
    return topk_accuracy(logits, torch.from_numpy(images.labels).to(device), ks=(1,))


def test_a_whitening_is_fitted_and_folded_as_on_the_cpu(tiny_net):
    rows = torch.rand(300, 8, generator=torch.Generator().manual_seed(0))

    def fold(device):
        net = place(copy.deepcopy(tiny_net), device)
        descriptors = append_one(rows.to(device))
        fitted = fit_pca_whitening(descriptors)
        whitened = whiten(net, *fitted)
        on_device = [*fitted, *whitened.parameters(), *whitened.buffers()]
        assert all(x.device == device and x.dtype != torch.float64 for x in on_device)
        assert all(x.dtype == torch.float64 for x in moments(descriptors))
        with torch.no_grad():
            return [x.cpu() for x in (*fitted, *whitened.head(rows.to(device)).values())]

    expected, ours, names = on_both(fold)
    for x, y in zip(ours, expected, strict=True):
        assert torch.equal(x, y)
    assert "cpu" in names


def test_the_fit_of_rows_on_the_cpu_is_folded_into_a_network_on_mps(tiny_net):
    fitted = fit_pca_whitening(append_one(torch.rand(300, 8, generator=torch.Generator().manual_seed(0))))
    expected = whiten(tiny_net, *fitted).classifier.weight
    with on_mps():
        weight = whiten(place(tiny_net, MPS), *fitted).classifier.weight
        assert weight.device == MPS and torch.equal(weight.cpu(), expected)


def test_the_nearest_rows_are_those_of_the_cpu():
    rows = np.random.default_rng(0).standard_normal((50, 6), dtype=np.float32)
    expected, ours, _ = on_both(lambda device: top_k(rows[:5], rows, k=7, device=device))
    for x, y in zip(ours, expected, strict=True):
        np.testing.assert_array_equal(x, y)


def test_float64_is_on_the_cpu_where_the_device_has_none():
    assert to_float64(torch.ones(2)).dtype == torch.float64
    with on_mps():
        doubled = to_float64(torch.ones(2).to(MPS))
        assert doubled.device == CPU and doubled.dtype == torch.float64
