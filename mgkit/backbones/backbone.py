"""What a backbone is: a network up to its last feature map, and what belongs to it."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Which tokens of a transformer are its feature map: the patches, the class token, or the class token at every
# position above the patches.
TOKENS = ("patches", "class", "both")


@dataclass(frozen=True)
class Backbone:
    """A network [B,3,H,W] -> [B,C,h,w], the normalisation of its input, and what follows GeM.

    name, features: of the backbone, and the network
    width: number of channels of the embedding
    mean, std: of each input channel
    dropout: probability of dropout before the classifier
    twin: path of the submodule that also holds the classifier in the released files, or empty
    tokens: which tokens are the feature map, one of TOKENS; `patches` for networks without tokens
    signed: whether feature maps have negative values
    stride: of the feature map (px)
    neck: what the published head has between pooling and classifier, [B,C] -> [B,width]; None for nothing
    classifier: that of the weights, of the embedding (weight [K,width], bias [K])
    classes: WordNet ids of the classifier's classes; empty without one, or if they are unknown
    unclassified: why weights come without a classifier; empty for others, and for random weights
    """

    name: str
    features: nn.Module
    width: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    dropout: float = 0.0
    twin: str = ""
    tokens: str = "patches"
    signed: bool = False
    stride: int = 32
    neck: Callable[[Tensor], Tensor] | None = None
    classifier: tuple[Tensor, Tensor] | None = None
    classes: tuple[str, ...] = ()
    unclassified: str = ""


def copied_weights(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Return copies of a classifier's weight and bias."""
    return linear.weight.detach().clone(), linear.bias.detach().clone()
