"""Checkpoints: nothing in them runs, what is wrong is said in one line, and a file is there whole or not at all."""

import os
import pickle

import numpy as np
import pytest
import torch
from support import one_line_error, write_tree

from mgkit.checkpoints import load_checkpoint, load_network, save_checkpoint
from mgkit.datasets import class_folders
from mgkit.finetune import check_classes
from mgkit.model import get_multigrain
from mgkit.whitening import whiten


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return get_multigrain("resnet10", num_classes=3, p=2.5).eval()


@pytest.fixture
def saved(net, tmp_path):
    path = tmp_path / "checkpoint.pth"
    save_checkpoint(path, net, epoch=3, classes=["a", "b", "c"])
    return path


def same_bits(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_round_trip_keeps_every_bit(net, saved):
    loaded, checkpoint = load_network(saved)
    assert same_bits(loaded.state_dict(), net.state_dict())
    assert (checkpoint["epoch"], checkpoint["classes"]) == (3, ["a", "b", "c"])
    assert loaded.pool.p.item() == 2.5 and not loaded.training


def test_a_whitened_network_survives_the_round_trip(net, tmp_path):
    whitened = whiten(net, torch.rand(net.width + 1), torch.eye(net.width + 1) * 2)
    save_checkpoint(tmp_path / "whitened.pth", whitened)
    loaded, _ = load_network(tmp_path / "whitened.pth")
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(
            loaded(image)["normalized_embedding"], whitened.eval()(image)["normalized_embedding"]
        )


class Intruder:
    """A pickle that creates a file when it is loaded carelessly."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_the_intruder_of_these_tests_would_act(tmp_path):
    pickle.loads(pickle.dumps(Intruder(tmp_path / "intruded")))
    assert (tmp_path / "intruded").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_does_not_run(tmp_path, zipped):
    path = tmp_path / "evil.pth"
    content = {"model_state": {}, "extra": Intruder(tmp_path / "intruded")}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with one_line_error(ValueError, path):
        load_checkpoint(path)
    assert not (tmp_path / "intruded").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_plain_pickle_does_not_run(tmp_path):
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps({"model_state": Intruder(tmp_path / "intruded")}))
    with one_line_error(ValueError, path):
        load_checkpoint(path)
    assert not (tmp_path / "intruded").exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 1e-6, 1e-5, 1e-4, 0.01, 0.5, 0.99, 0.99999])
def test_a_truncated_checkpoint_is_named(net, tmp_path, share, zipped):
    whole, path = tmp_path / "whole.pth", tmp_path / "cut.pth"
    torch.save({"model_state": net.state_dict()}, whole, _use_new_zipfile_serialization=zipped)
    content = whole.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with one_line_error(ValueError, path):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE html>\n<html><body>404\nnot found</body></html>\n",
        b"<html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        b"(",
        b"PK\x03\x04",
        b"\x80\x02",
        bytes(range(256)),
    ],
)
def test_something_else_under_the_name_of_a_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "page.pth"
    path.write_bytes(content)
    with one_line_error(ValueError, path):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "content", [{"state_dict": {}}, {"model_state": None}, {"model_state": 3}, [1, 2], torch.zeros(2)]
)
def test_a_checkpoint_without_model_state_is_named(tmp_path, content):
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with one_line_error(ValueError, path, "model_state"):
        load_checkpoint(path)


def test_a_missing_checkpoint_is_named(tmp_path):
    with one_line_error(FileNotFoundError, tmp_path / "none.pth"):
        load_checkpoint(tmp_path / "none.pth")


def test_a_folder_is_not_a_checkpoint(tmp_path):
    with one_line_error(FileNotFoundError, tmp_path):
        load_checkpoint(tmp_path)


def test_another_backbone_than_the_recorded_one_is_refused(saved):
    with one_line_error(ValueError, saved, "resnet10", "resnet18"):
        load_network(saved, backbone="resnet18")


def test_the_state_of_another_backbone_is_refused(net, tmp_path):
    path = tmp_path / "unsaid.pth"
    torch.save({"model_state": net.state_dict()}, path)
    with one_line_error(ValueError, path, "resnet18"):
        load_network(path, backbone="resnet18")


def test_a_file_that_does_not_say_its_backbone_needs_it(net, tmp_path):
    path = tmp_path / "unsaid.pth"
    torch.save({"model_state": net.state_dict()}, path)
    with one_line_error(ValueError, path, "backbone"):
        load_network(path)
    assert same_bits(load_network(path, backbone="resnet10")[0].state_dict(), net.state_dict())


def test_a_state_without_classifier_is_refused(net, tmp_path):
    path = tmp_path / "headless.pth"
    torch.save({"model_state": dict(net.features.state_dict()), "backbone": "resnet10"}, path)
    with one_line_error(ValueError, path, "classifier.weight"):
        load_network(path)


def test_data_of_another_number_of_classes_is_refused(saved, tmp_path):
    images = class_folders(write_tree(tmp_path / "two", "a/1.png", "b/1.png"))
    with one_line_error(ValueError, "3", "2", tmp_path / "two"):
        check_classes(load_network(saved)[0], images)


def test_the_state_of_another_number_of_classes_is_refused(net):
    with one_line_error(ValueError, "3", "7"):
        get_multigrain("resnet10", num_classes=7).load_state_dict(net.state_dict())


def test_a_save_that_fails_keeps_the_earlier_checkpoint(net, saved):
    before = saved.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(saved, net, unpicklable=lambda: None)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_numpy_scalars_do_not_slip_into_what_cannot_be_loaded(net, tmp_path):
    path = tmp_path / "numpy.pth"
    save_checkpoint(path, net, p=float(np.float64(2.5)))
    assert load_checkpoint(path)["p"] == 2.5
