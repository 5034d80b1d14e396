"""A training on disk, so that it survives: whole files, the last few kept, the newest good one found again."""

import re
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import torch

from mgkit.checkpoints import checkpoint_file, load_checkpoint
from mgkit.config import TrainConfig, different
from mgkit.data.images import ImageList, list_hash
from mgkit.engine.run import Run, read_config, read_results, stage_folder
from mgkit.machine.distributed import world_size
from mgkit.machine.files import atomic_write, exclusive, find_path, free_name, remove_partial


class SnapshotError(OSError):
    """A snapshot, or another file of a run, that cannot be written; the message says what is kept and what to do."""


class Remembering:
    """A file to write to that remembers the error of a write: torch.save tells what it failed at, not why."""

    def __init__(self, file: IO[bytes]):
        self.file, self.error = file, None

    def write(self, data) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


class Snapshots:
    """The snapshots of a run, <folder>/step-<steps>.pth: checkpoints with all that a training needs to go on.

    keep: how many of the last are kept. Only one process at a time may write.
    """

    def __init__(self, folder: str | Path, *, keep: int = 2):
        self.folder, self.keep = Path(folder), keep

    def files(self) -> list[Path]:
        """The snapshots there are, the newest first."""
        found = [path for path in self.folder.glob("step-*.pth") if re.fullmatch(r"step-\d+\.pth", path.name)]
        return sorted(found, key=steps_of, reverse=True)

    def save(self, step: int, content: dict) -> Path:
        """Write a snapshot, all or nothing, then remove those past `keep`.

        Raises SnapshotError where it cannot be written: a full disk, a read-only folder. The older ones are untouched then.
        """
        path = self.folder / f"step-{step:09d}.pth"
        try:
            with atomic_write(path) as temporary, open(temporary, "wb") as file:
                saved = Remembering(file)
                try:
                    torch.save(content, saved)
                except RuntimeError:  # torch raises its own for what it meets while it writes
                    raise saved.error or OSError("torch.save failed") from None
            for old in self.files()[self.keep :]:
                old.unlink(missing_ok=True)
        except OSError as error:
            raise self.explained(error, path) from None
        return path

    def explained(self, error: OSError, path: Path) -> SnapshotError:
        """The error for a file of the run that cannot be written: why, what is kept, and what to do, in a line."""
        kept = self.files()
        kept = f"the last good checkpoint, {kept[0]}, is kept" if kept else "there is no checkpoint yet"
        return SnapshotError(
            f"{path} cannot be written ({error.strerror or error}); {kept}: "
            "make room or make the folder writable, then run the same command again"
        )

    def newest(self) -> tuple[Path, dict] | None:
        """The newest snapshot that can be read, and its content; None if there is none. Damaged ones are named, and renamed."""
        remove_partial(self.folder)
        for path in self.files():
            try:
                return path, load_checkpoint(path)
            except ValueError as error:
                # Under its name it would count as the newest of those that are kept.
                aside = path.replace(free_name(path.with_name(f"{path.name}.damaged")))
                print(f"{error}: kept as {aside.name}, trying the one before it")
        return None


def steps_of(path: Path) -> int:
    """The number of steps in the name of a snapshot."""
    return int(path.stem.removeprefix("step-"))


STAGE = "train"
LONGEST_STOP = 120  # seconds that a run waits for an earlier one to leave its folder


def is_finished(config: TrainConfig, images: tuple[ImageList, ImageList]) -> bool:
    """Whether the experiment's training has been run to its end with this config on these images."""
    results = read_results(config.experiment, STAGE)
    if not config.resume or results is None or results.get("images_hash") != list_hash(*images):
        return False
    if not (stage_folder(config.experiment, STAGE) / "checkpoint.pth").is_file():
        return False
    return not different(read_config(config.experiment, STAGE), asdict(config))


@dataclass
class OpenedRun:
    """The main process's hold of a run's folder. content: of the snapshot to go on from, None for a fresh run."""

    run: Run
    snapshots: Snapshots
    content: dict | None
    images_hash: str


def open_run(config: TrainConfig, images: tuple[ImageList, ImageList], stack: ExitStack) -> OpenedRun:
    """Hold the run's folder, for as long as the stack, and find what there is to go on from.

    Raises ValueError for a snapshot of other parameters or other images, TimeoutError where another process trains there,
    SnapshotError where nothing can be written.
    """
    folder = stage_folder(config.experiment, STAGE)
    snapshots = Snapshots(folder / "snapshots", keep=config.keep_checkpoints)
    try:
        hold(folder, stack)
        return open_held(config, images, folder, snapshots)
    except TimeoutError:
        raise
    except OSError as error:
        path = Path(error.filename or folder)
        if path not in (folder, lock_of(folder), *folder.parents) and folder not in path.parents:
            raise  # such as init_from
        raise snapshots.explained(error, path) from None


def open_held(
    config: TrainConfig,
    images: tuple[ImageList, ImageList],
    folder: Path,
    snapshots: Snapshots,
) -> OpenedRun:
    """`open_run`, once its folder is held."""
    found = list_hash(*images)
    remove_partial(folder)
    written = read_config(config.experiment, STAGE)
    same = written is not None and not different(written, asdict(config))
    has_results = read_results(config.experiment, STAGE) is not None
    unfinished = bool(snapshots.files()) and not (has_results and (folder / "checkpoint.pth").is_file())
    newest = snapshots.newest() if config.resume and unfinished and same else None
    if newest is not None:
        check_snapshot(*newest, config, found)
        print(f"going on at {newest[0]}")
        return OpenedRun(Run(STAGE, config, images=images, fresh=False), snapshots, newest[1], found)
    first_weights = str(checkpoint_file(find_path(config.init_from))) if config.init_from else ""
    run = Run(STAGE, config, checkpoint=first_weights, images=images, keep=unfinished or has_results)
    return OpenedRun(run, snapshots, None, found)


def lock_of(folder: Path) -> Path:
    """The lock of a run's folder: beside it, as the folder itself may be renamed."""
    return folder.with_name(f".{folder.name}.lock")


def hold(folder: Path, stack: ExitStack) -> None:
    """Be the only process that writes in the folder, until the stack is left."""

    def say() -> None:
        print(f"waiting for another process, which is training in {folder}")

    try:
        stack.enter_context(exclusive(lock_of(folder), on_wait=say, patience=LONGEST_STOP))
    except TimeoutError:
        raise TimeoutError(
            f"another process is training in {folder}: wait for it, or choose another experiment"
        ) from None


def check_snapshot(path: Path, content: dict, config: TrainConfig, images_found: str) -> None:
    """Raise ValueError unless the snapshot is of this config and of these images."""
    recorded = content.get("config", {})
    if other := different(recorded, asdict(config)):
        raise ValueError(
            f"{path} is of a training with other parameters ({', '.join(other)}): move it away, or "
            "start from its weights in another experiment with init_from"
        )
    if content["images_hash"] != images_found:
        raise ValueError(
            f"the images below {config.data} are not those that {path} was trained on: put them back, or train anew with "
            "another experiment or resume=False"
        )
    if content["processes"] != world_size():
        print(f"so far with {content['processes']} processes, from here with {world_size()}")
