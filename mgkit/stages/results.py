"""The results of the stages, as values for the notebooks."""

from dataclasses import dataclass, field

import numpy as np

from mgkit.benchmarks.retrieval_set import RetrievalSet
from mgkit.retrieval.protocols import Difference, RetrievalResult


@dataclass(frozen=True)
class Accuracy:
    """Top-1 and top-5 accuracy in 0..1 for one crop, size (px) and pooling exponent p.

    exponent: `trained` or `p*`
    interval: 95 % confidence interval of top1, by bootstrap over the images
    """

    crop: str
    size: int
    exponent: str
    p: float
    top1: float
    top5: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Adaptation:
    """Top-1 of a network that was adapted to one size (px) with a pooling exponent p, and the cost of it.

    method: `training p`, which is not adapted, `p*`, `FixRes` or `FixRes with p*`
    passes: over the training images, to learn it
    learned: number of parameters that were learned
    top1: in 0..1, on the validation images, among the classes of the training images
    interval: 95 % confidence interval of top1, by bootstrap over the images
    gain: top1 minus that of the training p, on the same images
    """

    method: str
    size: int
    p: float
    passes: int
    learned: int
    top1: float
    interval: tuple[float, float]
    gain: Difference


@dataclass(frozen=True)
class PSearch:
    """Results of 02 for S sizes and P exponents.

    sizes: resolutions [S] (px)
    ps: exponents of the sweep [P]
    p_star: p* found by SGD [S]
    paths: for each size, loss and p after every step, [steps,2]
    top1, top5: accuracy on the validation images, in 0..1, [S,P]
    intervals: 95 % confidence intervals of top1, by bootstrap over the images, [S,P,2]
    top1_at_training_p, top1_at_p_star: the same with the training p, and with p*, [S]
    gains: top-1 of p* minus that of the training p, on the same images [S]
    adaptations: p*, FixRes and both at each size; empty without FixRes
    """

    sizes: list[int]
    ps: list[float]
    p_star: list[float]
    paths: list[np.ndarray]
    top1: np.ndarray
    top5: np.ndarray
    intervals: np.ndarray
    top1_at_training_p: list[float]
    top1_at_p_star: list[float]
    gains: list[Difference]
    training_p: float
    crop: str
    adaptations: list[Adaptation] = field(default_factory=list)


@dataclass(frozen=True)
class Retrieval:
    """Result on one retrieval set with one kind of descriptor.

    descriptor: name of the kind
    p: its pooling exponent; None for a class token, which is not pooled
    over: the kind that it is compared with
    gain: gain over that kind, on the same queries; None for the first kind, and without a measure
    """

    descriptor: str
    p: float | None
    retrieval_set: RetrievalSet
    result: RetrievalResult
    over: str = ""
    gain: Difference | None = None


@dataclass(frozen=True)
class ResolutionCurves:
    """Figure 4, for S sizes and P exponents.

    sizes: resolutions [S] (px)
    exponents: {label: p}
    values: {name of a set, or top-1: [S,P]}
    measures: {name: measure}
    """

    sizes: list[int]
    exponents: dict[str, float]
    values: dict[str, np.ndarray]
    measures: dict[str, str]
