"""The dry run measures a training, writes nothing, and its estimate follows from what it measured."""

from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from support import in_processes, training_config

from mgkit.engine import dry_run as module
from mgkit.engine.dry_run import Estimate, bottleneck, duration, measure, report
from mgkit.engine.loop import Training
from mgkit.engine.snapshots import Snapshots
from mgkit.stages.inputs import training_data
from mgkit.stages.train import first_network, run_training


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "SECONDS", 0.05)
    return tmp_path


config_of = partial(training_config, precision="float32", dry_run=True)


def estimated(config):
    module.SECONDS = 0.05  # also in the processes of `in_processes`
    images = training_data(config)
    return measure(
        Training(config, first_network(config, images[0].classes), images, None, None, lambda _: False)
    )


def test_a_dry_run_prints_what_it_measured_and_writes_nothing(mini_root, here, capsys):
    assert run_training(config_of(mini_root)) is None
    printed = capsys.readouterr().out
    for word in (
        "dry run",
        "images/s",
        "steps alone",
        "loading alone",
        "waiting",
        "memory",
        "whole training",
        "disk",
    ):
        assert word in printed
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_estimated_follows_from_what_was_measured(mini_root, processes):
    config = config_of(mini_root, epochs=7, len_factor=2.5, log_every=3, keep_checkpoints=4)
    for e in in_processes(processes, estimated, config):
        assert (e.processes, e.images_per_epoch, e.val_images, e.steps_per_epoch) == (processes, 180, 36, 15)
        rates = [getattr(e, field.name) for field in fields(Estimate) if field.name.endswith("_rate")]
        assert min(rates) > 0 and len(rates) == 4 and 0 <= e.data_wait <= 1 and e.steps >= module.MIN_STEPS
        assert e.training_seconds == pytest.approx(7 * 180 / e.training_rate)
        assert e.validation_seconds == pytest.approx(7 * 36 / e.validation_rate)
        assert e.disk == 6 * e.snapshot + 35 * module.BYTES_PER_LINE
        assert 2**26 < e.memory < e.memory_there
        assert e.gpu_memory_there > 0 or not torch.cuda.is_available()


def test_short_last_batches_and_the_end_of_an_epoch_do_not_end_the_measuring(mini_root, monkeypatch):
    monkeypatch.setattr(module, "MIN_STEPS", 8)
    e = estimated(config_of(mini_root, len_factor=0.55))  # 39 samples: three whole batches and a short one
    assert e.steps >= 8


def test_the_size_of_a_snapshot_is_that_of_one_that_is_written(mini_root, here):
    estimate = estimated(config_of(mini_root))
    written = run_training(config_of(mini_root, dry_run=False, epochs=1))
    assert Snapshots(Path("outputs/t/train/snapshots")).files()
    assert estimate.snapshot == pytest.approx(written.stat().st_size, rel=0.01)


def test_what_waits_for_what_is_said(mini_root):
    slow = estimated(config_of(mini_root))
    assert "more workers" in bottleneck(replace(slow, data_wait=0.4))
    assert "40 %" in bottleneck(replace(slow, data_wait=0.4))
    assert "more or faster devices" in bottleneck(replace(slow, data_wait=0.02))
    on_gpu = report(replace(slow, gpu_memory=2**30, gpu_memory_there=80 * 2**30))
    assert "1.0 of 80.0 GiB of a GPU" in on_gpu and "of a GPU" not in report(
        replace(slow, gpu_memory_there=0)
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(12, "12 s"), (150, "2 min"), (5400, "1.5 h"), (360000, "100.0 h (4.2 days)")]
)
def test_durations_in_words(seconds, text):
    assert duration(seconds) == text
