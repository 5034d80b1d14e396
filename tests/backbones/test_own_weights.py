"""Weights of one's own: every layout gives the outputs of the network that they are from, or one line."""

import argparse
import io
import json
import math
import os
import zipfile
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from support import one_line_error, write_tree
from torch import nn
from torchvision.models.resnet import BasicBlock

from mgkit import get_multigrain
from mgkit.backbones.build import build_backbone, check_backbone
from mgkit.backbones.imagenet import imagenet_names
from mgkit.backbones.own_weights import load_timm, read_weights
from mgkit.checkpoints import export_safetensors, load_network, save_checkpoint
from mgkit.config import ClassifyConfig, TrainConfig, make
from mgkit.data.layouts import class_folders
from mgkit.engine.snapshots import first_weights
from mgkit.machine.download import file_hash
from mgkit.machine.printable import say_once
from mgkit.stages.evaluate_imagenet import evaluate_classification
from mgkit.stages.inputs import in_classes_of
from mgkit.stages.train import first_network, trained_network


@pytest.fixture(autouse=True)
def anew():
    """Lines are said again in every test."""
    say_once.cache_clear()


def settled(net, seed=0):
    """A network in eval mode with random weights and statistics that show whether they are its own."""
    generator = torch.Generator().manual_seed(seed)
    for key, value in net.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.is_floating_point() and value.ndim < 2:
            value.add_(torch.randn(value.shape, generator=generator) / 10)
    return net.eval()


@pytest.fixture(scope="module")
def resnet():
    """torchvision's ResNet, as small as resnet8: one block in each of three stages."""
    torch.manual_seed(0)
    net = torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1])
    net.layer4, net.fc = nn.Identity(), nn.Linear(256, 7)
    return settled(net)


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


HEAD = {"head.mlp.0.weight": torch.ones(4, 4), "head.last_layer.weight_v": torch.ones(4, 4)}
LAYOUTS = {
    "plain": lambda state: state,
    "fp16": lambda state: {key: value.half() if value.ndim else value for key, value in state.items()},
    "2018": lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
    "ddp": lambda state: {"epoch": 3, "arch": "resnet8", "state_dict": prefixed(state, "module.")},
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "timm": lambda state: {
        "state_dict": noise_of(state), "state_dict_ema": state, "args": argparse.Namespace(lr=0.1, data="/d"),
    },
    "dino": lambda state: {
        "student": prefixed(noise_of(state), "module.backbone."),
        "teacher": prefixed(state, "backbone.") | HEAD,
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
    },
    "lightning": lambda state: {
        "pytorch-lightning_version": "2.4.0", "global_step": 5, "hyper_parameters": {"lr": 0.1, "name": "x"},
        "state_dict": prefixed(state, "model.backbone.") | {"model.criterion.weight": torch.ones(7)},
        "loops": {"fit_loop": {"state_dict": {}}}, "optimizer_states": [{"state": {}, "param_groups": []}],
    },
}  # fmt: skip


