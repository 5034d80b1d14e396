"""The embedded dataset: synthetic images, for a first run without downloads."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"make": ["MiniSizes", "make_mini"], "shapes": ["CLASS_NAMES"]}
)
