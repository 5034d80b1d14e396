"""Time and memory as the work grows: 1, 4 and 16 times the images, and a training of a thousand steps.

`rows` starts it in a process of its own, whose heap returns freed memory to the system at once: in a process
that holds the freed memory of other benchmarks, a leak would fit into it and not be seen. With ResNet-8,
feature maps are large beside the weights, so images make the peak. p* and the feature store hold a window of
at most 1,024 images; here the window is 32, which all three collections fill.
"""

import gc
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from statistics import median
from time import process_time
from unittest.mock import patch

import numpy as np
import torch
from measuring import Photos, Row, extra_memory, in_memory, memory, photo_folder, photos
from PIL import Image

from mgkit.config import TrainConfig, make
from mgkit.engine.feature_store import stored_features
from mgkit.features import embed
from mgkit.finetune import finetune_p, set_p, sweep_p
from mgkit.machine.device import one_thread, place
from mgkit.machine.files import write_text
from mgkit.model import MultiGrain, get_multigrain
from mgkit.stages.train import run_training

# glibc returns blocks from 64 KiB on to the system once they are freed. Other systems ignore this.
HEAP = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
IMAGES, TIMES = 32, (1, 4, 16)
SIZE = 128  # pixels
SETTING = dict(size=SIZE, crop="square", batch_size=16, precision="float32")
EPOCHS, STEPS = 10, 100  # of the training; steps per epoch
SETTLED = 2  # epochs after which the training holds all that it keeps
TRAINING = {"backbone": "resnet8", "size": 32, "batch_size": 12, "workers": 0, "precision": "float32"}


def rows() -> list[Row]:
    """Run this file in a process of its own, in an empty folder, and return its rows."""
    photos_of = {"MGKIT_PHOTOS": str(photo_folder().resolve())}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, Path(__file__).resolve(), "rows.json"]
        subprocess.run(command, cwd=folder, env=os.environ | photos_of | HEAP, check=True)
        return [Row(**row) for row in json.loads((Path(folder) / "rows.json").read_text())]


# --- 1, 4 and 16 times the images


def stages(net: MultiGrain) -> dict[str, Callable[[Photos], object]]:
    def p_star(given: Photos) -> None:
        set_p(net, 3.0)
        finetune_p(net, given.images, **SETTING)

    def to_disk(given: Photos) -> None:
        with tempfile.TemporaryDirectory() as folder:
            stored_features(net, given.images, ps=[3.0], folder=folder, description=None, **SETTING)

    def evaluation(given: Photos) -> None:
        options = SETTING | {"sizes": [SIZE], "description": None}
        del options["size"]
        sweep_p(net, given.images, ps=[3.0], **options)

    return {
        "p* fine-tuning": p_star,
        "evaluation": evaluation,
        "embedding": lambda given: embed(net, given.images, description=None, **SETTING),
        "embedding to disk": to_disk,
    }


def growth_rows(rounds: int = 5) -> list[Row]:
    """Two rows per stage, `flat_row` and `linear_row`."""
    torch.manual_seed(0)
    net = place(get_multigrain("resnet8", num_classes=1000), torch.device("cpu")).eval()
    everything, found = photos(IMAGES * TIMES[-1]), []
    parts = {k: everything.first(IMAGES * k) for k in TIMES}
    with (
        in_memory(everything, [(SIZE, "square")]),
        patch("mgkit.finetune.BYTES_A_WINDOW", 0),  # then it is 32 images
        patch("mgkit.engine.feature_store.SHARD", IMAGES),
    ):
        for name, stage in stages(net).items():
            flat = flat_row(name, stage, parts, net)  # first, so that a growing cache is seen
            found += [linear_row(name, stage, parts, rounds), *flat]
    return found