def noise_of(state):
    return {key: torch.randn_like(value) if value.ndim else value for key, value in state.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_outputs_of_the_network_that_was_saved(resnet, layout, tmp_path, capsys):
    path = tmp_path / "own.pth"
    torch.save(LAYOUTS[layout](resnet.state_dict()), path)
    net = get_multigrain("resnet8", p=1.0, weights=path).eval()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = net(images)["classifier_output"], resnet(images)
    assert (found - expected).norm() < (0.01 if layout == "fp16" else 1e-4) * expected.norm()
    assert net.classifies and net.classes == () and net.source == str(path)
    lines = capsys.readouterr().out.splitlines()
    loaded = 47 if layout == "2018" else 56
    assert f"{path}: {loaded} tensors loaded" in lines[-1] and "missing: none" in lines[-1]
    assert "a classifier of 7 classes" in lines[-1]


def test_averaged_weights_are_taken_also_without_their_counters(resnet, tmp_path):
    """Beside what else a training wrote, such as measures and paths."""
    state = resnet.state_dict()
    averaged = {key: value for key, value in state.items() if value.is_floating_point()}
    measures = {"best": np.float64(0.5), "folder": Path("runs")}
    torch.save({"state_dict": noise_of(state), "state_dict_ema": averaged} | measures, tmp_path / "ema.pth")
    loaded = get_multigrain("resnet8", weights=tmp_path / "ema.pth")
    assert torch.equal(loaded.features.conv1.weight, state["conv1.weight"])


def test_the_teacher_is_taken_and_what_is_left_out_is_said(resnet, tmp_path, capsys):
    torch.save(LAYOUTS["dino"](resnet.state_dict()), tmp_path / "dino.pth")
    get_multigrain("resnet8", weights=tmp_path / "dino.pth")
    several, loaded = capsys.readouterr().out.splitlines()
    assert "'teacher.backbone.' are taken, not the ones below 'student.module.backbone.'" in several
    assert "below 'teacher.backbone.' into resnet8" in loaded
    assert "left out: 58 (student.module.backbone.conv1.weight…)" in loaded  # 56, and 2 of the head


@pytest.mark.parametrize("prefix", ["", "model."])
def test_safetensors_are_read(resnet, prefix, tmp_path):
    path = tmp_path / "own.safetensors"
    save_file(prefixed(resnet.state_dict(), prefix), path)
    net = get_multigrain("resnet8", weights=path)
    assert torch.equal(net.features.layer3[0].conv2.weight, resnet.layer3[0].conv2.weight)
    assert torch.equal(net.classifier.bias, resnet.fc.bias)


def test_of_sscd_the_backbone_is_loaded_and_the_embedding_left_out(resnet, tmp_path, capsys):
    backbone = {k: v for k, v in resnet.state_dict().items() if not k.startswith("fc.")}
    embedding = {"embeddings.0.weight": torch.ones(8, 256), "embeddings.0.bias": torch.ones(8)}
    torch.save(prefixed(backbone, "backbone.") | embedding, tmp_path / "sscd.pth")
    net = get_multigrain("resnet8", weights=tmp_path / "sscd.pth")
    assert torch.equal(net.features.conv1.weight, resnet.conv1.weight)
    assert not net.classifies and net.classes == ()
    loaded, unclassified = capsys.readouterr().out.splitlines()
    assert "left out: 2 (embeddings.0.weight…); missing: none; no classifier" in loaded
    assert unclassified.endswith("sscd.pth is used: the weights have none")


def test_a_thousand_classes_are_imagenet_s(tmp_path, capsys):
    original = torchvision.models.resnet18()
    torch.save(original.state_dict(), tmp_path / "r.pth")
    net = get_multigrain("resnet18", weights=tmp_path / "r.pth")
    assert net.classes == tuple(imagenet_names()) and torch.equal(net.classifier.weight, original.fc.weight)
    assert "1000 classes, taken for ImageNet's" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["nasnetamobile", "efficientnet_lite0", "resnet8"])
def test_the_other_backbones_take_what_they_gave(name, tmp_path):
    torch.manual_seed(2)
    backbone = build_backbone(name)
    source = {"nasnetamobile": "0.base_net.", "efficientnet_lite0": "net.", "resnet8": ""}[name]
    state = {k.removeprefix(source): v for k, v in settled(backbone.features).state_dict().items()}
    linear = nn.Linear(backbone.width, 5)
    head = {"nasnetamobile": "last_linear.", "efficientnet_lite0": "classifier.", "resnet8": "fc."}[name]
    torch.save(state | prefixed(linear.state_dict(), head), tmp_path / "own.pth")
    net = get_multigrain(name, p=1.0, weights=tmp_path / "own.pth").eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(net.features(images), backbone.features(images))
    assert torch.equal(net.classifier.weight, linear.weight)
    assert (net.mean, net.std) == (backbone.mean, backbone.std)


# --- timm


