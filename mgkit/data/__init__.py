"""Files -> images -> batches: decoding, folders and their layouts, lists with classes, loaders."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "decoding": ["View"],
        "images": ["ImageList"],
        "layouts": ["class_folders", "labelled_images", "plain_images"],
        "loader": ["ImageDataset"],
    },
)
