"""The loop of a training: several processes, and accumulated parts, make the steps of one process."""

import math
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from support import in_processes, one_line_error, training_config
from torch import nn
from torch.nn import functional as F

from mgkit.backbones.backbone import Backbone
from mgkit.data.decoding import UnreadableImageError
from mgkit.data.loader import Batch
from mgkit.engine.loop import NonFiniteError, Training, check_batch_norm
from mgkit.losses import MarginLoss, sample_triplets
from mgkit.machine.distributed import barrier, is_main, with_synchronised_batch_norm
from mgkit.model import get_multigrain
from mgkit.samplers import share
from mgkit.stages.inputs import training_data
from mgkit.stages.train import first_network
from mgkit.training import is_enough, means_of, parts_of, seed_of

pytestmark = pytest.mark.usefixtures("here")


# 27 steps an epoch of 12 samples, the last of 6.
config_of = partial(training_config, precision="float32", len_factor=4.5, lr=0.02)


class InFloat64(Training):
    """Makes steps in float64: differences are then differences in what is computed, not in rounding."""

    def step(self, batch, parts):
        super().step(batch._replace(image=batch.image.double()), parts)


def made(config, kind=Training):
    """A Training without a folder of its own."""
    images = training_data(config)
    net = first_network(config, images[0].classes)
    return kind(config, net.double() if kind is InFloat64 else net, images, None, None, lambda _: False)


def steps(config, count, kind=Training):
    """The losses of the first steps, and the parameters after them."""
    training = made(config, kind)
    training.train_mode()
    training.batches.set_epoch(0)
    losses = []
    for batch, counts in training.shares(training.loader):
        if len(losses) == count:
            break
        parts = parts_of(counts, config.accumulate)
        assert is_enough(parts, config.batch_norm)
        training.step(batch, parts)
        [sums] = training.recent.take().values()
        losses.append(sums["loss"] / sums["samples"])
    return losses, as_arrays(training)


def as_arrays(training):
    """The parameters, β among them, as arrays: tensors do not outlive the process that made them."""
    return [weight.detach().cpu().numpy().copy() for weight in (*training.net.parameters(), training.beta)]


def difference(ours, theirs):
    """The largest difference of two lists of arrays."""
    return max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True))


# In float32 without triplets: their probabilities multiply the rounding, and another may be drawn.
@pytest.mark.parametrize(
    ("kind", "count", "values", "close"),
    [(InFloat64, 6, {"lr": 0.02}, 1e-9), (Training, 10, {"lr": 0.0002, "lambda_": 1.0}, 1e-5)],
)
def test_one_two_and_three_processes_make_the_same_steps(mini_root, kind, count, values, close):
    config = config_of(mini_root, global_sampling=True, batch_norm="frozen", gradient_share_every=5, **values)
    losses, weights = steps(config, count, kind)
    assert len(losses) == count
    for processes in (2, 3):
        for their_losses, their_weights in in_processes(processes, steps, config, count, kind):
            assert their_losses == pytest.approx(losses, abs=close)
            assert difference(their_weights, weights) < close


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_with_synchronised_statistics_make_the_steps_of_one(mini_root):
    config = config_of(mini_root, global_sampling=True, batch_norm="sync")
    losses, weights = steps(config, 6, InFloat64)
    for their_losses, their_weights in in_processes(2, steps, config, 6, InFloat64):
        assert their_losses == pytest.approx(losses, abs=1e-9)
        assert difference(their_weights, weights) < 1e-9


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_on_a_cpu_a_process_alone_takes_synchronised_statistics_for_local_ones(mini_root):
    (losses, weights), (local_losses, local_weights) = (
        steps(config_of(mini_root, batch_norm=batch_norm), 3) for batch_norm in ("sync", "local")
    )
    assert losses == local_losses and difference(weights, local_weights) == 0


