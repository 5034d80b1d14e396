"""Names of backbones; what they build; where published weights come from."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from support import one_line_error, write_picture
from torch import nn

from mgkit import get_multigrain
from mgkit.backbones import published
from mgkit.backbones.backbone import IMAGENET_MEAN
from mgkit.backbones.build import NASNET_URL, backbone_names, build_backbone, check_backbone, load_cells
from mgkit.backbones.imagenet import imagenet_names
from mgkit.backbones.nasnet import pnasnet5_large
from mgkit.data.layouts import class_folders
from mgkit.features import embed

PUBLISHED = [
    "resnet18", "resnet50", "resnet101", "resnet152", "senet154", "nasnetamobile", "pnasnet5large",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "stride"), [
        ("resnet8", 16), ("resnet18", 32), ("nasnetamobile", 32), ("efficientnet_lite0", 32),
        ("timm/test_resnet", 32),
    ],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(64, 97), (65, 33), (128, 101)])
def test_a_backbone_maps_images_of_any_shape_to_its_width_at_its_stride(name, stride, shape):
    backbone = build_backbone(name)
    with torch.no_grad():
        maps = backbone.features.eval()(torch.rand(2, 3, *shape))
    assert maps.shape[:2] == (2, backbone.width)
    assert all(
        side // stride <= cells <= side // stride + 1
        for side, cells in zip(shape, maps.shape[2:], strict=True)
    )
    assert backbone.name == name and len(backbone.mean) == len(backbone.std) == 3


def test_names_are_the_published_ones_and_resnet8():
    assert sorted(backbone_names()) == sorted([*PUBLISHED, "resnet8", "efficientnet_lite0"])
    assert all(check_backbone(name) == name for name in backbone_names())


@pytest.mark.parametrize("whitened", [False, True])
@pytest.mark.parametrize("name", PUBLISHED)
def test_state_has_the_keys_and_shapes_of_the_released_file(reference, name, whitened):
    layout = json.loads((reference / "layouts" / f"{name}.json").read_text())
    with torch.device("meta"):
        net = get_multigrain(name)
        if whitened:
            size = net.width + 1
            net.set_whitening(
                torch.empty(size), torch.empty(size, size), torch.empty(1000, size), torch.empty(1000)
            )
            for key in ("classifier.weight", "features.0.base_net.last_linear.weight"):
                if key in layout:
                    layout[key][0] = [1000, size]
            layout |= {"whitening.pca.pca_m": [[size], "float32"]}
            layout |= {"whitening.pca.pca_P": [[size, size], "float32"]}
    found = {key: [list(x.shape), str(x.dtype).removeprefix("torch.")] for key, x in net.state_dict().items()}
    assert found == layout


@pytest.mark.parametrize(
    "name", ["resnet50", "senet154", "nasnetamobile", "pnasnet5large", "efficientnet_lite0"]
)
def test_input_is_normalised_as_the_original_was(name):
    with torch.device("meta"):
        backbone = build_backbone(name)
    half = "nasnet" in name or name == "efficientnet_lite0"
    assert backbone.mean == ((0.5, 0.5, 0.5) if half else IMAGENET_MEAN)
    assert backbone.std == ((0.5, 0.5, 0.5) if half else (0.229, 0.224, 0.225))
    assert backbone.dropout == (0.5 if "nasnet" in name else 0.2 if name == "senet154" else 0.0)


@pytest.mark.parametrize("name", ["resnet51", "", "ResNet50", "timm", "pnasnet"])
def test_an_unknown_name_lists_the_known_ones(name):
    with one_line_error(ValueError, repr(name), "is unknown; one of", *backbone_names(), "timm/<name>"):
        build_backbone(name)


@pytest.mark.parametrize(
    "model", ["resnet51", "", "resnet50.no_such_tag", "hf_hub:timm/resnet18", "../resnet18"]
)
def test_an_unknown_model_of_timm_is_refused(model):
    with one_line_error(ValueError, f"timm/{model}", "is unknown", timm.__version__, "timm.list_models"):
        check_backbone(f"timm/{model}")


# Published weights


@pytest.fixture
def files(monkeypatch):
    """A dict url -> saved object that stands in for the network; fetched paths are kept under "paths"."""
    known = {"paths": []}

    def fetch(url, path):
        known["paths"].append(path)
        if url not in known:
            raise OSError(f"{url} could not be fetched: put it at {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(known[url], path)
        return path

    monkeypatch.setattr(published, "fetch", fetch)
    return known


def same_values(module, state):
    """Whether the module has all the state's values."""
    own = module.state_dict()
    return all(torch.equal(own[key], value) for key, value in state.items())


