"""p*, FixRes and both on the same images, at every size of 02."""

import os
from collections.abc import Sequence

import numpy as np
from torch import nn

from mgkit.config import FinetunePConfig
from mgkit.data.images import ImageList
from mgkit.features import Passes, classifier_inputs
from mgkit.finetune import cross_entropy, finetune_classifier
from mgkit.machine.printable import shown_name
from mgkit.metrics import bootstrap_mean
from mgkit.model import MultiGrain
from mgkit.retrieval.protocols import accuracy_difference
from mgkit.stages.results import Adaptation


def check_apart(train_images: ImageList, val_images: ImageList) -> None:
    """Raise ValueError if FixRes would be measured on an image that it has learned, also through a link."""
    validated = {os.path.realpath(path) for path in val_images.paths}
    both = [path for path in train_images.paths if os.path.realpath(path) in validated]
    if both:
        raise ValueError(
            f"fixres_epochs: {len(both)} training images are validation images too, such as "
            f"{shown_name(both[0])}, and a classifier can learn them by heart: give data with a val/ of "
            "other images, or set fixres_epochs to 0"
        )


def fixres_classifiers(
    config: FinetunePConfig, net: MultiGrain, images: ImageList, p_star: Sequence[float], passes: Passes
) -> list[list[nn.Linear]]:
    """FixRes at each size: the classifiers fine-tuned with the network's own p, and with p*, [S,2].

    All processes train the same on the embeddings of all. Raises as `finetune_classifier`.
    """
    known, present = net.classifier.out_features, len(np.unique(images.labels))
    if present < known:
        print(
            f"FixRes: the training images have {present} of the network's {known} classes, so it also learns "
            "that the others do not occur, at any resolution"
        )
    found = []
    for size, p in zip(config.sizes, p_star, strict=True):
        both = classifier_inputs(
            net, images, size=size, ps=[net.pool.p.item(), p], passes=passes,
            description=f"FixRes at {passes.crop} {size} px",
        )  # fmt: skip
        found.append([tuned(config, net, rows, images.labels, size) for rows in both])
    return found


def tuned(
    config: FinetunePConfig, net: MultiGrain, rows: np.ndarray, labels: np.ndarray, size: int
) -> nn.Linear:
    """The classifier fine-tuned on embeddings [N,D]; a line gives its loss."""
    classifier = finetune_classifier(
        net, rows, labels, lr=config.fixres_lr, epochs=config.fixres_epochs, momentum=config.momentum,
        seed=config.seed,
    )  # fmt: skip
    before, after = (cross_entropy(each, rows, labels) for each in (net.classifier, classifier))
    rose = "; it rose, so fixres_lr is too high" if after > before else ""
    print(f"FixRes at {size} px: cross-entropy of the training images {before:.2f} -> {after:.2f}{rose}")
    return classifier


def adaptations(
    config: FinetunePConfig, net: MultiGrain, p_star: Sequence[float], hits: np.ndarray
) -> list[Adaptation]:
    """The rivals at each size, from whether each image is right with each: hits [S,4,N]."""
    own, weights = net.pool.p.item(), sum(each.numel() for each in net.classifier.parameters())
    rows = []
    for size, p, of_size in zip(config.sizes, p_star, hits, strict=True):
        rivals = {  # p, passes over the training images, parameters learned
            "training p": (own, 0, 0),
            "p*": (p, 1, 1),
            "FixRes": (own, 1, weights),
            "FixRes with p*": (p, 2, weights + 1),
        }
        for (method, values), right in zip(rivals.items(), of_size, strict=True):
            gain = accuracy_difference(of_size[0], right)
            top1 = float(np.nanmean(right))
            rows.append(Adaptation(method, size, *values, top1, bootstrap_mean(right), gain))
    return rows
