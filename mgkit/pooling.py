"""GeM pooling and L2 normalisation: feature maps to vectors."""

import math

import torch
from torch import Tensor, nn

FLOOR = 1e-6  # lower clamp on activations, so that x^p has a gradient in p at x = 0


def gem(x: Tensor, p: float | Tensor) -> Tensor:
    """Apply generalised-mean pooling, `(mean over h,w of max(x, 1e-6)^p)^(1/p)` (section 3.1).

    A channel with negative activations, which the paper's networks do not have, is pooled above its least
    one, `gem(x - min) + min`: for p = 1 that is the mean of any map, for p = inf its maximum.

    x: feature maps ([B,C,h,w])
    p: exponent > 0 (number or scalar tensor, differentiable); 1 is average pooling, inf is max pooling

    Returns [B,C] in float32 or wider. Raises ValueError for p <= 0.
    """
    value = check_exponent(p)
    if isinstance(p, Tensor) and not p.requires_grad:
        p = value  # torch has faster kernels for powers with a number, in particular 2 and 3
    if x.dtype in (torch.bfloat16, torch.float16):
        x = x.float()  # powers in half precision underflow
    if x.detach().amin() < 0:
        least = least_negative(x)
        return gem(x - least, p) + least.flatten(1)
    x = x.clamp(min=FLOOR)
    if math.isinf(value):
        return x.amax(dim=(-2, -1))
    # GeM is homogeneous: scaling by the maximum keeps x^p from overflowing.
    top = x.detach().amax(dim=(-2, -1), keepdim=True)
    pooled = (x / top).pow(p).mean(dim=(-2, -1)).pow(1.0 / p)
    return pooled * top.flatten(1)


def least_negative(x: Tensor) -> Tensor:
    """The least activation of each channel if it is negative, else 0: [B,C,h,w] -> [B,C,1,1], no gradient."""
    return x.detach().amin(dim=(-2, -1), keepdim=True).clamp(max=0)


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
    """

    def __init__(self, p: float = 3.0, *, learn_p: bool = False):
        super().__init__()
        check_exponent(p)
        self.p = nn.Parameter(torch.tensor(float(p)), requires_grad=learn_p)

    def forward(self, x: Tensor) -> Tensor:
        return gem(x, self.p)  # [B,C,h,w] -> [B,C]

    def extra_repr(self) -> str:
        return f"p={self.p.item():.3g}"