@pytest.mark.parametrize(
    ("model", "classes"),
    [
        ("test_resnet", 12), ("test_efficientnet", 1000), ("test_nfnet", 3), ("test_convnext", 5),
        ("test_vit", 4), ("mobilenetv4_conv_small", 6),
    ],
)  # fmt: skip
def test_a_timm_model_gives_the_logits_of_the_one_that_was_saved(model, classes, tmp_path):
    original = settled(timm.create_model(model, num_classes=classes))
    torch.save({"state_dict": prefixed(original.state_dict(), "module.")}, tmp_path / "own.pth")
    tokens = "class" if model == "test_vit" else "patches"
    net = get_multigrain(f"timm/{model}", p=1.0, weights=tmp_path / "own.pth", tokens=tokens).eval()
    images = torch.randn(2, *original.pretrained_cfg["input_size"])
    with torch.no_grad():
        torch.testing.assert_close(net(images)["classifier_output"], original(images), rtol=1e-4, atol=1e-4)
    assert len(net.classes) == (1000 if classes == 1000 else 0)


SMALL = dict(depth=2, embed_dim=24, num_heads=2)


def dinov2(state):
    """The state of timm's DINOv2 with registers under the names of its authors."""
    registers, positions = state.pop("reg_token"), state.pop("pos_embed")
    first = torch.randn(1, 1, positions.shape[2])  # the position of the class token
    return state | {
        "cls_token": state["cls_token"] - first,
        "register_tokens": registers,
        "mask_token": torch.zeros(1, positions.shape[2]),
        "pos_embed": torch.cat([first, positions], dim=1),
    }


def dinov3(state):
    """The state of timm's DINOv3 under the names of its authors, with what they save beside it."""
    renamed = {
        key.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma"): state[key] for key in state
    }
    renamed["storage_tokens"] = renamed.pop("reg_token")
    extra = {"mask_token": torch.zeros(1, 24), "rope_embed.periods": torch.ones(3)}
    for k in range(2):
        extra[f"blocks.{k}.attn.qkv.bias"] = torch.zeros(72)
        extra[f"blocks.{k}.attn.qkv.bias_mask"] = torch.zeros(72)
    return renamed | extra


def without_bias(state):
    """The state of timm's CLIP image tower as timm saves it, with the projection as a classifier."""
    return state | {"head.bias": torch.zeros(16)}


def clip(state):
    """The state of timm's CLIP image tower under the names of its authors, with projection and text tower."""
    names = [
        ("patch_embed.proj", "conv1"), ("blocks.", "transformer.resblocks."), ("norm_pre", "ln_pre"),
        ("attn.qkv.", "attn.in_proj_"), ("attn.proj", "attn.out_proj"), ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"), (".norm1", ".ln_1"), (".norm2", ".ln_2"),
    ]  # fmt: skip
    state["class_embedding"] = state.pop("cls_token")[0, 0]
    state["positional_embedding"] = state.pop("pos_embed")[0]
    renamed = {}
    for key, value in state.items():
        for ours, theirs in names:
            key = key.replace(ours, theirs)
        renamed["visual." + ("ln_post" + key[4:] if key.startswith("norm.") else key)] = value
    projection = {"visual.proj": torch.randn(24, 16), "transformer.resblocks.0.ln_1.weight": torch.ones(9)}
    return renamed | projection


@pytest.mark.parametrize(
    ("model", "options", "rename"),
    [
        ("vit_small_patch14_reg4_dinov2", {"img_size": 56}, dinov2),
        ("vit_small_patch16_dinov3", {"img_size": 64, "num_classes": 0}, dinov3),
        ("vit_base_patch32_clip_224", {"num_classes": 16}, clip),
        ("vit_base_patch32_clip_224", {"num_classes": 16}, without_bias),
        ("vit_tiny_patch16_224", {"num_classes": 0}, lambda state: state | HEAD),
    ],
)
@pytest.mark.parametrize("prefix", ["", "teacher.backbone."])
def test_transformers_are_loaded_under_the_names_of_their_authors(
    model, options, rename, prefix, tmp_path, capsys
):
    original = settled(timm.create_model(model, **SMALL, **options))
    torch.save(prefixed(rename(dict(original.state_dict())), prefix), tmp_path / "own.pth")
    net = timm.create_model(model, **SMALL, **options).eval()
    loaded = load_timm(net, read_weights(tmp_path / "own.pth"), model)
    assert (loaded.classes, loaded.missing) == (0, [])  # a projection is no classifier
    images = torch.randn(1, 3, *net.patch_embed.img_size)
    with torch.no_grad():
        ours, theirs = net.forward_features(images), original.forward_features(images)
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()
    assert "missing: none; no classifier" in capsys.readouterr().out


