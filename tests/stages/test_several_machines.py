"""Stages on several machines, here launchers on one: the bytes of one process, written once."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import free_port, one_line_error

from mgkit.checkpoints import save_checkpoint
from mgkit.config import ClassifyConfig, PhotosConfig, RetrievalConfig, make
from mgkit.data.layouts import labelled_images
from mgkit.engine import launch, run
from mgkit.engine.launch import WorkerError
from mgkit.engine.run import Run, read_config, read_results, stage_folder
from mgkit.model import get_multigrain
from mgkit.photos.report.page import save_report, summary
from mgkit.photos.search import embed_photos, search_photos
from mgkit.photos.task import photo_task
from mgkit.stages.evaluate_retrieval import embed_sets, evaluate_retrieval
from mgkit.stages.figure_4 import resolution_curves
from mgkit.stages.retrieval_task import retrieval_task

SECOND = {"nnodes": 2, "node_rank": 1, "rdzv_endpoint": "localhost:1"}


@pytest.fixture
def values(mini_root, here):
    """The parameters that all stages share, with the checkpoint of an untrained network."""
    torch.manual_seed(0)
    train_images, _ = labelled_images(mini_root)
    net = get_multigrain("resnet8", p=3.0, num_classes=len(train_images.classes))
    save_checkpoint(here / "untrained.pth", net, classes=list(train_images.classes))
    return {"data": str(mini_root), "workers": 0, "checkpoint": str(here / "untrained.pth")}


@pytest.fixture
def config(values):
    own = {"sets": ["ukbench"], "size": 32, "scales": [1.0], "dims": None, "resolutions": [], "indices": []}
    return make(RetrievalConfig, values | own)


def retrieval(config):
    task = retrieval_task(config)
    embed_sets(task)
    return evaluate_retrieval(task)


def on_two_machines(work, config):
    """What `work` returns or raises on two machines with one process each."""
    endpoint = f"localhost:{free_port()}"
    machines = [replace(config, gpus=1, nnodes=2, node_rank=k, rdzv_endpoint=endpoint) for k in (0, 1)]
    with ThreadPoolExecutor() as threads:
        begun = [threads.submit(work, machine) for machine in machines]
        return [each.exception(300) or each.result() for each in begun]


def stored(config):
    """{name of an array: its bytes}"""
    folder = stage_folder(config).parent / "features"
    return {path.parent.name: path.read_bytes() for path in folder.glob("*/features.npy")}


def test_two_machines_embed_the_bytes_of_one_process_and_find_the_same(config, capfd):
    one, two = replace(config, experiment="one"), replace(config, experiment="two")
    [alone] = retrieval(one)
    capfd.readouterr()
    for [found] in on_two_machines(retrieval, two):
        assert np.array_equal(found.result.per_query, alone.result.per_query)
    assert "progress is shown on the machine of rank 0" in capfd.readouterr().out
    assert len(stored(one)) == 1 and stored(two) == stored(one)
    assert read_results(two)["rows"] == read_results(one)["rows"]
    assert read_config(stage_folder(two))["node_rank"] == 0
    assert len([*stage_folder(two).parent.glob("evaluate_retrieval*")]) == 1


def test_a_machine_that_stays_alone_says_what_is_missing(config, monkeypatch):
    monkeypatch.setattr(launch, "SECONDS_TO_MEET", 2)
    for rank in (0, 1):
        alone = replace(config, nnodes=2, node_rank=rank, rdzv_endpoint=f"localhost:{free_port()}")
        with one_line_error(WorkerError, "another of the 2 machines", "rdzv_endpoint"):
            retrieval(alone)


# --- What the other machines leave to the first


def test_another_machine_finds_the_same_and_writes_nothing(config, here):
    [first] = retrieval(config)
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    task = retrieval_task(replace(config, **SECOND))
    [second] = evaluate_retrieval(task)
    resolution_curves(task)
    assert np.array_equal(first.result.per_query, second.result.per_query)
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before


def test_another_machine_searches_and_leaves_the_report_to_the_first(values, tiny_root):
    config = make(PhotosConfig, values | {"size": 32, "data": str(tiny_root)})
    task = photo_task(config)
    embed_photos(task)
    found = search_photos(photo_task(replace(config, **SECOND)))
    report = save_report(found)
    assert not report.parent.exists() and "by the notebook of the first machine" in summary(report)
    first = search_photos(task)
    assert save_report(first) == report and "MB" in summary(report)
    assert first.describe() == found.describe()


def test_results_of_another_machine_may_appear_late(monkeypatch):
    config = make(ClassifyConfig, {"experiment": "t", **SECOND})
    opened = Run(config)
    monkeypatch.setattr(run.time, "sleep", lambda _: opened.results({"rows": []}))
    assert run.results_of_machines(config)["rows"] == []


def test_results_that_never_appear_are_an_error_that_names_the_folder(here, monkeypatch):
    monkeypatch.setattr(run, "SECONDS_TO_APPEAR", 0)
    config = make(ClassifyConfig, {"experiment": "t", **SECOND})
    with one_line_error(FileNotFoundError, Path("outputs/t"), "one and the same folder"):
        run.results_of_machines(config)
