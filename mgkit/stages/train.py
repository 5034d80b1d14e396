"""Joint training in worker processes, and its network for later stages (01, section 3)."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from mgkit.checkpoints import load_network
from mgkit.config import NetworkConfig, TrainConfig
from mgkit.data.loader import end_workers
from mgkit.engine.dry_run import measure, report
from mgkit.engine.holding import holding
from mgkit.engine.launch import launch, processes_on_this_machine
from mgkit.engine.loop import Training, check_batch_norm, check_readers
from mgkit.engine.run import folders, json_lines, read_config, read_steps, stage_folder, unmoved
from mgkit.engine.snapshots import is_finished, open_run
from mgkit.machine.distributed import broadcast_object, is_main, main_first, run_in_all, world_size
from mgkit.machine.files import find_path
from mgkit.machine.printable import say_once
from mgkit.machine.progress import print_anything
from mgkit.model import MultiGrain, get_multigrain
from mgkit.stages.inputs import is_mini, network_left_by, training_data
from mgkit.training import SHARE


def train(config: TrainConfig) -> Path | None:
    """Train in worker processes; returns the checkpoint's path, outputs/<experiment>/train/checkpoint.pth.

    An unfinished training of the same config resumes from its last snapshot, a finished one is kept, unless
    `resume` is off. Another process that trains in this experiment is waited for, see `holding`. With
    `dry_run` a few steps are measured, the estimated cost is printed, and None is returned.

    Raises ValueError or OSError for bad config or data, and as `holding` and `mgkit.engine.launch.launch`.
    """
    check_batch_norm(config, config.nnodes * processes_on_this_machine(config))
    images = training_data(config)
    if config.dry_run:
        launch(config)
        return None
    checkpoint = stage_folder(config) / "checkpoint.pth"
    with holding(config) as joined:
        if not is_finished(replace(config, resume=config.resume or joined), images):
            launch(config)
        elif not joined:  # or `holding` has said so
            print(f"{checkpoint}: training is finished, nothing to do (resume=False trains anew)")
    return checkpoint


def run_training(
    config: TrainConfig, *, asked_to_stop: Callable[[int], bool] = lambda step: False
) -> Path | None:
    """Train in this process, or in each of several; returns the path of the checkpoint.

    After every epoch a line is added to metrics.jsonl and to the log, and a snapshot is written, which is
    also checkpoint.pth. Snapshots are also written every `checkpoint_minutes`. For `dry_run`, see `train`.

    asked_to_stop: called with the number of steps done, before every step; if True in any process, all
        save and raise StoppedError

    Raises NonFiniteError, SnapshotError, UnreadableImageError and ValueError.
    """
    print_anything()
    check_batch_norm(config, world_size())
    check_readers(config)
    images = training_data(config)
    classes = images[0].classes
    with ExitStack() as stack:
        # Batches have one shape.
        stack.enter_context(torch.backends.cudnn.flags(enabled=True, benchmark=True))
        if config.dry_run:
            net = main_first(lambda: first_network(config, classes))
            training = Training(config, net, images, None, None, asked_to_stop)
            stack.callback(end_workers, training.loader)
            estimate = measure(training)
            if is_main():
                print(report(estimate))
            return None
        opened = run_in_all(lambda: open_run(config, images, stack), here=is_main())
        content = broadcast_object(opened.content if opened else None)
        # The main process first, so that a file is downloaded once.
        net = main_first(lambda: first_network(config, classes, goes_on=content is not None))
        training = Training(config, net, images, content, opened, asked_to_stop)
        stack.callback(end_workers, training.loader)
        content = None  # frees the memory of the network and its momenta
        if opened:
            opened.content = None
        for epoch in range(training.position.epoch, config.epochs):
            training.epoch(epoch)
        return training.finish()


def first_network(config: TrainConfig, classes: tuple[str, ...], *, goes_on: bool = False) -> MultiGrain:
    """The network before its first step: random, published, or with the weights of a file.

    Its p is the config's; a classifier is kept if it has the same classes.

    goes_on: weights will come from a snapshot, so that no file with initial weights is read

    Raises ValueError for a whitened network.
    """
    torch.manual_seed(config.seed)
    if config.weights and not goes_on:
        return network_of_weights(config, classes)
    net = get_multigrain(
        config.backbone, p=config.p, num_classes=len(classes),
        pretrained_backbone=config.pretrained_backbone and not goes_on, tokens=config.tokens,
    )  # fmt: skip
    net.unclassified = ""  # from here on, it is trained
    if not config.init_from or goes_on:
        return net
    path = find_path(config.init_from)
    if stage_folder(config).resolve() in path.resolve().parents:
        raise ValueError(
            f"init_from: {path} is of this run, which resumes by itself; to start anew from its weights, "
            "choose another experiment"
        )
    source, _ = load_network(path, backbone=config.backbone)
    if source.whitening is not None:
        raise ValueError(f"init_from: {path} is whitened; start from the network before whitening")
    twin = f"{net.twin}.last_linear."  # the NASNets' classifier
    features = {
        key: value
        for key, value in source.features.state_dict().items()
        if not (net.twin and key.startswith(twin))
    }
    net.features.load_state_dict(features, strict=not net.twin)
    same_shape = source.classifier.weight.shape == net.classifier.weight.shape
    if same_shape and source.classes in (classes, ()):
        net.copy_to_classifier(source.classifier.weight, source.classifier.bias)
    else:
        say_once(f"{path} has other classes, or pools other tokens: its classifier is not used")
    return net


def network_of_weights(config: TrainConfig, classes: tuple[str, ...]) -> MultiGrain:
    """The network with the weights of `config.weights`; its classifier is kept if it has the same classes."""
    path = find_path(config.weights)
    net = get_multigrain(config.backbone, p=config.p, weights=path, tokens=config.tokens)
    if net.classifies and net.classifier.out_features == len(classes) and net.classes in (classes, ()):
        return net
    if net.classifies:
        say_once(f"{path} has other classes: its classifier is not used")
    net.set_classifier(nn.Linear(net.width, len(classes)))
    net.classes, net.unclassified = (), ""  # from here on, it is trained
    return net


def trained_network(config: NetworkConfig) -> tuple[MultiGrain, dict]:
    """The network of `config.checkpoint` or of 01, and its checkpoint; see `network_left_by`."""
    return network_left_by(TrainConfig, config, run=run_training)


LAMBDAS = (0.1, 0.5, 0.9)
Shares = dict[float, list[tuple[int, float]]]  # {λ: [(optimizer step, share in 0..1), …]}


def shares_by_lambda(config: TrainConfig) -> Shares:
    """The classification loss's share of the gradient over time, for several λ (figure 5).

    On the embedded set from short trainings, one for each of LAMBDAS, kept as
    outputs/<experiment>-lambda<λ>/. On other data from the experiment's own runs, as far as they recorded it.
    """
    if not is_mini(config.data):
        return shares_of_runs(config)
    found: Shares = {}
    for lambda_ in LAMBDAS:
        short = short_training(config, lambda_)
        with holding(short):
            if not is_finished(short, training_data(short)):
                print(f"λ = {lambda_:g}, half an epoch at {short.size} px:")
                run_training(short)
            noted = shares_noted(read_steps(short))
        if noted:  # none in a single step
            found[lambda_] = noted
    return found


def short_training(config: TrainConfig, lambda_: float) -> TrainConfig:
    """Half an epoch at half the size, from the same initial weights, that records the share at every step.

    In one process of one machine.
    """
    return replace(
        config, experiment=f"{config.experiment}-lambda{lambda_:g}", lambda_=lambda_,
        size=max(config.size // 2, 32), epochs=1, len_factor=0.5, repetitions=max(config.repetitions, 2),
        log_every=2, gradient_share_every=1, nnodes=1, node_rank=0, rdzv_endpoint="",
    )  # fmt: skip


def shares_of_runs(config: TrainConfig) -> Shares:
    """Shares noted by the runs of the config's experiment; of several with the same λ, by the latest."""

    def read() -> Shares:
        latest, *aside = folders(config)
        found: Shares = {}
        for folder in (*aside, latest):
            noted = shares_noted(json_lines(folder / "steps.jsonl"))
            lambda_ = (read_config(folder) or {}).get("lambda_")
            if noted and isinstance(lambda_, float):
                found[lambda_] = noted
        return found

    return unmoved(config, read)


def shares_noted(steps: list[dict]) -> list[tuple[int, float]]:
    """(step, share) of the lines of steps.jsonl that have a share."""
    return [(line["step"], line[SHARE]) for line in steps if SHARE in line and "step" in line]
