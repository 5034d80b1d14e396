"""Backbone networks: a name -> a network up to its last feature map."""

from mgkit.backbones.build import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Backbone,
    backbone_names,
    build_backbone,
    check_backbone,
)

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Backbone", "backbone_names", "build_backbone", "check_backbone"]
