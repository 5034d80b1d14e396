"""From a PIL image to a normalised tensor: the paper's training augmentations and evaluation crops."""

import math

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from mgkit.backbones.build import IMAGENET_MEAN, IMAGENET_STD

TRAIN_KINDS = ("torch", "full", "senet", "AA")
CROPS = ("square", "rect")

# Principal components of ImageNet's colours (Krizhevsky et al. 2012), for the `lighting` jitter.
EIGENVALUES = torch.tensor([0.2175, 0.0188, 0.0045])
EIGENVECTORS = torch.tensor(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)

# How much of red, green and blue is in a pixel's grey, as PIL counts it, in parts of 2^16.
GREY = torch.tensor([19595.0, 38470.0, 7471.0])


class CropAndResize(v2.Transform):
    """torchvision's RandomResizedCrop of a PIL image (RGB) -> uint8 [3,size,size], in half the time.

    The boxes are those that torchvision draws. A pixel differs from PIL's by one level at most, in photos one in fifty does:
    torch resizes with coarser weights, by vector instructions.
    """

    def __init__(self, size: int, scale: tuple[float, float], ratio: tuple[float, float]):
        super().__init__()
        self.size, self.scale, self.ratio = size, scale, ratio

    def forward(self, image: Image.Image) -> Tensor:
        top, left, height, width = v2.RandomResizedCrop.get_params(image, self.scale, self.ratio)
        crop = v2.functional.pil_to_tensor(image.crop((left, top, left + width, top + height)))
        return v2.functional.resize(crop, [self.size, self.size], antialias=True)


def to_levels(image: Tensor) -> Tensor:
    """uint8 [3,H,W] -> float32 [3,H,W] of the same values, each channel contiguous."""
    return image.to(torch.float32, memory_format=torch.contiguous_format)


def to_unit(levels: Tensor) -> Tensor:
    """Levels 0..255 -> 0..1, in place."""
    return levels.div_(255)


class ColorJitter(v2.Transform):
    """torchvision's ColorJitter of a PIL image, in half the time: on the levels of `to_levels`, changed in place.

    Equal to the bit, unless PIL was compiled to fuse multiply-adds, which may move a rare pixel by one level.
    strength: each factor is drawn uniformly from 1 ± strength. The random numbers are those that torchvision's draws.
    """

    def __init__(self, strength: float):
        super().__init__()
        self.factors = (max(0.0, 1 - strength), 1 + strength)

    def forward(self, levels: Tensor) -> Tensor:
        order, *factors, _ = v2.ColorJitter.get_params(self.factors, self.factors, self.factors, None)
        for step in order.tolist():
            if step < len(STEPS):  # the fourth is the hue, which stays
                STEPS[step](levels, factors[step])
        return levels


def adjust_brightness(levels: Tensor, factor: float) -> None:
    """Blend [3,H,W] with black, in place."""
    whole(levels.mul_(factor))


def adjust_contrast(levels: Tensor, factor: float) -> None:
    """Blend [3,H,W] with its mean grey, in place."""
    mean = math.floor(grey(levels).mean().item() + 0.5)
    whole(levels.sub_(mean).mul_(factor).add_(mean))


def adjust_saturation(levels: Tensor, factor: float) -> None:
    """Blend [3,H,W] with its own grey, in place."""
    base = grey(levels)
    whole(levels.sub_(base).mul_(factor).add_(base))


# As torchvision numbers them.
STEPS = (adjust_brightness, adjust_contrast, adjust_saturation)


def grey(levels: Tensor) -> Tensor:
    """[3,H,W] -> [H,W], rounded as PIL does. Every sum is a whole number below 2^24, so float32 holds it exactly."""
    return torch.tensordot(GREY, levels, 1).add_(2**15).mul_(2**-16).floor_()


def whole(levels: Tensor) -> None:
    """Clamp to 0..255 and cut the fraction off, in place: what PIL leaves of a blend."""
    levels.clamp_(0, 255).floor_()


class Lighting(v2.Transform):
    """Colour shift along ImageNet's principal components (table C.1), on tensors [3,H,W] in 0..1.

    As released: the shifted image is divided by 1 + std, then clamped to 0..1. inplace: whether the tensor itself is changed.
    """

    def __init__(self, std: float = 0.1, *, inplace: bool = False):
        super().__init__()
        self.std, self.inplace = std, inplace

    def forward(self, image: Tensor) -> Tensor:
        shift = EIGENVECTORS @ (EIGENVALUES * torch.randn(3) * self.std)
        image = image if self.inplace else image.clone()
        return image.add_(shift[:, None, None]).div_(1 + self.std).clamp_(0, 1)


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
    (AutoAugment's ImageNet policy). Random numbers come from torch's global generator, and are those that torchvision's own
    transforms would draw; pixels are theirs on PIL images to a few levels (see `CropAndResize`). crop_scale: smallest share of the image's area in the crop. Raises ValueError for any other kind or size < 1.
    """
    check_size(size)
    crop = [
        CropAndResize(size, scale=(crop_scale, 1.0), ratio=(3 / 4, 4 / 3)),
        v2.RandomHorizontalFlip(),
    ]
    if kind == "torch":
        colour = [to_levels, to_unit]
    elif kind == "full":
        colour = [to_levels, ColorJitter(0.3), to_unit, Lighting(0.1, inplace=True)]
    elif kind == "senet":
        colour = [to_levels, ColorJitter(0.2), to_unit, Lighting(0.1, inplace=True)]
    elif kind == "AA":
        policy = v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET, fill=128)
        colour = [v2.ToPILImage(), policy, v2.PILToTensor(), to_levels, to_unit]
    else:
        raise ValueError(f"augmentation {kind!r} is unknown; one of {', '.join(TRAIN_KINDS)}")
    return v2.Compose([*crop, *colour, v2.Normalize(mean, std, inplace=True)])


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
