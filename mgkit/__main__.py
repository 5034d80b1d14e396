"""One process of a stage: `python -m mgkit <stage> <config.yaml>`, started by `mgkit.engine.launch`.

It ends with its launcher, saves on SIGTERM, and writes how it ended for `mgkit.engine.launch`.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from traceback import format_exc

from torch.distributed.elastic.multiprocessing.errors import record

from mgkit.config import (
    ClaimsConfig,
    ClassifyConfig,
    DescribeConfig,
    FinetunePConfig,
    PhotosConfig,
    RetrievalConfig,
    StageConfig,
    TrainConfig,
    WhitenConfig,
    from_yaml,
)
from mgkit.data.decoding import UnreadableImageError
from mgkit.engine.launch import FOLDER, StoppedError, is_repeated, read_ending, write_ending
from mgkit.engine.loop import NonFiniteError
from mgkit.engine.stopping import StopRequest, Unbreakable, end_readers, leave_printing_to_main
from mgkit.machine.distributed import process_group
from mgkit.machine.files import REMEDIES, RefusedError
from mgkit.machine.progress import print_anything

TRAINING = (TrainConfig, ClaimsConfig)  # the stages that save when they are asked to stop
STAGES = {  # by name
    config_class.stage: config_class
    for config_class in (
        TrainConfig, FinetunePConfig, WhitenConfig, ClassifyConfig, RetrievalConfig, DescribeConfig,
        PhotosConfig, ClaimsConfig,
    )
}  # fmt: skip


def work_of(config_class: type[StageConfig]) -> Callable[..., object]:
    """The function that runs a stage; only its modules are imported, as those of all take a second."""
    if config_class is TrainConfig:
        from mgkit.stages.train import run_training as work
    elif config_class is FinetunePConfig:
        from mgkit.stages.finetune_p import run_finetune_p as work
    elif config_class is WhitenConfig:
        from mgkit.stages.whiten import run_whitening as work
    elif config_class is ClassifyConfig:
        from mgkit.stages.evaluate_imagenet import run_classification as work
    elif config_class is RetrievalConfig:
        from mgkit.stages.evaluate_retrieval import run_embedding as work
    elif config_class is DescribeConfig:
        from mgkit.descriptors.out import run_describing as work
    elif config_class is PhotosConfig:
        from mgkit.photos.search import run_photos as work
    else:
        from mgkit.claims.run import run_claims as work
    return work


@record
def run_stage(stage: str, config_file: str, stop: StopRequest) -> None:
    """Run a stage; an error that a restart cannot mend is written for the launcher (`write_ending`)."""
    config_class = STAGES[stage]
    work = work_of(config_class)
    options = {"asked_to_stop": stop} if config_class in TRAINING else {}
    try:
        with process_group():
            work(from_yaml(config_class, config_file), **options)
    except StoppedError as stopped:
        write_ending("stopped", str(stopped))
    except (RefusedError, UnreadableImageError, NonFiniteError) as error:
        fail_for_good(error)
    except Exception as error:
        at_once = (
            isinstance(error, OSError | ValueError) and not stop.work_has_begun
        )  # about parameters or files
        if at_once or (isinstance(error, OSError) and error.errno in REMEDIES):
            fail_for_good(error)
        if is_repeated(error, step=stop.step):
            write_ending("failed", f"a worker failed twice at the same step with this error:\n{format_exc()}")
            sys.exit(1)
        raise


def fail_for_good(error: Exception) -> None:
    """Write the error's message for the launcher and exit; without a launcher, raise the error."""
    if FOLDER not in os.environ:
        raise error
    write_ending("failed", f"{type(error).__name__}: {error}")
    sys.exit(1)


def main() -> None:
    """Run the stage given on the command line; exits with 0 unless a restart may help."""
    stage, config_file = sys.argv[1:]
    stop = StopRequest(saves=stage in [config_class.stage for config_class in TRAINING])
    print_anything()
    sys.stdout = Unbreakable(sys.stdout)
    leave_printing_to_main()
    try:
        if not stop.is_orphan() and not has_ended():
            run_stage(stage, config_file, stop)
    finally:
        end_readers()
        stop.tidy_up()


def has_ended() -> bool:
    """Whether a worker has written that the run has ended, so that this restart is pointless."""
    return FOLDER in os.environ and read_ending(Path(os.environ[FOLDER])) is not None


if __name__ == "__main__":
    main()
