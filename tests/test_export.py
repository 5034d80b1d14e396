"""Exported networks against PyTorch, at square and other sizes; what cannot be exported."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from support import noise, one_line_error, with_noise
from timm.layers import Conv2dSame
from torch import nn

from mgkit import export, get_multigrain
from mgkit.backbones import nasnet
from mgkit.export import onnx_runner, to_exported_program, to_onnx
from mgkit.exportable import SameConvolution, SizedCells
from mgkit.transforms import eval_transform

README = Path(__file__).parents[1] / "README.md"
SHAPES = [(1, 64, 64), (2, 65, 97), (1, 96, 71), (3, 128, 101), (1, 131, 160)]


def network(name, *, whitened=False):
    torch.manual_seed(0)
    net = with_noise(get_multigrain(name, num_classes=10)).eval()
    if whitened:
        size = net.width + 1
        net.set_whitening(
            torch.randn(size) / size**0.5, torch.linalg.qr(torch.randn(size, size))[0],
            torch.randn(10, size), torch.randn(10),
        )  # fmt: skip
    return net


@torch.no_grad()
def assert_agree(net, run, shapes=SHAPES, scale=255):
    """The file's outputs are those of the network for normalised images."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (net.mean, net.std))
    for batch, height, width in shapes:
        levels = torch.randint(256, (batch, 3, height, width), dtype=torch.uint8)
        found = run(levels if scale == 255 else levels / 255)
        expected = net((levels / 255 - mean) / std)
        for name, key in (("embedding", "normalized_embedding"), ("scores", "classifier_output")):
            difference = (torch.as_tensor(found[name]) - expected[key]).abs().max()
            assert difference < 1e-4, (name, height, width)


def onnx_run(path):
    run = onnx_runner(path)
    return lambda images: run(images.numpy())


@pytest.mark.parametrize(
    ("name", "whitened"),
    [
        ("resnet8", False),
        ("resnet8", True),
        ("resnet50", False),
        ("efficientnet_lite0", True),
        ("timm/vit_tiny_patch16_224", True),
    ],
)
def test_onnxruntime_agrees_with_torch_at_any_size(tmp_path, capsys, name, whitened):
    net = network(name, whitened=whitened)
    capsys.readouterr()  # what is said of the network itself
    to_onnx(net, tmp_path / "net.onnx")
    said = capsys.readouterr()
    assert not said.out + said.err
    assert network_size(tmp_path / "net.onnx") == "any"
    assert_agree(net, onnx_run(tmp_path / "net.onnx"))
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def network_size(path):
    """The size that an ONNX file tells."""
    [size] = [prop.value for prop in onnx.load(path).metadata_props if prop.key == "size"]
    return json.loads(size)


@pytest.mark.parametrize(
    ("name", "whitened"), [("resnet8", False), ("resnet8", True), ("timm/vit_tiny_patch16_224", False)]
)
def test_a_reloaded_program_agrees_with_torch_at_any_size(tmp_path, name, whitened):
    net = network(name, whitened=whitened)
    to_exported_program(net, tmp_path / "net.pt2")
    extra = {"mgkit.json": ""}
    assert_agree(net, torch.export.load(tmp_path / "net.pt2", extra_files=extra).module())
    facts = json.loads(extra["mgkit.json"])
    assert facts["backbone"] == name and facts["size"] == "any" and facts["whitened"] is whitened


