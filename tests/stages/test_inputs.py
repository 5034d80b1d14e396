"""What a stage starts from."""

import shlex

import pytest
import torch
from support import one_line_error

from mgkit.config import TrainConfig, WhitenConfig, make
from mgkit.stages.inputs import data_root, in_classes_of, is_mini, missing_stage

pytestmark = pytest.mark.usefixtures("here")


def test_empty_data_is_refused(here):
    with one_line_error(ValueError, "data"):
        data_root("")


def test_what_counts_as_the_embedded_set(here, mini_root):
    assert is_mini("mini") and is_mini(str(mini_root))
    assert not is_mini(str(here)) and not is_mini("nowhere")


def test_a_missing_stage_says_which_command_makes_it(here):
    config = make(WhitenConfig, {"experiment": "t", "data": "my photos"})
    message = str(missing_stage(here / "checkpoint.pth", TrainConfig, config))
    assert "\n" not in message and str(here / "checkpoint.pth") in message
    program, notebook, copy, *options = shlex.split(message.split("`")[1])
    assert (program, notebook) == ("papermill", "notebooks/01_train.ipynb")
    assert copy.startswith("outputs/") and copy.endswith(".ipynb")
    assert options == ["-p", "experiment", "t", "-p", "data", "my photos"]
    config = make(WhitenConfig, {"experiment": "t", "backbone": "resnet18"})
    assert "-p data mini -p backbone resnet18`" in str(
        missing_stage(here / "checkpoint.pth", TrainConfig, config)
    )


def test_labels_follow_the_networks_own_order_of_classes(tiny_net, uneven_images):
    tiny_net.classes = ("sand", "lava", "bark", "moss")
    tiny_net.classifier = torch.nn.Linear(8, 4)
    matched = in_classes_of(tiny_net, uneven_images)
    assert matched.classes == tiny_net.classes and matched.paths == uneven_images.paths
    names = [uneven_images.classes[label] for label in uneven_images.labels]
    assert [tiny_net.classes[label] for label in matched.labels] == names


def test_a_class_that_the_network_lacks_is_named(tiny_net, uneven_images):
    tiny_net.classes = ("bark", "moss", "lava")
    with pytest.raises(ValueError, match="sand of .* is not among them"):
        in_classes_of(tiny_net, uneven_images)


@pytest.mark.parametrize("known, said", [(3, ""), (1000, "does not name its 1000 classes")])
def test_a_network_that_does_not_name_its_classes_has_them_in_sorted_order(
    tiny_net, uneven_images, capsys, known, said
):
    tiny_net.classifier = torch.nn.Linear(8, known)
    assert in_classes_of(tiny_net, uneven_images) is uneven_images
    printed = capsys.readouterr().out
    assert said in printed and bool(said) == bool(printed)


def test_more_classes_than_the_network_has_are_refused(tiny_net, uneven_images):
    tiny_net.classifier = torch.nn.Linear(8, 2)
    with pytest.raises(ValueError, match="knows 2 classes, .* has 3"):
        in_classes_of(tiny_net, uneven_images)
