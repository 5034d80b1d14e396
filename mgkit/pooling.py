"""GeM pooling and L2 normalisation: feature maps to vectors."""

import math

import torch
from torch import Tensor, nn

FLOOR = 1e-6  # lower clamp on activations, so that x^p has a gradient in p at x = 0


def gem(x: Tensor, p: float | Tensor, *, signed: bool = False) -> Tensor:
    """Apply generalised-mean pooling, `(mean over h,w of max(x, 1e-6)^p)^(1/p)` (section 3.1).

    x: feature maps ([B,C,h,w])
    p: exponent > 0 (number or scalar tensor, differentiable); 1 is average pooling, inf is max pooling
    signed: pool a channel with negative activations, which the paper's networks do not have, above its least
    one m, as `gem(x - m) + m`: also for negative x, p = 1 is the average and p = inf the maximum

    Returns [B,C] in float32 or wider. Raises ValueError for p <= 0.
    """
    value = check_exponent(p)
    if isinstance(p, Tensor) and not p.requires_grad:
        p = value  # torch has faster kernels for powers with a number, in particular 2 and 3
    if x.dtype in (torch.bfloat16, torch.float16):
        x = x.float()  # powers in half precision underflow
    if signed:
        offset = offset_of(x)
        return gem(x - offset, p) + offset.flatten(1)
    x = x.clamp(min=FLOOR)
    if math.isinf(value):
        return x.amax(dim=(-2, -1))
    # GeM is homogeneous: scaling by the maximum keeps x^p from overflowing.
    top = x.detach().amax(dim=(-2, -1), keepdim=True)
    return power(x / top, p).mean(dim=(-2, -1)).pow(1.0 / p) * top.flatten(1)


def power(x: Tensor, p: float | Tensor) -> Tensor:
    """x^p of positive activations.

    A number that is whole or a half takes products alone, a tenth of the time of torch's pow on a CPU. Others
    take a logarithm and an exponential, half of that time, and less for the gradient in p.
    """
    if isinstance(p, Tensor) or 2 * p % 1:
        return (x.log() * p).exp()
    if p % 1:
        return x.sqrt() if p < 1 else x.sqrt() * power(x, p - 0.5)
    if p <= 3:
        return x.pow(p)  # has kernels of its own for 2 and 3
    root = power(x, p // 2)
    return root * root * x if p % 2 else root * root


def offset_of(x: Tensor) -> Tensor:
    """Offset of each channel: 1e-6 below its least activation if that is negative, else 0.

    x: feature maps ([...,C,h,w]), whose negative channels are then above the clamp of `gem`

    Returns [...,C,1,1].
    """
    least = x.amin(dim=(-2, -1), keepdim=True)
    return torch.where(least < 0, least - FLOOR, 0)


def check_exponent(p: float | Tensor) -> float:
    """Return p as a number; raise ValueError unless it is a single number > 0."""
    value = p.item() if isinstance(p, Tensor) and p.numel() == 1 else p
    if isinstance(value, Tensor) or not value > 0:
        raise ValueError(f"p must be one number > 0 (1: average pooling, inf: max pooling), got {value}")
    return value


def l2_normalize(x: Tensor) -> Tensor:
    """Divide rows [N,D] by (their norm + 1e-6), as the released networks do; zero rows stay zero."""
    return x / (x.norm(dim=-1, keepdim=True) + 1e-6)


class GeM(nn.Module):
    """GeM pooling as a module, with the exponent `p` in its state dict (section 3.1).

    p: initial exponent > 0
    learn_p: whether p requires a gradient
    signed: whether feature maps have negative values, see `gem`
    """

    def __init__(self, p: float = 3.0, *, learn_p: bool = False, signed: bool = False):
        super().__init__()
        check_exponent(p)
        self.p = nn.Parameter(torch.tensor(float(p)), requires_grad=learn_p)
        self.signed = signed

    def forward(self, x: Tensor, p: float | None = None) -> Tensor:
        """Pool maps with the exponent p; None for its own, [B,C,h,w] -> [B,C]."""
        return gem(x, self.p if p is None else p, signed=self.signed)

    def extra_repr(self) -> str:
        return f"p={self.p.item():.3g}" + (", signed" if self.signed else "")
