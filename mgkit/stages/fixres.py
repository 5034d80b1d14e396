"""p*, FixRes and both on the same images, at every size of 02."""

import copy
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

NEVER = -1e9  # bias of a class that is not chosen: its probability is 0, and its score finite


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
    """The classifiers of the rivals at each size, [S,4]: the network's own, twice, and two by FixRes.

    Of each two, the first is for the network's own p, the second for p*. All choose among the classes of the
    training images. All processes train the same on the embeddings of all. Raises as `finetune_classifier`.
    """
    known, present = net.classifier.out_features, np.unique(images.labels)
    if len(present) < known:
        print(
            f"FixRes: the training images have {len(present)} of the network's {known} classes: it is "
            "compared with its rivals among these, or it would gain by learning that no others occur"
        )
    own, found = among(present, net.classifier), []
    for size, p in zip(config.sizes, p_star, strict=True):
        at, ps = f"FixRes at {passes.crop} {size} px", [net.pool.p.item(), p]
        both = classifier_inputs(net, images, size=size, ps=ps, passes=passes, description=at)
        learned = [
            tuned(config, own, rows, images.labels, f"{at}, p = {of:.2f}")
            for rows, of in zip(both, ps, strict=True)
        ]
        found.append([own, own, *learned])
    return found


def among(classes: np.ndarray, classifier: nn.Linear) -> nn.Linear:
    """A copy of the classifier that chooses among some of its classes: the others get a bias of NEVER."""
    chosen = copy.deepcopy(classifier).requires_grad_(False)
    chosen.bias[np.setdiff1d(np.arange(chosen.out_features), classes)] = NEVER
    return chosen


def tuned(
    config: FinetunePConfig, own: nn.Linear, rows: np.ndarray, labels: np.ndarray, title: str
) -> nn.Linear:
    """The classifier fine-tuned on embeddings [N,D]; a line that starts with the title gives its loss."""
    classifier = finetune_classifier(
        own, rows, labels, lr=config.fixres_lr, epochs=config.fixres_epochs, momentum=config.momentum,
        seed=config.seed,
    )  # fmt: skip
    before, after = (cross_entropy(each, rows, labels) for each in (own, classifier))
    rose = "; it rose, so fixres_lr is too high" if after > before else ""
    print(f"{title}: cross-entropy of the training images {before:.2f} -> {after:.2f}{rose}")
    return classifier


def adaptations(
    config: FinetunePConfig, net: MultiGrain, images: ImageList, p_star: Sequence[float], hits: np.ndarray
) -> list[Adaptation]:
    """The rivals at each size; images: of training; hits: whether each image is right with each, [S,4,N]."""
    training_p, rows = net.pool.p.item(), []
    weights = len(np.unique(images.labels)) * (net.classifier.in_features + 1)  # and biases
    for size, p, of_size in zip(config.sizes, p_star, hits, strict=True):
        rivals = {  # p, passes over the training images, parameters learned
            "training p": (training_p, 0, 0),
            "p*": (p, 1, 1),
            "FixRes": (training_p, 1, weights),
            "FixRes with p*": (p, 2, weights + 1),
        }
        for (method, values), right in zip(rivals.items(), of_size, strict=True):
            gain = accuracy_difference(of_size[0], right)
            top1 = float(np.nanmean(right))
            rows.append(Adaptation(method, size, *values, top1, bootstrap_mean(right), gain))
    return rows
