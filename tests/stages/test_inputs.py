"""What a stage starts from."""

import shlex
from contextlib import contextmanager

import pytest
import torch
from support import one_line_error

from mgkit.checkpoints import load_network, save_checkpoint
from mgkit.config import ClassifyConfig, TrainConfig, WhitenConfig, make
from mgkit.engine.run import Run
from mgkit.machine.download import file_hash
from mgkit.model import get_multigrain
from mgkit.stages import inputs
from mgkit.stages.inputs import (
    data_root,
    in_classes_of,
    is_mini,
    load_one_file,
    missing_stage,
    network_left_by,
)

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


# --- A network that another run replaces


def saved(path, p):
    save_checkpoint(path, get_multigrain("resnet8", p=p, num_classes=2))
    return file_hash(path)


@pytest.mark.parametrize("moment", ["load_network", "file_hash"])
def test_a_network_and_its_hash_are_of_one_file_also_where_it_is_replaced(here, monkeypatch, moment):
    path, waiting = here / "train" / "checkpoint.pth", [2.0, 3.0]
    saved(path, 1.0)
    real = {"load_network": load_network, "file_hash": file_hash}[moment]

    def replaced(*arguments, **options):
        found = real(*arguments, **options)
        if waiting:
            path.parent.rename(here / f"train.{len(waiting)}")
            saved(path, waiting.pop(0))
        return found

    monkeypatch.setattr(f"mgkit.stages.inputs.{moment}", replaced)
    net, _ = load_one_file(path, lambda: inputs.load_network(path))
    assert net.pool.p.item() == 3.0 and net.source_sha256 == file_hash(path)


def test_provenance_has_the_hash_of_the_network_as_it_was_loaded(here):
    path = here / "net.pth"
    loaded = saved(path, 1.0)
    config = make(ClassifyConfig, {"experiment": "t", "checkpoint": str(path)})
    net, _ = network_left_by(TrainConfig, config, run=pytest.fail)
    saved(path, 2.0)
    run = Run(config, checkpoint=net.source, sha256=net.source_sha256)
    assert loaded in (run.folder / "provenance.yaml").read_text()


def test_a_stage_that_another_process_has_run_meanwhile_is_not_run_again(here, mini_root, monkeypatch):
    config = make(ClassifyConfig, {"experiment": "t", "data": str(mini_root)})
    own = here / "outputs/t/train/checkpoint.pth"

    @contextmanager
    def waited(earlier):
        saved(own, 2.0)
        yield True

    monkeypatch.setattr("mgkit.stages.inputs.holding", waited)
    net, _ = network_left_by(TrainConfig, config, run=pytest.fail)
    assert net.pool.p.item() == 2.0
