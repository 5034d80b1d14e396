"""The training step beside the bare step of its network: images per second, on random images in memory.

    python tests/bench/bench_step.py                                  # two cores: ResNet-18, 112 px, batch 96
    python tests/bench/bench_step.py --backbone resnet50 --size 224 --batch 512 --precisions bf16      # a GPU

Part of `make bench` (`rows`). By itself it writes outputs/bench/step.json. The bare step is torchvision's
network with average pooling, cross-entropy and SGD, in the same precision and memory layout: without
triplets, margin loss, GeM and the statistics of a log.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from measuring import Row, compared, precisions, table, write_json
from torch.nn import functional as F

from mgkit.config import TrainConfig, make
from mgkit.data.images import ImageList
from mgkit.data.loader import Batch
from mgkit.engine.loop import Training
from mgkit.machine.device import autocast, describe, pick_device, place, synchronize
from mgkit.model import get_multigrain

CLASSES, REPETITIONS = 1000, 3
WANTED = 0.95  # of the bare step's images per second


def made_up_batch(size: int, batch: int, device: torch.device) -> Batch:
    """A batch of random images, with the copies of each side by side, on the device."""
    random = torch.Generator().manual_seed(0)
    instance = torch.arange(batch) // REPETITIONS
    image = torch.randn(batch, 3, size, size, generator=random).to(device, memory_format=torch.channels_last)
    label = torch.randint(CLASSES, (batch,), generator=random)
    return Batch(image, label[instance].to(device), instance.to(device), [])


def our_step(
    options: argparse.Namespace, precision: str, batch: Batch, *, batch_norm: str = "local"
) -> Callable[[], None]:
    """The step of `mgkit.engine.loop.Training`; the last of a round computes a line of the log, unwritten.

    A training logs every 20 steps, so `--steps 20` has the same share of logging. Shorter rounds have more.
    """
    config = make(TrainConfig, {
        "backbone": options.backbone, "size": options.size, "batch_size": options.batch,
        "precision": precision, "repetitions": REPETITIONS, "lambda_": 0.5, "workers": 0, "lr": 0.01,
        "compile": options.compile, "log_every": options.steps, "batch_norm": batch_norm,
    })  # fmt: skip
    classes = tuple(map(str, range(CLASSES)))
    nothing = ImageList(
        Path("made up"), ("nothing",) * options.batch, np.zeros(options.batch, np.int64), classes
    )
    torch.manual_seed(0)
    net = get_multigrain(options.backbone, num_classes=CLASSES)
    training = Training(config, net, (nothing, nothing), None, None, lambda _: False)
    training.train_mode()

    def step() -> None:
        training.step(batch, [[options.batch]])
        if training.position.step % config.log_every == 0:
            training.log()

    return step


def bare_step(options: argparse.Namespace, precision: str, batch: Batch) -> Callable[[], None]:
    """Network, cross-entropy, SGD, as anyone would write them."""
    device = batch.image.device
    torch.manual_seed(0)
    net = place(torchvision.models.get_model(options.backbone, num_classes=CLASSES), device).train()
    if options.compile:
        net.compile()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(device, precision):
            loss = F.cross_entropy(net(batch.image), batch.label)
        loss.backward()
        optimizer.step()

    return step


def repeated(step: Callable[[], None], count: int, device: torch.device) -> Callable[[], None]:
    """So many steps, waited for."""

    def call() -> None:
        for _ in range(count):
            step()
        synchronize(device)

    return call


def row(options: argparse.Namespace, precision: str) -> Row:
    """Images per second of both, in alternating rounds."""
    device = pick_device()
    batch = made_up_batch(options.size, options.batch, device)
    ours, bare = (
        repeated(make_step(options, precision, batch), options.steps, device)
        for make_step in (our_step, bare_step)
    )
    stage = f"training step, {options.backbone} {options.size} px, batch {options.batch}, {precision}"
    images = options.steps * options.batch
    return compared(stage, ours, bare, rounds=options.rounds, wanted=WANTED, work=images)


def rows() -> list[Row]:
    """The rows of `make bench`."""
    options = settings(["--steps", "2", "--rounds", "5"])
    return [row(options, precision) for precision in options.precisions]


def settings(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", default="resnet18", help="one of torchvision's")
    parser.add_argument("--size", type=int, default=112, help="px")
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--precisions", nargs="+", default=precisions(pick_device()))
    parser.add_argument("--steps", type=int, default=4, help="of a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compile", action="store_true", help="both networks")
    return parser.parse_args(arguments)


def main() -> None:
    options = settings()
    torch.backends.cudnn.benchmark = True
    device = describe(pick_device())
    print(f"N={REPETITIONS}, λ=0.5; {device}")
    found = [row(options, precision) for precision in options.precisions]
    print(table(found))
    write_json("step.json", {"machine": device, **vars(options), "rows": [each.plain() for each in found]})


if __name__ == "__main__":
    main()
