"""Checkpoints: nothing in them runs, errors take one line, and a file is written whole or not at all."""

import copy
import io
import json
import math
import os
import pickle
import socket
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file
from support import one_line_error, stand_in_for_timm, write_tree
from torch import nn

import mgkit
from mgkit import checkpoints as module
from mgkit.backbones.backbone import Backbone
from mgkit.checkpoints import (
    RELEASED,
    RELEASED_URL,
    export_safetensors,
    load_checkpoint,
    load_network,
    load_released,
    save_checkpoint,
)
from mgkit.config import NetworkConfig, make
from mgkit.data.layouts import class_folders
from mgkit.machine.device import place
from mgkit.model import MultiGrain, get_multigrain
from mgkit.stages.inputs import in_classes_of
from mgkit.stages.train import trained_network
from mgkit.whitening import whiten


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return get_multigrain("resnet8", num_classes=3, p=2.5).eval()


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


CLASSES, WEIGHT = ["a", "b", "c"], "classifier.weight"


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        ("classes", None, "None"),
        ("classes", 3, "3"),
        ("classes", ["a", "b"], "2 names, the classifier has 3 classes"),
        ("classes", [*CLASSES, "d"], "4 names"),
        ("classes", "abc", "list"),
        ("classes", ["a", "b", 3], "classes.2"),
        ("classes", [b"a", b"b", b"c"], "classes.0"),
        ("backbone", None, "None"),
        ("backbone", 18, "18"),
        ("backbone", "x" * 10_000, "200"),
        ("backbone", "hf-hub:someone/something", "hf-hub"),
        ("backbone", "timm/hf-hub:someone/something", "hf-hub"),
        ("backbone", "timm/local-dir:/etc", "local-dir"),
        ("training_p", 0.0, "0.0"),
        ("training_p", math.nan, "nan"),
        ("training_p", "3", "'3'"),
        ("training_p", True, "True"),
        ("training_p", None, "None"),
        ("training_p", 10**400, "training_p"),
    ],
)
def test_a_field_that_cannot_be_used_is_named_with_its_file(net, tmp_path, field, value, found, monkeypatch):
    monkeypatch.setattr(socket, "socket", None)  # nothing is fetched for a name in a file
    path = tmp_path / "odd.pth"
    content = {"model_state": net.state_dict(), "backbone": net.name, "classes": CLASSES}
    torch.save(content | {field: value}, path)
    with one_line_error(ValueError, path, field, found):
        load_network(path)


@pytest.mark.parametrize("classes", [{}, {"classes": []}, {"classes": ()}, {"classes": tuple(CLASSES)}])
def test_class_names_may_be_missing_or_a_tuple(net, tmp_path, classes):
    torch.save({"model_state": net.state_dict(), "backbone": net.name, **classes}, tmp_path / "c.pth")
    assert load_network(tmp_path / "c.pth")[0].classes == tuple(classes.get("classes", ()))


ODD_TENSORS = {
    "integers": lambda w: (WEIGHT, w.long(), "int64"),
    "complex": lambda w: (WEIGHT, w.to(torch.complex64), "complex64"),
    "float8": lambda w: (WEIGHT, w.to(torch.float8_e4m3fn), "float8"),
    "nan": lambda w: (WEIGHT, w * math.nan, "not finite"),
    "inf": lambda w: (WEIGHT, w * math.inf, "not finite"),
    "above float32": lambda w: (WEIGHT, w.double() * 1e300, "not finite"),
    "sparse": lambda w: (WEIGHT, w.to_sparse(), "sparse"),
    "meta": lambda w: (WEIGHT, w.to("meta"), "meta"),
    "huge": lambda w: (WEIGHT, torch.zeros(1).expand(10**9, w.shape[1]), "larger than what is stored"),
    "scalar bias": lambda w: ("classifier.bias", torch.tensor(1.0), "classifier.bias"),
    "no classes": lambda w: (WEIGHT, w[:0], "0 classes"),
    "p of zero": lambda w: ("pool.p", torch.tensor(0.0), "from 0.01 to 1000, or inf, got 0.0"),
    "negative p": lambda w: ("pool.p", torch.tensor(-math.inf), "-inf"),
    "p of nan": lambda w: ("pool.p", torch.tensor(math.nan), "nan"),
    "a p of nothing": lambda w: ("pool.p", torch.tensor(1e-30), "from 0.01"),
    "a p too large": lambda w: ("pool.p", torch.tensor(5000.0), "5000.0"),
    "two p": lambda w: ("pool.p", torch.ones(2), "[1.0, 1.0]"),
    "negative variance": lambda w: ("features.bn1.running_var", torch.full([64], -1.0), "negative"),
    "running statistics": lambda w: ("features.bn1.running_var", torch.full([64], math.inf), "not finite"),
}


