"""A training of the kit makes the steps of a plain loop that is written from the paper, in float64.

The loop gets the batches that the training drew, and the same random numbers, and shares only the backbone's
modules with the kit: GeM, losses, negatives and SGD are written out.
"""

import copy
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
from support import training_config, write_picture

from mgkit.checkpoints import load_checkpoint
from mgkit.config import TrainConfig
from mgkit.data.loader import Batch
from mgkit.engine.loop import Training
from mgkit.engine.run import json_lines
from mgkit.model import MultiGrain
from mgkit.stages.train import run_training

STEPS = 54  # 18 an epoch
CLOSE = 1e-9  # relative; of the losses of 54 steps, rounding changes 1e-11, of the last weights 1e-10


# --- The method, from sections 3.2 to 3.4 and appendix B


def plain_loop(net, epochs, config):
    """Train `net` on the batches of `epochs`; yields what steps.jsonl has of every step."""
    net.train()
    beta = torch.tensor(config.beta, requires_grad=True)
    weights = [*net.features.parameters(), *net.classifier.parameters(), beta]
    velocity = [torch.zeros_like(w) for w in weights]
    step = 0
    for epoch, batches in enumerate(epochs):
        lr = config.lr * config.lr_gamma ** sum(epoch > drop for drop in config.lr_drops)
        for images, label, instance, _ in batches:
            maps = net.features(images).clamp(min=1e-6)  # [B,C,h,w]
            e = (maps**config.p).mean((2, 3)) ** (1 / config.p)  # [B,C]
            scores = e @ net.classifier.weight.T + net.classifier.bias  # [B,K]
            classes = (scores.logsumexp(1) - scores[range(len(label)), label]).mean()
            instances = 0 * beta
            if config.lambda_ < 1:
                unit = e / (e.norm(dim=1, keepdim=True) + 1e-6)
                instances = plain_margin_loss(unit, instance, beta, config, step)
            loss = config.lambda_ * classes + (1 - config.lambda_) * instances

            gradients = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                for w, v, gradient in zip(weights, velocity, gradients, strict=True):
                    decay, rate = (0, config.beta_lr) if w is beta else (config.weight_decay, 1)
                    v.mul_(config.momentum).add_(gradient + decay * w)
                    w -= lr * rate * v
            step += 1
            values = {"loss": loss, "cross_entropy": classes, "margin": instances, "beta": beta}
            yield {"step": step, "lr": lr} | {name: value.item() for name, value in values.items()}


def plain_margin_loss(e, instance, beta, config, step):
    """The mean of the non-zero terms, one pair after the other: e [B,D], instance [B] -> scalar."""
    draw = np.random.SeedSequence((config.seed, step, 0)).generate_state(1, np.uint64)[0]
    noise = torch.empty(len(e), len(e)).exponential_(generator=torch.Generator().manual_seed(int(draw) >> 1))
    terms = []
    for anchor in range(len(e)):
        square = (e - e[anchor]).square().sum(1)  # [B]
        distance = (square + 1e-8).sqrt()  # as in the released code: its gradient is finite
        other = instance != instance[anchor]
        negatives = plain_negatives(square.detach().sqrt(), other, e.shape[1], noise[anchor])
        positives = [k for k in range(len(e)) if k != anchor and not other[k]]
        assert len(positives) <= len(negatives)
        terms += [distance[k] - beta + config.margin for k in positives]
        terms += [beta - distance[k] + config.margin for k in negatives[: len(positives)]]
    violating = [term for term in terms if term > 0]
    return sum(violating) / max(1, len(violating))


def plain_negatives(distance, other, dimension, noise):
    """An anchor's negatives, in the order of a draw without replacement with probabilities ∝ 1/q(d)."""
    d = distance.clamp(min=0.5)
    q = d ** (dimension - 2) * (1 - d**2 / 4) ** ((dimension - 3) / 2)
    weight = other * (d < 1.4) / q
    # Of exponential waiting times, the first to end are such a draw.
    return [k for k in (noise / weight).argsort().tolist() if weight[k] > 0]


# --- The training of the kit


@dataclass
class Run:
    """A training that was run.

    start: the network before its first step.
    epochs: the batches of each epoch.
    labels: of all images.
    lines, metrics: of steps.jsonl and of metrics.jsonl.
    content: of checkpoint.pth.
    """

    config: TrainConfig
    start: MultiGrain
    epochs: list[list[Batch]]
    labels: list[int]
    lines: list[dict]
    metrics: list[dict]
    content: dict


def trained(config, patch):
    """Run a training in this process, and note its batches."""
    start, epochs, labels = [], [], []

    class Noted(Training):
        def __init__(self, config, net, images, *others):
            start.append(copy.deepcopy(net))
            labels.extend(images[0].labels.tolist())
            super().__init__(config, net, images, *others)

        def epoch(self, epoch):
            epochs.append([])
            super().epoch(epoch)

        def step(self, batch, parts):
            epochs[-1].append(batch._replace(image=batch.image.clone(memory_format=torch.channels_last)))
            super().step(batch, parts)

    patch.setattr("mgkit.stages.train.Training", Noted)
    checkpoint = run_training(config)
    logs = (list(json_lines(checkpoint.with_name(name))) for name in ("steps.jsonl", "metrics.jsonl"))
    return Run(config, *start, epochs, labels, *logs, load_checkpoint(checkpoint))


