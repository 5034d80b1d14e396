"""What the stages find, as values that notebooks show."""

from dataclasses import dataclass

import numpy as np

from mgkit.benchmarks.retrieval_set import RetrievalSet
from mgkit.retrieval.protocols import Difference, RetrievalResult


@dataclass(frozen=True)
class Accuracy:
    """Top-1 and top-5 in 0..1 of one crop, size (px) and pooling exponent; `exponent` says whether p is `trained` or `p*`."""

    crop: str
    size: int
    exponent: str
    p: float
    top1: float
    top5: float


@dataclass(frozen=True)
class PSearch:
    """What 02 found, for S sizes and P exponents.

    sizes [S] px, ps [P]. p_star [S]: by SGD. paths: for each size, (loss, p) after every step [steps,2].
    top1, top5 [S,P] in 0..1: accuracy on the validation images. training_p: what the network was trained with.
    top1_at_training_p, top1_at_p_star [S]: the same with these exponents.
    """

    sizes: list[int]
    ps: list[float]
    p_star: list[float]
    paths: list[np.ndarray]
    top1: np.ndarray
    top5: np.ndarray
    top1_at_training_p: list[float]
    top1_at_p_star: list[float]
    training_p: float
    crop: str


@dataclass(frozen=True)
class Retrieval:
    """One set searched with one kind of descriptor.

    descriptor: the kind. p: its pooling exponent. gain: what it gains on the kind called `over`, on the same queries; None for
    the first kind, and where nothing is measured.
    """

    descriptor: str
    p: float
    retrieval_set: RetrievalSet
    result: RetrievalResult
    over: str = ""
    gain: Difference | None = None


@dataclass(frozen=True)
class ResolutionCurves:
    """Figure 4, for S sizes and P exponents: sizes [S] px; exponents: label -> p; values: name -> [S,P]; measures: name -> unit."""

    sizes: list[int]
    exponents: dict[str, float]
    values: dict[str, np.ndarray]
    measures: dict[str, str]