def test_synchronised_statistics_of_several_processes_need_gpus(monkeypatch):
    config = config_of("mini", batch_norm="sync")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_batch_norm(config, 1)
    with one_line_error(ValueError, "batch_norm", "sync", "GPU", "local or frozen"):
        check_batch_norm(config, 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_batch_norm(config, 2)


def emulated(config, count, processes):
    """`steps` with local negatives, plainly in one process: each share alone, gradients averaged."""
    training = made(config, InFloat64)
    net, beta = training.net, nn.Parameter(torch.tensor(config.beta))
    margin_loss = MarginLoss(margin=config.margin)
    margin_loss.beta = beta
    momenta = {}
    losses = []
    training.train_mode()
    training.batches.set_epoch(0)
    for step, batch in enumerate(training.loader):
        if step == count:
            break
        samples, loss = len(batch.label), 0.0
        for part in range(processes):
            mine = share(samples, part, processes)
            output = net(batch.image[mine].double().to(memory_format=torch.channels_last))
            generator = torch.Generator().manual_seed(seed_of(config.seed, step, part))
            e = output["normalized_embedding"]
            anchor, positive, negative = sample_triplets(e, batch.instance[mine], generator=generator)
            classes = F.cross_entropy(output["classifier_output"], batch.label[mine])
            instances = margin_loss(e[anchor], e[positive], e[negative])
            weight = len(batch.label[mine]) / samples
            loss = loss + weight * (config.lambda_ * classes + (1 - config.lambda_) * instances)
        weights = [w for w in net.parameters() if w.requires_grad]
        for w, gradient in zip([*weights, beta], torch.autograd.grad(loss, [*weights, beta]), strict=True):
            decayed = gradient + (0 if w is beta else config.weight_decay) * w.detach()
            momenta[w] = config.momentum * momenta[w] + decayed if w in momenta else decayed
            w.data -= config.lr * momenta[w]
        losses.append(loss.item())
    training.beta.data.copy_(beta)
    return losses, as_arrays(training)


@pytest.mark.parametrize("processes", [2, 3])
def test_local_negatives_are_those_of_a_plain_emulation_on_one_process(mini_root, processes):
    config = config_of(
        mini_root, batch_norm="frozen", lr=0.0002, batch_size=13
    )  # shares of 6 and 7, or 4, 4 and 5
    expected_losses, expected_weights = emulated(config, 10, processes)
    for losses, weights in in_processes(processes, steps, config, 10, InFloat64):
        assert losses == pytest.approx(expected_losses, abs=1e-6)  # β is in float32
        assert difference(weights, expected_weights) < 1e-6


def test_accumulated_parts_are_as_many_processes(mini_root):
    values = {"batch_norm": "frozen", "lr": 0.0002}
    one = steps(config_of(mini_root, accumulate=4, **values), 6, InFloat64)
    [two, _] = in_processes(2, steps, config_of(mini_root, accumulate=2, **values), 6, InFloat64)
    assert one[0] == pytest.approx(two[0], abs=1e-6)  # β is in float32
    assert difference(one[1], two[1]) < 1e-6


def joint_gradients(config):
    """The gradients of one step, of this process's view."""
    training = made(config, InFloat64)
    training.train_mode()
    training.batches.set_epoch(0)
    batch, counts = next(training.shares(training.loader))
    training.step(batch, parts_of(counts, 1))
    weights = [w for w in (*training.net.parameters(), training.beta) if w.grad is not None]
    return [w.grad.numpy().copy() for w in weights]


@pytest.mark.parametrize("processes", [2, 3])
def test_gradients_of_the_gathered_loss_are_those_of_the_whole_batch(mini_root, processes):
    config = config_of(mini_root, global_sampling=True, batch_norm="frozen", lambda_=0.25, batch_size=14)
    alone = joint_gradients(config)
    for gradients in in_processes(processes, joint_gradients, config):
        assert len(gradients) == len(alone)
        assert difference(gradients, alone) < 1e-10


def test_gradients_that_are_no_numbers_stop_the_training_and_name_the_step(mini_root, monkeypatch):
    training = made(config_of(mini_root))
    training.train_mode()
    training.batches.set_epoch(0)
    batches = iter(training.loader)
    batch = next(batches)
    training.step(batch, [[len(batch.label)]])
    batch = next(batches)
    broken = Batch(batch.image * math.nan, *batch[1:])
    training.step(broken, [[len(batch.label)]])
    with one_line_error(NonFiniteError, "step 2", "lr 0.02", "no checkpoint yet"):
        training.flush()


def test_weights_that_are_no_numbers_are_not_saved(mini_root):
    training = made(config_of(mini_root))
    training.net.classifier.bias.data[0] = math.inf
    with one_line_error(NonFiniteError, "a weight after step 0", "classifier.bias"):
        training.save()


def test_beta_and_running_statistics_that_are_no_numbers_are_not_saved(mini_root):
    for name in ("beta", "features.bn1.running_var"):
        training = made(config_of(mini_root))
        broken = training.beta if name == "beta" else training.net.features.bn1.running_var
        broken.data.fill_(math.nan)
        with one_line_error(NonFiniteError, name):
            training.save()


def test_frozen_batch_norm_keeps_its_statistics_and_learns_its_scales(mini_root):
    training = made(config_of(mini_root, batch_norm="frozen"))
    norm = training.net.features.bn1
    before = norm.running_mean.clone(), norm.weight.detach().clone()
    training.train_mode()
    batch = next(iter(training.loader))
    training.step(batch, [[len(batch.label)]])
    assert torch.equal(norm.running_mean, before[0]) and not torch.equal(norm.weight, before[1])


def test_the_gradient_share_is_noted_at_the_chosen_steps(mini_root):
    training = made(config_of(mini_root, gradient_share_every=2))
    training.train_mode()
    shares = []
    for batch, _ in zip(training.loader, range(4), strict=False):
        training.step(batch, [[len(batch.label)]])
        [sums] = training.recent.take().values()
        shares.append(means_of(sums).get("gradient_share"))
    assert shares[1] is None and shares[3] is None
    assert 0 < shares[0] < 1 and 0 < shares[2] < 1


def test_dropout_is_drawn_anew_at_each_step_and_the_same_again(mini_root):
    def drawn(step):
        training = made(
            config_of(mini_root, batch_norm="frozen", lr=0.0, beta_lr=0.0, lambda_=1.0, repetitions=1)
        )
        training.net.dropout = nn.Dropout(0.5)
        training.train_mode()
        batch = next(iter(training.loader))
        training.position.step = step
        training.step(batch, [[len(batch.label)]])
        [sums] = training.recent.take().values()
        return sums["loss"]

    assert drawn(3) == drawn(3) != drawn(4)


def test_resnets_with_synchronised_statistics_keep_their_names():
    net = get_multigrain("resnet8", num_classes=3)
    names = list(net.state_dict())
    assert list(with_synchronised_batch_norm(net).state_dict()) == names


def test_a_batch_too_small_for_its_processes_and_parts_is_refused(mini_root):
    with one_line_error(ValueError, "batch_size 3", "2 parts"):
        made(config_of(mini_root, batch_size=3, accumulate=2))
    made(config_of(mini_root, batch_size=3, accumulate=3, batch_norm="sync"))


def test_synchronised_statistics_are_refused_where_they_cannot_be(mini_root):
    with one_line_error(ValueError, "batch_norm=sync", "BatchNormAct2d", "frozen"):
        made(config_of(mini_root, backbone="timm/efficientnet_b0", batch_norm="sync"))


def failing_validation(config):
    training = made(config)
    training.train_mode()
    training.step(*next((batch, parts_of(counts, 1)) for batch, counts in training.shares(training.loader)))
    training.flush()
    if is_main():
        Path(training.val_images.paths[0]).write_bytes(b"no image")
    barrier()
    with pytest.raises(UnreadableImageError, match="cannot read the image"):
        training.end_epoch()


def test_what_fails_in_the_validation_of_one_process_is_raised_by_all(mini_root, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(mini_root / "imagenet", data)
    in_processes(2, failing_validation, config_of(data, batch_size=12))


@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_makes_the_same_steps(mini_root, tmp_path, monkeypatch):
    # What was compiled for another processor, and is cached in the temporary folder, may not compile here.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))

    def one_convolution(*_, **__):  # compiled in a fraction of the time that a ResNet takes
        features = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4), nn.BatchNorm2d(8), nn.ReLU())
        return Backbone("one", features, 8)

    monkeypatch.setattr("mgkit.model.build_backbone", one_convolution)
    values = {"batch_norm": "frozen", "lr": 0.0002, "lambda_": 1.0}
    (losses, weights), (compiled_losses, compiled_weights) = (
        steps(config_of(mini_root, compile=compiled, **values), 3) for compiled in (False, True)
    )
    assert compiled_losses == pytest.approx(losses, abs=1e-4)
    assert difference(compiled_weights, weights) < 1e-4