@pytest.mark.parametrize("kind", ODD_TENSORS)
def test_a_tensor_that_cannot_be_used_is_named_with_its_file(net, tmp_path, kind):
    path, state = tmp_path / "odd.pth", net.state_dict()
    key, value, found = ODD_TENSORS[kind](state[WEIGHT])
    torch.save({"model_state": state | {key: value}, "backbone": net.name, "classes": CLASSES}, path)
    with one_line_error(ValueError, path, found):
        load_network(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precisions_become_float32(net, tmp_path, dtype):
    state = {key: value.to(dtype) for key, value in net.state_dict().items()}
    torch.save({"model_state": state, "backbone": net.name}, tmp_path / "c.pth")
    loaded = load_network(tmp_path / "c.pth")[0].state_dict()
    assert loaded[WEIGHT].dtype == torch.float32
    torch.testing.assert_close(loaded[WEIGHT], net.state_dict()[WEIGHT], rtol=0.01, atol=0.01)


@pytest.mark.parametrize("part", ["_orig_mod.", "_fsdp_wrapped_module."])
def test_a_wrapped_part_and_an_average_of_weights_are_read(net, tmp_path, part):
    own = net.state_dict()
    for name, state in {
        "part": {key.replace("features.", f"features.{part}"): value for key, value in own.items()},
        "averaged": {"n_averaged": torch.tensor(3)} | {f"module.{key}": own[key] for key in own},
    }.items():
        torch.save({"model_state": state, "backbone": net.name}, tmp_path / f"{name}.pth")
        assert same_bits(load_network(tmp_path / f"{name}.pth")[0].state_dict(), own)


@pytest.mark.parametrize("p", [0.01, 1000.0, math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_p_of_the_ends_of_the_range_is_read_back_in_any_precision(net, tmp_path, p, dtype):
    state = net.state_dict() | {"pool.p": torch.tensor(p, dtype=dtype)}
    torch.save({"model_state": state, "backbone": net.name}, tmp_path / "ends.pth")
    assert load_network(tmp_path / "ends.pth")[0].pool.p.item() == pytest.approx(p, rel=1e-2)


@pytest.mark.parametrize("key", ["a\nb", "\udc80", "x" * 10_000])
def test_odd_keys_are_named_in_one_short_printable_line(net, tmp_path, key):
    path = tmp_path / "odd.pth"
    for content in ({"model_state": net.state_dict() | {key: torch.ones(1)}, "backbone": net.name}, {key: 1}):
        torch.save(content, path)
        with pytest.raises(ValueError, match=r"odd\.pth") as error:
            load_network(path)
        assert str(error.value).isprintable() and len(str(error.value)) < 1000


def test_a_checkpoint_whose_name_is_too_long_does_not_exist():
    with one_line_error(FileNotFoundError, "does not exist"):
        load_network("x" * 300 + ".pth")


def test_classes_of_one_name_are_refused_where_images_have_that_name(net, tmp_path):
    write_tree(tmp_path / "data", *(f"{name}/{k}.png" for name in "ab" for k in range(2)))
    torch.save(
        {"model_state": net.state_dict(), "backbone": net.name, "classes": ["a", "a", "b"]},
        tmp_path / "twice.pth",
    )
    loaded, _ = load_network(tmp_path / "twice.pth")
    with one_line_error(ValueError, tmp_path / "twice.pth", "classes has 'a' twice"):
        in_classes_of(loaded, class_folders(tmp_path / "data"))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "ema_model."])
def test_the_prefix_of_a_wrapped_network_is_taken_off_and_said(net, tmp_path, prefix, capsys):
    state = {prefix + key: value for key, value in net.state_dict().items()}
    torch.save({"model_state": state, "backbone": net.name}, tmp_path / "wrapped.pth")
    assert same_bits(load_network(tmp_path / "wrapped.pth")[0].state_dict(), net.state_dict())
    [line] = capsys.readouterr().out.splitlines()
    assert str(tmp_path / "wrapped.pth") in line and prefix in line


def test_a_zip_bomb_is_not_inflated(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr("bomb/data/0", bytes(10**7))
    with one_line_error(ValueError, path, "10,000,006 bytes"):
        load_checkpoint(path)


def test_max_pooling_survives_the_round_trip(tmp_path):
    save_checkpoint(
        tmp_path / "max.pth", get_multigrain("resnet8", num_classes=3, p=math.inf), training_p=math.inf
    )
    loaded, content = load_network(tmp_path / "max.pth")
    assert (loaded.pool.p.item(), content["training_p"]) == (math.inf, math.inf)


@pytest.mark.parametrize("metadata", [{"classes": "null"}, {"classes": "[" * 10_000}, {"training_p": "NaN"}])
def test_odd_metadata_of_safetensors_is_named(net, tmp_path, metadata):
    path = tmp_path / "odd.safetensors"
    save_file(
        {key: value.clone() for key, value in net.state_dict().items()},
        path,
        metadata={"backbone": "resnet8"} | metadata,
    )
    with one_line_error(ValueError, path, *metadata):
        load_network(path)


def test_a_whitened_network_survives_the_round_trip(net, tmp_path):
    whitened = whiten(net, torch.rand(net.width + 1), torch.eye(net.width + 1) * 2)
    save_checkpoint(tmp_path / "whitened.pth", whitened)
    loaded, _ = load_network(tmp_path / "whitened.pth")
    assert same_bits(loaded.state_dict(), whitened.state_dict())
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(
            loaded(image)["normalized_embedding"], whitened.eval()(image)["normalized_embedding"]
        )


def safetensors_bytes(state, metadata=None):
    header, data, end = {"__metadata__": metadata or {}}, b"", 0
    for key, value in state.items():
        raw = value.numpy().tobytes()
        header[key] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [end, end + len(raw)]}
        data, end = data + raw, end + len(raw)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


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
    with one_line_error(ValueError, path, "mkdir", "not run"):
        load_checkpoint(path)
    assert not (tmp_path / "intruded").exists()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("protocol", "found"), [(0, "text"), (2, "mkdir"), (3, "mkdir"), (4, "pickle"), (5, "pickle")]
)
def test_code_in_a_plain_pickle_does_not_run(tmp_path, protocol, found):
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps({"model_state": Intruder(tmp_path / "intruded")}, protocol=protocol))
    with one_line_error(ValueError, path, found):
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


