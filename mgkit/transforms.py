"""Image transforms: the paper's training augmentations and evaluation crops."""

import math

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from mgkit.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD

TRAIN_KINDS = ("torch", "full", "senet", "AA")
CROPS = ("square", "rect")
MOST_ASPECT = 32  # of what is resized for a square crop; wider than any photo

# Principal components of ImageNet's colours (Krizhevsky et al. 2012), for `Lighting`.
EIGENVALUES = torch.tensor([0.2175, 0.0188, 0.0045])
EIGENVECTORS = torch.tensor(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)

# PIL's weights of red, green and blue in a grey level, times 2^16.
GREY = torch.tensor([19595.0, 38470.0, 7471.0])


class CropAndResize(v2.Transform):
    """RandomResizedCrop of torchvision, in half the time: PIL image (RGB) -> uint8 [3,size,size].

    size: side of the output (px)
    scale, ratio: ranges of the crop's share of the area and of its aspect ratio

    Crops are those of torchvision. About 2 % of the pixels differ from PIL's by one level, since torch
    resizes with less precise weights.
    """

    def __init__(self, size: int, scale: tuple[float, float], ratio: tuple[float, float]):
        super().__init__()
        self.size, self.scale, self.ratio = size, scale, ratio

    def forward(self, image: Image.Image) -> Tensor:
        top, left, height, width = v2.RandomResizedCrop.get_params(image, self.scale, self.ratio)
        crop = v2.functional.pil_to_tensor(image.crop((left, top, left + width, top + height)))
        return v2.functional.resize(crop, [self.size, self.size], antialias=True)


def to_levels(image: Tensor) -> Tensor:
    """Convert uint8 [3,H,W] to float32 [3,H,W] of equal values, contiguous by channel."""
    return image.to(torch.float32, memory_format=torch.contiguous_format)


def to_unit(levels: Tensor) -> Tensor:
    """Scale levels 0..255 to 0..1, in place."""
    return levels.div_(255)


class ColorJitter(v2.Transform):
    """ColorJitter of torchvision, in half the time and in place: float32 levels [3,H,W] of `to_levels`.

    strength: factors of brightness, contrast and saturation are uniform in 1 ± strength

    Random numbers are those of torchvision. Levels equal PIL's, unless PIL was compiled with fused
    multiply-add, which may change single levels by one.
    """

    def __init__(self, strength: float):
        super().__init__()
        self.factors = (max(0.0, 1 - strength), 1 + strength)

    def forward(self, levels: Tensor) -> Tensor:
        order, *factors, _ = v2.ColorJitter.get_params(self.factors, self.factors, self.factors, None)
        for step in order.tolist():
            if step < len(STEPS):  # the fourth step is the hue, which is not changed
                STEPS[step](levels, factors[step])
        return levels


def adjust_brightness(levels: Tensor, factor: float) -> None:
    """Blend levels [3,H,W] with black, in place."""
    truncate(levels.mul_(factor))


def adjust_contrast(levels: Tensor, factor: float) -> None:
    """Blend levels [3,H,W] with their mean grey, in place."""
    mean = math.floor(grey(levels).mean().item() + 0.5)
    truncate(levels.sub_(mean).mul_(factor).add_(mean))


def adjust_saturation(levels: Tensor, factor: float) -> None:
    """Blend levels [3,H,W] with their own grey, in place."""
    base = grey(levels)
    truncate(levels.sub_(base).mul_(factor).add_(base))


# In the order of torchvision's numbering.
STEPS = (adjust_brightness, adjust_contrast, adjust_saturation)


def grey(levels: Tensor) -> Tensor:
    """Convert levels [3,H,W] to grey [H,W], rounded as in PIL; sums are integers < 2^24, exact in float32."""
    return torch.tensordot(GREY, levels, 1).add_(2**15).mul_(2**-16).floor_()


def truncate(levels: Tensor) -> None:
    """Clamp to 0..255 and truncate, in place, as PIL does after a blend."""
    levels.clamp_(0, 255).floor_()


