"""Snapshots of a training on disk, and where a run starts: anew, resumed from a snapshot, or refused."""

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt

from mgkit.backbones.state_files import existing_file
from mgkit.checkpoints import checkpoint_file, load_checkpoint
from mgkit.config import TrainConfig, different
from mgkit.data.images import ImageList, list_hash
from mgkit.engine.run import Run, latest_results, read_config, stage_folder
from mgkit.machine.distributed import world_size
from mgkit.machine.files import RefusedError, exclusive, find_path, free_name, remove_partial, why_refused
from mgkit.machine.records import check_values
from mgkit.machine.saving import save_tensors

SECONDS_FOR_THE_LOCK = 120  # an earlier run may take as long to stop

# --- Snapshots


class SnapshotError(RefusedError):
    """A file of a training cannot be written; the message says why, what to do, and what is kept."""


class Snapshots:
    """The snapshots of a run, <folder>/step-<steps>.pth: what `loop.Training.state_dict` gives.

    keep: the number of newest snapshots that are kept.

    Only one process at a time may write.
    """

    def __init__(self, folder: str | Path, *, keep: int = 2):
        self.folder, self.keep = Path(folder), keep

    def files(self) -> list[Path]:
        """List the snapshots, newest first."""
        found = [path for path in self.folder.glob("step-*.pth") if re.fullmatch(r"step-\d+\.pth", path.name)]
        return sorted(found, key=lambda path: int(path.stem.removeprefix("step-")), reverse=True)

    def save(self, step: int, content: dict) -> Path:
        """Write a snapshot atomically, then remove all but the newest `keep`.

        Raises SnapshotError where it cannot be written, as on a full disk; the older ones then stay.
        """
        path = self.folder / f"step-{step:09d}.pth"
        try:
            save_tensors(content, path)
            for old in self.files()[self.keep :]:
                old.unlink(missing_ok=True)
        except OSError as error:
            raise self.explained(error, path) from None
        return path

    def newest(
        self, *, check: Callable[[Path, dict], None] = lambda path, content: None
    ) -> tuple[Path, dict] | None:
        """Load the newest readable snapshot: (file, content), or None. Damaged ones are named and renamed.

        check: raises ValueError for a content that counts as damaged.
        """
        remove_partial(self.folder)
        for path in self.files():
            try:
                content = load_checkpoint(path)
                check(path, content)
                return path, content
            except ValueError as error:
                # Under its name it would count among the newest that are kept.
                aside = path.replace(free_name(path.with_name(f"{path.name}.damaged")))
                print(f"{error}: renamed to {aside.name}, trying the snapshot before it")
        return None

    def explained(self, error: OSError, path: Path) -> SnapshotError:
        """The error for a file of the run that cannot be written."""
        kept = self.files()
        kept = f"the last good checkpoint, {kept[0]}, is kept" if kept else "there is no checkpoint yet"
        refused = isinstance(error, RefusedError) or error.errno is None
        what = error if refused else f"{path} cannot be written: {why_refused(error, Path(path))}"
        return SnapshotError(f"{what}; then run the same command again ({kept})")


class SavedPosition(BaseModel, strict=True):
    """`loop.Position` as a snapshot holds it."""

    step: NonNegativeInt
    epoch: NonNegativeInt
    batch: NonNegativeInt
    sums: dict[str, float]
    line: dict[str, float]


class SavedOptimizer(BaseModel, strict=True):
    """The state of torch's optimizers."""

    state: dict[int, dict]
    param_groups: list[dict]


class SavedLoss(BaseModel, strict=True):
    """The learned values of the loss."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    beta: torch.Tensor


class SavedTraining(BaseModel, strict=True):
    """What resuming needs of a snapshot, beside what any checkpoint has."""

    position: SavedPosition
    optimizer: SavedOptimizer
    extra: SavedLoss
    config: dict[str, object]
    processes: PositiveInt
    images_hash: str


def check_content(path: Path, content: dict) -> None:
    """Raise ValueError, naming file and field, unless a training can be resumed from a snapshot's content."""
    saved = check_values(path, SavedTraining, content)
    for state in ({"beta": saved.extra.beta}, *saved.optimizer.state.values()):
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and not value.isfinite().all():
                raise ValueError(f"{path}: {name} is not finite")


# --- Where a run starts


