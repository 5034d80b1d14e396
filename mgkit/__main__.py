"""What one of several processes runs: `python -m mgkit <stage> <config.yaml>`, started by torch.distributed.run.

It ends with its launcher, saves when a scheduler sends SIGTERM, and leaves word of how it ended for `mgkit.engine.launch`.
"""

import os
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import record

from mgkit.config import (
    ClassifyConfig,
    FinetunePConfig,
    PhotosConfig,
    RetrievalConfig,
    TrainConfig,
    WhitenConfig,
    from_yaml,
)
from mgkit.data.decoding import UnreadableImageError
from mgkit.engine.launch import FOLDER, StoppedError, read_ending, write_ending
from mgkit.engine.loop import NonFiniteError
from mgkit.engine.snapshots import SnapshotError
from mgkit.engine.stopping import StopRequest, Unbreakable, end_readers, leave_printing_to_main
from mgkit.machine.distributed import process_group
from mgkit.photos.search import run_photos
from mgkit.stages.evaluate_imagenet import run_classification
from mgkit.stages.evaluate_retrieval import run_embedding
from mgkit.stages.finetune_p import run_search
from mgkit.stages.train import run_training
from mgkit.stages.whiten import run_whitening

STAGES = {  # but for training, which is told when to stop
    "finetune_p": (FinetunePConfig, run_search),
    "whiten": (WhitenConfig, run_whitening),
    "evaluate_imagenet": (ClassifyConfig, run_classification),
    "evaluate_retrieval": (RetrievalConfig, run_embedding),
    "search_photos": (PhotosConfig, run_photos),
}


@record
def run_stage(stage: str, config_file: str, stop: StopRequest) -> None:
    """Run a stage; the launcher is told of an ending that no restart would change."""
    try:
        with process_group():
            if stage == "train":
                run_training(from_yaml(TrainConfig, config_file), asked_to_stop=stop)
            else:
                config_class, run = STAGES[stage]
                run(from_yaml(config_class, config_file))
    except StoppedError as stopped:
        write_ending("stopped", str(stopped))
    except (SnapshotError, UnreadableImageError, NonFiniteError) as error:
        fail_for_good(error)
    except (OSError, ValueError) as error:
        if stop.work_has_begun:  # no longer of parameters and files, but as unforeseen as any other
            raise
        fail_for_good(error)


def fail_for_good(error: Exception) -> None:
    """End with the error's one line for the launcher; without a launcher, with the error itself."""
    if FOLDER not in os.environ:
        raise error
    write_ending("failed", f"{type(error).__name__}: {error}")
    sys.exit(1)


def main() -> None:
    """Run the stage that the command line names, as one of the processes; exits with 0 unless a restart may help."""
    stage, config_file = sys.argv[1:]
    stop = StopRequest(saves=stage == "train")
    sys.stdout = Unbreakable(sys.stdout)
    leave_printing_to_main()
    try:
        if not stop.is_orphan() and not has_ended():
            run_stage(stage, config_file, stop)
    finally:
        end_readers()
        stop.tidy_up()


def has_ended() -> bool:
    """Whether this is a restart that is of no use: a worker has left word that the run has ended."""
    return FOLDER in os.environ and read_ending(Path(os.environ[FOLDER])) is not None


if __name__ == "__main__":
    main()
