"""The pictures, the network and the settings of a search (06)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mgkit.config import PhotosConfig
from mgkit.data.decoding import UnreadableImageError, without_warnings
from mgkit.data.folders import check_folder
from mgkit.data.images import ImageList
from mgkit.engine.feature_store import features_folder, features_of, stored_features
from mgkit.engine.run import stage_folder
from mgkit.features import Passes
from mgkit.machine.distributed import main_first
from mgkit.machine.files import find_path
from mgkit.machine.printable import shown_name
from mgkit.model import MultiGrain
from mgkit.photos.embedding.growing import growing_features
from mgkit.photos.folder import PhotoFolder, find_photos
from mgkit.photos.given import GivenPhotoTask
from mgkit.photos.looks import WithLooks, noting
from mgkit.retrieval import indices
from mgkit.retrieval.descriptor_files import read_descriptors
from mgkit.stages.inputs import data_root, is_mini
from mgkit.stages.train import trained_network
from mgkit.stages.whiten import whitened_network

MINI_FOLDERS = (
    "holidays/jpg",
    "copydays/original",
    "copydays/strong",
    "copydays/jpegqual/20",
    "unlabelled/whiten",
)


@dataclass(frozen=True)
class PhotoTask(WithLooks):
    """Pictures, network and settings of a search.

    p: pooling exponent.
    passes: how images are embedded; its `unreadable` collects the files that cannot be decoded.
    """

    config: PhotosConfig
    folder: PhotoFolder
    net: MultiGrain
    p: float
    passes: Passes

    @property
    def origin(self) -> dict[str, str]:
        """The network's file and its SHA-256, for the provenance of a run."""
        return {"checkpoint": self.net.source, "sha256": self.net.source_sha256}

    @property
    def settings(self) -> dict:
        """How pictures are read, for results.json."""
        return {"size": self.config.size, "p": self.p}

    @property
    def network(self) -> str:
        """The network, its resolution and pooling exponent, for the report."""
        return f"{self.net.name}, {self.config.size} px, p = {self.p:.2f}"

    def describe(self) -> str:
        """One line: the network, its resolution and pooling exponent."""
        net, published = self.net, self.config.pretrained_backbone
        source = "its published ImageNet weights" if published else shown_name(net.source)
        return f"network: {net.name} with {source}, {self.config.size} px, p = {self.p:.2f}"

    def photo_features(self, passed: Callable[[int, int], None] = lambda images, of: None) -> np.ndarray:
        """Pooled features of the pictures [N,C]; only new pictures are embedded.

        passed: is called with the number of pictures that have passed, and of all that are new
        """
        return self.stored(
            growing_features, self.folder.images, "photos", p=self.p, prints=self.keys, shapes=self.shapes,
            seen=noting(self.keys, folder=self.seen_in), passed=passed,
        )  # fmt: skip

    def shapes(self) -> list[tuple[int, int]]:
        """(width, height) of the pictures as they are shown."""
        return [(f["width"].item(), f["height"].item()) for f in self.facts]

    def copy_features(self, copies: ImageList) -> np.ndarray:
        """Pooled features of edited copies [N,C]; only new ones are embedded."""
        return self.stored(growing_features, copies, "edited copies", p=self.p, name="copies")

    def features(self, images: ImageList, name: str) -> np.ndarray:
        """Pooled features [N,C], read from disk if stored there; NaN rows for unreadable images."""
        return self.stored(stored_features, images, name, ps=[self.p])[0]

    @property
    def kept_in(self) -> Path:
        """The folder that keeps what is learned on the pictures, beside their features."""
        folder = features_folder(self.config.experiment)
        return features_of(self.net, size=self.config.size, p=self.p, passes=self.passes, folder=folder)

    def stored(self, features: Callable, images: ImageList, what: str, **options):
        """Call `stored_features` or `growing_features` with these options and those of this task."""
        config = self.config
        try:
            with without_warnings():
                return features(
                    self.net, images, size=config.size, folder=features_folder(config.experiment),
                    passes=self.passes, description=f"{what}, {config.size} px", **options,
                )  # fmt: skip
        except UnreadableImageError as error:
            raise UnreadableImageError(f"photos: {shown_name(str(error))}") from None


def photo_task(config: PhotosConfig) -> PhotoTask | GivenPhotoTask:
    """Find the pictures and the network: that of 03, the configured one, or that of 01; or descriptors.

    Raises what `find_photos`, `whitened_network`, `read_descriptors` and `indices.check_factory` raise;
    FileNotFoundError, NotADirectoryError or PermissionError for a missing `data` folder; ValueError if
    results would be written among the pictures.
    """
    if config.data != "mini":
        check_folder(data_root(config.data), "data")
    against = [find_path(folder) for folder in config.against]
    options = {"side": config.size, "exif": config.exif, "against": against}
    folder = main_first(lambda: find_photos(photo_folders(config), **options))
    outputs = stage_folder(config).resolve()
    for root in (*photo_folders(config), *against):
        if outputs.is_relative_to(root.resolve()):
            purpose = "against" if root in against else "photos"
            raise ValueError(
                f"{purpose}: results would be written among the pictures, to {shown_name(outputs)}: choose a "
                "folder that does not hold outputs/"
            )
    if config.descriptors:
        folders = read_descriptors(config.descriptors)
        if config.index:
            indices.check_factory(config.index, folders[0].rows.shape[1])
        return GivenPhotoTask(config, folder, folders, Passes.of(config))
    try:
        net = whitened_network(config)[0]
    except FileNotFoundError:
        net = trained_network(config)[0]
    if config.index:
        indices.check_factory(config.index, net.width + (config.whitening != "none"))
    p = net.pool.p.item() if config.p is None else config.p
    return PhotoTask(config, folder, net, p, Passes.of(config))


def photo_folders(config: PhotosConfig) -> list[Path]:
    """The configured folders; else those of the mini set, or the whole `data` folder."""
    if config.photos:
        return [find_path(folder) for folder in config.photos]
    root = main_first(lambda: data_root(config.data))
    return [root / name for name in MINI_FOLDERS] if is_mini(config.data) else [root]
