"""Feature maps held in memory and pooled anew: accuracy, neighbours and matching regions for any p, no forward pass."""

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
from mgkit.pooling import FLOOR, gem, l2_normalize
from mgkit.retrieval.protocols import (
    failures_first,
    measured_value,
    nearest,
    retrieve,
    shown_query,
    shown_value,
)
from mgkit.stages.evaluate_retrieval import RetrievalTask
from mgkit.stages.inputs import data_root, in_classes_of, validation_data

CACHE_BYTES = 2**26  # of feature maps that an explorer holds: two cores pool them anew in a tenth of a second

FAMILY = 5  # a query and its answers, as far as they come first where not all of a set is held
ENOUGH = 64  # images to look at


class CachedMaps:
    """Feature maps of N images, held in memory: pooled for any exponent without another forward pass.

    size: pixels. passes, changes: as for `features.embed`. Images that are skipped as unreadable are left out of `images`; `kept`
    [N] says which those are not. Raises as `feature_maps`.
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
        row = np.cumsum(self.kept) - 1  # index among all -> among those that were read
        self.images = images.subset(np.flatnonzero(self.kept))
        self.batches = [(maps, row[indices]) for maps, indices in batches]
        self.place = {int(i): (b, k) for b, (_, rows) in enumerate(self.batches) for k, i in enumerate(rows)}

    def __len__(self) -> int:
        return len(self.images)

    @property
    def nbytes(self) -> int:
        """Of the maps."""
        return sum(maps.nbytes for maps, _ in self.batches)

    @torch.no_grad()
    def pooled(self, p: float) -> Tensor:
        """GeM embeddings with exponent p (inf: the maximum), [N,C]."""
        rows = torch.empty(len(self), self.net.width, device=self.net.classifier.weight.device)
        for maps, indices in self.batches:
            rows[indices] = gem(maps, p)
        return rows

    def outputs(self, p: float) -> dict[str, Tensor]:
        """What the network's head makes of the embeddings: descriptors [N,D], logits [N,K]."""
        with torch.no_grad():
            return self.net.head(self.pooled(p))

    def map(self, index: int) -> Tensor:
        """The feature map of one image, [C,h,w]."""
        b, k = self.place[index]
        return self.batches[b][0][k]


