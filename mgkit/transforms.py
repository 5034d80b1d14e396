"""From a PIL image to a normalised tensor: the paper's training augmentations and evaluation crops."""

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from mgkit.backbones import IMAGENET_MEAN, IMAGENET_STD

TRAIN_KINDS = ("torch", "full", "senet", "AA")
CROPS = ("square", "rect")

# Principal components of ImageNet's colours (Krizhevsky et al. 2012), for the `lighting` jitter.
EIGENVALUES = torch.tensor([0.2175, 0.0188, 0.0045])
EIGENVECTORS = torch.tensor(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)


class Lighting(v2.Transform):
    """Colour shift along ImageNet's principal components (table C.1), on tensors [3,H,W] in 0..1.

    As released: the shifted image is divided by 1 + std, then clamped to 0..1.
    """

    def __init__(self, std: float = 0.1):
        super().__init__()
        self.std = std

    def forward(self, image: Tensor) -> Tensor:
        shift = EIGENVECTORS @ (EIGENVALUES * torch.randn(3) * self.std)
        return ((image + shift[:, None, None]) / (1 + self.std)).clamp(0, 1)


class Fit(v2.Transform):
    """Resize a whole PIL image so that its longest (or shortest) side has `size` pixels."""

    def __init__(self, size: int, *, longest: bool):
        super().__init__()
        self.size, self.longest = size, longest

    def forward(self, image: Image.Image) -> Image.Image:
        return v2.functional.resize(image, list(fitted_shape(*image.size, self.size, longest=self.longest)))


def train_transform(
    size: int, kind: str = "full", *, crop_scale: float = 0.08, mean=IMAGENET_MEAN, std=IMAGENET_STD
) -> v2.Compose:
    """PIL image (RGB) -> augmented float tensor [3,size,size] (section 4.1, table C.1).

    size: pixels. kind: `torch` (crop and flip), `full` (and colour 0.3, lighting 0.1), `senet` (colour 0.2), `AA`
    (AutoAugment's ImageNet policy). crop_scale: smallest share of the image's area in the crop. Raises ValueError for any other kind or size < 1.
    """
    check_size(size)
    crop = [
        v2.RandomResizedCrop(size, scale=(crop_scale, 1.0), ratio=(3 / 4, 4 / 3)),
        v2.RandomHorizontalFlip(),
    ]
    to_tensor = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    if kind == "torch":
        colour = to_tensor
    elif kind == "full":
        colour = [v2.ColorJitter(0.3, 0.3, 0.3), *to_tensor, Lighting(0.1)]
    elif kind == "senet":
        colour = [v2.ColorJitter(0.2, 0.2, 0.2), *to_tensor, Lighting(0.1)]
    elif kind == "AA":
        colour = [v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET, fill=128), *to_tensor]
    else:
        raise ValueError(f"augmentation {kind!r} is unknown; one of {', '.join(TRAIN_KINDS)}")
    return v2.Compose([*crop, *colour, v2.Normalize(mean, std)])


def eval_transform(size: int, crop: str = "square", *, mean=IMAGENET_MEAN, std=IMAGENET_STD) -> v2.Compose:
    """PIL image (RGB) -> float tensor [3,h,w] (section 4.1).

    size: pixels. crop: `square` resizes the short side to 256/224 · size and takes the central size × size; `rect` keeps the
    whole image, longest side = size. Bilinear on PIL images, sides truncated. Raises ValueError for another crop.
    """
    check_size(size)
    if crop == "square":
        fit = [Fit(int(256 / 224 * size), longest=False), v2.CenterCrop(size)]
    elif crop == "rect":
        fit = [Fit(size, longest=True)]
    else:
        raise ValueError(f"crop {crop!r} is unknown; one of {', '.join(CROPS)}")
    return v2.Compose(
        [*fit, v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    )


def fitted_shape(width: int, height: int, size: int, *, longest: bool) -> tuple[int, int]:
    """(height, width) once the longest (or shortest) side is `size` pixels; the other is truncated, but at least 1."""
    if (height < width) == longest:
        return max(1, int(size * height / width)), size
    return size, max(1, int(size * width / height))


def check_size(size: int) -> None:
    """Raise ValueError unless size is a number of pixels >= 1."""
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
