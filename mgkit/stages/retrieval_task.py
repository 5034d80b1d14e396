"""The inputs of 05: the network, the sets below data, and the features of their images."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mgkit.benchmarks.find import find_sets
from mgkit.benchmarks.retrieval_set import RetrievalSet
from mgkit.config import RetrievalConfig
from mgkit.data.images import ImageList
from mgkit.engine.feature_store import features_folder, stored_features
from mgkit.features import JoinedRows, Passes, plain, whitened
from mgkit.machine.files import find_path
from mgkit.model import MultiGrain, with_tokens
from mgkit.retrieval import indices
from mgkit.stages.inputs import data_root
from mgkit.stages.whiten import whitened_network


@dataclass(frozen=True)
class RetrievalTask:
    """The inputs of 05.

    training_p: exponent that the network was trained with
    p: exponent that it pools with
    learned_p: whether that is a p* of 02; else it was given
    passes: how images are embedded
    """

    config: RetrievalConfig
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


def retrieval_task(config: RetrievalConfig) -> RetrievalTask:
    """Load the network of 03, or the configured one, and find the sets below data."""
    net, checkpoint = whitened_network(config)
    sets = find_sets(
        data_root(config.data), names=config.sets, queries=given(config.queries),
        distractors=given(config.distractors), incomplete=config.on_unreadable,
    )  # fmt: skip
    own_p = net.pool.p.item()
    p = own_p if config.p is None else config.p
    learned = config.p is None and checkpoint.get("learned_p", True)
    training_p = checkpoint.get("training_p", own_p)
    task = RetrievalTask(config, net, training_p, p, sets, Passes.of(config), learned)
    check_before_work(task)
    return task


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
    for factory in config.indices:
        try:
            indices.check_factory(factory, task.dimensions)
        except ValueError as error:
            raise ValueError(f"indices: {error}") from None


def scaled_sizes(config: RetrievalConfig) -> list[int]:
    """The sizes (px) of the multi-scale descriptor."""
    return [round(scale * config.size) for scale in config.scales]