def small_file(kind):
    """The bytes of a small checkpoint, as torch.save (zip or legacy) or safetensors writes it."""
    state = {"classifier.weight": torch.arange(12.0).reshape(3, 4), "pool.p": torch.tensor(3.0)}
    content = io.BytesIO()
    if kind == "safetensors":
        return safetensors_bytes(state)
    torch.save({"model_state": state}, content, _use_new_zipfile_serialization=kind == "zip")
    return content.getvalue()


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_file_cut_anywhere_is_named(tmp_path, kind):
    path = tmp_path / ("cut.safetensors" if kind == "safetensors" else "cut.pth")
    whole = small_file(kind)
    path.write_bytes(whole)
    assert load_checkpoint(path)["model_state"]["pool.p"] == 3
    for end in [*range(0, len(whole), 7), *range(len(whole) - 60, len(whole))]:
        path.write_bytes(whole[:end])
        with one_line_error(ValueError, path):
            load_checkpoint(path)


def tar(compression=""):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=f"w:{compression}") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return content.getvalue()


def zip_of_pictures():
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("photos/1.png", b"1")
    return content.getvalue()


def numpy_file():
    content = io.BytesIO()
    np.save(content, np.zeros(3))
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html>\n<html><body>404\nnot found</body></html>\n", "web page"),
        (b" \n<html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "text"),
        ("λ = 0,5\n".encode() * 100, "text"),
        (tar(), "tar archive"),
        (tar("gz"), "tar archive"),
        (zip_of_pictures(), "zip file of something else"),
        (safetensors_bytes({"classifier.weight": torch.zeros(2, 3)}), "safetensors"),
        (numpy_file(), "unknown format"),
        (bytes(range(256)), "unknown format"),
        (b"PK\x03\x04", "truncated"),
        (b"(", ""),
        (b"\x80\x02", "truncated"),
        (b"\x80\x02}q\x00.", ""),
        (pickle.dumps({"model_state": {}}, protocol=2), ""),
    ],
    ids=map(str, range(16)),  # not the bytes: those of archives change with the time
)
def test_something_else_under_the_name_of_a_checkpoint_is_named(tmp_path, content, found):
    for path in (tmp_path / "page.pth", tmp_path / "page.safetensors"):
        if found != "safetensors" or path.suffix == ".pth":
            path.write_bytes(content)
            with one_line_error(ValueError, path, found if path.suffix == ".pth" else "safetensors"):
                load_checkpoint(path)


