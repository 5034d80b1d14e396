"""A project of its own for each test, and what runs its notebooks."""

import pytest
from notebook_support import new_project, runner


@pytest.fixture
def project(tmp_path):
    return new_project(tmp_path)


@pytest.fixture
def run(project, mini_root):
    return runner(project, mini_root)
