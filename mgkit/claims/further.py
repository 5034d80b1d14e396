"""Claims that are tried on trained networks: p*, whitening, several scales."""

from collections.abc import Callable

from mgkit.claims.measures import Evaluation
from mgkit.claims.plan import Training
from mgkit.config import ClaimsConfig
from mgkit.data.images import ImageList
from mgkit.model import MultiGrain

FURTHER_ARM = "joint"


def measure_further(
    training: Training, config: ClaimsConfig, network: Callable[[Training], tuple[MultiGrain, float]],
    train_images: ImageList, on: Evaluation,
) -> None:  # fmt: skip
    """Measure a training's network with p*, whitening and several scales, unless that is kept already."""
