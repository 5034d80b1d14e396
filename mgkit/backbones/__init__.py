"""Backbone networks by name, up to their last feature map."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "backbone": ["IMAGENET_MEAN", "IMAGENET_STD", "TOKENS", "Backbone"],
        "build": ["backbone_names", "build_backbone", "check_backbone"],
    },
)