def test_images_may_be_float(tmp_path):
    net = network("resnet8")
    to_onnx(net, tmp_path / "net.onnx", dtype=torch.float32)
    assert_agree(net, onnx_run(tmp_path / "net.onnx"), scale=1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A network of p = 4.5 with names of classes, and its file."""
    net, path = network("resnet8"), tmp_path_factory.mktemp("exported") / "net.onnx"
    net.pool.p.data.fill_(4.5)
    net.classes = tuple("abcdefghij")
    to_onnx(net, path)
    return net, path


def test_the_metadata_tell_what_the_file_is(exported):
    properties = onnx.load(exported[1]).metadata_props
    facts = {prop.key: json.loads(prop.value) for prop in properties if prop.key in ("p", "classes", "size")}
    assert facts == {"p": 4.5, "classes": list("abcdefghij"), "size": "any"}


def test_a_network_that_does_not_classify_has_no_scores(tmp_path):
    net = network("resnet8")
    net.unclassified = "it has none"
    to_onnx(net, tmp_path / "net.onnx")
    assert [*onnx_run(tmp_path / "net.onnx")(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))] == ["embedding"]


@pytest.mark.parametrize("kernel", [3, 5])
@torch.no_grad()
def test_a_convolution_with_same_padding_is_equal(kernel):
    same = Conv2dSame(3, 3, kernel, stride=2)
    for shape in [(64, 101), (65, 98), (200, 2), (31, 33), (1, 1)]:
        images = torch.rand(2, 3, *shape)
        assert torch.equal(SameConvolution(same)(images), same(images)), shape


PLANS = {
    "nasnet": [
        nasnet.CellPlan("cell_stem_0", nasnet.NASNET_REDUCTION, 4, reduction=True),
        nasnet.CellPlan("cell_stem_1", nasnet.NASNET_REDUCTION, 4, reduction=True, shifted=True),
        nasnet.CellPlan("cell_0", nasnet.NASNET_NORMAL, 4),
        nasnet.CellPlan("cell_1", nasnet.NASNET_NORMAL, 4),
        nasnet.CellPlan("reduction_cell_0", nasnet.NASNET_REDUCTION, 4, reduction=True, shifted=True),
        nasnet.CellPlan("cell_6", nasnet.NASNET_NORMAL, 4),
    ],
    "pnasnet": [
        nasnet.CellPlan("cell_stem_0", nasnet.PNASNET, 4, reduction=True),
        nasnet.CellPlan("cell_stem_1", nasnet.PNASNET, 4, reduction=True),
        nasnet.CellPlan("cell_0", nasnet.PNASNET, 4),
        nasnet.CellPlan("cell_4", nasnet.PNASNET, 4, reduction=True, shifted=True),
        nasnet.CellPlan("cell_5", nasnet.PNASNET, 4),
    ],
}


@pytest.mark.parametrize("kind", PLANS)
@torch.no_grad()
def test_cells_that_know_their_sizes_give_the_same(kind):
    """Compare with cells that crop to the least size, for every remainder of a side by 32."""
    torch.manual_seed(0)
    options = {"cells_hold_halving": kind == "nasnet", "smallest": 11}
    net = with_noise(nasnet.CellNetwork("conv0", 6, PLANS[kind], **options)).eval()
    for side in range(64, 97):
        images = torch.rand(1, 3, side, 160 - side)
        torch.testing.assert_close(SizedCells(net)(images), net(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["nasnetamobile", "pnasnet5large"])
@torch.no_grad()
def test_all_cells_of_the_published_networks_give_the_same(name):
    net = network(name)
    base = net.features[0].base_net
    images = torch.rand(1, 3, 79, 98)
    torch.testing.assert_close(SizedCells(base)(images), base(images), rtol=1e-4, atol=1e-5)


def test_a_backbone_of_one_size_is_exported_for_that_and_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export, "say_once", print)
    monkeypatch.setattr(export, "takes_one_size", lambda features: True)
    net = network("resnet8")
    net.features.own_size = (64, 96)
    to_onnx(net, tmp_path / "net.onnx")
    assert "resnet8 is exported for images of 64 x 96 px only" in capsys.readouterr().out
    assert_agree(net, onnx_run(tmp_path / "net.onnx"), [(3, 64, 96)])
    assert network_size(tmp_path / "net.onnx") == [64, 96]


class Chooses(nn.Module):
    """A backbone that looks at its values."""

    def forward(self, images):
        return images if images.sum() > 0 else -images


def test_a_network_that_cannot_be_exported_is_refused_in_one_line(tmp_path):
    net = network("resnet8")
    net.features = Chooses()
    with one_line_error(ValueError, "resnet8 cannot be exported by torch.export"):
        to_onnx(net, tmp_path / "net.onnx")
    assert not [*tmp_path.iterdir()]


def test_a_file_with_other_results_is_not_left(tmp_path, monkeypatch):
    zeros = {"embedding": np.zeros((1, 256)), "scores": np.zeros((1, 10))}
    monkeypatch.setattr(export, "onnx_runner", lambda path: lambda images: zeros)
    with one_line_error(ValueError, "resnet8 cannot be exported", "128 x 128 px", "onnxruntime differs by"):
        to_onnx(network("resnet8"), tmp_path / "net.onnx")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(("write", "suffix"), [(to_onnx, ".onnx"), (to_exported_program, ".pt2")])
def test_bad_input_is_one_line(tmp_path, write, suffix):
    net = network("resnet8")
    with one_line_error(ValueError, "net.pth", f"must end in {suffix}"):
        write(net, tmp_path / "net.pth")
    with one_line_error(ValueError, "dtype must be torch.uint8 or torch.float32", "int64"):
        write(net, tmp_path / f"net{suffix}", dtype=torch.int64)
    with one_line_error(FileNotFoundError, tmp_path / "no", "does not exist"):
        write(net, tmp_path / "no" / f"net{suffix}")
    assert not [*tmp_path.iterdir()]


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else name)
    with one_line_error(ImportError, "onnxscript", 'pip install "mgkit[export]"'):
        to_onnx(network("resnet8"), tmp_path / "net.onnx")


@torch.no_grad()
def test_the_example_of_the_readme_embeds_as_the_kit_does(exported, here):
    net, path = exported
    shutil.copy(path, here)
    noise(3, (300, 211)).save("picture.jpg")
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)
    [code] = [block for block in blocks if "onnxruntime" in block]
    assert len([line for line in code.splitlines() if line]) <= 10
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    image = names["Image"].open("picture.jpg").convert("RGB")
    image = eval_transform(224, "rect", mean=net.mean, std=net.std)(image)
    assert names["images"].shape[2:] == image.shape[1:]
    expected = net(image[None])["normalized_embedding"]
    np.testing.assert_allclose(names["embedding"], expected, atol=1e-4)
    assert "mgkit" not in code and sys.modules["onnxruntime"]
