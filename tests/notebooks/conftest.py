"""A project of its own for each test, and what runs notebooks: in kernels, or here."""

import sys

import pytest
from notebook_support import execute, new_project, runner

from mgkit.claims import run as claims_run
from mgkit.stages import train


@pytest.fixture
def project(tmp_path):
    return new_project(tmp_path)


@pytest.fixture
def run(project, mini_root):
    return runner(project, mini_root)


@pytest.fixture
def run_here(capsys, monkeypatch):
    """A function that runs a notebook in this process, trainings too; returns its output and its figures.

    A kernel takes seconds to start, and so do worker processes.
    """
    monkeypatch.setattr(train, "launch", train.run_training)
    monkeypatch.setattr(claims_run, "launch", claims_run.run_claims)
    monkeypatch.setattr(sys, "argv", ["notebook"])

    def of(name, **parameters):
        figures = execute(name, {"workers": 0} | parameters).figures
        return capsys.readouterr().out, figures

    return of
