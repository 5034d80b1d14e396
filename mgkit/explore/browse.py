"""Browse a collection: nearest images, classes, and uploaded pictures as queries."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mgkit.backbones.imagenet import imagenet_names
from mgkit.benchmarks.retrieval_set import RetrievalSet
from mgkit.data.decoder_process import load_apart
from mgkit.data.decoding import UnreadableImageError
from mgkit.data.images import ImageList, evenly
from mgkit.features import maps_of, rows_at, too_narrow
from mgkit.machine.printable import shown_name
from mgkit.model import MultiGrain
from mgkit.retrieval.protocols import shown_query, with_places
from mgkit.retrieval.search import top_k
from mgkit.stages.descriptor_kinds import own_names
from mgkit.stages.inputs import data_root, is_mini
from mgkit.stages.results import Retrieval
from mgkit.stages.retrieval_task import GivenTask, RetrievalTask
from mgkit.transforms import eval_transform

MOST_PIXELS = 50_000_000  # of an upload: 200 MB decoded

Classes = list[tuple[str, float]]  # names and probabilities, the most probable first
Describe = Callable[[Image.Image], tuple[np.ndarray, Classes]]  # of a picture: descriptor [D], classes


@dataclass(frozen=True)
class Answers:
    """The results of a query.

    neighbours, scores: image indices and similarities [k], best first.
    right: whether each is a positive; None for those that count as neither.
    classes: of the query.
    """

    neighbours: list[int]
    scores: list[float]
    right: list[bool | None]
    classes: Classes


class Collection:
    """N images with descriptors [N,D], to search among.

    descriptors: NaN in the rows of unreadable images, which are left out.
    queries: indices of the query images, in the order to show; None: all. With `truth`, the worst first.
    database: indices of the images to search; None: all.
    truth: (query i, image j) -> whether j is a positive of i, None if it counts as neither.
    titles: {query: title}; with `truth`, of the queries that have answers.
    classes: image index -> its likely classes.

    Raises ValueError for another number of descriptors, indices out of range, or no readable image.
    """

    def __init__(
        self,
        images: ImageList,
        descriptors: np.ndarray,
        *,
        queries: Sequence[int] | None = None,
        database: Sequence[int] | None = None,
        truth: Callable[[int, int], bool | None] | None = None,
        titles: Mapping[int, str] | None = None,
        classes: Callable[[int], Classes] | None = None,
    ):
        if len(descriptors) != len(images):
            raise ValueError(f"descriptors: {len(descriptors)} rows for {len(images)} images")
        readable = np.isfinite(descriptors[:, 0])
        self.images, self.truth, self.titles, self.classes = images, truth, titles or {}, classes
        self.queries = readable_indices(queries, readable, "queries")
        self.database = readable_indices(database, readable, "database")
        self.descriptors = descriptors
        self.answering = rows_at(descriptors, self.database)

    def answers(self, query: int, k: int) -> Answers:
        """The k images (or all, if fewer) most similar to image `query`, without itself."""
        neighbours, scores = self.similar(self.descriptors[query], k + 1)
        others = [pair for pair in zip(neighbours, scores, strict=True) if pair[0] != query][:k]
        right = [self.truth(query, j) if self.truth else None for j, _ in others]
        classes = self.classes(query) if self.classes else []
        return Answers([j for j, _ in others], [score for _, score in others], right, classes)

    def examples(self, count: int) -> dict[int, str]:
        """{query: title} of at most `count` queries: with `truth`, from the worst to the best."""
        if self.truth is None:
            queries = self.queries[evenly(len(self.queries), count)].tolist()
            return {i: f"query {self.titles.get(i, '')}".strip() for i in queries}
        judged = [i for i in self.queries.tolist() if i in self.titles]
        chosen = [judged[i] for i in evenly(len(judged), count)]
        return dict(zip(chosen, with_places(self.titles[i] for i in chosen), strict=True))

    def similar(self, descriptor: np.ndarray, k: int) -> tuple[list[int], list[float]]:
        """(image indices, scores) of the k images most similar to a descriptor [D]."""
        scores, rows = top_k(descriptor[None], self.answering, k=min(k, len(self.database)))
        return self.database[rows[0]].tolist(), scores[0].tolist()


def readable_indices(given: Sequence[int] | None, readable: np.ndarray, name: str) -> np.ndarray:
    """The given indices, or all, of readable images; ValueError for one out of range or if none is left."""
    indices = np.arange(len(readable)) if given is None else np.asarray(given, dtype=np.int64)
    outside = indices[(indices < 0) | (indices >= len(readable))]
    if len(outside):
        raise ValueError(f"{name}: must be indices of the {len(readable)} images, got {outside[0]}")
    indices = indices[readable[indices]]
    if not len(indices):
        raise ValueError(f"{name}: none of {len(readable)} images is readable")
    return indices


def set_collection(task: RetrievalTask | GivenTask, found: Sequence[Retrieval], name: str) -> Collection:
    """A retrieval set of 05 with the network's own descriptors; queries in order of their score, worst first.

    found: results of 05, with the scores.

    Raises ValueError for a set that was not measured.
    """
    # The last of the network's own descriptors that was measured is its output.
    measured = [r for r in found if r.result.name == name and r.descriptor in own_names(task)]
    if not measured:
        known = dict.fromkeys(r.result.name for r in found)
        raise ValueError(f"the set {name!r} is not among those measured: {', '.join(known)}")
    [each] = [each for each in task.sets if each.name == name]
    descriptors = task.descriptors(each, size=task.config.size)
    classes = None
    if not isinstance(task, GivenTask):
        [pooled] = task.features_of(each, size=task.config.size, ps=[task.p])
        classes = classes_by(task.net, pooled, class_names(task.config.data, task.net))
    if each.measure == "none":
        return Collection(each.images, descriptors, database=each.database, classes=classes)
    result, asked = measured[-1].result, measured[-1].retrieval_set.queries
    asked = np.flatnonzero(task.readable(each))[asked]  # indices of those read -> of all
    return judged_collection(each, descriptors, result.per_query, asked=asked, classes=classes)


def judged_collection(
    each: RetrievalSet, descriptors: np.ndarray, per_query: np.ndarray,
    *, asked: np.ndarray | None = None, classes: Callable[[int], Classes] | None = None,
) -> Collection:  # fmt: skip
    """A retrieval set with ground truth, queries in order of their measure, worst first.

    descriptors: of all images [N,D].
    per_query: measure of each query that was read [Q]; NaN without answers.
    asked: image indices of these queries; None: all of the set.
    classes: image index -> its likely classes.
    """
    asked = each.queries if asked is None else asked
    order = np.argsort(per_query, kind="stable")
    answered = order[np.isfinite(per_query[order])]
    titles = {int(asked[q]): shown_query(each.measure, per_query[q]) for q in answered}
    number = {int(image): q for q, image in enumerate(each.queries)}

    def truth(i: int, j: int) -> bool | None:
        return each.right(number[i], j)

    return Collection(
        each.images, descriptors, queries=asked[order], database=each.database, truth=truth, titles=titles,
        classes=classes,
    )  # fmt: skip


def classes_by(net: MultiGrain, pooled: np.ndarray, names: Sequence[str]) -> Callable[[int], Classes]:
    """A function: image index -> its likely classes, from the pooled features of all images [N,C]."""
    return lambda i: likely_classes(net, torch.from_numpy(np.array(pooled[i : i + 1])[0]), names)


def class_names(data: str, net: MultiGrain) -> tuple[str, ...]:
    """Readable names of the network's classes; empty if unknown.

    Classes that are all among ImageNet's WordNet ids have ImageNet's names; others have their own.

    data: as in a config; the embedded set has a list of names.
    """
    if not net.classes:
        return ()
    readable = {}
    if is_mini(data):
        lines = (data_root(data) / "imagenet" / "classes.txt").read_text(encoding="utf-8").splitlines()
        readable = dict(line.split(" ", 1) for line in lines)
    wordnet = all(re.fullmatch(r"n\d{8}", name) for name in net.classes)
    if wordnet and not readable.keys() >= set(net.classes):
        readable = imagenet_names()
        readable = readable if readable.keys() >= set(net.classes) else {}
    return tuple(shown_name(readable.get(name, name)) for name in net.classes)


def likely_classes(net: MultiGrain, pooled: Tensor, names: Sequence[str], *, count: int = 5) -> Classes:
    """The network's most probable classes of one image, from its pooled features [C]; numbered if unnamed.

    Empty for a network without a classifier.
    """
    if not net.classifies:
        return []
    probabilities = class_probabilities(net, pooled[None])[0]
    best = probabilities.topk(min(count, len(probabilities)))
    return [
        (names[label] if label < len(names) else f"class {label}", probability)
        for probability, label in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


@torch.no_grad()
def class_probabilities(net: MultiGrain, pooled: Tensor) -> Tensor:
    """Class probabilities, pooled features [n,C] -> [n,K], on the network's device.

    The logits of a whitened network are divided by ‖[e;1]‖, which is undone for the softmax.
    """
    pooled = pooled.to(net.classifier.weight.device)
    logits = net.head(pooled)["classifier_output"]
    if net.whitening is not None:
        logits = logits * (1 + pooled.square().sum(1, keepdim=True)).sqrt()
    return logits.softmax(1)


@torch.no_grad()
def pooled_picture(
    net: MultiGrain, picture: Image.Image, *, size: int, crop: str = "rect", p: float | None = None
) -> Tensor:
    """GeM features [1,C] of one RGB picture. size: pixels. p: exponent, None for the network's own.

    Raises UnreadableImageError for a picture that is too narrow for the network.
    """
    image = eval_transform(size, crop, mean=net.mean, std=net.std)(picture)[None]  # [1,3,H,W]
    maps = maps_of(net.eval().features, image.to(net.classifier.weight.device))  # -> [1,C,h,w]
    if maps is None:
        raise UnreadableImageError(too_narrow(net, image, size))
    return net.pooled_maps(maps.float(), p)


def describe_with(
    net: MultiGrain, *, size: int, crop: str = "rect", p: float | None = None, names: Sequence[str] = ()
) -> Describe:
    """A function: RGB picture -> descriptor [D] and likely classes, by one forward pass.

    size: pixels.
    p: exponent, None for the network's own.
    names: of the classes; the network's own by default.
    """

    def describe(picture: Image.Image) -> tuple[np.ndarray, Classes]:
        pooled = pooled_picture(net, picture, size=size, crop=crop, p=p)
        with torch.no_grad():
            descriptor = net.head(pooled)["normalized_embedding"][0]
        return descriptor.cpu().numpy(), likely_classes(net, pooled[0], names or net.classes)

    return describe


def describe_for(task: RetrievalTask | GivenTask) -> Describe | None:
    """`describe_with` of the network of 05; None, with a line, where there is none."""
    config = task.config
    if isinstance(task, GivenTask):
        print("no picture can be uploaded: descriptors are given, without the network that made them")
        return None
    names = class_names(config.data, task.net)
    return describe_with(task.net, size=config.size, crop=config.crop, p=task.p, names=names)


def read_picture(name: str, content: bytes) -> Image.Image:
    """Decode an uploaded file as a browser shows it, in a process apart.

    Raises UnreadableImageError for a damaged file, an unknown format, and more than 50 megapixels.
    """
    return load_apart(content, name=name, most_pixels=MOST_PIXELS)