def images_held(net: MultiGrain, size: int, memory: int) -> int:
    """How many images' feature maps at a size (px) fit into so many bytes; at least 2."""
    blank = torch.zeros(1, 3, size, size, device=net.classifier.weight.device)
    with torch.no_grad():  # the whole image of any shape has no larger map than the square one
        of_one = net.eval().features(blank).float().nbytes
    return max(2, memory // of_one)


def size_to_hold(net: MultiGrain, sizes: Sequence[int]) -> int:
    """The largest of the sizes (px) at which enough images to look at can be held; the smallest, where none is small enough."""
    return max(
        (size for size in sizes if images_held(net, size, CACHE_BYTES // 2) >= ENOUGH), default=min(sizes)
    )


def spread(images: ImageList, count: int) -> ImageList:
    """`count` of the images, evenly spread over the list; all, where it has no more."""
    return images.subset(evenly(len(images), count))


def part_of(each: RetrievalSet, count: int) -> RetrievalSet:
    """At most `count` images of a set: queries spread over it with some of their answers, then all that still fits."""
    each = each.alone()
    families = [[q, *positives] for q, positives in zip(each.queries, each.positives, strict=True)]
    chosen = evenly(len(families), -(-count // FAMILY))
    first = (families[q][:FAMILY] for q in chosen)
    wanted = dict.fromkeys(chain.from_iterable([*first, *families, each.database]))
    kept = np.zeros(len(each.images), dtype=bool)
    kept[list(wanted)[:count]] = True
    return each.only(kept)


class SetMaps:
    """A retrieval set whose feature maps are held in memory, or as much of it as fits.

    size: pixels. memory: bytes of maps that are held. options: as for `features.embed`. set: the part that is held.
    """

    def __init__(
        self, net: MultiGrain, retrieval_set: RetrievalSet, *, size: int, memory: int = CACHE_BYTES, **options
    ):
        self.of_all = len(retrieval_set.alone().images)
        part = part_of(retrieval_set, images_held(net, size, memory))
        self.maps = CachedMaps(net, part.images, size=size, **options)
        self.set = part.only(self.maps.kept)

    def describe(self) -> str:
        """What is held."""
        return f"{len(self.maps)} of {self.of_all} images of {self.set.name}"

    def descriptors(self, p: float) -> np.ndarray:
        """Of the images that are held, with exponent p, [N,D]."""
        return self.maps.outputs(p)["normalized_embedding"].cpu().numpy()

    def neighbours(self, q: int, descriptors: np.ndarray, k: int) -> list[tuple[int, float, bool | None]]:
        """(image, score, whether it is right) of the k best for the set's query number q; None for neither, and without ground truth."""
        [found], [scores] = nearest(self.set, descriptors, self.set.queries[q : q + 1], k)
        return [
            (image, score, self.set.right(q, image))
            for image, score in zip(found.tolist(), scores.tolist(), strict=True)
        ]

    def titles(self, p: float, count: int = 50) -> dict[int, str]:
        """{number of a query: its measure with exponent p}, the worst half of `count` first."""
        if self.set.measure == "none":
            return dict.fromkeys(range(min(count, len(self.set.queries))), "")
        per_query = retrieve(self.set, self.descriptors(p)).per_query
        return {int(q): shown_query(self.set.measure, per_query[q]) for q in failures_first(per_query, count)}


class Repooling:
    """Accuracy and neighbours for any exponent, from maps of validation images and of a retrieval set (section 3.5).

    images: labelled, in the network's classes. size: pixels. memory: bytes of maps that are held, half for each; of what does not
    fit a part is taken, which `describe` says. options: as for `features.embed`.
    """

    def __init__(
        self, net: MultiGrain, images: ImageList, retrieval_set: RetrievalSet, *, size: int, memory: int = CACHE_BYTES,
        **options,
    ):  # fmt: skip
        self.size, self.training_p, self.of_all = size, net.pool.p.item(), len(images)
        some = spread(images, images_held(net, size, memory // 2))
        self.validation = CachedMaps(net, some, size=size, **options)
        self.searched = SetMaps(net, retrieval_set, size=size, memory=memory // 2, **options)

    def describe(self) -> str:
        """One line: what is held in memory."""
        held = (self.validation.nbytes + self.searched.maps.nbytes) / 2**20
        return (
            f"In memory: feature maps at {self.size} px of {len(self.validation)} of {self.of_all} validation images "
            f"and of {self.searched.describe()}, {held:.0f} MiB."
        )

    def top1(self, p: float) -> float:
        """Accuracy on the validation images that are held, 0..1."""
        logits = self.validation.outputs(p)["classifier_output"].cpu()
        return topk_accuracy(logits, torch.from_numpy(self.validation.images.labels), ks=(1,))[0]

    def summary(self, p: float, descriptors: np.ndarray) -> str:
        """One line: the exponent, top-1, and the set's measure with its descriptors for this exponent."""
        line = f"{shown_exponent(p)}: top-1 {100 * self.top1(p):.1f} % on {len(self.validation)} images"
        searched = self.searched.set
        if searched.measure == "none":
            return line
        value = shown_value(searched.measure, measured_value(searched, descriptors))
        return f"{line}; {searched.name} {searched.measure} {value}"


def held_for(config: FinetunePConfig, net: MultiGrain) -> Repooling:
    """What 02 holds: validation images, and the first retrieval set below data, or else the images grouped by class.

    At the largest of the config's sizes that leaves room for enough of them.
    """
    return Repooling(
        net, in_classes_of(net, validation_data(config)), find_sets(data_root(config.data))[0],
        size=size_to_hold(net, config.sizes), passes=Passes.of(config),
    )  # fmt: skip


def set_maps(task: RetrievalTask, name: str) -> SetMaps:
    """What 05 holds of the set of that name, at its own size. Raises ValueError for a set that is not there."""
    by_name = {each.name: each for each in task.sets}
    if name not in by_name:
        raise ValueError(f"the set {name!r} is not among {', '.join(by_name)}")
    config, each = task.config, by_name[name]
    return SetMaps(
        task.net, replace(each, images=each.images.with_exif(config.exif)), size=config.size,
        passes=task.passes, description=name,
    )  # fmt: skip


def exponents(among: float) -> list[float]:
    """What a slider of p offers: 1 to 10 in equal steps of log p, 10 % each or less, `among` itself in place of its nearest; then max pooling."""
    grid = np.geomspace(1, 10, 31)
    if not math.isinf(among):
        grid[np.abs(np.log(grid / among)).argmin()] = among
    return [*sorted(grid.tolist()), math.inf]


def shown_exponent(p: float) -> str:
    return "max pooling" if math.isinf(p) else f"p = {p:.2f}"


# --- Which regions make two images match


def position_shares(x: Tensor, p: float) -> Tensor:
    """Each position's share of a channel's p-th power mean, x^p / Σ x^p: [C,h,w] -> [C,h,w], sums of 1 over h,w.

    In proportion to the activation at p=1; at p=inf all of it at the maximum, in equal parts if that is repeated.
    """
    x = x.clamp(min=FLOOR)
    powers = (x / x.amax(dim=(-2, -1), keepdim=True)) ** p  # at most 1; for p=inf 1 at the maximum, else 0
    return powers / powers.sum(dim=(-2, -1), keepdim=True)


@dataclass(frozen=True)
class Match:
    """What makes two images alike: similarity, and the contribution of each position of either, [h,w] that sum to it.

    The cosine similarity of two GeM embeddings is a sum over channels, Σ_c e_c f_c / (|e| |f|). A channel's e_c is the
    p-th root of a mean of p-th powers, so a position's share of it is s_c(h,w) = x_c(h,w)^p / Σ x_c^p, which sums to 1. So

        contribution(h,w) = Σ_c s_c(h,w) e_c f_c / (|e| |f|)

    sums to the similarity over the positions of one image, exactly, whatever p. Contributions are >= 0. This is the
    embedding before whitening, whose components mix all channels.
    """

    similarity: float
    first: np.ndarray
    second: np.ndarray


def match(first: Tensor, second: Tensor, p: float) -> Match:
    """`Match` of two images, given by their feature maps [C,h,w], pooled with exponent p."""
    with torch.no_grad():
        e, f = (l2_normalize(gem(x[None], p))[0] for x in (first, second))
        products = e * f  # [C]
        heats = [torch.einsum("c,chw->hw", products, position_shares(x, p)) for x in (first, second)]
    return Match(products.sum().item(), *(heat.cpu().numpy() for heat in heats))


def positions_for_half(heat: np.ndarray) -> int:
    """How many positions, the hottest first, make half of the sum of a heat map [h,w]."""
    falling = np.sort(heat.ravel())[::-1].cumsum()
    return int(np.searchsorted(falling, falling[-1] / 2)) + 1