def test_no_refusal_suggests_to_read_without_protection(tmp_path):
    path = tmp_path / "evil.pth"
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    for content in (
        {"model_state": Intruder(tmp_path)},
        {"model_state": {}, "net": nn.ReLU()},
        {
            "model_state": {},
            "optimizer_state": optimizer.state_dict,
        },  # the method, as the authors' writer has it
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match="not run") as caught:
            load_checkpoint(path)
        assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize(
    ("state", "named"),
    [
        ({"classifier.weight": [1.0]}, "list"),
        ({"epoch": 3}, "int"),
        ({"a": {"b": torch.zeros(1)}}, "dict"),
        ({3: torch.zeros(1)}, "3"),
    ],
)
def test_a_state_of_other_things_than_tensors_is_named(tmp_path, state, named):
    path = tmp_path / "odd.pth"
    torch.save({"model_state": state}, path)
    with one_line_error(ValueError, path, "tensors", named):
        load_checkpoint(path)


@pytest.mark.parametrize("backbone", [3, ["resnet8"], torch.zeros(2)])
def test_a_backbone_that_is_no_name_is_refused(net, tmp_path, backbone):
    path = tmp_path / "odd.pth"
    torch.save({"model_state": net.state_dict(), "backbone": backbone}, path)
    with one_line_error(ValueError, path, "backbone"):
        load_network(path)


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
    with one_line_error(FileNotFoundError, tmp_path, "folder"):
        load_checkpoint(tmp_path)


def test_another_backbone_than_the_recorded_one_is_refused(saved):
    with one_line_error(ValueError, saved, "resnet8", "resnet18"):
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
    assert same_bits(load_network(path, backbone="resnet8")[0].state_dict(), net.state_dict())


def changed(state, key, value):
    """The state with another value under the key, None for none."""
    state = dict(state) | {key: value}
    return {k: v for k, v in state.items() if v is not None}


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("classifier.weight", None, "classifier.weight"),
        ("classifier.weight", torch.zeros(()), "classifier.weight"),
        ("classifier.weight", torch.zeros(0, 256), "num_classes"),
        ("classifier.weight", torch.zeros(3, 255), "(3, 255), not (3, 256)"),
        ("classifier.bias", None, "lacks 1 keys (classifier.bias"),
        ("classifier.bias", torch.zeros(4), "(4,), not (3,)"),
        ("features.conv1.weight", torch.zeros(64, 1, 7, 7), "features.conv1.weight is (64, 1, 7, 7)"),
        ("features.extra", torch.zeros(1), "1 keys too many (features.extra"),
        ("whitening.pca.pca_m", torch.zeros(257), "lacks 1 keys (whitening.pca.pca_P"),
    ],
)
def test_a_state_that_does_not_fit_is_named(net, tmp_path, key, value, named):
    path = tmp_path / "odd.pth"
    torch.save({"model_state": changed(net.state_dict(), key, value), "backbone": "resnet8"}, path)
    with one_line_error(ValueError, path, named):
        load_network(path)


def test_a_loaded_network_knows_the_classes_it_was_saved_with(net, tmp_path):
    path = tmp_path / "named.pth"
    save_checkpoint(path, net, classes=["a", "b", "c"])
    loaded, _ = load_network(path)
    assert loaded.classes == ("a", "b", "c")
    images = class_folders(write_tree(tmp_path / "two", "a/1.png", "d/1.png"))
    with one_line_error(ValueError, "3", "d", tmp_path / "two"):
        in_classes_of(loaded, images)


