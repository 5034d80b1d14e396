"""Pictures whose descriptors are given, for a search without a network (06)."""

from dataclasses import dataclass

import numpy as np

from mgkit.config import PhotosConfig
from mgkit.features import Passes
from mgkit.photos.folder import PhotoFolder
from mgkit.photos.looks import WithLooks
from mgkit.retrieval.descriptor_files import DescriptorFolder, descriptors_at, find_rows, lacking
from mgkit.stages.retrieval_task import WithoutNetwork


@dataclass(frozen=True)
class GivenPhotoTask(WithoutNetwork, WithLooks):
    """Pictures whose descriptors are given, without the network that made them.

    folders: that hold the descriptors.
    passes: its `unreadable` collects the pictures without a row.
    """

    config: PhotosConfig
    folder: PhotoFolder
    folders: list[DescriptorFolder]
    passes: Passes

    @property
    def network(self) -> str:
        return f"{self.folders[0].name}, which made the given descriptors"

    def describe(self) -> str:
        """One line: what the descriptors were made by."""
        return f"network: none, descriptors of {self.folders[0].name} are given"

    def descriptors(self) -> np.ndarray:
        """The descriptors of the pictures [N,D]; NaN for pictures without."""
        images = self.folder.images
        at = find_rows(self.folders, images, images.root)
        message = lacking(self.folders, images, at, images.root)
        if message and (self.config.on_unreadable == "raise" or (at < 0).all()):
            raise ValueError(message)
        without = [images.paths[i] for i in np.flatnonzero(at < 0)]
        self.passes.unreadable.note((path, "it has no descriptor") for path in without)
        return descriptors_at(self.folders, at)
