"""Images for a first run without downloads: the embedded dataset, and photographs that come with packages."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "make": ["MiniSizes", "make_mini"],
        "photographs": ["make_photographs"],
        "shapes": ["CLASS_NAMES"],
    },
)
