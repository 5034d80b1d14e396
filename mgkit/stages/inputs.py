"""The inputs of a stage: data, and the network of an earlier stage."""

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mgkit.checkpoints import load_network
from mgkit.config import AnyConfig, NetworkConfig, StageConfig
from mgkit.data.images import ImageList
from mgkit.data.layouts import labelled_images, relabelled, validation_images
from mgkit.engine.holding import holding
from mgkit.engine.run import papermill_command, stage_folder
from mgkit.machine.device import pick_device, place
from mgkit.machine.distributed import all_gather_object, from_main, main_first
from mgkit.machine.download import file_hash
from mgkit.machine.files import find_path, project_root, writing
from mgkit.machine.printable import say_once
from mgkit.machine.records import shown
from mgkit.mini.make import make_mini
from mgkit.model import MultiGrain, get_multigrain


def data_root(data: str) -> Path:
    """The folder of `data`; `mini` is the embedded set, drawn into data/mini on first use."""
    if data == "mini":
        folder = project_root() / "data" / "mini"
        with writing(folder):
            return make_mini(folder, progress=True)
    if not data:
        raise ValueError("data is empty: give a folder, or mini for the embedded set")
    return find_path(data)


def is_mini(data: str) -> bool:
    """Whether `data` is the embedded set, on which missing earlier stages are run, in minutes."""
    return data == "mini" or (find_path(data) / "mini.json").is_file()


def training_data(config: StageConfig) -> tuple[ImageList, ImageList]:
    """The training and validation images of `config.data`, rotated as `config.exif` says."""
    train_images, val_images = main_first(  # an index of millions of files is made once
        lambda: labelled_images(data_root(config.data), val_fraction=config.val_fraction)
    )
    return train_images.with_exif(config.exif), val_images.with_exif(config.exif)


def validation_data(config: StageConfig) -> ImageList:
    """The validation images of `config.data`; training images are not needed."""
    images = main_first(lambda: validation_images(data_root(config.data), val_fraction=config.val_fraction))
    return images.with_exif(config.exif)


def missing_stage(path: Path, stage: type[StageConfig], config: StageConfig) -> FileNotFoundError:
    """The error for a missing file of an earlier stage, with the command that makes it.

    stage: config class of the earlier stage
    config: of the stage that needs the file
    """
    shared = {"experiment": config.experiment, "data": config.data}
    if isinstance(config, NetworkConfig) and config.backbone:
        shared["backbone"] = config.backbone
    return FileNotFoundError(f"{path} does not exist: make it with `{papermill_command(stage(**shared))}`")


def in_classes_of(net: MultiGrain, images: ImageList) -> ImageList:
    """The images, with labels that are indices into the network's classes.

    Classes are matched by name. A checkpoint without class names (the released files) is taken to have the
    sorted classes of the data as its first ones; if it has more, a message is printed.

    Raises ValueError for a class that the network lacks, and for a network without a classifier.
    """
    known = net.classifier.out_features
    if not net.classifies:
        of_file = f" of {net.source}" if net.source else ""
        raise ValueError(
            f"{net.name}{of_file} has no classifier ({net.unclassified}): train one by 01 with "
            "pretrained_backbone or weights, or choose another backbone"
        )
    if net.classes:
        names = Counter(net.classes)
        if twice := [name for name in images.classes if names[name] > 1]:
            raise ValueError(
                f"{net.source}: classes has {shown(twice[0])} twice: each class needs its own name"
            )
        return relabelled(images, net.classes, f"them: the network knows {known} classes")
    if len(images.classes) > known:
        raise ValueError(f"the checkpoint knows {known} classes, {images.root} has {len(images.classes)}")
    if len(images.classes) < known:
        say_once(
            f"the checkpoint does not name its {known} classes: the {len(images.classes)} of {images.root} "
            "are taken for its first ones; if they are not, accuracies mean little"
        )
    return images


def network_left_by(
    stage: type[AnyConfig], config: NetworkConfig, *, run: Callable[[AnyConfig], object]
) -> tuple[MultiGrain, dict]:
    """Load the network of `config.checkpoint`, one off the shelf, or an earlier stage's, and its checkpoint.

    stage: config class of the earlier stage
    run: runs that stage; called, with default parameters, for a missing checkpoint on the embedded set

    Raises FileNotFoundError, with the command that makes it, for a missing checkpoint on other data.
    """
    options = {"p": 1.0, "tokens": config.tokens or "patches"}  # published networks pool by averaging
    if config.pretrained_backbone:
        net = main_first(lambda: get_multigrain(config.backbone, pretrained_backbone=True, **options))
        return place(net.eval(), pick_device()), {}
    if config.weights:
        path = find_path(config.weights)
        net, _ = load_one_file(path, lambda: (get_multigrain(config.backbone, weights=path, **options), {}))
        return place(net.eval(), pick_device()), {}
    earlier = stage(experiment=config.experiment, data=config.data, workers=config.workers)
    own = stage_folder(earlier) / "checkpoint.pth"
    if not config.checkpoint and not from_main(own.is_file):
        if not is_mini(config.data):
            raise missing_stage(own, stage, config)
        with holding(earlier):
            if not from_main(own.is_file):  # no other process has made it meanwhile
                print(f"{own} does not exist: running {stage.notebook} first, with its defaults")
                run(earlier)
    path = find_path(config.checkpoint) if config.checkpoint else own
    net, checkpoint = load_one_file(path, lambda: load_network(path, backbone=config.backbone or None))
    if config.tokens not in (None, net.tokens):
        raise ValueError(f"tokens: {path} pools {net.tokens}, not {config.tokens}: leave `tokens` out (None)")
    return place(net, pick_device()), checkpoint


def load_one_file(path: Path, load: Callable[[], tuple[MultiGrain, dict]]) -> tuple[MultiGrain, dict]:
    """Load a network in all processes, of one and the same file, with its SHA-256 as the network's.

    load: returns the network, whose source is the file, and the file's other content

    Another run may replace the file meanwhile: it is then loaded again.
    """

    def load_unchanged() -> tuple[MultiGrain, dict]:
        while True:
            before = written(path)
            net, checkpoint = load()
            with suppress(FileNotFoundError):
                net.source_sha256 = file_hash(Path(net.source))
                if written(path) == before:
                    return net, checkpoint

    while True:
        net, checkpoint = main_first(load_unchanged)
        if len(set(all_gather_object(net.source_sha256))) == 1:
            return net, checkpoint


def written(path: Path) -> tuple[int, int] | None:
    """What tells a file from one that replaces it; None if there is none, as for a released name."""
    try:
        return path.stat().st_ino, path.stat().st_mtime_ns
    except FileNotFoundError:
        return None
