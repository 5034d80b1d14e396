"""Run each stage twice at once, at random moments: are the results in every folder of its own config?

    python tests/bench/two_runs.py --runs 20 --seed 0

Two processes run a stage of one experiment on small images, with the same parameters or with others. The
second starts at a random moment while the first computes, reads its results or saves a figure. A run is good
if every folder holds the results and the figure of its config, each process has seen the results of its own,
and two runs with the same parameters left one folder. `--launch` trains in worker processes, as 01 does.
Linux and macOS only: the processes are forked from one that has imported everything.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, replace
from functools import partial
from io import BytesIO, StringIO
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from mgkit.checkpoints import save_checkpoint
from mgkit.config import (
    ClassifyConfig,
    FinetunePConfig,
    PhotosConfig,
    RetrievalConfig,
    StageConfig,
    TrainConfig,
    WhitenConfig,
    make,
)
from mgkit.data.layouts import labelled_images
from mgkit.engine.run import json_lines, read_config, read_metrics, save_figure
from mgkit.machine.records import read_json
from mgkit.mini.make import MiniSizes, make_mini
from mgkit.model import get_multigrain
from mgkit.photos.report.page import save_report
from mgkit.photos.search import search_photos
from mgkit.photos.task import photo_task
from mgkit.stages.evaluate_imagenet import evaluate_classification
from mgkit.stages.evaluate_retrieval import evaluate_retrieval
from mgkit.stages.figure_4 import resolution_curves
from mgkit.stages.finetune_p import find_p
from mgkit.stages.retrieval_task import retrieval_task
from mgkit.stages.train import run_training, train
from mgkit.stages.whiten import whiten_network

SMALL = MiniSizes(
    train_per_class=2, val_per_class=1, holidays_groups=2, ukbench_objects=2, copydays_originals=1, whiten=40,
    distractors=1,
)  # fmt: skip
PAUSE = 0.2  # seconds between the end of a stage and its figure, at most


# --- What each notebook sees, and what the files of its run hold: to be equal


def see_training(config: TrainConfig) -> list:
    train(config)
    return [line["loss"] for line in read_metrics(config)]


def see_p(config: FinetunePConfig) -> list:
    found = find_p(config)
    return [found.ps, found.p_star, found.top1.tolist()]


def see_whitening(config: WhitenConfig) -> list:
    found = whiten_network(config)
    return [found.size, found.images, found.variances.tolist()]


def see_classes(config: ClassifyConfig) -> list:
    return [asdict(row) for row in evaluate_classification(config)]


def see_retrieval(config: RetrievalConfig) -> list:
    task = retrieval_task(config)
    found = [[r.result.name, r.descriptor, r.result.value] for r in evaluate_retrieval(task)]
    curves = resolution_curves(task).values
    return [config.size, found, {name: values.tolist() for name, values in curves.items()}]


def see_photos(config: PhotosConfig) -> list:
    found = search_photos(photo_task(config))
    save_report(found)
    return [config.size, found.thresholds.moment.value, len(found.groups), found.pairs]


def losses(folder: Path) -> list:
    return [line["loss"] for line in json_lines(folder / "metrics.jsonl")]


def retrieval_rows(folder: Path) -> list:
    results = read_json(folder / "results.json")
    found = [[row["set"], row["descriptor"], row["value"]] for row in results["rows"]]
    return [results["size"], found, results["figure_4"]["values"]]


def photos(folder: Path) -> list:
    results = read_json(folder / "results.json")
    assert f"{results['size']} px, p = " in (folder / "report.html").read_text(encoding="utf-8")
    return [results["size"], results["same_moment"]["threshold"], results["groups"], results["pairs"]]


def values_of(*keys: str) -> Callable[[Path], list]:
    """What reads these values of results.json."""
    return lambda folder: [read_json(folder / "results.json")[key] for key in keys]


@dataclass(frozen=True)
class Stage:
    """A stage: its config, the parameters of a run, those that the other run has, what sees, what reads."""

    config: type[StageConfig]
    values: dict
    others: dict
    see: Callable[[StageConfig], list]
    read: Callable[[Path], list]


FROM_FILE = {"size": 32, "checkpoint": "net.pth"}
STAGES = {
    one.config.stage: one
    for one in (
        Stage(
            TrainConfig, {"size": 32, "batch_size": 12, "epochs": 2, "len_factor": 0.5}, {"epochs": 1},
            see_training, losses,
        ),
        Stage(
            FinetunePConfig, {"sizes": [32], "images_per_class": 1, "ps": [1.0, 3.0]}, {"ps": [2.0]}, see_p,
            values_of("ps", "p_star", "top1"),
        ),
        Stage(
            WhitenConfig, {"size": 32, "p": 2.0}, {"size": 48}, see_whitening,
            values_of("size", "images", "variances"),
        ),
        Stage(
            ClassifyConfig, {"sizes": [32]}, {"sizes": [48, 32]}, see_classes,
            lambda folder: read_json(folder / "results.json")["rows"],
        ),
        Stage(
            RetrievalConfig,
            FROM_FILE | {"sets": ["ukbench"], "resolutions": [32], "indices": [], "scales": [1.0]},
            {"size": 48}, see_retrieval, retrieval_rows,
        ),
        Stage(
            PhotosConfig, FROM_FILE | {"whitening": "none", "queries": 1}, {"size": 48}, see_photos, photos,
        ),
    )
}  # fmt: skip


# --- Two processes


@dataclass(frozen=True)
class Inputs:
    """Small images, and a folder with an untrained network as 01's, and with the results of 02 for it."""

    images: Path
    folder: Path

    @staticmethod
    def made(folder: Path) -> "Inputs":
        images = make_mini(folder / "mini", seed=0, sizes=SMALL, workers=1)
        inputs = Inputs(images, folder / "inputs")
        classes = labelled_images(images)[0].classes
        torch.manual_seed(0)
        net = get_multigrain("resnet8", num_classes=len(classes))
        for name in ("net.pth", "outputs/t/train/checkpoint.pth"):
            save_checkpoint(inputs.folder / name, net, classes=classes)
        [one, _] = inputs.configs(STAGES["finetune_p"])
        side_by_side(inputs.folder, [(0.0, partial(find_p, one))])
        return inputs

    def configs(self, stage: Stage) -> tuple[StageConfig, StageConfig]:
        """The two configs of a stage, which differ."""
        shared = {"experiment": "t", "data": str(self.images), "workers": 0, "gpus": 1}
        if stage.config is PhotosConfig:
            shared["photos"] = [str(self.images / "ukbench")]
        one = make(stage.config, shared | stage.values)
        return one, replace(one, **stage.others)

    def copied(self, folder: Path, stage: Stage) -> Path:
        """A copy without that stage's run."""
        shutil.copytree(self.folder, folder)
        shutil.rmtree(folder / "outputs/t" / stage.config.stage, ignore_errors=True)
        return folder


