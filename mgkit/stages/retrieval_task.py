"""The inputs of 05: the network, the sets below data, and the features of their images."""

from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np

from mgkit.benchmarks.find import find_sets
from mgkit.benchmarks.retrieval_set import RetrievalSet
from mgkit.config import DescribeConfig, PhotosConfig, RetrievalConfig, different
from mgkit.data.images import ImageList
from mgkit.engine.feature_store import features_folder, stored_features
from mgkit.features import JoinedRows, Passes, plain, whitened
from mgkit.machine.files import find_path
from mgkit.model import MultiGrain, with_tokens
from mgkit.retrieval import indices
from mgkit.retrieval.descriptor_files import (
    DescriptorFolder,
    descriptors_at,
    find_rows,
    lacking,
    read_descriptors,
)
from mgkit.stages.inputs import data_root
from mgkit.stages.whiten import whitened_network

OF_NETWORKS = ("size", "p", "crop", "scales", "dims", "tokens")  # without effect on given descriptors


@dataclass(frozen=True)
class RetrievalTask:
    """The inputs of 05, and of descriptors that are written to files.

    training_p: exponent that the network was trained with
    p: exponent that it pools with
    learned_p: whether that is a p* of 02; else it was given
    passes: how images are embedded
    """

    config: RetrievalConfig | DescribeConfig
    net: MultiGrain
    training_p: float
    p: float
    sets: list[RetrievalSet]
    passes: Passes
    learned_p: bool = True

    @cached_property
    def embedder(self) -> MultiGrain:
        """What images pass through: the network, or one with all its tokens if it has a class token."""
        return with_tokens(self.net, "both") if self.net.has_class_token else self.net

    @property
    def origin(self) -> dict[str, str]:
        """The network's file and its SHA-256, for the provenance of a run."""
        return {"checkpoint": self.net.source, "sha256": self.net.source_sha256}

    @property
    def settings(self) -> dict:
        """How images are read, for results.json."""
        config = self.config
        return {"size": config.size, "crop": config.crop, "scales": config.scales}

    @property
    def dimensions(self) -> int:
        """Dimensions of the network's descriptor."""
        return self.net.width + (self.net.whitening is not None)

    def features(
        self, images: ImageList, *, size: int, ps: list[float], name: str, tokens: str = ""
    ) -> list[np.ndarray]:
        """Pooled features [N,C] for each exponent, cached on disk; tokens: empty for the network's own."""
        images, folder = images.with_exif(self.config.exif), features_folder(self.config.experiment)
        passes = replace(self.passes, description=f"{name}, {size} px")
        every = stored_features(self.embedder, images, size=size, ps=ps, folder=folder, passes=passes)
        columns = columns_of(tokens or self.net.tokens, self.embedder)
        return [rows[:, columns] for rows in every]

    def features_of(
        self, one: RetrievalSet, *, size: int, ps: list[float], tokens: str = ""
    ) -> list[np.ndarray | JoinedRows]:
        """Those of all images of a set, whose distractors are embedded once for all sets that have them."""
        options = {"size": size, "ps": ps, "tokens": tokens}
        if not len(one.distractors):
            return self.features(one.images, name=one.name, **options)
        own = np.arange(one.distractors[0])  # they are the last images
        parts = (one.images.subset(own), one.name), (one.images.subset(one.distractors), "distractors")
        every = [self.features(images, name=name, **options) for images, name in parts]
        return [JoinedRows(rows) for rows in zip(*every, strict=True)]

    def descriptors(self, one: RetrievalSet, *, size: int) -> np.ndarray:
        """The network's own descriptors [N,D] of a set's images at a size (px)."""
        [pooled] = self.features_of(one, size=size, ps=[self.p])
        return plain(pooled) if self.net.whitening is None else whitened(self.net, pooled)

    def readable(self, one: RetrievalSet) -> np.ndarray:
        """Whether each of a set's images [N] was read, and passed through the network, at all scales."""
        sizes = [self.config.size, *(scaled_sizes(self.config) if self.config.scales != [1.0] else [])]
        passed = np.ones(len(one.images), dtype=bool)
        for size in sizes:
            [pooled] = self.features_of(one, size=size, ps=[self.p])
            passed &= np.isfinite(pooled[:, 0])
        return passed


class WithoutNetwork:
    """What tasks of 05 and 06 say of descriptors that are given."""

    config: RetrievalConfig | PhotosConfig
    folders: list[DescriptorFolder]

    @property
    def origin(self) -> dict[str, str]:
        """Empty, as there is no network's file."""
        return {}

    @property
    def settings(self) -> dict:
        """Where the descriptors are, and what made them, for results.json."""
        return {"descriptors": self.config.descriptors, "made": [each.made for each in self.folders]}


