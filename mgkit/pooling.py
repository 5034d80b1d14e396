"""GeM pooling and L2 normalisation: from a feature map to one vector an image."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

FLOOR = 1e-6  # activations are clamped to it, so that x^p has a gradient in p at x = 0


def gem(x: Tensor, p: float | Tensor) -> Tensor:
    """Generalised-mean pooling, `(mean over h,w of max(x, 1e-6)^p)^(1/p)` (section 3.1).

    x: feature maps [B,C,h,w]. p: exponent > 0, a number or a scalar tensor (which gets a gradient);
    1 averages, infinity takes the maximum. Returns [B,C] in float32 or wider. Raises ValueError for p <= 0.
    """
    value = check_exponent(p)
    if isinstance(p, nn.Parameter) and not p.requires_grad:
        p = value  # torch raises to a number in less time than to a tensor, above all to 2 and 3
    x = x.clamp(min=FLOOR)
    if x.dtype in (torch.bfloat16, torch.float16):
        x = x.float()  # powers of half-precision numbers lose the small activations
    if math.isinf(value):
        return x.amax(dim=(-2, -1))
    # GeM is homogeneous: dividing by the maximum first changes nothing but keeps x^p from overflowing.
    top = x.detach().amax(dim=(-2, -1), keepdim=True)
    pooled = (x / top).pow(p).mean(dim=(-2, -1)).pow(1.0 / p)
    return pooled * top.flatten(1)


def gem_for_each(x: Tensor, ps: Sequence[float]) -> Iterator[Tensor]:
    """`gem` of [B,C,h,w] for every exponent, [B,C] each, to float32's rounding; without gradient.

    The logarithm that a power takes is taken once: x^p = exp(p log x).
    """
    logarithm, top = relative_logarithm(x)
    for p in ps:
        yield gem_of_logarithm(logarithm, top, p)


def relative_logarithm(x: Tensor) -> tuple[Tensor, Tensor]:
    """Feature maps [B,C,h,w] -> log(x / top) [B,C,h,w], at most 0, and the maximum `top` [B,C,1,1] of each channel."""
    x = x.detach().clamp(min=FLOOR).float()
    top = x.amax(dim=(-2, -1), keepdim=True)
    return (x / top).log_(), top


def gem_of_logarithm(logarithm: Tensor, top: Tensor, p: float) -> Tensor:
    """`gem` from what `relative_logarithm` gave, [B,C]; no power overflows, all being of numbers <= 1."""
    if math.isinf(check_exponent(p)):
        return top.flatten(1)
    return (logarithm * p).exp_().mean(dim=(-2, -1)).pow_(1.0 / p).mul_(top.flatten(1))


@torch.no_grad()
def gem_and_slope(x: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """`gem` of [B,C,h,w] and its derivative in p, [B,C] each, to float32's rounding, for a finite p.

    With m = mean of x^p: d/dp m^(1/p) = m^(1/p) · (m'/(p m) - log m / p²), m' = mean of x^p log x.
    """
    logarithm, top = relative_logarithm(x)
    power = (logarithm * p).exp_()
    mean = power.mean(dim=(-2, -1))
    slope_of_mean = power.mul_(logarithm).mean(dim=(-2, -1))
    pooled = mean.pow(1.0 / p).mul_(top.flatten(1))
    return pooled, pooled * (slope_of_mean / (p * mean) - mean.log_() / p**2)


def check_exponent(p: float | Tensor) -> float:
    """p as a number; ValueError unless it is a single one > 0."""
    value = p.item() if isinstance(p, Tensor) and p.numel() == 1 else p
    if isinstance(value, Tensor) or not value > 0:
        raise ValueError(f"p must be one number > 0 (1 averages, inf takes the maximum), got {value}")
    return value


def l2_normalize(x: Tensor) -> Tensor:
    """Rows [N,D] divided by (their norm + 1e-6), as the released networks do: zero rows stay zero."""
    return x / (x.norm(dim=-1, keepdim=True) + 1e-6)


class GeM(nn.Module):
    """`gem` with its exponent in the state dict, as `p`; frozen unless learn_p."""

    def __init__(self, p: float = 3.0, *, learn_p: bool = False):
        super().__init__()
        check_exponent(p)
        self.p = nn.Parameter(torch.tensor(float(p)), requires_grad=learn_p)

    def forward(self, x: Tensor) -> Tensor:
        return gem(x, self.p)  # [B,C,h,w] -> [B,C]

    def extra_repr(self) -> str:
        return f"p={self.p.item():.3g}"
