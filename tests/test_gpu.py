"""What a GPU computes, beside what the CPU computes.

The tests with a parameter `device` run on the CPU too, where they only show that they work. Those marked
`gpu` are skipped without a CUDA device; `make gpu` runs them.
"""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from support import training_config, with_noise, write_picture
from torch import nn
from torch.multiprocessing import start_processes

from mgkit.data.layouts import plain_images
from mgkit.data.loader import Batch, ImageDataset, SeededBatches, batch_loader
from mgkit.engine.loop import in_parallel
from mgkit.features import embed, frozen_backbone
from mgkit.finetune import finetune_p, set_p, sweep_hits
from mgkit.losses import JointLoss
from mgkit.machine.device import autocast, place, to_device
from mgkit.machine.distributed import backend_of, with_synchronised_batch_norm
from mgkit.model import get_multigrain
from mgkit.training import build_optimizer, train_step
from mgkit.transforms import eval_transform, train_transform
from mgkit.whitening import fit_pca_whitening, whiten

CPU = torch.device("cpu")
SAMPLES, CLASSES = 12, 5


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def without_tf32():
    """Convolutions in float32 have 24 bits on a GPU too."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return with_noise(get_multigrain("resnet8", num_classes=CLASSES)).to(dtype)


def made_up_batch(dtype=torch.float32):
    """All samples but the last are copies of one image: the last is their only possible negative.

    So the triplets do not depend on random numbers, which differ between a GPU and the CPU.
    """
    random = torch.Generator().manual_seed(0)
    image = torch.randn(SAMPLES, 3, 32, 32, generator=random, dtype=dtype)
    label = torch.randint(CLASSES, (SAMPLES,), generator=random)
    instance = torch.tensor([0] * (SAMPLES - 1) + [1])
    return Batch(image, label, instance, [])


class Steps:
    """Steps of training on one batch, on a device, from the weights of `network`."""

    def __init__(self, device, *, dtype=torch.float32, net=None, **values):
        values = {"lambda_": 0.5, "lr": 0.02, "precision": "float32"} | values
        self.config = training_config("unused", **values)
        self.net = place(net or network(dtype), device).train()
        self.loss = JointLoss(self.config.lambda_, beta=self.config.beta).to(device, dtype)
        self.optimizer = build_optimizer(self.net, self.loss, self.config)
        self.objective = in_parallel(self.net, self.loss, self.config, device)
        self.batch, self.done = made_up_batch(dtype), 0

    def make(self, count):
        """The loss of each of the next steps."""
        losses = []
        for _ in range(count):
            sums = train_step(
                self.objective, self.optimizer, self.batch, [[SAMPLES]], step=self.done, config=self.config
            )
            losses.append(sums[0].item() / SAMPLES)
            self.done += 1
        return losses

    def weights(self):
        return torch.cat([w.detach().cpu().double().ravel() for w in self.net.parameters()])

    def gradients(self):
        return torch.cat([w.grad.cpu().double().ravel() for w in self.net.parameters() if w.requires_grad])

    def state(self):
        return copy.deepcopy((self.net.state_dict(), self.loss.state_dict(), self.optimizer.state_dict()))

    def load(self, state):
        for part, of_part in zip((self.net, self.loss, self.optimizer), state, strict=True):
            part.load_state_dict(of_part)


# --- Training


def test_a_step_is_that_of_the_cpu(device):
    ours, theirs = (Steps(each, dtype=torch.float64) for each in (device, CPU))
    assert ours.make(3) == pytest.approx(theirs.make(3), abs=1e-9)
    torch.testing.assert_close(ours.weights(), theirs.weights(), rtol=0, atol=1e-8)


def test_a_step_in_bf16_is_as_close_to_float32_as_that_of_the_cpu(device):
    exact, ours, theirs = (
        Steps(where, precision=precision)
        for where, precision in ((CPU, "float32"), (device, "bf16"), (CPU, "bf16"))
    )
    [loss], [bf16_loss], _ = (each.make(1) for each in (exact, ours, theirs))
    assert bf16_loss == pytest.approx(loss, rel=0.05)
    ours, theirs = (
        (each.gradients() - exact.gradients()).norm() / exact.gradients().norm() for each in (ours, theirs)
    )
    assert 0 < ours < 2 * theirs + 0.02


def test_a_training_goes_on_from_its_state(device, tmp_path):
    whole = Steps(device, dtype=torch.float64)
    whole.make(2)
    torch.save(whole.state(), tmp_path / "state.pth")
    rest = whole.make(2)
    resumed = Steps(device, dtype=torch.float64)
    resumed.load(torch.load(tmp_path / "state.pth", map_location="cpu", weights_only=True))
    resumed.done = 2
    assert resumed.make(2) == pytest.approx(rest, abs=1e-9)
    torch.testing.assert_close(resumed.weights(), whole.weights(), rtol=0, atol=1e-8)


def test_a_process_alone_in_its_group_makes_the_steps_of_one_without(device, tmp_path):
    plain = Steps(device, dtype=torch.float64)
    losses = plain.make(3)
    store = (tmp_path / "store").as_uri()
    dist.init_process_group(backend_of(device), init_method=store, rank=0, world_size=1)
    try:
        parallel = Steps(device, dtype=torch.float64)
        assert isinstance(parallel.objective, nn.parallel.DistributedDataParallel)
        assert parallel.make(3) == pytest.approx(losses, abs=1e-9)
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(parallel.weights(), plain.weights(), rtol=0, atol=1e-8)


def synchronised(rank, folder):
    """One of two processes on one GPU, with half of the images; by gloo, since NCCL wants a GPU for each."""
    store = (Path(folder) / "store").as_uri()
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    gpu, images = torch.device("cuda"), made_up_batch().image
    net = place(with_synchronised_batch_norm(network()), gpu).train()
    half = to_device(images.chunk(2)[rank], gpu)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        maps = net.features(half)
        maps.square().sum().backward()
    gradients = torch.cat([w.grad.ravel() for w in net.features.parameters()])
    dist.all_reduce(gradients)  # each has the gradient of its half
    torch.save([maps.detach().cpu(), gradients.cpu()], Path(folder) / f"{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.gpu
def test_synchronised_statistics_of_two_processes_are_those_of_the_whole_batch(tmp_path):
    start_processes(synchronised, (str(tmp_path),), nprocs=2, start_method="spawn")
    halves = [torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2)]
    gpu = torch.device("cuda")
    net = place(network(), gpu).train()
    maps = net.features(to_device(made_up_batch().image, gpu))
    maps.square().sum().backward()
    gradients = torch.cat([w.grad.ravel() for w in net.features.parameters()]).cpu()
    torch.testing.assert_close(torch.cat([maps for maps, _ in halves]), maps.cpu(), rtol=1e-3, atol=1e-4)
    for _, summed in halves:
        assert (summed - gradients).norm() < 1e-3 * gradients.norm()


# --- Input


@pytest.fixture
def pictures(tmp_path):
    for k in range(8):
        size = (48, 40) if k % 2 else (40, 48)
        write_picture(tmp_path / f"{k}.jpg", seed=k, size=size)
    return plain_images(tmp_path)


@pytest.fixture
def labelled(pictures):
    return replace(pictures, labels=np.arange(len(pictures)) % CLASSES, classes=tuple("abcde"))


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_pinned_memory_and_are_the_same(pictures, workers):
    dataset = ImageDataset(pictures, train_transform(32, "full"))
    batches = SeededBatches([[0, 0, 1], [2, 3]])
    pinned = list(batch_loader(dataset, batches, workers=workers, device=torch.device("cuda")))
    plain = list(batch_loader(dataset, batches))
    for ours, theirs in zip(pinned, plain, strict=True):
        assert ours.image.is_pinned() and ours.label.is_pinned()
        on_gpu = to_device(ours.image, torch.device("cuda"))
        assert on_gpu.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(on_gpu.cpu(), theirs.image) and torch.equal(ours.label, theirs.label)


# --- Evaluation


def test_the_folded_network_gives_the_same_maps(device):
    net = place(network(), device).eval()
    images = to_device(made_up_batch().image, device)
    with torch.no_grad():
        expected = copy.deepcopy(net).to(CPU).features(images.cpu())
        torch.testing.assert_close(
            frozen_backbone(net, "float32")(images).cpu(), expected, rtol=1e-3, atol=1e-4
        )
        with autocast(device, "bf16"):
            in_bf16 = frozen_backbone(net, "bf16")(images).float().cpu()
    assert (in_bf16 - expected).norm() < 0.05 * expected.norm()


def test_embeddings_are_those_of_the_cpu(device, pictures):
    options = {"size": 40, "precision": "float32", "description": None}
    ours, theirs = (embed(place(network(), each), pictures, **options) for each in (device, CPU))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def test_p_star_and_a_sweep_over_p_are_those_of_the_cpu(device, labelled):
    paths, hits = [], []
    for each in (device, CPU):
        net = place(network(), each)
        options = {"precision": "float32", "description": None}
        hits.append(sweep_hits(net, labelled, sizes=[40, 32], ps=[1.0, 3.0, 8.0], ks=(1, 2), **options))
        paths.append(finetune_p(set_p(net, 3.0), labelled, size=40, lr=0.1, **options))
    np.testing.assert_allclose(*paths, rtol=1e-3)
    assert (hits[0] != hits[1]).mean() < 0.05  # a near tie of two classes may fall either way


# --- Whitening


def test_a_whitening_is_that_of_the_cpu(device):
    x = torch.randn(300, 20, generator=torch.Generator().manual_seed(0))
    x *= torch.logspace(0, -1, 20)
    (mean, projection), (their_mean, their_projection) = (fit_pca_whitening(x.to(d)) for d in (device, CPU))
    assert mean.device.type == projection.device.type == device.type
    torch.testing.assert_close(mean.cpu(), their_mean, rtol=0, atol=1e-6)
    signs = (projection.cpu() * their_projection).sum(0).sign()  # those of eigenvectors are arbitrary
    torch.testing.assert_close(projection.cpu() * signs, their_projection, rtol=1e-4, atol=1e-4)


def test_a_whitened_network_classifies_as_before(device, pictures):
    net = place(network(), device).eval()
    rows = torch.nn.functional.normalize(torch.randn(900, net.width + 1), dim=1).to(device)
    whitened = whiten(net, *fit_pca_whitening(rows))
    transform = eval_transform(32, "square")
    images = torch.stack([transform(pictures.load(i)) for i in range(len(pictures))]).to(device)
    with torch.no_grad():
        ours, before = (each(images)["classifier_output"] for each in (whitened, net))
    assert torch.equal(ours.argmax(1), before.argmax(1))