def test_the_state_of_another_number_of_classes_is_refused(net):
    with one_line_error(ValueError, "3", "7"):
        get_multigrain("resnet8", num_classes=7).load_state_dict(net.state_dict())


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


# safetensors


@pytest.mark.parametrize("whitened", [False, True])
def test_an_export_comes_back_bit_for_bit(net, tmp_path, whitened):
    if whitened:
        net = whiten(net, torch.rand(net.width + 1), torch.eye(net.width + 1) * 2)
    path = tmp_path / "deep" / "net.safetensors"
    placed = place(copy.deepcopy(net), torch.device("cpu"))  # channels-last, as stages have it
    export_safetensors(path, placed, classes=["a", "b", "λ"], training_p=3.0)
    loaded, content = load_network(path)
    assert same_bits(loaded.state_dict(), net.state_dict()) and not loaded.training
    assert (content["classes"], content["backbone"], content["p"]) == (["a", "b", "λ"], "resnet8", 2.5)
    assert content["training_p"] == 3.0
    assert list(path.parent.iterdir()) == [path]


def test_an_export_can_be_read_without_the_kit(net, tmp_path):
    export_safetensors(tmp_path / "net.safetensors", net, classes=["a", "b", "c"])
    with safe_open(tmp_path / "net.safetensors", framework="np") as file:
        metadata = file.metadata()
        weight = file.get_tensor("classifier.weight")
    assert metadata["backbone"] == "resnet8" and float(metadata["p"]) == 2.5
    assert json.loads(metadata["classes"]) == ["a", "b", "c"]
    assert np.array_equal(weight, net.classifier.weight.detach().numpy())


# Networks of timm


