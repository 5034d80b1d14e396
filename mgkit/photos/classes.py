"""Classes of pictures, and whether those of the network fit them."""

from dataclasses import replace

import numpy as np
import torch

from mgkit.config import PhotosConfig
from mgkit.data.images import evenly
from mgkit.explore.browse import class_names, class_probabilities
from mgkit.features import ROWS, plain
from mgkit.model import MultiGrain
from mgkit.photos.embedding.nearest import neighbours_without_self
from mgkit.photos.task import PhotoTask
from mgkit.retrieval.search import top_k
from mgkit.stages.inputs import is_mini, validation_data

CHECKED_CLASSES = 500  # validation images that the pictures are compared with
COMPARED = 10_000  # pictures, evenly spaced
FARTHEST = 0.05  # quantile of the similarities between validation images
FITTING = 0.7  # share of the pictures that must lie above it
BEST_CLASSES = 5


def top_classes(net: MultiGrain, pooled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities [N,5] of the most probable classes, from features [N,C].

    Fewer columns for fewer classes; -1 and NaN for rows that are NaN.
    """
    count = min(BEST_CLASSES, net.classifier.out_features)
    labels = np.full((len(pooled), count), -1)
    probabilities = np.full((len(pooled), count), np.nan, np.float32)
    for start in range(0, len(pooled), ROWS):
        part = np.array(pooled[start : start + ROWS])
        readable = start + np.flatnonzero(np.isfinite(part[:, 0]))
        best = class_probabilities(net, torch.from_numpy(part[readable - start])).topk(count)
        labels[readable], probabilities[readable] = best.indices.cpu().numpy(), best.values.cpu().numpy()
    return labels, probabilities


def check_classes(task: PhotoTask, rows: np.ndarray) -> tuple[tuple[str, ...], str]:
    """Class names, empty if they do not fit the pictures, and a sentence on that; from features [n,C].

    A nearest-neighbour test for out-of-distribution images (Sun et al. 2022): the classes fit if most
    pictures are as near to a validation image of `data` as those are to each other. Without validation images
    the names are returned unchecked.
    """
    data = data_of_classes(task.config)
    names, count = class_names(data, task.net), task.net.classifier.out_features
    if not task.net.classifies:
        return ((), f"{task.net.name} has no classifier ({task.net.unclassified}): no classes are shown")
    if not names:
        return (), f"the checkpoint does not name its {count} classes: none are shown"
    known = known_embeddings(task, data)
    if len(known) < 2:
        lacking = "data has no validation images of them" if data else "there are no images of them here"
        of_imagenet = "" if data else " of ImageNet"
        return names, f"whether the {len(names)} classes{of_imagenet} fit is not known: {lacking}"
    near = top_k(known, known, k=2)
    border = float(np.quantile(neighbours_without_self(*near)[0], FARTHEST))
    some = plain(rows[evenly(len(rows), COMPARED)])
    share = float((top_k(some, known, k=1)[0] >= border).mean())
    verdict = "the classes are shown" if share >= FITTING else "the classes do not fit, and none are shown"
    sentence = (
        f"{100 * share:.0f} % of the pictures are as near to an image of the {len(names)} known classes as "
        f"{100 * (1 - FARTHEST):.0f} % of those are to each other "
        f"(at least {100 * FITTING:.0f} % should be): {verdict}"
    )
    return (names if share >= FITTING else ()), sentence


def data_of_classes(config: PhotosConfig) -> str:
    """`data`; empty where it is the embedded set, none of whose classes a published network knows."""
    return "" if config.off_the_shelf() and is_mini(config.data) else config.data


def known_embeddings(task: PhotoTask, data: str) -> np.ndarray:
    """L2-normalised embeddings [n,C] of at most 500 validation images; none if `data` has other classes."""
    try:
        images = validation_data(replace(task.config, data=data))
    except (OSError, ValueError):
        images = None
    if images is None or not set(images.classes) <= set(task.net.classes):
        return np.empty((0, task.net.width), np.float32)
    images = images.subset(evenly(len(images), CHECKED_CLASSES))
    rows = task.features(images, "validation images")
    return plain(rows[np.isfinite(rows[:, 0])])
