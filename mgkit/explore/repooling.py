"""Feature maps in memory, pooled for any p without a forward pass: accuracy, neighbours, matching regions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from mgkit.benchmarks.find import find_sets
from mgkit.benchmarks.retrieval_set import RetrievalSet
from mgkit.config import FinetunePConfig
from mgkit.data.images import ImageList, evenly
from mgkit.features import Passes, feature_maps
from mgkit.metrics import topk_accuracy
from mgkit.model import MultiGrain
from mgkit.pooling import FLOOR, gem, l2_normalize, offset_of
from mgkit.retrieval.protocols import (
    by_descriptors,
    examples,
    failures_first,
    measured_value,
    nearest,
    retrieve,
    shown_query,
    shown_value,
)
from mgkit.stages.inputs import data_root, in_classes_of, validation_data
from mgkit.stages.retrieval_task import RetrievalTask

CACHE_BYTES = 2**26  # feature maps in memory; two cores pool them in 0.1 s
FAMILY = 5  # images that are chosen first: a query and its answers
ENOUGH = 64  # images that should fit in memory


class CachedMaps:
    """Feature maps of N images in memory, to be pooled for any exponent.

    size: pixels.
    passes, changes: as for `features.embed`, whose errors are raised.

    `images` are the readable ones, `kept` [N] says which they are.
    """

    def __init__(
        self, net: MultiGrain, images: ImageList, *, size: int, passes: Passes | None = None, **changes
    ):
        self.net, self.size = net, size
        passes = replace(passes or Passes(), **changes)
        self.kept = np.zeros(len(images), dtype=bool)
        batches = []
        for maps, _, indices in feature_maps(net, images, size=size, passes=passes):
            self.kept[indices.numpy()] = True
            batches.append((maps, indices.numpy()))
        row = np.cumsum(self.kept) - 1  # index among all images -> among the readable ones
        self.images = images.subset(np.flatnonzero(self.kept))
        self.batches = [(maps, row[indices]) for maps, indices in batches]
        self.place = {int(i): (b, k) for b, (_, rows) in enumerate(self.batches) for k, i in enumerate(rows)}

    def __len__(self) -> int:
        return len(self.images)

    @property
    def nbytes(self) -> int:
        """Memory of the maps (bytes)."""
        return sum(maps.nbytes for maps, _ in self.batches)

    @torch.no_grad()
    def pooled(self, p: float) -> Tensor:
        """GeM embeddings [N,C] with exponent p; inf: max pooling."""
        rows = torch.empty(len(self), self.net.width, device=self.net.classifier.weight.device)
        for maps, indices in self.batches:
            rows[indices] = self.net.pooled_maps(maps, p)
        return rows

    def outputs(self, p: float) -> dict[str, Tensor]:
        """Output of the network's head with exponent p: descriptors [N,D], logits [N,K]."""
        with torch.no_grad():
            return self.net.head(self.pooled(p))

    def map(self, index: int) -> Tensor:
        """The feature map of one image, [C,h,w]."""
        b, k = self.place[index]
        return self.batches[b][0][k]

    def match(self, first: int, second: int, p: float) -> "Match":
        """`Match` of two of the images with exponent p."""
        return match(self.map(first), self.map(second), p, signed=self.net.pool.signed)


