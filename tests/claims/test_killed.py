"""Killed at any moment, 07 goes on where it was, and ends with the values of an undisturbed run."""

import multiprocessing
import os
import signal
import sys

import numpy as np
import pytest
import torch
from support import die_at, starting

from mgkit.claims import measures
from mgkit.claims import run as module
from mgkit.config import ClaimsConfig, make
from mgkit.engine import loop, snapshots
from mgkit.machine import files
from mgkit.machine.records import read_json


def run(root, folder, lines=None):
    """A short 07 of one arm in a folder; dies at so manieth line of what trains, measures and writes."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)
    os.chdir(folder)
    config = make(
        ClaimsConfig,
        {
            "experiment": "t", "data": str(root), "size": 32, "eval_size": 32, "batch_size": 12, "workers": 0,
            "arms": ["joint"], "budgets": [1], "seeds": [0], "len_factor": 0.5, "copies": 4,
        },
    )  # fmt: skip
    if lines is not None:
        die_at(lines, module, measures, loop, snapshots, files)
    module.run_claims(config)
    sys.settrace(None)


@pytest.fixture(scope="module")
def start():
    return starting(run)


def found(folder):
    """{training: its measured values} of the files in a folder."""
    paths = sorted((folder / "outputs/t/measured").glob("*.json"))
    return {path.stem: read_json(path)["values"] for path in paths}


@pytest.fixture(scope="module")
def undisturbed(start, mini_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    process = start(mini_root, folder)
    process.join(300)
    assert process.exitcode == 0
    return found(folder)


def test_killed_at_any_line(start, mini_root, undisturbed, tmp_path):
    random, kills = np.random.default_rng(), 0
    for line in sorted(random.integers(200, 1200, 2).tolist()):
        folder = tmp_path / str(line)
        folder.mkdir(exist_ok=True)
        process = start(mini_root, folder, lines=line)
        process.join(300)
        kills += process.exitcode == -signal.SIGKILL
        assert process.exitcode in (0, -signal.SIGKILL)
        again = start(mini_root, folder)
        again.join(300)
        assert again.exitcode == 0
        assert found(folder) == undisturbed
        assert not list(folder.rglob("*.partial*"))
    assert kills
