"""Time and memory as the work grows: 1, 4 and 16 times the images, and a thousand steps of a training."""

import argparse
import gc
import tempfile
from collections.abc import Callable
from statistics import median
from time import process_time

import torch
from bench_step import made_up_batch, our_step
from measuring import Photos, Row, extra_memory, in_memory, memory, photos

from mgkit.embed import embed
from mgkit.finetune import finetune_p, set_p, sweep_p
from mgkit.hardware import place
from mgkit.model import MultiGrain, get_multigrain
from mgkit.store import stored_features

IMAGES, TIMES = 96, (1, 4, 16)
SIZE, SETTING = 32, dict(size=32, crop="square", batch_size=32, precision="float32")  # px
STEPS = 1000


def stages(net: MultiGrain) -> dict[str, Callable[[Photos], object]]:
    def p_star(given: Photos) -> None:
        set_p(net, 3.0)
        finetune_p(net, given.images, **SETTING)

    def to_disk(given: Photos) -> None:
        with tempfile.TemporaryDirectory() as folder:
            stored_features(net, given.images, ps=[3.0], folder=folder, **SETTING)

    def evaluation(given: Photos) -> None:
        options = SETTING | {"sizes": [SIZE]}
        del options["size"]
        sweep_p(net, given.images, ps=[3.0], **options)

    return {
        "p* fine-tuning": p_star,
        "evaluation": evaluation,
        "embedding": lambda given: embed(net, given.images, **SETTING),
        "embedding to disk": to_disk,
    }


def growth_rows(rounds: int) -> list[Row]:
    """Of every stage: CPU seconds an image at 16 times the images relative to once; memory at 16 times beyond that at 4 times."""
    torch.manual_seed(0)
    net = place(get_multigrain("resnet18", num_classes=1000), torch.device("cpu")).eval()
    everything, found = photos(IMAGES * TIMES[-1]), []
    with in_memory(everything, [(SIZE, "square")]):
        for name, stage in stages(net).items():
            parts = {k: everything.first(IMAGES * k) for k in TIMES}
            stage(parts[1])
            taken = {k: [] for k in TIMES}
            for _ in range(rounds):
                for k in TIMES:
                    taken[k].append(cpu_seconds(stage, parts[k]) / (IMAGES * k))
            slower = median(most / once for once, most in zip(taken[1], taken[TIMES[-1]], strict=True))
            once, most = median(taken[1]) * 1e3, median(taken[TIMES[-1]]) * 1e3
            raw = {"cpu_seconds_an_image": taken, "memory_bytes": {k: grown(stage, parts[k]) for k in TIMES}}
            found.append(
                Row(f"{name}: 16 × the images", most, once, "ms of CPU an image", slower, 1.15, True, raw=raw)
            )
            if raw["memory_bytes"][1] is not None:
                rows_of_images = 4 * net.width * IMAGES * 12 / 2**20 if name == "embedding" else 0
                more = max(0, raw["memory_bytes"][16] - raw["memory_bytes"][4]) / 2**20 - rows_of_images
                found.append(
                    Row(
                        f"{name}: memory at 16 × beyond that at 4 ×", raw["memory_bytes"][16] / 2**20,
                        raw["memory_bytes"][4] / 2**20, "MiB", max(0.0, more), 16, True, of="MiB more",
                    )
                )  # fmt: skip
    return found


def cpu_seconds(stage: Callable[[Photos], object], given: Photos) -> float:
    began = process_time()
    stage(given)
    return process_time() - began


def grown(stage: Callable[[Photos], object], given: Photos) -> int | None:
    gc.collect()
    return extra_memory(lambda: stage(given))


def training_row() -> list[Row]:
    """The memory of the process after a thousand steps beyond that after a hundred."""
    options = argparse.Namespace(backbone="resnet8", batch=12, size=32, compile=False)
    step = our_step(options, "float32", made_up_batch(options.size, options.batch, torch.device("cpu")))
    if extra_memory(step) is None:
        return []
    held = []
    for number in range(STEPS):
        step()
        if number % 100 == 99:
            held.append(memory("VmRSS") / 2**20)
    more = max(0.0, held[-1] - held[0])
    return [
        Row(f"training: memory after {STEPS:,} steps beyond that after 100", held[-1], held[0], "MiB", more, 8, True,
            of="MiB more", raw={"MiB_every_100_steps": held})
    ]  # fmt: skip


def rows(rounds: int = 3) -> list[Row]:
    return growth_rows(rounds) + training_row()
