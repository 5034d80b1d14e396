"""GeM pooling and L2 normalisation: from a feature map to one vector per image."""

import math

import torch
from torch import Tensor, nn

FLOOR = 1e-6  # activations are clamped to it, so that x^p has a gradient in p at x = 0


def gem(x: Tensor, p: float | Tensor) -> Tensor:
    """Generalised-mean pooling, `(mean over h,w of max(x, 1e-6)^p)^(1/p)` (section 3.1).

    x: feature maps [B,C,h,w].
    p: exponent > 0, a number or a scalar tensor (which gets a gradient); 1 averages, inf takes the maximum.

    Returns [B,C] in float32 or wider. Raises ValueError for p <= 0.
    """
    value = check_exponent(p)
    if isinstance(p, Tensor) and not p.requires_grad:
        p = value  # torch has faster powers for numbers, above all for 2 and 3
    x = x.clamp(min=FLOOR)
    if x.dtype in (torch.bfloat16, torch.float16):
        x = x.float()  # powers of half-precision numbers lose the small activations
    if math.isinf(value):
        return x.amax(dim=(-2, -1))
    # GeM is homogeneous: dividing by the maximum first changes nothing but keeps x^p from overflowing.
    top = x.detach().amax(dim=(-2, -1), keepdim=True)
    pooled = (x / top).pow(p).mean(dim=(-2, -1)).pow(1.0 / p)
    return pooled * top.flatten(1)


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
