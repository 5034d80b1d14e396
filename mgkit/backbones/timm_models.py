"""Models of timm: up to their feature maps or tokens, and what their head has behind the average.

GeM replaces the average of the published head. Its norm or hidden layer stays between GeM and the classifier,
so that the class scores for p = 1 are the model's own.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mgkit.backbones.backbone import Backbone
from mgkit.backbones.own_weights import OwnWeights, load_timm, read_weights
from mgkit.backbones.timm_names import is_clip_projection
from mgkit.backbones.timm_sources import check_source, is_elsewhere, model_elsewhere, weights_file
from mgkit.machine.printable import say_once, shortened
from mgkit.machine.records import shown

# Imported where used: timm (takes seconds).

TIMM = "timm/"  # prefix of the names of timm's models
BEFORE_POOLING = ("head.in_conv", "in_conv", "pre_logits")  # layers of a few heads that see whole maps
PROBED_SIDE = 128  # px, about, of the image with which a network of any size is measured
LINEAR = (nn.Linear, nn.Conv2d)
MOST_DIFFERENT = 1e-5  # relative, between what a head makes of a map and of its average


def check_timm(name: str) -> str:
    """Return the name; raise ValueError if timm has no such model or pretrained tag."""
    import timm

    model = name.removeprefix(TIMM)
    if is_elsewhere(model):
        check_source(model)
        return name
    try:
        timm.get_pretrained_cfg(model, allow_unregistered=False)
    except RuntimeError:
        family = model.split("_")[0].split(".")[0]
        raise ValueError(
            f"backbone {shown(name)} is unknown: timm {timm.__version__} has no {shown(model)} "
            f"(see timm.list_models('*{shortened(family)}*'))"
        ) from None
    return name


def timm_model(model: str, pretrained: bool) -> nn.Module:
    """Create a timm model with its classifier; raise OSError if its weights cannot be fetched."""
    if is_elsewhere(model):
        return model_elsewhere(model, created)
    if not pretrained:
        return created(model)
    try:
        return created(model, pretrained=True)
    except Exception as error:  # the hub's client raises its own types
        reason = str(error).strip().split("\n")[0]
        raise OSError(
            f"timm's weights of {model} could not be fetched ({reason}): build it once where there is a "
            "network and copy its caches (~/.cache/huggingface, ~/.cache/torch) here"
        ) from None


def created(model: str, **options) -> nn.Module:
    """Create a timm model; one that can interpolates its position encoding to the size of the image."""
    import timm

    try:
        return timm.create_model(model, dynamic_img_size=True, **options)
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
    return timm.create_model(model, **options)


def build_timm(name: str, pretrained: bool, tokens: str, own: OwnWeights | None = None) -> Backbone:
    """Build a model of timm up to its feature maps; tokens: one of TOKENS.

    own: weights instead of the published ones; ValueError where they lack what GeM is followed by
    """
    model = name.removeprefix(TIMM)
    if pretrained and is_elsewhere(model):
        own = read_weights(weights_file(model))
    net = timm_model(model, pretrained and not own)
    if own is None:
        return timm_backbone(name, net, pretrained, tokens)
    loaded = load_timm(net, own, name)
    backbone = timm_backbone(name, net, loaded.classes > 0, tokens)
    if backbone.neck is not None and loaded.missing:
        raise ValueError(
            f"{own.path} holds less than a whole {name}: it lacks {loaded.missing[0]} of its head"
        )
    return backbone


@torch.no_grad()
def timm_backbone(name: str, net: nn.Module, pretrained: bool, tokens: str = "patches") -> Backbone:
    """Return a model of timm up to its feature maps, and its head if it is pretrained.

    Raises ValueError for a network without feature maps, or without the tokens that are asked for.
    """
    net.eval()
    images = noise(net)
    features = with_maps(name, net, images)
    features.is_fixed = takes_its_own_size_only(features)
    channels = features(images).shape[1]
    head = split_head(features, channels)
    features.choose(tokens)
    maps = features(images)  # [1,C,h,w], for both tokens with twice the channels
    net.train()
    signed = bool((maps < 0).any())
    if signed:
        say_once(f"{name}: its feature maps have negative values; GeM pools a channel above its least value")
    classifier, reason = head.classifier_for(tokens) if pretrained else (None, "")
    config = net.pretrained_cfg
    if classifier and len(classifier[1]) != 1000 and is_clip_projection(net, classifier[1]):
        classifier, reason = None, "it is a projection, which knows no classes"
    return Backbone(
        name, features, maps.shape[1] // channels * head.width, tuple(config["mean"]), tuple(config["std"]),
        tokens=tokens, signed=signed, stride=features.stride, neck=features.neck if head.has_neck else None,
        classifier=classifier, unclassified=reason,
    )  # fmt: skip


def noise(net: nn.Module) -> Tensor:
    """One random image of a timm model's size, [1,3,H,W]; a small one for a network of any size."""
    channels, *sides = net.pretrained_cfg["input_size"]
    if is_flexible(net):
        sides = [-(-PROBED_SIDE // patch) * patch for patch in net.patch_embed.patch_size]
    return torch.randn(1, channels, *sides, generator=torch.Generator().manual_seed(0))


def is_flexible(net: nn.Module) -> bool:
    """Whether a network of patches interpolates its position encoding to the image."""
    return getattr(net, "dynamic_img_size", False)


# --- Feature maps


def with_maps(name: str, net: nn.Module, images: Tensor) -> "TimmMaps | TimmTokens":
    """Wrap a model in eval mode that gives maps or tokens of images [1,3,H,W]; ValueError for another."""
    found = net.forward_features(images)
    if isinstance(found, Tensor) and found.ndim == 4:
        rows = found.shape[1 if is_channels_last(net) else 2]
        return TimmMaps(name, net, stride_of(images, rows))
    if isinstance(found, Tensor) and found.ndim == 3:
        final = net.forward_intermediates(images, indices=1, norm=False, intermediates_only=True)[-1]
        if found.shape[1] >= final.shape[2] * final.shape[3]:
            prefix = found.shape[1] - final.shape[2] * final.shape[3]
            return kind_of_tokens(net)(name, net, stride_of(images, final.shape[2]), prefix)
    raise ValueError(f"backbone {name!r} gives no maps [B,C,h,w], nor tokens that are one: choose another")


def takes_its_own_size_only(features: "TimmFeatures") -> bool:
    """Whether a network in eval mode that timm holds for one of a fixed size refuses another."""
    if not features.net.pretrained_cfg.get("fixed_input_size") or is_flexible(features.net):
        return False
    sides = [side // 2 // 32 * 32 or 32 for side in features.own_size]
    try:
        return not features(torch.zeros(1, 3, sides[0], sides[1] + 32)).isfinite().all()
    except (RuntimeError, ValueError, IndexError):
        return True


def kind_of_tokens(net: nn.Module) -> "type[TimmTokens]":
    """The class that takes the tokens of a model."""
    from mgkit.backbones.hiera import Hiera, HieraTokens

    return HieraTokens if isinstance(net, Hiera) else TimmTokens


class TimmFeatures(nn.Module):
    """A timm model up to its last feature map, [B,3,H,W] -> [B,C,h,w], and its head behind the average.

    Images of other sides than `patch` (px) divides are cut to the largest that it does, alike on both ends;
    those of the model's own size as the model does. Raises ValueError for a size that it cannot take.
    """

    def __init__(self, name: str, net: nn.Module, stride: int, patch: int):
        super().__init__()
        self.name, self.net, self.stride, self.patch = name, net, stride, patch
        self.own_size = tuple(net.pretrained_cfg["input_size"][-2:])
        self.is_fixed = False

    def features_of(self, images: Tensor) -> Tensor:
        """Maps or tokens of images of any size; ValueError for one that the model does not take."""
        if self.is_fixed or self.patch > 1:  # else the shape is not looked at, so that fx can trace this
            images = self.sized(images)
        try:
            return self.last_features(images)
        except (AssertionError, RuntimeError) as error:  # so some models refuse a size
            reason = " ".join(str(error).split())
            of_size = isinstance(error, AssertionError) or re.search("size|shape", reason)
            if images.shape[-2:] == self.own_size or not of_size or isinstance(error, torch.OutOfMemoryError):
                raise
            got, own = px(images.shape[-2:]), px(self.own_size)
            raise ValueError(
                f"{self.name} does not take images of {got}; its own are of {own} ({shortened(reason, 100)})"
            ) from None

    def last_features(self, images: Tensor) -> Tensor:
        """Maps or tokens of images of a size that the model takes."""
        return self.net.forward_features(images)

    def sized(self, images: Tensor) -> Tensor:
        """The part of the images that the model takes, [B,3,H,W] -> [B,3,h,w]."""
        is_own = images.shape[-2:] == self.own_size
        if not self.is_fixed:  # of its own size, a model leaves out the right and the bottom
            return cut(self.name, images, self.patch, middle=not is_own)
        if not is_own:
            raise ValueError(
                f"{self.name} takes images of {px(self.own_size)} only, got {px(images.shape[-2:])}: "
                f"set size to {max(self.own_size)} and crop to square"
            )
        return images

    def neck(self, pooled: Tensor) -> Tensor:
        """What the head has between the average and the classifier, [B,C] -> [B,D]."""
        return self.net.forward_head(self.as_input(pooled)).flatten(1)


def px(size: Sequence[int]) -> str:
    """Height and width as text."""
    return f"{size[0]} x {size[1]} px"


def cut(name: str, images: Tensor, patch: int, *, middle: bool) -> Tensor:
    """The middle, or the top left, of images [B,3,H,W], with the largest sides that the patch (px) divides.

    Raises ValueError for images smaller than a patch.
    """
    height, width = (side // patch * patch for side in images.shape[-2:])
    if not height or not width:
        least, got = px((patch, patch)), px(images.shape[-2:])
        raise ValueError(f"{name} takes images of at least {least}, got {got}")
    top = (images.shape[-2] - height) // 2 if middle else 0
    left = (images.shape[-1] - width) // 2 if middle else 0
    return images[..., top : top + height, left : left + width]


class TimmMaps(TimmFeatures):
    """A timm model that gives feature maps."""

    readable = ("patches",)

    def __init__(self, name: str, net: nn.Module, stride: int):
        super().__init__(name, net, stride, patch=net.patch_embed.patch_size[0] if is_flexible(net) else 1)
        self.channels_last = is_channels_last(net)
        self.before = without_layers(net, BEFORE_POOLING)
        self.reads = "patches"

    def forward(self, images: Tensor) -> Tensor:
        maps = self.features_of(images)
        return self.before(maps.permute(0, 3, 1, 2) if self.channels_last else maps)

    def choose(self, tokens: str) -> None:
        """Raise ValueError unless `tokens` is `patches`."""
        if tokens != "patches":
            raise ValueError(f"tokens: {self.name} has no class token")

    def as_input(self, pooled: Tensor) -> Tensor:
        """Pooled features [B,C] as maps of one position, as the head takes them."""
        return pooled[:, None, None] if self.channels_last else pooled[:, :, None, None]

    def example(self, channels: int) -> Tensor:
        """Random input of the head."""
        shape = (4, 3, 5, channels) if self.channels_last else (4, channels, 3, 5)
        return torch.randn(shape, generator=torch.Generator().manual_seed(1))

    def summary(self, example: Tensor) -> Tensor:
        """The average of an input of the head, [B,C]."""
        return example.mean(dim=(1, 2) if self.channels_last else (2, 3))


class TimmTokens(TimmFeatures):
    """A timm model that gives tokens: `prefix` others, such as a class token, then those of the patches."""

    readable = ("patches", "class")

    def __init__(self, name: str, net: nn.Module, stride: int, prefix: int):
        super().__init__(name, net, stride, patch=stride)
        self.prefix = prefix
        self.has_class = prefix > 0 and isinstance(getattr(net, "cls_token", None), Tensor)
        self.tokens = self.reads = "patches"

    def forward(self, images: Tensor) -> Tensor:
        grid = [side // self.stride for side in images.shape[-2:]]
        tokens = self.features_of(images).transpose(1, 2)  # [B,N,C] -> [B,C,N]
        of_class = tokens[:, :, 0, None, None]  # [B,C,1,1]
        if self.tokens == "class":
            return of_class
        patches = tokens[:, :, self.prefix :].unflatten(2, grid)  # [B,C,h,w]
        if self.tokens == "patches":
            return patches
        # A map that is the same everywhere: any pooling leaves the class token as it is.
        return torch.cat([of_class.expand_as(patches), patches], dim=1)  # [B,2C,h,w]

    def choose(self, tokens: str) -> None:
        """Choose the tokens that are the map, one of TOKENS; ValueError where there is no class token."""
        if tokens != "patches" and not self.has_class:
            raise ValueError(f"tokens: {self.name} has no class token")
        self.tokens = tokens

    def neck(self, pooled: Tensor) -> Tensor:
        if self.tokens != "both":
            return super().neck(pooled)
        halves = pooled.unflatten(1, (2, -1)).flatten(0, 1)  # [B,2C] -> [2B,C]
        return super().neck(halves).unflatten(0, (-1, 2)).flatten(1)  # [2B,D] -> [B,2D]

    def as_input(self, pooled: Tensor) -> Tensor:
        """Pooled features [B,C] where the head reads: as the class token, or as the only patch."""
        others = pooled.new_zeros(len(pooled), self.prefix, pooled.shape[1])
        tokens = [pooled[:, None], others]
        return torch.cat(tokens if self.reads == "class" else tokens[::-1], dim=1)

    def example(self, channels: int) -> Tensor:
        """Random input of the head."""
        shape = 4, self.prefix + 6, channels
        return torch.randn(shape, generator=torch.Generator().manual_seed(1))

    def summary(self, example: Tensor) -> Tensor:
        """What the head reads of its input: the class token, or the average of the patches, [B,C]."""
        return example[:, 0] if self.reads == "class" else example[:, self.prefix :].mean(1)


def is_channels_last(net: nn.Module) -> bool:
    """Whether a model gives maps [B,h,w,C]."""
    return getattr(net, "output_fmt", "NCHW") == "NHWC"


def stride_of(images: Tensor, cells: int) -> int:
    """The stride (px) of a map with so many rows."""
    return max(1, round(images.shape[-2] / cells))


def without_layers(net: nn.Module, paths: tuple[str, ...]) -> nn.Module:
    """Take the first of the layers there is out of a network; return it, else one that does nothing."""
    there = dict(net.named_modules())
    found = next((path for path in paths if path in there), None)
    if found is None:
        return nn.Identity()
    net.set_submodule(found, nn.Identity())
    return there[found]


# --- The head


@dataclass(frozen=True)
class Head:
    """What a model's head reads, and what it makes of it.

    width: channels of the embedding, the input of the classifier
    has_neck: whether there is a norm or a hidden layer between average and classifier
    reads: `patches` (their average), `class` (the class token), or empty if it does not fit behind GeM
    classifier: weight [K,width] and bias [K]; None without one
    """

    width: int
    has_neck: bool = False
    reads: str = ""
    classifier: tuple[Tensor, Tensor] | None = None
    is_there: bool = True

    def classifier_for(self, tokens: str) -> tuple[tuple[Tensor, Tensor] | None, str]:
        """The classifier of a map of these tokens; else None, and the reason."""
        if self.classifier is None:
            more = "it does more than average and classify"
            return None, more if self.is_there else "the weights have none"
        if self.reads != tokens:
            read = "class token" if self.reads == "class" else "patches"
            return None, f"it reads the {read}: tokens={self.reads} has it"
        return self.classifier, ""


@torch.no_grad()
def split_head(features: TimmMaps | TimmTokens, channels: int) -> Head:
    """Split the head of a model in eval mode, and take its classifier out of the network.

    A head is taken if it makes the same of a random map as of the map's average, which it does only if
    averaging is its first step. Another head is removed.
    """
    net, is_there = features.net, features.net.num_classes > 0
    example, layers = features.example(channels), linear_layers(net)
    starts_at_zero = not net.forward_head(example).any()
    if starts_at_zero:
        for layer in layers:
            nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(2))
    found = whole_head(features, example) or head_with_neck(features, example, layers)
    if not found or not found.has_neck:
        remove_head(net)
    if not found:
        return Head(channels, is_there=is_there)
    if found.classifier and starts_at_zero:
        return replace(found, classifier=tuple(map(torch.zeros_like, found.classifier)))
    return found


def remove_head(net: nn.Module) -> None:
    """Remove what is left of a model's head."""
    try:
        net.reset_classifier(0, "")
    except AssertionError:  # the model must keep a pooling
        net.reset_classifier(0)


def whole_head(features: TimmMaps | TimmTokens, example: Tensor) -> Head | None:
    """The head of a model if it is linear behind the average, such as the mean of two classifiers.

    None for a head of one linear layer, whose weights are there as they are, and for others.
    """
    net = features.net
    if isinstance(net.get_classifier(), (*LINEAR, nn.Identity)):
        return None
    scores = net.forward_head(example).flatten(1)
    for average in averages(features, example):
        bias, *rows = features.neck(torch.cat([torch.zeros_like(average[:1]), torch.eye(average.shape[1])]))
        weight = (torch.stack(rows) - bias).T.contiguous()
        if is_close(nn.functional.linear(average, weight, bias), scores):
            return Head(average.shape[1], reads=features.reads, classifier=(weight, bias))
    return None


def head_with_neck(features: TimmMaps | TimmTokens, example: Tensor, layers: list[nn.Module]) -> Head | None:
    """The head of a model: what is between average and last linear layer, which is taken out of the network.

    None if averaging is not its first step, or the last of its linear `layers` not its last step.
    """
    net = features.net
    scores = net.forward_head(example).flatten(1)
    weights = take_out(net, layers[-1]) if layers else None
    try:
        embedding = net.forward_head(example).flatten(1)
    except (RuntimeError, IndexError):  # it adds up several classifiers
        return None
    if weights and not is_close(nn.functional.linear(embedding, *weights), scores):
        return None
    for average in averages(features, example):
        behind = features.neck(average)
        if is_close(behind, embedding):
            has_neck = not torch.equal(behind, average)
            return Head(embedding.shape[1], has_neck, features.reads, weights, is_there=bool(layers))
    return None


def averages(features: TimmMaps | TimmTokens, example: Tensor) -> Iterator[Tensor]:
    """What the head may read of its input [B,C]; the features then give it pooled features in that place."""
    for reads in features.readable:
        features.reads = reads
        yield features.summary(example)


def linear_layers(net: nn.Module) -> list[nn.Module]:
    """The linear layers of a model's classifier, or of several."""
    found = net.get_classifier()
    parts = found if isinstance(found, tuple) else (found,)
    return [layer for part in parts for layer in part.modules() if isinstance(layer, LINEAR)]


def take_out(net: nn.Module, last: nn.Module) -> tuple[Tensor, Tensor]:
    """Take a linear layer out of a model; return its weight [K,C] and bias [K]."""
    net.set_submodule(next(path for path, layer in net.named_modules() if layer is last), nn.Identity())
    weight = last.weight.detach().flatten(1).clone()  # of a 1 x 1 convolution [K,C,1,1], too
    return weight, weight.new_zeros(len(weight)) if last.bias is None else last.bias.detach().clone()


def is_close(found: Tensor, expected: Tensor) -> bool:
    """Whether they are of one shape, and equal up to rounding."""
    same = found.shape == expected.shape
    return same and bool((found - expected).norm() <= MOST_DIFFERENT * expected.norm())