def flat_row(
    name: str, stage: Callable[[Photos], object], parts: dict[int, Photos], net: MultiGrain
) -> list[Row]:
    """Compare the stage's peak of memory at 16 times the images with that at 4 times; [] if not measurable.

    In one lane, whose peak is the same each time. How many results lanes side by side hold at once is chance;
    that there are no more than AHEAD of `mgkit.machine.frozen` each, its tests check.

    Wanted: at most an eighth of the feature maps of the images in between, 24 MiB; their inputs take 72 MiB.
    """
    grown = {}
    with one_thread():
        stage(parts[1])  # libraries allocate some memory once
        for k in TIMES:
            gc.collect()
            grown[str(k)] = extra_memory(lambda k=k: stage(parts[k]))
    if grown["1"] is None:
        return []
    peaks = {k: grown_k / 2**20 for k, grown_k in grown.items()}
    print(f"{name}: {listed(peaks, '.1f')} MiB at its peak")
    with torch.no_grad():
        maps = 4 * net.features(torch.zeros(1, 3, SIZE, SIZE)).numel() / 2**20
    between, more = IMAGES * (TIMES[-1] - TIMES[-2]), max(0.0, peaks["16"] - peaks["4"])
    raw = {
        "memory_bytes": grown,
        "MiB_of_maps": between * maps,
        "MiB_of_inputs": between * 12 * SIZE**2 / 2**20,
    }
    stage_name = f"{name}: memory at 16 × beyond that at 4 ×"
    return [
        Row(
            stage_name, peaks["16"], peaks["4"], "MiB", more, between * maps / 8, True, of="MiB more", raw=raw
        )
    ]


def linear_row(name: str, stage: Callable[[Photos], object], parts: dict[int, Photos], rounds: int) -> Row:
    """Compare the CPU time per image at 16 times the images with that at 4 times.

    At 1 times, the cost of a call beside its images dominates.
    """
    taken = {str(k): [] for k in TIMES}
    for _ in range(rounds):
        for k in TIMES:
            taken[str(k)].append(cpu_seconds(stage, parts[k]) / (IMAGES * k))
    slower = median(most / few for few, most in zip(taken["4"], taken["16"], strict=True))
    each = {k: median(of_k) * 1e3 for k, of_k in taken.items()}
    print(f"{name}: {listed(each, '.2f')} ms of CPU per image")
    raw = {"cpu_seconds_per_image": taken}
    stage_name = f"{name}: 16 × the images beside 4 ×"
    return Row(stage_name, each["16"], each["4"], "ms of CPU per image", slower, 1.15, True, raw=raw)


def listed(values: dict[str, float], form: str) -> str:
    """Format the values of 1, 4 and 16 times the images in one line."""
    return ", ".join(f"{k} × {value:{form}}" for k, value in values.items())


def cpu_seconds(stage: Callable[[Photos], object], given: Photos) -> float:
    began = process_time()
    stage(given)
    return process_time() - began


# --- The epochs of a training


def write_pictures(folder: Path) -> Path:
    """Noise of 64 × 48 px: 5 classes of 20 training images and 4 validation images, in train/ and val/."""
    random = np.random.default_rng(0)
    for part, count in (("train", 20), ("val", 4)):
        for name in "abcde":
            (folder / part / name).mkdir(parents=True)
            for k in range(count):
                pixels = random.integers(0, 256, (48, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{k:02d}.jpg")
    return folder


def training_row(epochs: int = EPOCHS, steps: int = STEPS) -> list[Row]:
    """Compare the memory after the last epoch with that after the second; [] if not measurable.

    A whole training in the working directory: loader, steps, logs, validation, snapshots also within epochs.
    Images are decoded in this process, so that their memory counts too. Wanted: at most 4 MiB, that is 5 KiB
    for each of 800 steps, whose inputs take 144 KiB each; a copy of the network per epoch would take 38 MiB.
    """
    data = write_pictures(Path("pictures"))
    config = make(TrainConfig, TRAINING | {
        "experiment": "growth", "data": str(data), "epochs": epochs, "checkpoint_minutes": 0.02,
        "len_factor": steps * TRAINING["batch_size"] / 100,
    })  # fmt: skip
    if extra_memory(lambda: None) is None:
        return []
    held, asked = [], 0

    def look(_) -> bool:
        """Called before every step and after an epoch's last, where it measures memory after a collection."""
        nonlocal asked
        asked += 1
        if asked % (steps + 1) == 0:
            gc.collect()
            held.append(memory("VmRSS") / 2**20)
        return False

    with redirect_stdout(io.StringIO()):  # a line per epoch
        run_training(config, asked_to_stop=look)
    first, last = held[SETTLED - 1], held[-1]
    after = ", ".join(f"{mib:.1f}" for mib in held)
    print(f"training: {after} MiB after each of {epochs} epochs of {steps} steps")
    name = (
        f"training: memory after {epochs * steps:,} steps in {epochs} epochs "
        f"beyond that after {SETTLED * steps}"
    )
    raw = {"MiB_after_each_epoch": held}
    return [Row(name, last, first, "MiB", max(0.0, last - first), 4, True, of="MiB more", raw=raw)]


if __name__ == "__main__":
    here = growth_rows() + training_row()
    write_text(Path(sys.argv[1]), json.dumps([asdict(row) for row in here]))