@dataclass(frozen=True)
class GivenTask(WithoutNetwork):
    """The inputs of 05 where descriptors are given: there is no network, and there is one kind of them.

    folders: that hold the descriptors
    passes: its `unreadable` collects the images without a row
    """

    config: RetrievalConfig
    sets: list[RetrievalSet]
    folders: list[DescriptorFolder]
    passes: Passes

    @property
    def net(self) -> MultiGrain:
        raise ValueError("descriptors are given, and no network that could make others")

    @property
    def name(self) -> str:
        """Of the kind of descriptor."""
        return f"descriptors of {self.folders[0].name}"

    @property
    def dimensions(self) -> int:
        return self.folders[0].rows.shape[1]

    def rows(self, one: RetrievalSet) -> np.ndarray:
        """The row of each of a set's images [N], -1 for one without; ValueError unless these are skipped."""
        root = data_root(self.config.data)
        at = find_rows(self.folders, one.images, root)
        message = lacking(self.folders, one.images, at, root)
        if message and self.config.on_unreadable == "raise":
            raise ValueError(f"{message}; with on_unreadable=skip, images without a row are left out")
        without = [one.images.paths[i] for i in np.flatnonzero(at < 0)]
        self.passes.unreadable.note((path, f"{path} has no descriptor") for path in without)
        return at

    def descriptors(self, one: RetrievalSet, *, size: int) -> np.ndarray:
        """The descriptors [N,D] of a set's images, whatever the size; NaN for images without."""
        return descriptors_at(self.folders, self.rows(one))

    def readable(self, one: RetrievalSet) -> np.ndarray:
        """Whether each of a set's images [N] has a descriptor."""
        return self.rows(one) >= 0


AnyTask = RetrievalTask | GivenTask


def columns_of(tokens: str, embedder: MultiGrain) -> slice:
    """The columns of these tokens among the features of a network that may give both, class token first."""
    half = embedder.width // 2
    if tokens == embedder.tokens:
        return slice(None)
    return slice(0, half) if tokens == "class" else slice(half, None)


def by_images(sets: list[RetrievalSet]) -> list[list[RetrievalSet]]:
    """Group the sets that share their images, and so the pass over them."""
    groups: dict[int, list[RetrievalSet]] = {}
    for one in sets:
        groups.setdefault(id(one.images), []).append(one)
    return list(groups.values())


def retrieval_task(config: RetrievalConfig) -> AnyTask:
    """Load the network of 03, or the configured one, or descriptors, and find the sets below data."""
    if config.descriptors:
        return given_task(config)
    net, checkpoint = whitened_network(config)
    sets = sets_of(config)
    own_p = net.pool.p.item()
    p = own_p if config.p is None else config.p
    learned = config.p is None and checkpoint.get("learned_p", True)
    training_p = checkpoint.get("training_p", own_p)
    task = RetrievalTask(config, net, training_p, p, sets, Passes.of(config), learned)
    check_before_work(task)
    return task


def given_task(config: RetrievalConfig) -> GivenTask:
    """Read the configured descriptors, and find the sets below data; raises as both readers."""
    tell_ignored(config)
    task = GivenTask(config, sets_of(config), read_descriptors(config.descriptors), Passes.of(config))
    for sets in by_images(task.sets):
        task.rows(sets[0])
    check_indices(config.indices, task.dimensions)
    return task


def tell_ignored(config: RetrievalConfig) -> None:
    """Print a line on parameters of networks that differ from their defaults, where descriptors are given."""
    changed = different(asdict(config), asdict(RetrievalConfig()))
    if ignored := [name for name in OF_NETWORKS if name in changed]:
        print(f"descriptors are given, so these parameters have no effect: {', '.join(ignored)}")


def sets_of(config: RetrievalConfig | DescribeConfig) -> list[RetrievalSet]:
    """The sets of the config below its data."""
    return find_sets(
        data_root(config.data), names=config.sets, queries=given(config.queries),
        distractors=given(config.distractors), incomplete=config.on_unreadable,
    )  # fmt: skip


def given(path: str) -> str:
    """A parameter's path, from here or from the project's root; empty if it is empty."""
    return str(find_path(path)) if path else ""


def check_before_work(task: RetrievalTask) -> None:
    """Raise ValueError for dims, scales or indices that do not fit the network's descriptors."""
    config = task.config
    if task.net.whitening is not None and (config.dims or 1) > task.dimensions:
        raise ValueError(f"dims: at most the {task.dimensions} of the whitened descriptor, got {config.dims}")
    sizes = scaled_sizes(config)
    if min(sizes) < 8 or len(set(sizes)) < len(sizes):
        raise ValueError(
            f"scales: times size {config.size} they give {sizes} px; distinct sizes of at least 8 are needed"
        )
    check_indices(config.indices, task.dimensions)


def check_indices(factories: list[str], dimensions: int) -> None:
    """Raise ValueError for an index that does not fit the dimensions."""
    for factory in factories:
        try:
            indices.check_factory(factory, dimensions)
        except ValueError as error:
            raise ValueError(f"indices: {error}") from None


def scaled_sizes(config: RetrievalConfig) -> list[int]:
    """The sizes (px) of the multi-scale descriptor."""
    return [round(scale * config.size) for scale in config.scales]