def test_a_resnet_comes_with_the_weights_and_the_classifier_of_torchvision(files, here):
    original = torchvision.models.resnet18().eval()
    url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    files[url] = original.state_dict()
    images = torch.rand(2, 3, 64, 64)
    net = get_multigrain("resnet18", p=1.0, pretrained_backbone=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(net(images)["classifier_output"], original(images))
    assert net.classes == tuple(imagenet_names())
    assert files["paths"] == [here / "data" / "pretrained" / Path(url).name]


def test_another_number_of_classes_gets_a_fresh_classifier(files, here):
    original = torchvision.models.resnet18()
    files[torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url] = original.state_dict()
    net = get_multigrain("resnet18", num_classes=3, pretrained_backbone=True)
    assert torch.equal(net.features.conv1.weight, original.conv1.weight)
    assert net.classifier.weight.shape == (3, 512) and net.classes == ()


@pytest.mark.parametrize("background", [0, 1])
def test_nasnetamobile_comes_from_the_file_of_2018(files, here, background):
    torch.manual_seed(1)
    original = build_backbone("nasnetamobile").features[0].base_net
    state = {
        k: v for k, v in original.state_dict().items() if not k.endswith("num_batches_tracked")
    }  # as it was then
    linear = nn.Linear(1056, 1000 + background)
    files[NASNET_URL] = state | {f"last_linear.{key}": value for key, value in linear.state_dict().items()}
    net = get_multigrain("nasnetamobile", pretrained_backbone=True)
    assert same_values(net.features[0].base_net, original.state_dict())
    assert torch.equal(net.classifier.weight, linear.weight[background:])
    assert torch.equal(net.classifier.bias, linear.bias[background:])
    assert net.features[0].base_net.last_linear is net.classifier


@pytest.mark.parametrize(
    ("name", "model"), [("senet154", "legacy_senet154"), ("pnasnet5large", "pnasnet5large")]
)
def test_the_large_ones_come_from_timm(pretrained_timm, monkeypatch, name, model):
    with torch.device("meta"):
        original = timm.create_model(model)
    monkeypatch.setattr(
        timm, "create_model", lambda name, pretrained=False: {(model, True): original}[name, pretrained]
    )
    with torch.device("meta"):
        backbone = build_backbone(name, True)
        weight, bias = backbone.classifier
    assert weight.shape == (1000, backbone.width) and bias.shape == (1000,)


@torch.no_grad()
def test_pnasnet_with_the_weights_of_timm_computes_what_timm_computes():
    """Where the padding of both is one, as at 331 px; smaller here."""
    with torch.device("meta"):
        ours, theirs = pnasnet5_large(), timm.create_model("pnasnet5large")
    generator = torch.Generator().manual_seed(0)
    state = {key: random_weight(key, value.shape, generator) for key, value in theirs.state_dict().items()}
    theirs.load_state_dict(state, assign=True)
    ours.to_empty(device="cpu")
    weight, bias = load_cells(ours, state)
    images = torch.rand(1, 3, 107, 107, generator=generator)
    expected = theirs.eval().forward_features(images)
    assert expected.std() > 0.01
    torch.testing.assert_close(ours.eval()(images).relu(), expected)
    torch.testing.assert_close(expected.mean(dim=(2, 3)) @ weight.T + bias, theirs(images))


def random_weight(key, shape, generator):
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if key.endswith("running_var"):
        return torch.rand(shape, generator=generator) + 0.5
    fan_in = max(1, int(np.prod(shape[1:])))
    return torch.randn(shape, generator=generator) / fan_in**0.5


def test_resnet8_has_no_published_weights(files):
    with one_line_error(ValueError, "resnet8 has no published weights"):
        get_multigrain("resnet8", pretrained_backbone=True)


def test_what_cannot_be_fetched_is_named(files, here, monkeypatch):
    with one_line_error(OSError, NASNET_URL, here / "data" / "pretrained" / "nasnetamobile-7e03cead.pth"):
        build_backbone("nasnetamobile", True)

    def offline(name, pretrained):
        raise RuntimeError("no network\n(for a long time)")

    monkeypatch.setattr(timm, "create_model", offline)
    with one_line_error(
        OSError, "timm's weights of legacy_senet154", "no network", "where there is a network"
    ):
        build_backbone("senet154", True)


def test_a_damaged_file_is_named(files, here, monkeypatch):
    def fetch(url, path):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"<html>404</html>")
        return path

    monkeypatch.setattr(published, "fetch", fetch)
    with one_line_error(ValueError, here / "data" / "pretrained" / "nasnetamobile-7e03cead.pth", NASNET_URL):
        build_backbone("nasnetamobile", True)


def test_the_weights_of_another_network_are_refused(files, here):
    files[NASNET_URL] = {"last_linear.weight": torch.zeros(1000, 3), "conv0.weight": torch.zeros(1)}
    with one_line_error(ValueError, "nasnetamobile-7e03cead.pth"):
        build_backbone("nasnetamobile", True)


# Whole images


@pytest.mark.parametrize("name", ["resnet18", "nasnetamobile", "efficientnet_lite0", "timm/test_resnet"])
def test_whole_images_in_batches_of_one_shape_are_what_they_are_alone(name, tmp_path):
    sizes = [(90, 61), (61, 90), (90, 61), (80, 80), (90, 61), (61, 90)]
    for seed, size in enumerate(sizes):
        write_picture(tmp_path / "class" / f"{seed}.png", seed=seed, size=size)
    images = class_folders(tmp_path)
    net = get_multigrain(name, num_classes=2)
    options = dict(size=70, crop="rect", precision="float32", description=None)
    together = embed(net, images, **options)
    alone = np.concatenate([embed(net, images.subset([i]), **options) for i in range(len(images))])
    assert np.abs(together - alone).max() < 1e-5
    assert np.abs(together[0] - together[1:]).max() > 1e-4