def test_positions_of_another_size_are_interpolated_and_patches_are_not(tmp_path, capsys):
    large = timm.create_model("vit_tiny_patch16_224", img_size=96, **SMALL)
    torch.save(large.state_dict(), tmp_path / "large.pth")
    net = timm.create_model("vit_tiny_patch16_224", img_size=64, **SMALL)
    assert load_timm(net, read_weights(tmp_path / "large.pth"), "vit").classes == 1000
    assert torch.equal(net.pos_embed[:, 0], large.pos_embed[:, 0]) and net.pos_embed.shape[1] == 17
    assert "pos_embed interpolated" in capsys.readouterr().out
    other = timm.create_model("vit_tiny_patch16_224", img_size=64, patch_size=8, **SMALL)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    with one_line_error(
        ValueError, "another variant", "patch_embed.proj.weight", "(24, 3, 8, 8)", "(24, 3, 16, 16)"
    ):
        load_timm(net, read_weights(tmp_path / "other.pth"), "vit")


def test_registers_that_the_network_lacks_are_of_another_variant(tmp_path):
    original = timm.create_model("vit_small_patch14_reg4_dinov2", img_size=56, **SMALL)
    torch.save(dinov2(dict(original.state_dict())), tmp_path / "own.pth")
    net = timm.create_model("vit_small_patch14_dinov2", img_size=56, **SMALL)
    with one_line_error(ValueError, tmp_path, "another variant", "reg"):
        load_timm(net, read_weights(tmp_path / "own.pth"), "dinov2")


def test_a_head_s_norm_that_is_missing_is_refused_where_it_follows_gem(tmp_path, capsys):
    state = timm.create_model("test_convnext").state_dict()
    lacking = {key: value for key, value in state.items() if not key.startswith("head.norm")}
    torch.save(lacking, tmp_path / "own.pth")
    net = timm.create_model("test_convnext")
    loaded = load_timm(net, read_weights(tmp_path / "own.pth"), "convnext")
    assert (loaded.classes, loaded.missing) == (0, ["head.norm.weight", "head.norm.bias"])
    assert "missing: 2 (head.norm.weight…) of the head; no classifier" in capsys.readouterr().out
    assert torch.equal(net.stages[0].blocks[0].conv_dw.weight, state["stages.0.blocks.0.conv_dw.weight"])
    with one_line_error(ValueError, tmp_path / "own.pth", "less than a whole", "head.norm.weight"):
        get_multigrain("timm/test_convnext", weights=tmp_path / "own.pth")


# --- Refusals


def test_less_than_a_whole_backbone_is_refused(resnet, tmp_path):
    state = {k: v for k, v in resnet.state_dict().items() if not k.startswith("layer3")}
    torch.save(prefixed(state, "model."), tmp_path / "part.pth")
    with one_line_error(
        ValueError,
        tmp_path / "part.pth",
        "less than a whole resnet8",
        "15 of 45",
        "'model.'",
        "layer3.0.conv1",
    ):
        get_multigrain("resnet8", weights=tmp_path / "part.pth")


@pytest.mark.parametrize(
    ("saved", "built", "names"),
    [
        ("resnet50", "resnet18", ("layer1.0.conv1.weight", "(64, 64, 1, 1)", "(64, 64, 3, 3)")),
        ("resnet34", "resnet18", ("resnet18, which has no", "layer1.2.conv1.weight")),
        ("resnet18", "resnet50", ("less than a whole resnet50",)),
        ("squeezenet1_1", "resnet18", ("nothing of resnet18", "features.0.weight", "conv1.weight")),
    ],
)
def test_another_variant_is_refused(saved, built, names, tmp_path):
    state = getattr(torchvision.models, saved)(num_classes=2).state_dict()
    torch.save(state, tmp_path / "other.pth")
    with one_line_error(ValueError, tmp_path / "other.pth", *names):
        get_multigrain(built, weights=tmp_path / "other.pth")


