"""The ends of the ranges of parameters: every stage runs there, or one line names the parameter."""

import math
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from support import one_line_error

from mgkit.checkpoints import load_network
from mgkit.config import (
    ClassifyConfig,
    FinetunePConfig,
    PhotosConfig,
    RetrievalConfig,
    TrainConfig,
    WhitenConfig,
    make,
)
from mgkit.machine.printable import shown_name
from mgkit.photos.search import search_photos
from mgkit.photos.task import photo_task
from mgkit.stages.evaluate_imagenet import run_classification
from mgkit.stages.evaluate_retrieval import embed_here, evaluate_retrieval
from mgkit.stages.finetune_p import run_finetune_p
from mgkit.stages.retrieval_task import retrieval_task
from mgkit.stages.train import run_training
from mgkit.stages.whiten import run_whitening


@pytest.fixture
def root(tiny_root):
    return tiny_root


@pytest.fixture(scope="module")
def project(tiny_root, tmp_path_factory):
    """The working directory, with trained and whitened networks of p = 3 (t) and p = inf (max)."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()):
        patch.chdir(tmp_path_factory.mktemp("project"))
        for experiment, p in (("t", 3.0), ("max", math.inf)):
            run_training(config_of(TrainConfig, tiny_root, experiment=experiment, p=p))
            run_whitening(config_of(WhitenConfig, tiny_root, experiment=experiment, p=p))
        yield


QUICK = {
    TrainConfig: {"batch_size": 12, "epochs": 1, "len_factor": 0.5, "resume": False, "size": 32},
    FinetunePConfig: {"sizes": [32], "ps": [1.0], "images_per_class": 1},
    WhitenConfig: {"size": 32, "p": 3.0},
    ClassifyConfig: {"sizes": [32], "crops": ["square"]},
    RetrievalConfig: {"size": 32, "scales": [1.0], "resolutions": [], "sets": ["holidays"], "indices": []},
    PhotosConfig: {"size": 32, "queries": 2},
}


def config_of(cls, root, **values):
    return make(cls, {"experiment": "t", "data": str(root), "workers": 0} | QUICK[cls] | values)


def run_retrieval(config):
    task = retrieval_task(config)
    embed_here(task)
    evaluate_retrieval(task)


RUN = {
    TrainConfig: run_training,
    FinetunePConfig: run_finetune_p,
    WhitenConfig: run_whitening,
    ClassifyConfig: run_classification,
    RetrievalConfig: run_retrieval,
    PhotosConfig: lambda config: search_photos(photo_task(config)),
}


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (TrainConfig, {"p": 0.01, "lr": 0, "lr_gamma": 0, "weight_decay": 0, "beta": 0, "margin": 0}),
        (TrainConfig, {"p": 1000.0, "beta": 10, "margin": 10, "momentum": 0.9999999, "weight_decay": 1}),
        (TrainConfig, {"seed": 2**32 - 1, "batch_size": 2**16, "repetitions": 2**16, "size": 8}),
        (TrainConfig, {"crop_scale": 1e-300, "checkpoint_minutes": 1e-300, "log_every": 10**9}),
        (TrainConfig, {"lr_drops": [10**6] * 1000, "lr_batch_size": 10**6, "keep_checkpoints": 10_000}),
        (TrainConfig, {"lr": 1000, "beta_lr": 1000, "gradient_share_every": 10**9, "val_fraction": 1e-300}),
        (FinetunePConfig, {"lr": 1000, "step_size": 2**16, "images_per_class": 10**9, "batch_size": 2**16}),
        (FinetunePConfig, {"ps": [0.01, 1000.0, math.inf], "sizes": [8], "seed": 2**32 - 1, "lr": 0}),
        (WhitenConfig, {"images": 2, "shrinkage": 1, "size": 8, "p": math.inf}),
        (WhitenConfig, {"images": 10**9, "p": 0.01}),
        (RetrievalConfig, {"size": 8, "dims": 1, "p": math.inf}),
        (RetrievalConfig, {"scales": [0.25, 2.0], "p": 0.01}),
        (PhotosConfig, {"p": math.inf, "size": 8, "k": 1000, "queries": 0, "false_rate": 1e-300}),
        (PhotosConfig, {"threshold": 1e-300, "queries": 1000, "batch_size": 2**16, "index": "HNSW512"}),
        (ClassifyConfig, {"experiment": "max", "sizes": [8]}),
        (RetrievalConfig, {"experiment": "max"}),
        (PhotosConfig, {"experiment": "max"}),
    ],
)
def test_a_stage_runs_at_the_ends_of_its_ranges(project, root, cls, values):
    experiment = "ends" if cls is TrainConfig else "t"
    RUN[cls](config_of(cls, root, **({"experiment": experiment} | values)))


def test_training_with_max_pooling_leaves_a_checkpoint_that_loads(project, root):
    path = run_training(config_of(TrainConfig, root, experiment="inf", p="inf"))
    assert load_network(path)[0].pool.p.item() == math.inf
    with one_line_error(ValueError, "p* cannot be learned from p = inf", path):
        run_finetune_p(config_of(FinetunePConfig, root, experiment="inf"))


@pytest.mark.parametrize(
    ("cls", "values", "named"),
    [
        (TrainConfig, {"len_factor": 1e-300}, "len_factor"),
        (TrainConfig, {"accumulate": 2**16}, "accumulate"),
        (WhitenConfig, {"shrinkage": 0}, "shrinkage"),
        (RetrievalConfig, {"scales": [1e-300]}, "scales"),
        (RetrievalConfig, {"dims": 10**9}, "dims"),
        (RetrievalConfig, {"sets": ["../x"]}, "sets"),
        (RetrievalConfig, {"indices": ["IVF1000000000,Flat"]}, "indices"),
        (RetrievalConfig, {"indices": ["IVF99999999999999999999,Flat"]}, "indices"),
        (RetrievalConfig, {"indices": ["HNSW0"]}, "indices"),
        (RetrievalConfig, {"indices": ["\udc80"]}, "indices"),
        (PhotosConfig, {"index": "IVF\u0664,Flat"}, "index"),
        (PhotosConfig, {"index": "\udc80"}, "index"),
        (RetrievalConfig, {"indices": ["PQ64x24"]}, "indices"),
        (RetrievalConfig, {"indices": ["PCAR1000,Flat"]}, "indices"),
        (PhotosConfig, {"index": "HNSW1000000"}, "index"),
        (PhotosConfig, {"index": "Flat" * 1000}, "index"),
    ],
)
def test_an_end_at_which_nothing_can_run_is_named_in_one_line(project, root, cls, values, named):
    with one_line_error(ValueError, named):
        RUN[cls](config_of(cls, root, **values))


@pytest.mark.parametrize("named", ["nothing.pth", "a\nb.pth", "x" * 300, "."])
def test_initial_weights_that_are_no_file_are_named_before_an_earlier_run_is_moved(project, root, named):
    before = sorted(Path("outputs/t").iterdir())
    with one_line_error(FileNotFoundError, shown_name(named)):
        run_training(config_of(TrainConfig, root, init_from=named))
    assert sorted(Path("outputs/t").iterdir()) == before


@pytest.mark.parametrize("data", ["a\nb", "\udc80"])
def test_a_folder_is_named_in_one_printable_line(project, root, data):
    with one_line_error(FileNotFoundError, "data", shown_name(data)):
        run_training(config_of(TrainConfig, root, data=data))
