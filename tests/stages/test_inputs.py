"""What a stage starts from."""

import shlex

import pytest
from support import one_line_error

from mgkit.config import WhitenConfig, make
from mgkit.stages.inputs import data_root, is_mini, missing_stage

pytestmark = pytest.mark.usefixtures("here")


def test_empty_data_is_refused(here):
    with one_line_error(ValueError, "data"):
        data_root("")


def test_what_counts_as_the_embedded_set(here, mini_root):
    assert is_mini("mini") and is_mini(str(mini_root))
    assert not is_mini(str(here)) and not is_mini("nowhere")


def test_a_missing_stage_says_which_command_makes_it(here):
    config = make(WhitenConfig, {"experiment": "t", "data": "my photos"})
    message = str(missing_stage(here / "checkpoint.pth", "train", config))
    assert "\n" not in message and str(here / "checkpoint.pth") in message
    program, notebook, copy, *options = shlex.split(message.split("`")[1])
    assert (program, notebook) == ("papermill", "notebooks/01_train.ipynb")
    assert copy.startswith("outputs/") and copy.endswith(".ipynb")
    assert options == ["-p", "experiment", "t", "-p", "data", "my photos"]
    config = make(WhitenConfig, {"experiment": "t", "backbone": "resnet18"})
    assert "-p data mini -p backbone resnet18`" in str(
        missing_stage(here / "checkpoint.pth", "train", config)
    )