def test_blocks_with_more_in_them_are_refused(tmp_path):
    state = timm.create_model("seresnet18").state_dict()
    torch.save(state, tmp_path / "se.pth")
    with one_line_error(ValueError, "se.pth", "another variant", "layer1.0.se.fc1.weight"):
        get_multigrain("resnet18", weights=tmp_path / "se.pth")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda w: w * math.nan, "not finite"),
        (lambda w: w.long(), "int64"),
        (lambda w: w.to_sparse(), "sparse"),
        (lambda w: w.to("meta"), "meta"),
        (lambda w: w.to(torch.complex64), "complex64"),
    ],
)
def test_a_tensor_that_cannot_be_used_is_named(resnet, change, found, tmp_path):
    state = resnet.state_dict()
    torch.save(state | {"conv1.weight": change(state["conv1.weight"])}, tmp_path / "odd.pth")
    with one_line_error(ValueError, tmp_path / "odd.pth", "conv1.weight", found):
        get_multigrain("resnet8", weights=tmp_path / "odd.pth")


class Intruder:
    """A pickle that makes a folder when it is loaded carelessly."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_file_does_not_run(resnet, tmp_path):
    for k, content in enumerate(
        (resnet, {"state_dict": resnet.state_dict(), "x": Intruder(tmp_path / "in")})
    ):
        torch.save(content, tmp_path / f"{k}.pth")
        with one_line_error(
            ValueError, tmp_path / f"{k}.pth", "contains code or objects", "not run", "state_dict"
        ):
            get_multigrain("resnet8", weights=tmp_path / f"{k}.pth")
    assert not (tmp_path / "in").exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_a_torchscript_program_is_not_run(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "sscd.torchscript.pt")
    with one_line_error(ValueError, "sscd.torchscript.pt", "TorchScript", "state_dict"):
        get_multigrain("resnet8", weights=tmp_path / "sscd.torchscript.pt")


def zipped():
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("1.png", b"1")
    return content.getvalue()


def saved(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "empty"),
        (b"<!doctype html><p>404", "web page"),
        (b"conv1.weight = 3\n", "text"),
        (zipped(), "zip file of something else"),
        (saved({}), "no named tensors"),
        (saved([torch.ones(2)]), "no named tensors"),
        (saved(torch.ones(2)), "no named tensors"),
        (saved({"state_dict": {"epoch": 3}}), "no named tensors"),
    ],
    ids=map(str, range(8)),
)
def test_a_file_of_something_else_is_named(content, found, tmp_path):
    (tmp_path / "own.pth").write_bytes(content)
    with one_line_error(ValueError, tmp_path / "own.pth", found):
        get_multigrain("resnet8", weights=tmp_path / "own.pth")


def test_dicts_that_hold_each_other_end(tmp_path):
    content = {}
    content |= {"a": content, "b": content}
    torch.save(content, tmp_path / "own.pth")
    with one_line_error(ValueError, "no named tensors"):
        get_multigrain("resnet8", weights=tmp_path / "own.pth")


def test_a_missing_file_a_folder_and_two_sources_are_named(tmp_path):
    with one_line_error(FileNotFoundError, tmp_path / "none.pth"):
        get_multigrain("resnet8", weights=tmp_path / "none.pth")
    with one_line_error(FileNotFoundError, tmp_path, "folder"):
        get_multigrain("resnet8", weights=tmp_path)
    with one_line_error(ValueError, "choose one"):
        get_multigrain("resnet8", weights=tmp_path, pretrained_backbone=True)


def test_a_checkpoint_of_the_kit_is_for_another_parameter(tmp_path):
    net = get_multigrain("resnet8", num_classes=3)
    save_checkpoint(tmp_path / "own.pth", net)
    export_safetensors(tmp_path / "own.safetensors", net)
    for path in (tmp_path / "own.pth", tmp_path / "own.safetensors"):
        with one_line_error(ValueError, path, "checkpoint", "init_from"):
            get_multigrain("resnet8", weights=path)


def test_a_backbone_beside_another_s_pooling_is_read(resnet, tmp_path):
    state = prefixed(resnet.state_dict(), "backbone.") | {"pool.p": torch.tensor([3.0])}
    torch.save({"state_dict": state}, tmp_path / "own.pth")
    net = get_multigrain("resnet8", p=1.0, weights=tmp_path / "own.pth")
    assert net.pool.p == 1.0 and torch.equal(net.classifier.weight, resnet.fc.weight)


def test_a_head_of_another_class_count_than_asked_is_refused(resnet, tmp_path):
    torch.save(resnet.state_dict(), tmp_path / "own.pth")
    with one_line_error(ValueError, tmp_path / "own.pth", "7 classes", "num_classes is 1000"):
        get_multigrain("resnet8", num_classes=1000, weights=tmp_path / "own.pth")
    assert get_multigrain("resnet8", num_classes=7, weights=tmp_path / "own.pth").classifies


# --- Stages


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"backbone": "resnet18", "checkpoint": "a.pth"},
        {"backbone": "resnet18", "pretrained_backbone": True},
    ],
)
def test_own_weights_need_a_backbone_and_nothing_else(values):
    with one_line_error(
        ValueError, "weights needs a backbone, and neither checkpoint nor pretrained_backbone"
    ):
        make(ClassifyConfig, values | {"weights": "own.pth"})


@pytest.mark.parametrize("other", [{"init_from": "a.pth"}, {"pretrained_backbone": True}])
def test_a_training_starts_from_one_source(other):
    with one_line_error(ValueError, *other, "weights", "choose one"):
        make(TrainConfig, {"backbone": "resnet18", "weights": "own.pth"} | other)


@pytest.fixture
def resnet8(here):
    """A file of a whole torchvision ResNet of one block per stage; its fourth stage is not used."""
    torch.manual_seed(3)
    net = torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1])
    net.fc = nn.Linear(256, 12)
    torch.save({"state_dict": prefixed(net.state_dict(), "module.")}, here / "own.pth")
    return net


def test_classification_is_measured_with_own_weights(resnet8, here, mini_root):
    values = {"experiment": "t", "data": str(mini_root), "workers": 0, "sizes": [32], "crops": ["square"]}
    config = make(ClassifyConfig, values | {"backbone": "resnet8", "weights": "own.pth"})
    rows = evaluate_classification(config)
    assert all(0 <= row.top1 <= row.top5 <= 1 for row in rows) and rows[0].exponent == "trained"
    [provenance] = (here / "outputs" / "t").rglob("provenance.yaml")
    text = provenance.read_text()
    assert "own.pth" in text and file_hash(here / "own.pth") in text


def test_a_network_of_own_weights_pools_by_averaging_and_knows_its_file(resnet8, here):
    config = make(ClassifyConfig, {"experiment": "t", "backbone": "resnet8", "weights": "own.pth"})
    net, content = trained_network(config)
    assert (net.pool.p.item(), net.source, content) == (1.0, "own.pth", {}) and not net.training
    assert net.source_sha256 == file_hash(here / "own.pth") and net.classifier.out_features == 12
    write_tree(here / "data", *(f"{k:02}/a.png" for k in range(13)))
    with one_line_error(ValueError, "knows 12 classes", "has 13"):
        in_classes_of(net, class_folders(here / "data"))


def test_stages_of_classes_refuse_weights_without_a_classifier(resnet8, here):
    state = {k: v for k, v in resnet8.state_dict().items() if not k.startswith("fc")}
    torch.save(state, here / "bare.pth")
    net = get_multigrain("resnet8", weights=here / "bare.pth")
    write_tree(here / "data", "a/a.png")
    with one_line_error(ValueError, here / "bare.pth", "no classifier", "by 01 with"):
        in_classes_of(net, class_folders(here / "data"))


@pytest.mark.parametrize(("count", "kept"), [(12, True), (5, False)])
def test_a_training_starts_from_own_weights(resnet8, here, count, kept, capsys):
    config = make(TrainConfig, {"experiment": "t", "backbone": "resnet8", "weights": "own.pth", "p": 2.0})
    net = first_network(config, tuple(f"{k}" for k in range(count)))
    assert torch.equal(net.features.layer3[0].conv1.weight, resnet8.layer3[0].conv1.weight)
    assert net.classifier.weight.shape == (count, 256) and net.pool.p.item() == 2.0
    assert torch.equal(net.classifier.weight, resnet8.fc.weight) == kept
    assert ("has other classes: its classifier is not used" in capsys.readouterr().out) != kept


def test_the_provenance_of_a_training_names_its_weights(resnet8, here):
    values = {"experiment": "t", "backbone": "resnet8"}
    assert first_weights(make(TrainConfig, values | {"weights": "own.pth"})) == "own.pth"
    with one_line_error(FileNotFoundError, "none.pth"):
        first_weights(make(TrainConfig, values | {"weights": "none.pth"}))


# --- Models described elsewhere


@pytest.fixture
def folder(tmp_path):
    """A model of timm in a folder, as timm writes it for the hub, and the model."""
    torch.manual_seed(4)
    net = settled(timm.create_model("test_resnet", num_classes=9))
    (tmp_path / "model").mkdir()
    cfg = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "input_size": [3, 160, 160]}
    config = {"architecture": "test_resnet", "num_classes": 9, "pretrained_cfg": cfg}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    torch.save(net.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    return tmp_path / "model", net


def test_a_model_in_a_folder_is_built_saved_and_loaded(folder, tmp_path):
    path, original = folder
    name = f"timm/local-dir:{path}"
    net = get_multigrain(name, p=1.0, pretrained_backbone=True).eval()
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(net(images)["classifier_output"], original(images), rtol=1e-4, atol=1e-4)
    assert net.mean == (0.1, 0.2, 0.3) and net.name == name
    save_checkpoint(tmp_path / "net.pth", net)
    with one_line_error(ValueError, tmp_path / "net.pth", "set `backbone`", name):
        load_network(tmp_path / "net.pth")
    loaded, _ = load_network(tmp_path / "net.pth", backbone=name)
    with torch.no_grad():
        assert torch.equal(loaded(images)["classifier_output"], net(images)["classifier_output"])
    path.rename(tmp_path / "gone")
    with one_line_error(ValueError, path / "config.json", "does not exist"):
        load_network(tmp_path / "net.pth", backbone=name)


def test_code_in_the_file_of_a_folder_does_not_run(folder, tmp_path):
    path, _ = folder
    torch.save({"x": Intruder(tmp_path / "in")}, path / "pytorch_model.bin")
    with one_line_error(ValueError, path / "pytorch_model.bin", "not run"):
        get_multigrain(f"timm/local-dir:{path}", pretrained_backbone=True)
    assert not (tmp_path / "in").exists()
    (path / "pytorch_model.bin").unlink()
    with one_line_error(FileNotFoundError, path, "model.safetensors"):
        get_multigrain(f"timm/local-dir:{path}", pretrained_backbone=True)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"architecture": "resnet17x"}', '{"architecture": 3}'])
def test_a_folder_without_a_model_of_timm_is_named(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with one_line_error(ValueError, tmp_path / "config.json"):
        make(ClassifyConfig, {"backbone": f"timm/local-dir:{tmp_path}"})


@pytest.mark.parametrize("name", ["hf-hub:", "hf-hub:model", "hf-hub:a/b/c", "hf-hub:../etc passwd"])
def test_a_name_that_the_hub_cannot_have_is_refused(name):
    with one_line_error(ValueError, "hf-hub:org/model"):
        check_backbone(f"timm/{name}")


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    """The hub's cache with one model, without a network."""
    path, original = folder
    cached = tmp_path / "hub" / "models--org--model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    (cached / "snapshots").mkdir()
    path.rename(cached / "snapshots" / ("0" * 40))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return original


def test_a_model_of_the_hub_is_read_from_its_cache(hub):
    assert make(ClassifyConfig, {"backbone": "timm/hf-hub:org/model"}).backbone == "timm/hf-hub:org/model"
    net = get_multigrain("timm/hf-hub:org/model", p=1.0, pretrained_backbone=True).eval()
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(net(images)["classifier_output"], hub(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pretrained", [False, True])
def test_a_model_that_the_hub_does_not_give_is_named(hub, pretrained):
    with one_line_error(OSError, "hf-hub:org/other", "copy its cache"):
        build_backbone("timm/hf-hub:org/other", pretrained)
