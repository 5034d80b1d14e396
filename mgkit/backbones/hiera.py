"""Hiera (Ryali et al. 2023) of timm, for images of any size."""

from timm.layers import resample_abs_pos_embed
from timm.models.hiera import Hiera, Unroll
from torch import Tensor
from torch.nn import functional as F

from mgkit.backbones.timm_models import TimmTokens


class HieraTokens(TimmTokens):
    """The tokens of a Hiera: timm's takes images of one size only.

    The position encoding is interpolated, and windows are those of the image, whose sides the windows divide.
    """

    def last_features(self, images: Tensor) -> Tensor:
        net = self.net
        grid = [side // stride for side, stride in zip(images.shape[-2:], net.patch_stride, strict=True)]
        x = net.patch_embed(images) + positions(net, grid)  # [B,N,C]
        # In the order of windows; behind the last pooling, that is again the order of the image.
        x = Unroll(tuple(images.shape[-2:]), net.patch_stride, net.unroll.schedule)(x)
        for block in net.blocks:
            x = block(x)
        return x


def positions(net: Hiera, grid: list[int]) -> Tensor:
    """The position encoding of a grid of patches, [1,N,C]."""
    if net.pos_embed_win is None:
        return resample_abs_pos_embed(net.pos_embed, grid, net.tokens_spatial_shape, num_prefix_tokens=0)
    # Of windows and of the image, added (Bolya et al. 2023).
    windows = [side // unit for side, unit in zip(grid, net.mask_unit_size, strict=True)]
    of_image = F.interpolate(net.pos_embed, size=grid, mode="bicubic", antialias=True)
    return (of_image + net.pos_embed_win.tile(windows)).flatten(2).transpose(1, 2)