def side_by_side(folder: Path, works: list[tuple[float, Callable[[], object]]]) -> list[tuple[object, str]]:
    """What each work returns and prints in a process of its own, started after a delay (s)."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    processes = [
        context.Process(target=be_one, args=(k, folder, delay, work, queue))
        for k, (delay, work) in enumerate(works)
    ]
    for process in processes:
        process.start()
    answers = dict(queue.get() for _ in processes)
    for process in processes:
        process.join()
    failed = [error for _, _, error in answers.values() if error]
    assert not failed, "\n".join(failed)
    return [answers[k][:2] for k in range(len(works))]


def be_one(number: int, folder: Path, delay: float, work: Callable[[], object], queue) -> None:
    """One of the processes of `side_by_side`."""
    os.chdir(folder)
    torch.set_num_threads(1)
    time.sleep(delay)
    result, error, printed = None, "", StringIO()
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            result = work()
    except BaseException:
        error = traceback.format_exc() + printed.getvalue()
    queue.put((number, (result, printed.getvalue(), error)))


def notebook(stage: Stage, config: StageConfig, pause: float, *, launched: bool) -> list:
    """Run a stage and save a figure after a pause (s), as its notebook does; returns what it saw."""
    with nullcontext() if launched else patch("mgkit.stages.train.launch", run_training):
        seen = stage.see(config)
    time.sleep(pause)
    save_figure(Name(parameters(stage, asdict(config))), config, "figure.png")
    return seen


class Name:
    """Stands for a figure: the file holds a value."""

    def __init__(self, value: object):
        self.value = value

    def savefig(self, file: BytesIO, **_) -> None:
        file.write(json.dumps(self.value).encode())


def parameters(stage: Stage, config: dict) -> dict:
    """The parameters in which the two runs of a stage differ."""
    return {key: config[key] for key in stage.others}


def race(
    inputs: Inputs, folder: Path, stage: Stage, random: np.random.Generator, *, same: bool,
    longest: float, launched: bool = False,
) -> str:  # fmt: skip
    """Run a stage twice at once, the second after at most `longest` seconds; returns how that went.

    Raises AssertionError where a folder or a process has other results than those of its config.
    """
    configs = [inputs.configs(stage)[k] for k in random.permutation(2)]
    configs = configs[:1] * 2 if same else configs
    delays = (0.0, random.uniform(0, longest))
    works = [
        (delay, partial(notebook, stage, config, random.uniform(0, PAUSE), launched=launched))
        for delay, config in zip(delays, configs, strict=True)
    ]
    answers = side_by_side(inputs.copied(folder, stage), works)
    held, runs = {}, list((folder / "outputs/t").glob(f"{stage.config.stage}*"))
    for run in runs:
        written = parameters(stage, read_config(run))
        assert json.loads((run / "figure.png").read_text()) == written, f"{run}: a figure of another run"
        held[json.dumps(written)] = stage.read(run)
    assert len(held) == len(runs) == (1 if same else 2), f"there are {runs}"
    for config, (seen, printed) in zip(configs, answers, strict=True):
        mine = held[json.dumps(parameters(stage, asdict(config)))]
        assert seen == mine, f"{config}: saw {seen}, its folder holds {mine}\n{printed}"
    printed = "".join(text for _, text in answers)
    words = {"taking the results": "joined", "waiting, as process": "waited", "kept in": "set aside"}
    return ", ".join(word for text, word in words.items() if text in printed) or "one after the other"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--runs", type=int, default=20, help="of every stage, with the same and other parameters"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--launch", action="store_true", help="train in worker processes")
    options = parser.parse_args()
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        inputs = Inputs.made(Path(folder))
        for name in options.stages:
            for same in (True, False):
                bad += races(inputs, Path(folder), STAGES[name], options, same=same)
    print(f"{bad} races ended with results of another run" if bad else "all races ended well")
    sys.exit(bad > 0)


def races(inputs: Inputs, folder: Path, stage: Stage, options: argparse.Namespace, *, same: bool) -> int:
    """Run the races of a stage and print a line of how they went; returns how many went wrong."""
    began, bad, ended = time.monotonic(), 0, Counter()
    one = inputs.copied(folder / f"{stage.config.stage}-alone", stage)
    side_by_side(
        one, [(0.0, partial(notebook, stage, inputs.configs(stage)[0], 0.0, launched=options.launch))]
    )
    longest = 1.2 * (time.monotonic() - began)
    shutil.rmtree(one)
    for number in range(options.runs):
        random = np.random.default_rng([options.seed, number])
        place = folder / f"{stage.config.stage}-{same}-{number}"
        try:
            ended[
                race(inputs, place, stage, random, same=same, longest=longest, launched=options.launch)
            ] += 1
        except AssertionError as error:
            bad += 1
            print(f"{stage.config.stage}, {'same' if same else 'other'} parameters, race {number}: {error}")
        shutil.rmtree(place)
    ways = "; ".join(f"{count} {how}" for how, count in ended.most_common())
    print(
        f"{stage.config.stage:20} {'same' if same else 'other'} parameters: {options.runs - bad} of "
        f"{options.runs} good ({ways}), {time.monotonic() - began:.0f} s", flush=True,
    )  # fmt: skip
    return bad


if __name__ == "__main__":
    main()
