"""Joint training (section 3): started in worker processes, its network found again by the later stages (01)."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from mgkit.checkpoints import load_network
from mgkit.config import NetworkConfig, TrainConfig, make
from mgkit.data.loader import end_workers
from mgkit.engine.dry_run import rehearse, report
from mgkit.engine.launch import launch, processes_on_this_machine
from mgkit.engine.loop import Training, check_batch_norm
from mgkit.engine.run import read_config, read_steps, runs, stage_folder
from mgkit.engine.snapshots import STAGE, is_finished, open_run
from mgkit.machine.distributed import broadcast_object, is_main, main_first, run_in_all, world_size
from mgkit.machine.files import find_path
from mgkit.model import MultiGrain, get_multigrain
from mgkit.stages.inputs import is_mini, network_left_by, training_data
from mgkit.training import SHARE


def train(config: TrainConfig) -> Path | None:
    """Run a whole training in worker processes; returns the checkpoint it leaves, outputs/<experiment>/train/checkpoint.pth.

    With `dry_run`, some steps are measured, what the whole would cost is printed, and None is returned. An unfinished training of the same config goes on at its last snapshot, a finished one is left as it is, unless
    `resume` is off. Raises what is wrong with config or data at once, and `mgkit.engine.launch.WorkerError` for what fails later.
    """
    check_batch_norm(config, config.nnodes * processes_on_this_machine(config))
    checkpoint = stage_folder(config.experiment, STAGE) / "checkpoint.pth"
    images = training_data(config)
    if config.dry_run:
        launch(STAGE, config)
        return None
    if is_finished(config, images):
        print(
            f"{checkpoint} is that of a finished training with these parameters: nothing to do (resume=False trains anew)"
        )
        return checkpoint
    launch(STAGE, config)
    return checkpoint


def run_training(config: TrainConfig, *, asked_to_stop: Callable[[], bool] = lambda: False) -> Path | None:
    """The training itself, in this process, or in each of those that are joined; returns the checkpoint.

    After every epoch: a line of metrics.jsonl and of the log, and a snapshot, which checkpoint.pth then is. Snapshots are also
    written every `checkpoint_minutes`. asked_to_stop: looked at before every step; where any process is asked to, all save
    and raise StoppedError. With `dry_run`: see `train`. Raises NonFiniteError, SnapshotError, UnreadableImageError, ValueError.
    """
    check_batch_norm(config, world_size())
    images = training_data(config)
    classes = images[0].classes
    with ExitStack() as stack:
        stack.enter_context(
            torch.backends.cudnn.flags(enabled=True, benchmark=True)
        )  # batches have one shape
        if config.dry_run:
            net = main_first(lambda: first_network(config, classes))
            training = Training(config, net, images, None, None, asked_to_stop)
            stack.callback(end_workers, training.loader)
            estimate = rehearse(training)
            if is_main():
                print(report(estimate))
            return None
        opened = run_in_all(lambda: open_run(config, images, stack), here=is_main())
        content = broadcast_object(opened.content if opened else None)
        # The main process first: a file that has to be downloaded is so once.
        net = main_first(lambda: first_network(config, classes, goes_on=content is not None))
        training = Training(config, net, images, content, opened, asked_to_stop)
        stack.callback(end_workers, training.loader)
        content = None  # as large as the network and its momenta, which have it now
        if opened:
            opened.content = None
        for epoch in range(training.position.epoch, config.epochs):
            training.epoch(epoch)
        return training.finish()


def first_network(config: TrainConfig, classes: tuple[str, ...], *, goes_on: bool = False) -> MultiGrain:
    """The network before its first step: random, published, or with the weights of `config.init_from`.

    goes_on: its weights are about to come from a snapshot, so that the files of the first ones need not be there any more.
    Its p is the config's; a classifier is taken over where it has the very classes. Raises ValueError for a whitened network.
    """
    torch.manual_seed(config.seed)
    net = get_multigrain(
        config.backbone, p=config.p, num_classes=len(classes),
        pretrained_backbone=config.pretrained_backbone and not goes_on,
    )  # fmt: skip
    if not config.init_from or goes_on:
        return net
    path = find_path(config.init_from)
    if stage_folder(config.experiment, STAGE).resolve() in path.resolve().parents:
        raise ValueError(
            f"init_from: {path} is of this very run, which goes on by itself (resume); to start anew from its weights, "
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
    same_count = source.classifier.out_features == len(classes)
    if source.classes == classes or (not source.classes and same_count):
        net.copy_to_classifier(source.classifier.weight, source.classifier.bias)
    else:
        print(f"{path} has other classes: its classifier is not taken over")
    return net


def trained_network(config: NetworkConfig) -> tuple[MultiGrain, dict]:
    """The network of `config.checkpoint`, the published one, or that of the experiment's 01, and the checkpoint's content.

    On the mini set a missing training is run first. Otherwise FileNotFoundError gives the command that makes it.
    """
    return network_left_by(STAGE, config, run=lambda shared: run_training(make(TrainConfig, shared)))


LAMBDAS = (0.1, 0.5, 0.9)
Shares = dict[float, list[tuple[int, float]]]  # {λ: [(optimizer step, share in 0..1), …]}


def shares_by_lambda(config: TrainConfig) -> Shares:
    """Shares of the classification gradient against λ, in the order of time, from trainings like `config` (figure 5).

    On the embedded set: of half an epoch at half the size for each of LAMBDAS, kept as outputs/<experiment>-lambda<λ>/. Else: of
    the experiment's own runs, train, train.1, …, as far as they were noted.
    """
    if not is_mini(config.data):
        return shares_of_runs(config.experiment)
    found: Shares = {}
    for lambda_ in LAMBDAS:
        short = short_training(config, lambda_)
        if not is_finished(short, training_data(short)):
            print(f"λ = {lambda_:g}, half an epoch at {short.size} px:")
            run_training(short)
        found[lambda_] = shares_noted(read_steps(short.experiment, STAGE))
    return found


def short_training(config: TrainConfig, lambda_: float) -> TrainConfig:
    """Half an epoch at half the size, from the same first weights, with a line of steps.jsonl every few steps."""
    return replace(
        config, experiment=f"{config.experiment}-lambda{lambda_:g}", lambda_=lambda_, size=max(config.size // 2, 32),
        epochs=1, len_factor=0.5, repetitions=max(config.repetitions, 2), log_every=2, gradient_share_every=1,
    )  # fmt: skip


def shares_of_runs(experiment: str) -> Shares:
    """What the experiment's runs noted; of several with the same λ, the latest."""
    found: Shares = {}
    in_time = sorted(runs(experiment), key=lambda name: name == STAGE)  # train.1, train.2, …, train
    for name in in_time:
        lambda_ = read_config(experiment, name)["lambda_"]
        noted = shares_noted(read_steps(experiment, name))
        if noted:
            found[lambda_] = noted
    return found


def shares_noted(steps: list[dict]) -> list[tuple[int, float]]:
    """(step, share) of the lines of a steps.jsonl that hold one."""
    return [(line["step"], line[SHARE]) for line in steps if SHARE in line]
