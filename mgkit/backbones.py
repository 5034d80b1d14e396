"""Backbones by name: a network up to its last feature map."""

from dataclasses import dataclass

from torch import nn
from torchvision.models import resnet

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

RESNETS = {  # name: (block, blocks a stage)
    "resnet10": (resnet.BasicBlock, (1, 1, 1, 1)),  # not in the paper: for the mini set on two cores
    "resnet18": (resnet.BasicBlock, (2, 2, 2, 2)),
    "resnet50": (resnet.Bottleneck, (3, 4, 6, 3)),
    "resnet101": (resnet.Bottleneck, (3, 4, 23, 3)),
    "resnet152": (resnet.Bottleneck, (3, 8, 36, 3)),
}


@dataclass(frozen=True)
class Backbone:
    """A network [B,3,H,W] -> [B,width,h,w], and how its input is normalised."""

    name: str
    features: nn.Module
    width: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


def backbone_names() -> list[str]:
    """Every name that `build_backbone` knows."""
    return list(RESNETS)


def check_backbone(name: str) -> str:
    """The name itself, or a ValueError that lists the known ones."""
    if name not in RESNETS:
        raise ValueError(f"backbone {name!r} is unknown; one of {', '.join(backbone_names())}")
    return name


def build_backbone(name: str) -> Backbone:
    """The randomly initialised backbone of that name. Raises ValueError for an unknown one."""
    block, blocks = RESNETS[check_backbone(name)]
    net = resnet.ResNet(block, list(blocks))
    width = net.fc.in_features
    # The children keep their names, so that state dicts read features.conv1.weight, as the released files do.
    features = nn.Sequential()
    for child, module in net.named_children():
        if child not in ("avgpool", "fc"):
            features.add_module(child, module)
    return Backbone(name, features, width)
