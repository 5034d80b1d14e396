"""Every stage is run twice at once, with the same and with other parameters; see tests/bench/two_runs.py."""

import numpy as np
import pytest
from two_runs import STAGES, Inputs, race


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return Inputs.made(tmp_path_factory.mktemp("two_runs"))


@pytest.mark.parametrize("same", [True, False], ids=["same", "other"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_folder_holds_and_a_notebook_sees_the_results_of_its_config(inputs, tmp_path, stage, same):
    random = np.random.default_rng()  # any moment must do
    race(inputs, tmp_path / "race", STAGES[stage], random, same=same, longest=1.5)
