"""Joint training (section 3): started in worker processes, its network found again by the later stages (01)."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch

from mgkit.checkpoints import load_network
from mgkit.config import NetworkConfig, TrainConfig, make
from mgkit.datasets import end_workers
from mgkit.distributed import is_main, main_first, of_main, together, world_size
from mgkit.experiment import NOTEBOOKS, is_mini, missing_stage, stage_folder, training_data
from mgkit.files import find_path
from mgkit.hardware import pick_device, place
from mgkit.launch import launch, processes_on_this_machine
from mgkit.model import MultiGrain, get_multigrain
from mgkit.rehearsal import rehearse, report
from mgkit.resume import STAGE, is_finished, open_run
from mgkit.training import Training, check_batch_norm


def train(config: TrainConfig) -> Path | None:
    """Run a whole training in worker processes; returns the checkpoint it leaves, outputs/<experiment>/train/checkpoint.pth.

    With `dry_run`, some steps are measured, what the whole would cost is printed, and None is returned. An unfinished training of the same config goes on at its last snapshot, a finished one is left as it is, unless
    `resume` is off. Raises what is wrong with config or data at once, and `mgkit.launch.WorkerError` for what fails later.
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
        opened = together(lambda: open_run(config, images, stack), here=is_main())
        content = of_main(opened.content if opened else None)
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


def network_left_by(
    stage: str, config: NetworkConfig, *, run: Callable[[dict], object]
) -> tuple[MultiGrain, dict]:
    """The network of `config.checkpoint`, the published one, or else the stage's own, and the checkpoint's content.

    run: makes the stage with its defaults, given the parameters that all stages share; called on the mini set where the
    stage's checkpoint is missing. Otherwise that raises FileNotFoundError with the command that makes it.
    """
    if config.pretrained_backbone:  # published networks pool by averaging: p = 1
        net = main_first(lambda: get_multigrain(config.backbone, p=1.0, pretrained_backbone=True))
        return place(net.eval(), pick_device()), {}
    own = stage_folder(config.experiment, stage) / "checkpoint.pth"
    if not config.checkpoint and not own.is_file():
        if not is_mini(config.data):
            raise missing_stage(own, stage, config)
        print(f"{own} does not exist: running {NOTEBOOKS[stage]} first, with its defaults")
        run({"experiment": config.experiment, "data": config.data, "workers": config.workers})
    path = find_path(config.checkpoint) if config.checkpoint else own
    net, checkpoint = main_first(lambda: load_network(path, backbone=config.backbone or None))
    return place(net, pick_device()), checkpoint