@pytest.fixture(scope="module")
def in_float64():
    """Networks, images, losses and random numbers are float64, on the CPU; gives the patches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        patch.setattr("mgkit.data.loader.default_collate", lambda images: torch.stack(images).double())
        for module in ("device", "frozen"):
            patch.setattr(f"mgkit.machine.{module}.compute_dtype", lambda *_: torch.float64)
        patch.setattr("mgkit.engine.loop.pick_device", lambda: torch.device("cpu"))
        torch.set_default_dtype(torch.float64)
        yield patch
        torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def run_of(in_float64, tmp_path_factory):
    """A function that trains for three epochs of 122 samples of 21 images, and returns the Run.

    Copies of an image continue in the next batch, the last batch is smaller and ends within the copies of an
    image, and lr falls in the third epoch.
    """
    folder = tmp_path_factory.mktemp("plain")
    for seed in range(24):  # 21 for training
        split = "train" if seed < 21 else "val"
        write_picture(folder / split / f"{seed % 3}" / f"{seed}.png", seed=seed, size=(40, 32))
    in_float64.chdir(folder)

    @cache
    def run(lambda_):
        config = training_config(
            folder, experiment=f"{lambda_}", lambda_=lambda_, augmentation="torch", size=17, batch_size=7,
            len_factor=5.85, epochs=3, lr=0.02, lr_drops=[1], log_every=1,
        )  # fmt: skip
        return trained(config, in_float64)

    return run


def first_difference(run, net, config):
    """The first step, from 1, and the names of what differs there between run and loop; None for no step."""
    assert [line["step"] for line in run.lines] == list(range(1, STEPS + 1))
    for ours, plain in zip(run.lines, plain_loop(net, run.epochs, config), strict=True):
        wrong = {name for name, value in plain.items() if ours[name] != pytest.approx(value, rel=CLOSE)}
        if wrong:
            return ours["step"], wrong
    return None


@pytest.mark.parametrize("lambda_", [0.5, 1.0])
def test_a_training_makes_the_steps_of_a_plain_loop(run_of, lambda_):
    run = run_of(lambda_)
    net = copy.deepcopy(run.start)
    assert first_difference(run, net, run.config) is None
    state, before = run.content["model_state"], run.start.state_dict()
    assert state.keys() == before.keys()
    for name, plain in net.state_dict().items():  # weights and running statistics
        assert state[name].dtype == plain.dtype and state[name].dtype != torch.float32
        assert torch.allclose(state[name], plain, rtol=1e-8, atol=1e-8), name
        assert name == "pool.p" or not torch.equal(state[name], before[name]), name
    assert (run.content["extra"]["beta"].item() != run.config.beta) == (lambda_ < 1)


def test_the_comparison_finds_every_other_rule(run_of):
    run = run_of(0.5)
    for values, (step, name) in [
        ({"seed": 1}, (STEPS, "margin")),  # other negatives
        ({"p": 2.9}, (1, "cross_entropy")),
        ({"margin": 0.21}, (1, "margin")),
        ({"beta_lr": 0.1}, (1, "beta")),  # which the paper prints
        ({"momentum": 0.91}, (2, "beta")),
        ({"weight_decay": 2e-4}, (2, "loss")),
        ({"lr_drops": [0]}, (19, "lr")),
    ]:
        where, names = first_difference(run, copy.deepcopy(run.start), replace(run.config, **values))
        assert where <= step and name in names, values


def test_copies_are_side_by_side_and_images_in_random_permutations(run_of):
    run = run_of(0.5)
    images, orders = len(run.labels), []
    for batches in run.epochs:
        order = [k for batch in batches for k in batch.instance.tolist()]
        assert [len(batch.instance) for batch in batches] == [7] * 17 + [3]
        each = order[::3]
        assert order == [k for k in each for _ in range(3)][:122]
        for start in range(0, len(each), images):  # the last permutation is cut off
            part = each[start : start + images]
            assert len(set(part)) == len(part) and (len(part) < images or part != sorted(part))
        assert [k for batch in batches for k in batch.label.tolist()] == [run.labels[k] for k in order]
        pixels = {image.numpy().tobytes() for batch in batches for image in batch.image}
        assert len(pixels) == 122  # every copy is cropped anew
        orders.append(order)
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_the_losses_of_an_epoch_are_means_over_its_samples(run_of):
    run = run_of(0.5)
    assert len(run.metrics) == len(run.epochs)
    for k, (line, batches) in enumerate(zip(run.metrics, run.epochs, strict=True)):
        steps, samples = run.lines[18 * k : 18 * (k + 1)], [len(batch.label) for batch in batches]
        for name in ("loss", "cross_entropy", "margin"):
            mean = np.average([step[name] for step in steps], weights=samples)
            assert line[name] == pytest.approx(mean, rel=CLOSE)
