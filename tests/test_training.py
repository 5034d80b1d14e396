"""The training step, its parts of a batch, learning rate, optimizer and batches."""

import copy

import pytest
import torch
from support import training_config
from torch.nn import functional as F

from mgkit import training as module
from mgkit.data.loader import Batch
from mgkit.losses import JointLoss, sample_triplets
from mgkit.model import get_multigrain
from mgkit.stages.inputs import training_data
from mgkit.training import (
    STATISTICS,
    Objective,
    build_optimizer,
    epoch_batches,
    is_enough,
    learning_rate,
    means_of,
    parts_of,
    seed_of,
    set_learning_rate,
    train_step,
)


def made_up_batches(steps, *, images=4, repetitions=2, size=16, classes=5):
    """Batches of noisy copies of random images, in float64, side by side."""
    random = torch.Generator().manual_seed(0)
    for _ in range(steps):
        originals = torch.randn(images, 3, size, size, generator=random, dtype=torch.float64)
        label = torch.randint(classes, (images,), generator=random)
        instance = torch.arange(images).repeat_interleave(repetitions)
        copies = originals[instance] + 0.5 * torch.randn(
            len(instance), 3, size, size, generator=random, dtype=torch.float64
        )
        yield Batch(copies.to(memory_format=torch.channels_last), label[instance], instance, [])


def plain_losses(net, beta, batches, config):
    """Train as in the paper: SGD on λ · cross-entropy + (1-λ) · margin loss; yields losses (section 3)."""
    net.train()
    weights = [w for w in net.parameters() if w.requires_grad]
    factors = {w: config.backbone_lr for w in net.features.parameters()} | {beta: config.beta_lr}
    velocity = {w: torch.zeros_like(w) for w in [*weights, beta]}
    for step, (images, label, instance, _) in enumerate(batches):
        output = net(images)
        logits, e = output["classifier_output"], output["normalized_embedding"]  # [B,K], [B,C]
        cross_entropy = F.cross_entropy(logits, label)

        generator = torch.Generator().manual_seed(seed_of(config.seed, step, 0))
        anchor, positive, negative = sample_triplets(e, instance, generator=generator)
        d_ap, d_an = (((e[anchor] - e[k]).square().sum(1) + 1e-8).sqrt() for k in (positive, negative))
        terms = torch.cat([d_ap - beta + config.margin, beta - d_an + config.margin])
        margin = terms[terms > 0].mean()

        loss = config.lambda_ * cross_entropy + (1 - config.lambda_) * margin
        gradients = torch.autograd.grad(loss, [*weights, beta])
        with torch.no_grad():
            for w, gradient in zip([*weights, beta], gradients, strict=True):
                decay, lr = 0 if w is beta else config.weight_decay, config.lr * factors.get(w, 1.0)
                velocity[w] = config.momentum * velocity[w] + gradient + decay * w
                w -= lr * velocity[w]
        yield loss.item()


def test_fifty_steps_are_those_of_a_plain_loop():
    config = training_config(
        "unused", lambda_=0.4, lr=0.02, backbone_lr=0.7, beta_lr=0.5, weight_decay=1e-3, precision="float32"
    )
    torch.manual_seed(0)
    net = get_multigrain("resnet8", num_classes=5).double()
    loss = JointLoss(config.lambda_, beta=config.beta, margin=config.margin).double()
    beta = loss.margin_loss.beta.detach().clone().requires_grad_()
    expected = list(plain_losses(copy.deepcopy(net), beta, made_up_batches(50), config))

    optimizer = build_optimizer(net, loss, config)
    set_learning_rate(optimizer, config, epoch=0)
    objective = Objective(net.train(), loss, global_sampling=False, precision=config.precision)
    losses = []
    for step, batch in enumerate(made_up_batches(50)):
        sums = train_step(objective, optimizer, batch, [[len(batch.label)]], step=step, config=config)
        losses.append(means_of(dict(zip(STATISTICS, sums.tolist(), strict=True)))["loss"])
    assert losses == pytest.approx(expected, abs=1e-9)
    assert loss.margin_loss.beta.item() == pytest.approx(beta.item(), abs=1e-9)
    assert beta.item() != pytest.approx(config.beta, abs=1e-3)  # it was trained


def test_the_learning_rate_drops_after_the_epochs_of_the_released_loop(config):
    released = config(lr=0.2, lr_drops=[30, 60, 90])
    expected = {0: 0.2, 30: 0.2, 31: 0.02, 60: 0.02, 61: 0.002, 90: 0.002, 91: 0.0002, 119: 0.0002}
    assert {epoch: learning_rate(released, epoch) for epoch in expected} == pytest.approx(expected)


def test_the_backbone_and_beta_have_their_own_rates_and_beta_no_weight_decay(config):
    settings = config(lr=0.2, backbone_lr=0.5, beta_lr=0.1, weight_decay=1e-4, lr_drops=[0])
    net, loss = get_multigrain("resnet8", num_classes=12), JointLoss()
    optimizer = build_optimizer(net, loss, settings)
    expected = [  # parameters, factor of lr, weight decay
        (net.classifier.parameters(), 1.0, 1e-4),
        (net.features.parameters(), 0.5, 1e-4),
        ([loss.margin_loss.beta], 0.1, 0.0),
    ]
    for group, (weights, factor, decay) in zip(optimizer.param_groups, expected, strict=True):
        assert {id(w) for w in group["params"]} == {id(w) for w in weights}
        assert group["weight_decay"] == decay
        for epoch, rate in [(0, 0.2), (1, 0.02)]:
            set_learning_rate(optimizer, settings, epoch)
            assert group["lr"] == pytest.approx(factor * rate)


def test_parts_are_contiguous_shares_of_each_process():
    assert parts_of([12, 11], 1) == [[12, 11]]
    assert parts_of([12, 11], 3) == [[4, 3], [4, 4], [4, 4]]
    assert parts_of([2], 4) == [[0], [1], [0], [1]]


def test_a_step_needs_samples_on_every_process_and_two_for_local_statistics():
    assert is_enough([[2, 2]], "local") and not is_enough([[2, 1]], "local")
    assert is_enough([[2, 1]], "sync") and is_enough([[1, 1]], "frozen")
    assert not is_enough([[2, 0]], "sync") and not is_enough([[1]], "frozen")


def test_the_seeds_of_samples_do_not_depend_on_the_number_of_processes(config, monkeypatch):
    settings = config(batch_size=13)
    images, _ = training_data(settings)
    alone = list(epoch_batches(images, settings))
    shared = []
    for which in range(3):
        monkeypatch.setattr(module, "rank", lambda which=which: which)
        monkeypatch.setattr(module, "world_size", lambda: 3)
        shared.append(list(epoch_batches(images, settings)))
    assert [sum(parts, []) for parts in zip(*shared, strict=True)] == alone


def test_an_epoch_may_start_at_any_batch(config):
    settings = config(len_factor=4.5)
    images, _ = training_data(settings)
    batches = epoch_batches(images, settings)
    batches.set_epoch(3)
    whole = list(batches)
    batches.set_epoch(3, skip=5)
    assert list(batches) == whole[5:] and len(batches) == len(whole) - 5


def test_the_learning_rate_may_be_meant_for_another_batch(config):
    settings = config(lr=0.2, batch_size=24, lr_batch_size=12, lr_drops=[0])
    assert learning_rate(settings, 0) == pytest.approx(0.4)
    assert learning_rate(settings, 1) == pytest.approx(0.04)