@pytest.mark.parametrize("tokens", ["patches", "class", "both"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_tokens_and_signed_maps_come_back(tmp_path, tokens, suffix, monkeypatch):
    stand_in_for_timm(monkeypatch)
    net = get_multigrain("timm/test_vit", pretrained_backbone=True, tokens=tokens).eval()
    net.pool.signed = tokens != "both"  # not as it is measured anew
    path = tmp_path / f"net{suffix}"
    (save_checkpoint if suffix == ".pth" else export_safetensors)(path, net)
    content = load_checkpoint(path)
    assert content["tokens"] == tokens and content["signed"] == (tokens != "both")
    loaded, _ = load_network(path)
    assert (loaded.tokens, loaded.pool.signed) == (tokens, tokens != "both")
    assert loaded.classifies == net.classifies == (tokens == "class")
    images = torch.randn(2, 3, 96, 130, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded(images)["embedding"], net(images)["embedding"])


def test_a_file_of_before_says_nothing_of_tokens_and_is_read(net, tmp_path):
    old = {"model_state": net.state_dict(), "backbone": "resnet8"}
    torch.save(old, tmp_path / "old.pth")
    loaded, _ = load_network(tmp_path / "old.pth")
    assert (loaded.tokens, loaded.pool.signed, loaded.classifies) == ("patches", False, True)
    assert same_bits(loaded.state_dict(), net.state_dict())


def test_a_file_that_does_not_record_it_is_pooled_by_the_sign_of_its_maps(tmp_path):
    net = get_multigrain("timm/test_nfnet", num_classes=3).eval()
    assert net.pool.signed
    old = {"model_state": net.state_dict(), "backbone": "timm/test_nfnet"}
    torch.save(old, tmp_path / "old.pth")
    loaded, _ = load_network(tmp_path / "old.pth")
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(loaded(images)["embedding"], net(images)["embedding"])


@pytest.mark.parametrize(
    ("backbone", "tokens", "named"),
    [
        ("resnet8", "class", ("resnet8 has no class token",)),
        ("resnet8", "words", ("tokens", "'words'")),
        ("timm/test_vit2", "both", ("timm/test_vit2 has no class token",)),
    ],
)
def test_tokens_that_the_network_does_not_have_are_named_with_the_file(tmp_path, backbone, tokens, named):
    net = get_multigrain(backbone, num_classes=3)
    torch.save(
        {"model_state": net.state_dict(), "backbone": backbone, "tokens": tokens}, tmp_path / "net.pth"
    )
    with one_line_error(ValueError, tmp_path / "net.pth", *named):
        load_network(tmp_path / "net.pth")


def test_an_export_loads_as_the_checkpoint_does(net, saved, tmp_path):
    export_safetensors(tmp_path / "net.safetensors", net)
    one, other = (load_checkpoint(path)["model_state"] for path in (saved, tmp_path / "net.safetensors"))
    assert same_bits(one, other)


def sharing_net():
    """A small network that stores its classifier twice, like the paper's NASNets, and views of a storage."""
    features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    net = MultiGrain(Backbone("sharing", features, 8), num_classes=3)
    net.features.add_module("last_linear", net.classifier)
    both = torch.rand(10)
    net.register_buffer("first", both[:6])
    net.register_buffer("second", both[4:])
    return net


def test_an_export_keeps_tensors_that_share_memory_complete(tmp_path):
    net = sharing_net()
    net.features.last_linear.forward = None  # never called: only the state matters here
    export_safetensors(tmp_path / "net.safetensors", net)
    state = load_checkpoint(tmp_path / "net.safetensors")["model_state"]
    assert same_bits(state, net.state_dict())
    assert torch.equal(state["features.last_linear.weight"], state["classifier.weight"])
    fresh = sharing_net()
    fresh.load_state_dict(state)
    assert same_bits(fresh.state_dict(), net.state_dict())
    assert fresh.features.last_linear.weight is fresh.classifier.weight


def test_an_export_that_fails_leaves_the_earlier_one(net, tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    export_safetensors(path, net)
    before = path.read_bytes()
    with one_line_error(ValueError, path, "Tensor"):
        export_safetensors(path, net, beta=torch.tensor(1.2))

    def interrupted(state, where, metadata):
        where.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_safetensors(path, net)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_an_export_needs_its_suffix(net, tmp_path):
    with one_line_error(ValueError, "net.pth", ".safetensors"):
        export_safetensors(tmp_path / "net.pth", net)


def test_a_safetensors_file_of_others_needs_its_backbone(net, tmp_path):
    path = tmp_path / "theirs.safetensors"
    save_file(net.state_dict(), path, metadata={"format": "pt"})
    with one_line_error(ValueError, path, "backbone"):
        load_network(path)
    assert same_bits(load_network(path, backbone="resnet8")[0].state_dict(), net.state_dict())


@pytest.mark.parametrize("position", [0, 7, 8, 9])
def test_a_damaged_header_is_named(tmp_path, position):
    path = tmp_path / "damaged.safetensors"
    content = bytearray(small_file("safetensors"))
    content[position] ^= 0x55
    path.write_bytes(content)
    with one_line_error(ValueError, path):
        load_checkpoint(path)


def test_tensors_beyond_the_end_are_named(tmp_path):
    path = tmp_path / "long.safetensors"
    path.write_bytes(small_file("safetensors") + b"more")
    with one_line_error(ValueError, path):
        load_checkpoint(path)


# released files


def released_content(net):
    """What the authors' writer puts in a file: the state in order, and the β of the loss as a parameter."""
    return {"model_state": OrderedDict(net.state_dict()), "extra": {"beta": nn.Parameter(torch.tensor(1.1))}}


@pytest.fixture
def released(net, tmp_path, monkeypatch):
    """A released name of resnet8 with a server that has it; returns the list of what was asked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(RELEASED, "joint_10_0.5", ("multigrain_models", "resnet8"))
    asked = []

    def served(url, path):
        if not path.exists():
            asked.append(url)
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(released_content(net), path, _use_new_zipfile_serialization=False)
        return path

    monkeypatch.setattr(module, "fetch", served)
    return asked


@pytest.mark.parametrize("name", ["joint_10_0.5", "joint_10_0.5.pth"])
def test_a_released_network_comes_by_its_name(net, released, tmp_path, name):
    loaded = load_released(name)
    assert same_bits(loaded.state_dict(), net.state_dict()) and not loaded.training
    assert loaded.pool.p.item() == 2.5
    load_released(name)
    assert released == [f"{RELEASED_URL}/multigrain_models/joint_10_0.5.pth"]
    assert (tmp_path / "data" / "released" / "joint_10_0.5.pth").is_file()


def test_released_files_may_be_kept_elsewhere(released, tmp_path):
    load_released("joint_10_0.5", folder=str(tmp_path / "models"))
    assert (tmp_path / "models" / "joint_10_0.5.pth").is_file() and not (tmp_path / "data").exists()


def test_a_released_file_put_there_by_hand_is_taken_without_network(net, tmp_path, monkeypatch):
    monkeypatch.setitem(RELEASED, "joint_10_0.5", ("multigrain_models", "resnet8"))
    torch.save(released_content(net), tmp_path / "joint_10_0.5.pth")
    assert same_bits(load_released("joint_10_0.5", folder=tmp_path).state_dict(), net.state_dict())
    assert (tmp_path / "joint_10_0.5.pth.sha256").is_file()


def test_an_unknown_released_name_lists_the_known_ones(released):
    with one_line_error(ValueError, "joint_4B", *RELEASED):
        load_released("joint_4B")
    assert not released


def test_a_backbone_that_cannot_be_built_is_said_before_the_download(released, monkeypatch):
    monkeypatch.setitem(RELEASED, "odd", ("multigrain_models", "resnet11"))
    with one_line_error(ValueError, "resnet11"):
        load_released("odd")
    assert not released


def test_another_network_under_a_released_name_is_refused(net, tmp_path):
    torch.save(released_content(net), tmp_path / "joint_3B_0.5.pth")
    with one_line_error(ValueError, tmp_path / "joint_3B_0.5.pth", "resnet50"):
        load_released("joint_3B_0.5", folder=tmp_path)


@pytest.mark.parametrize("name", ["joint_10_0.5", "joint_10_0.5.pth"])
def test_notebooks_take_a_released_name_for_a_checkpoint(net, released, name):
    loaded, _ = trained_network(make(NetworkConfig, {"checkpoint": name}))
    assert same_bits(loaded.cpu().state_dict(), net.state_dict()) and len(released) == 1


def test_a_file_comes_before_a_released_name(net, released, tmp_path):
    save_checkpoint(tmp_path / "joint_10_0.5", net, epoch=9)
    assert load_network("joint_10_0.5")[1]["epoch"] == 9
    assert not released


def test_a_released_name_in_some_folder_is_a_file_that_is_missing(released, tmp_path):
    with one_line_error(FileNotFoundError, tmp_path / "joint_10_0.5.pth"):
        load_network(tmp_path / "joint_10_0.5.pth")
    assert not released


def test_a_released_name_with_another_backbone_is_refused_before_the_download(released):
    with one_line_error(ValueError, "joint_10_0.5", "resnet8", "resnet18"):
        load_network("joint_10_0.5", backbone="resnet18")
    assert not released


def test_the_table_is_that_of_the_released_files(reference):
    """Against the list beside the reference values."""
    results = reference.parent / "paper_results.yaml"
    if not results.is_file():
        pytest.skip(f"{results} is missing")
    listed = yaml.safe_load(results.read_text(encoding="utf-8"))["released_checkpoints"]
    ours = {f"{folder}/{name}.pth": backbone for name, (folder, backbone) in RELEASED.items()}
    assert ours == {each["file"]: each["backbone"] for each in listed}


def test_a_released_network_computes_what_the_original_does(reference, make_checkpoint, relative, tmp_path):
    expected = np.load(reference / "expected" / "resnet50-whitened.npz")
    content = make_checkpoint.checkpoint("resnet50", 0, float(expected["p"]), whitened=True)
    torch.save(content, tmp_path / "joint_3B_0.5.pth", _use_new_zipfile_serialization=False)
    net = load_released("joint_3B_0.5", folder=tmp_path)
    assert net.pool.p.item() == pytest.approx(float(expected["p"]))
    with torch.no_grad():
        output = net(make_checkpoint.image_batch(1, 2, 64, 64))
    for name in ("embedding", "normalized_embedding", "classifier_output"):
        assert relative(output[name], expected[f"2x64x64__{name}"]) <= 1e-4


def test_the_public_names_are_imported_at_first_use():
    assert mgkit.load_released is load_released and mgkit.load_checkpoint is load_checkpoint
    assert mgkit.get_multigrain is get_multigrain
    with one_line_error(AttributeError, "nothing"):
        mgkit.nothing  # noqa: B018
    program = "import sys, mgkit; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