class Lighting(v2.Transform):
    """Random colour shift along ImageNet's principal components (table C.1): images [3,H,W] in 0..1.

    std: standard deviation of the shift (in eigenvalues)
    inplace: change the image itself

    As in the released code, the result is divided by 1 + std and clamped to 0..1.
    """

    def __init__(self, std: float = 0.1, *, inplace: bool = False):
        super().__init__()
        self.std, self.inplace = std, inplace

    def forward(self, image: Tensor) -> Tensor:
        shift = EIGENVECTORS @ (EIGENVALUES * torch.randn(3) * self.std)
        image = image if self.inplace else image.clone()
        return image.add_(shift[:, None, None]).div_(1 + self.std).clamp_(0, 1)


class Fit(v2.Transform):
    """Resize a PIL image so that its longest or shortest side has `size` pixels.

    For the shortest, at most the middle MOST_ASPECT widths of a longer image are resized, to bound memory.
    """

    def __init__(self, size: int, *, longest: bool):
        super().__init__()
        self.size, self.longest = size, longest

    def forward(self, image: Image.Image) -> Image.Image:
        image = image if self.longest else middle(image)
        return v2.functional.resize(image, list(fitted_shape(*image.size, self.size, longest=self.longest)))


def middle(image: Image.Image) -> Image.Image:
    """The middle of an image whose sides differ by more than a factor of MOST_ASPECT; others as they are."""
    width, height = image.size
    most = MOST_ASPECT * min(width, height)
    left, top = ((max(0, side - most) // 2) for side in (width, height))
    return image.crop((left, top, width - left, height - top)) if left or top else image


def train_transform(
    size: int, kind: str = "full", *, crop_scale: float = 0.08, mean=IMAGENET_MEAN, std=IMAGENET_STD
) -> v2.Compose:
    """Return the training transform: PIL image (RGB) -> float [3,size,size] (section 4.1, table C.1).

    size: side of the output (px)
    kind: `torch` (crop, flip), `full` (with colour 0.3, lighting 0.1), `senet` (with colour 0.2, lighting
    0.1) or `AA` (with AutoAugment's ImageNet policy)
    crop_scale: smallest share of the image's area in a crop
    mean, std: for the normalisation of each channel

    Random numbers are those of torchvision's transforms, from torch's global generator; pixels are theirs on
    PIL images up to a few levels. Raises ValueError for another kind or size < 1.
    """
    check_size(size)
    crop = [CropAndResize(size, (crop_scale, 1.0), ratio=(3 / 4, 4 / 3)), v2.RandomHorizontalFlip()]
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
    """Return the evaluation transform: PIL image (RGB) -> float [3,h,w] (section 4.1).

    size: side of the output (px)
    crop: `square` (short side to 256/224 · size, central size × size) or `rect` (longest side to size)
    mean, std: for the normalisation of each channel

    Bilinear on PIL images; sides are truncated to integers. Raises ValueError for another crop or size < 1.
    """
    check_size(size)
    if crop == "square":
        fit = [Fit(int(256 / 224 * size), longest=False), v2.CenterCrop(size)]
    elif crop == "rect":
        fit = [Fit(size, longest=True)]
    else:
        raise ValueError(f"crop {crop!r} is unknown; one of {', '.join(CROPS)}")
    to_float = v2.ToDtype(torch.float32, scale=True)
    return v2.Compose([*fit, v2.PILToTensor(), to_float, v2.Normalize(mean, std)])


def fitted_shape(width: int, height: int, size: int, *, longest: bool) -> tuple[int, int]:
    """Return (height, width) with the longest or shortest side `size` px, the other truncated but >= 1."""
    if (height < width) == longest:
        return max(1, int(size * height / width)), size
    return size, max(1, int(size * width / height))


def check_size(size: int) -> None:
    """Raise ValueError for a size < 1 px."""
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