def images_held(net: MultiGrain, size: int, memory: int) -> int:
    """Number of images whose feature maps at a size (px) fit into `memory` (bytes); at least 2."""
    blank = torch.zeros(1, 3, size, size, device=net.classifier.weight.device)
    with torch.no_grad():  # no whole image has a larger map than the square one
        of_one = net.eval().features(blank).float().nbytes
    return max(2, memory // of_one)


def size_to_hold(net: MultiGrain, sizes: Sequence[int]) -> int:
    """The largest of the sizes (px) at which maps of 64 images fit in memory, else the smallest."""
    fitting = [size for size in sizes if images_held(net, size, CACHE_BYTES // 2) >= ENOUGH]
    return max(fitting, default=min(sizes))


def part_of(each: RetrievalSet, count: int) -> RetrievalSet:
    """At most `count` images of a set: first evenly spaced queries with some answers, then others."""
    each = each.alone()
    families = [[q, *positives] for q, positives in zip(each.queries, each.positives, strict=True)]
    chosen = evenly(len(families), -(-count // FAMILY))
    first = (families[q][:FAMILY] for q in chosen)
    wanted = dict.fromkeys(chain.from_iterable([*first, *families, each.database]))
    kept = np.zeros(len(each.images), dtype=bool)
    kept[list(wanted)[:count]] = True
    return each.only(kept)


class SetMaps:
    """A retrieval set with its feature maps in memory.

    size: pixels.
    memory: limit for the maps (bytes); `set` is the part of the retrieval set that fits.
    options: as for `features.embed`.

    Raises ValueError if no query, or no image beside it, is readable.
    """

    def __init__(
        self, net: MultiGrain, retrieval_set: RetrievalSet, *, size: int, memory: int = CACHE_BYTES, **options
    ):
        self.of_all = len(retrieval_set.alone().images)
        part = part_of(retrieval_set, images_held(net, size, memory))
        self.maps = CachedMaps(net, part.images, size=size, **options)
        self.set = part.only(self.maps.kept)
        if not len(self.set.queries) or len(self.set.database) < 2:
            raise ValueError(
                f"{self.set.name}: of {self.of_all} images none is a readable query with neighbours"
            )

    def describe(self) -> str:
        """The number of images in memory, as text."""
        return f"{len(self.maps)} of {self.of_all} images of {self.set.name}"

    def descriptors(self, p: float) -> np.ndarray:
        """Descriptors [N,D] of the images in memory, with exponent p."""
        return self.maps.outputs(p)["normalized_embedding"].cpu().numpy()

    def neighbours(self, q: int, descriptors: np.ndarray, k: int) -> list[tuple[int, float, bool | None]]:
        """(image, score, right) of the k nearest neighbours of query q; right is None for junk or unknown."""
        ranking = by_descriptors(self.set, descriptors)
        [found], [scores] = nearest(self.set, ranking, np.array([q]), k)
        pairs = zip(found.tolist(), scores.tolist(), strict=True)
        return [(image, score, self.set.right(q, image)) for image, score in pairs]

    def per_query(self, p: float) -> np.ndarray:
        """The measure of each query with exponent p, [Q]; NaN without ground truth."""
        return retrieve(self.set, self.descriptors(p)).per_query

    def examples(self, p: float, count: int = 3) -> dict[int, str]:
        """{query: its measure with exponent p} of `count` queries, from the worst to the best."""
        return examples(self.per_query(p), self.set.measure, count)

    def titles(self, p: float, count: int = 50) -> dict[int, str]:
        """{query: its measure with exponent p} of `count` queries, failures first."""
        if self.set.measure == "none":
            return dict.fromkeys(range(min(count, len(self.set.queries))), "")
        per_query = self.per_query(p)
        return {int(q): shown_query(self.set.measure, per_query[q]) for q in failures_first(per_query, count)}


class Repooling:
    """Accuracy and neighbours for any exponent, of validation images and a retrieval set (section 3.5).

    images: labelled, in the network's classes.
    size: pixels.
    memory: limit for the maps (bytes), half for each; only a part is used if not all fit.
    options: as for `features.embed`.
    """

    def __init__(
        self, net: MultiGrain, images: ImageList, retrieval_set: RetrievalSet,
        *, size: int, memory: int = CACHE_BYTES, **options,
    ):  # fmt: skip
        self.size, self.training_p, self.of_all = size, net.pool.p.item(), len(images)
        part = images.subset(evenly(len(images), images_held(net, size, memory // 2)))
        self.validation = CachedMaps(net, part, size=size, **options)
        self.searched = SetMaps(net, retrieval_set, size=size, memory=memory // 2, **options)

    def describe(self) -> str:
        """One line: which maps are in memory."""
        held = (self.validation.nbytes + self.searched.maps.nbytes) / 2**20
        return (
            f"In memory: feature maps at {self.size} px of {len(self.validation)} of {self.of_all} "
            f"validation images and of {self.searched.describe()}, {held:.0f} MiB."
        )

    def top1(self, p: float) -> float:
        """Accuracy (0..1) on the validation images in memory."""
        logits = self.validation.outputs(p)["classifier_output"].cpu()
        return topk_accuracy(logits, torch.from_numpy(self.validation.images.labels), ks=(1,))[0]

    def summary(self, p: float, descriptors: np.ndarray) -> str:
        """One line: the exponent, top-1, and the set's measure; descriptors: those of the set for this p."""
        line = f"{shown_exponent(p)}: top-1 {100 * self.top1(p):.1f} % on {len(self.validation)} images"
        searched = self.searched.set
        if searched.measure == "none":
            return line
        value = shown_value(searched.measure, measured_value(searched, descriptors))
        return f"{line}; {searched.name} {searched.measure} {value}"


def held_for(config: FinetunePConfig, net: MultiGrain) -> Repooling:
    """Repooling for 02, with the first retrieval set below `data`, at the largest size that fits."""
    sets = find_sets(data_root(config.data), incomplete=config.on_unreadable)
    return Repooling(
        net, in_classes_of(net, validation_data(config)), sets[0],
        size=size_to_hold(net, config.sizes), passes=Passes.of(config),
    )  # fmt: skip


def set_maps(task: RetrievalTask, name: str) -> SetMaps:
    """Feature maps of a retrieval set of 05, at its size.

    Raises ValueError for an unknown set, and for a class token, which is no map.
    """
    if task.net.tokens == "class":
        raise ValueError("the class token has no positions: tokens=patches and tokens=both have")
    by_name = {each.name: each for each in task.sets}
    if name not in by_name:
        raise ValueError(f"the set {name!r} is not among {', '.join(by_name)}")
    config, each = task.config, by_name[name]
    return SetMaps(
        task.net, replace(each, images=each.images.with_exif(config.exif)), size=config.size,
        passes=task.passes, description=name,
    )  # fmt: skip


def exponents(including: float) -> list[float]:
    """Values of a slider of p: 31 in 1..10, equally spaced in log p, one replaced by `including`; inf."""
    grid = np.geomspace(1, 10, 31)
    if not math.isinf(including):
        grid[np.abs(np.log(grid / including)).argmin()] = including
    return [*sorted(grid.tolist()), math.inf]


def shown_exponent(p: float) -> str:
    return "max pooling" if math.isinf(p) else f"p = {p:.2f}"


# --- Matching regions


def position_shares(x: Tensor, p: float, *, signed: bool = False) -> Tensor:
    """Share of each position in its channel's p-th power mean, x^p / Σ x^p: [C,h,w] -> [C,h,w].

    signed: as for `gem`, take x above the channel's least activation if that is negative

    Sums to 1 over h,w; for p=inf all at the maximum, in equal parts if that is repeated.
    """
    x = (x - offset_of(x) if signed else x).clamp(min=FLOOR)
    powers = (x / x.amax(dim=(-2, -1), keepdim=True)) ** p  # in 0..1; for p=inf 1 at the maximum, else 0
    return powers / powers.sum(dim=(-2, -1), keepdim=True)


@dataclass(frozen=True)
class Match:
    """Cosine similarity of two images, and maps [h,w] of what each position of either contributes to it.

    The similarity of two GeM embeddings is a sum over channels, Σ_c e_c f_c / (|e| |f|). The share of a
    position in e_c is s_c(h,w) = x_c(h,w)^p / Σ x_c^p, which sums to 1. So, for any p,

        contribution(h,w) = Σ_c s_c(h,w) e_c f_c / (|e| |f|) >= 0

    sums to the similarity over the positions of one image; for a network with negative activations it may be
    negative. The embedding is that right after GeM: a neck and whitening mix channels.
    """

    similarity: float
    first: np.ndarray
    second: np.ndarray


def match(first: Tensor, second: Tensor, p: float, *, signed: bool = False) -> Match:
    """`Match` of two feature maps [C,h,w], pooled with exponent p; signed: as for `gem`."""
    with torch.no_grad():
        e, f = (l2_normalize(gem(x[None], p, signed=signed))[0] for x in (first, second))
        products = e * f  # [C]
        shares = (position_shares(x, p, signed=signed) for x in (first, second))
        heats = [torch.einsum("c,chw->hw", products, share) for share in shares]
    return Match(products.sum().item(), *(heat.cpu().numpy() for heat in heats))


def positions_for_half(heat: np.ndarray) -> int:
    """The smallest number of positions that make up half of the positive part of a heat map [h,w]."""
    falling = np.sort(heat.clip(min=0).ravel())[::-1].cumsum()
    return int(np.searchsorted(falling, falling[-1] / 2)) + 1