@dataclass
class OpenedRun:
    """A run's folder, locked by the main process.

    content: of the snapshot to resume from; None for a run that starts anew.
    images_hash: of the lists of training and validation images.
    """

    run: Run
    snapshots: Snapshots
    content: dict | None
    images_hash: str


def is_finished(config: TrainConfig, images: tuple[ImageList, ImageList]) -> bool:
    """Whether the latest run has finished with this config and these images; False with resume off."""
    results = sound_results(config)
    if not config.resume or results is None or results.get("images_hash") != list_hash(*images):
        return False
    if not (stage_folder(config) / "checkpoint.pth").is_file():
        return False
    return not different(read_config(stage_folder(config)), asdict(config))


def sound_results(config: TrainConfig) -> dict | None:
    """The results of the latest training; None without, or, said in a line, if damaged."""
    try:
        return latest_results(config)
    except ValueError as error:
        print(f"{error.args[0].partition(': remove')[0]}: it is written again")
        return None


def open_run(config: TrainConfig, images: tuple[ImageList, ImageList], stack: ExitStack) -> OpenedRun:
    """Lock the run's folder until `stack` is closed, and resume the run or start it anew.

    Raises ValueError for a snapshot of other parameters or images, TimeoutError if another process trains in
    the folder, SnapshotError where nothing can be written.
    """
    folder = stage_folder(config)
    snapshots = Snapshots(folder / "snapshots", keep=config.keep_checkpoints)
    try:
        hold(folder, stack)
        images_hash = list_hash(*images)
        has_results = sound_results(config) is not None
        unfinished = bool(snapshots.files()) and not (has_results and (folder / "checkpoint.pth").is_file())
        content = find_content(config, images_hash, snapshots) if unfinished else None
        if content is not None:
            run = Run(config, images=images, fresh=False)
        else:  # anew: an earlier run is renamed and kept
            weights = first_weights(config)
            run = Run(config, checkpoint=weights, images=images, keep=unfinished or has_results)
        return OpenedRun(run, snapshots, content, images_hash)
    except TimeoutError:
        raise
    except OSError as error:
        if error.errno is None and not isinstance(error, RefusedError):
            raise  # about something else, with a message of its own
        path = Path(error.filename or folder)
        if path not in (folder, lock_of(folder), *folder.parents) and folder not in path.parents:
            raise  # another file, such as init_from
        raise snapshots.explained(error, path) from None


def first_weights(config: TrainConfig) -> str:
    """The file that the first weights are from, for the provenance; empty for none."""
    if config.init_from:
        return str(checkpoint_file(find_path(config.init_from)))
    return str(existing_file(find_path(config.weights))) if config.weights else ""


def find_content(config: TrainConfig, images_hash: str, snapshots: Snapshots) -> dict | None:
    """Load the newest snapshot if the run in the folder is of this config and may be resumed; else None.

    Raises ValueError for a snapshot of other parameters or images.
    """
    written = read_config(stage_folder(config))
    if not config.resume or written is None or different(written, asdict(config)):
        return None
    newest = snapshots.newest(check=check_content)
    if newest is None:
        return None
    check_snapshot(*newest, config, images_hash)
    print(f"resuming from {newest[0]}")
    return newest[1]


def check_snapshot(path: Path, content: dict, config: TrainConfig, images_hash: str) -> None:
    """Raise ValueError unless the snapshot is of this config and of images with this hash."""
    if other := different(content.get("config", {}), asdict(config)):
        raise ValueError(
            f"{path} is of a training with other parameters ({', '.join(other)}): move it away, or "
            "start from its weights in another experiment with init_from"
        )
    if content["images_hash"] != images_hash:
        raise ValueError(
            f"the images below {config.data} are not those that {path} was trained on: put them back, or "
            "train anew with another experiment or resume=False"
        )
    if content["processes"] != world_size():
        print(f"the snapshot is of {content['processes']} processes, resuming with {world_size()}")


def hold(folder: Path, stack: ExitStack) -> None:
    """Lock the folder until `stack` is closed. Raises TimeoutError if another process keeps the lock."""
    purpose = f"training in {folder}"
    try:
        stack.enter_context(exclusive(lock_of(folder), purpose=purpose, patience=SECONDS_FOR_THE_LOCK))
    except TimeoutError:
        raise TimeoutError(f"another process is {purpose}: wait, or choose another experiment") from None


def lock_of(folder: Path) -> Path:
    """The lock file of a run's folder: beside it, as the folder itself may be renamed."""
    return folder.with_name(f".{folder.name}.lock")
