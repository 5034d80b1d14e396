"""Names of backbones; what they build."""

import json

import pytest
import torch

from mgkit import get_multigrain
from mgkit.backbones import backbone_names, build_backbone, check_backbone


@pytest.mark.parametrize("name", ["resnet10", "resnet18"])
def test_a_backbone_maps_images_to_its_width_at_stride_32(name):
    backbone = build_backbone(name)
    with torch.no_grad():
        maps = backbone.features.eval()(torch.rand(2, 3, 64, 97))
    assert maps.shape == (2, backbone.width, 2, 4)
    assert backbone.name == name and len(backbone.mean) == len(backbone.std) == 3


@pytest.mark.parametrize("name", [n for n in backbone_names() if n != "resnet10"])
def test_state_has_the_keys_and_shapes_of_the_released_file(reference, name):
    path = reference / "layouts" / f"{name}.json"
    if not path.exists():
        pytest.skip(f"no layout of {name}")
    with torch.device("meta"):
        state = get_multigrain(name).state_dict()
    layout = json.loads(path.read_text())
    assert {key: list(value.shape) for key, value in state.items()} == {k: v[0] for k, v in layout.items()}
    assert all(str(state[key].dtype) == f"torch.{dtype}" for key, (_, dtype) in layout.items())


def test_names_are_unique_and_known():
    names = backbone_names()
    assert len(set(names)) == len(names) and {"resnet18", "resnet50"} <= set(names)
    assert all(check_backbone(name) == name for name in names)


@pytest.mark.parametrize("name", ["resnet51", "", "ResNet50"])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ValueError, match="is unknown; one of .*resnet50") as caught:
        build_backbone(name)
    assert "\n" not in str(caught.value)
