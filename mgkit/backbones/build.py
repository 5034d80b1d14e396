"""Backbones by name, up to their last feature map, with random or published ImageNet weights."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import resnet

from mgkit.backbones.imagenet import imagenet_names
from mgkit.backbones.own_weights import OwnWeights, load_plain, load_timm, read_weights
from mgkit.backbones.timm_sources import check_source, is_elsewhere, model_elsewhere, weights_file
from mgkit.machine.printable import printable_errors, say_once, shortened
from mgkit.machine.records import shown
from mgkit.pooling import gem

# Imported where used: timm (takes seconds), the NASNets and published weights.

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

RESNETS = {  # name: (block, blocks per stage, published weights)
    # Not in the paper: for small images on CPUs. Without a fourth stage, maps are larger and steps cheaper.
    "resnet8": (resnet.BasicBlock, (1, 1, 1, 0), None),
    "resnet18": (resnet.BasicBlock, (2, 2, 2, 2), resnet.ResNet18_Weights.IMAGENET1K_V1),
    "resnet50": (resnet.Bottleneck, (3, 4, 6, 3), resnet.ResNet50_Weights.IMAGENET1K_V1),
    "resnet101": (resnet.Bottleneck, (3, 4, 23, 3), resnet.ResNet101_Weights.IMAGENET1K_V1),
    "resnet152": (resnet.Bottleneck, (3, 8, 36, 3), resnet.ResNet152_Weights.IMAGENET1K_V1),
}
NASNET_URL = "http://data.lip6.fr/cadene/pretrainedmodels/nasnetamobile-7e03cead.pth"
TIMM = "timm/"  # prefix of the names of timm's models


@dataclass(frozen=True)
class Backbone:
    """A network [B,3,H,W] -> [B,width,h,w] and the normalisation of its input.

    name, features: of the backbone, and the network
    width: number of channels of the feature map
    mean, std: of each input channel
    dropout: probability of dropout before the classifier
    twin: path of the submodule that also holds the classifier in the released files, or empty
    classifier: that of the weights, of the pooled features (weight [K,width], bias [K])
    classes: WordNet ids of the classifier's classes; empty without one for ImageNet's
    """

    name: str
    features: nn.Module
    width: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    dropout: float = 0.0
    twin: str = ""
    classifier: tuple[Tensor, Tensor] | None = None
    classes: tuple[str, ...] = ()


def backbone_names() -> list[str]:
    """Return the names that `build_backbone` accepts, without timm's."""
    return list(BUILDERS)


def check_backbone(name: str) -> str:
    """Return the name; raise ValueError with the known names for another."""
    if name.startswith(TIMM):
        return check_timm(name)
    if name not in BUILDERS:
        known = ", ".join(BUILDERS)
        raise ValueError(
            f"backbone {shown(name)} is unknown; one of {known}, or {TIMM}<name> for a model of timm"
        )
    return name


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


@printable_errors()
def build_backbone(name: str, pretrained: bool = False, weights: str | Path = "") -> Backbone:
    """Build a backbone with random weights, with published ImageNet weights, or with those of a file.

    name: one of `backbone_names()`, or timm/<model>
    pretrained: whether to load published weights
    weights: a file of one's own, see `mgkit.backbones.own_weights`

    Published weights come with their classifier, a file with the one that it holds, if it does. Raises
    ValueError for an unknown name, a network without published weights or without feature maps, and a wrong
    file; OSError for weights that cannot be fetched or are not installed, and for a missing file.
    """
    check_backbone(name)
    if weights and pretrained:
        raise ValueError("weights and pretrained both give the weights: choose one")
    own = read_weights(weights) if weights else None
    backbone = (build_timm if name.startswith(TIMM) else BUILDERS[name])(name, pretrained, own)
    of_imagenet = backbone.classifier is not None and len(backbone.classifier[1]) == 1000
    return replace(backbone, classes=tuple(imagenet_names())) if of_imagenet else backbone


def build_resnet(name: str, pretrained: bool, own: OwnWeights | None) -> Backbone:
    """Build a ResNet of torchvision; published weights are the first version, as in the paper."""
    block, blocks, weights = RESNETS[name]
    net = resnet.ResNet(block, [max(1, count) for count in blocks])
    left_out = [f"layer{i}" for i, count in enumerate(blocks, 1) if count == 0]
    width = net.fc.in_features // 2 ** len(left_out)  # a stage doubles the channels
    # Children keep their names, so that state dicts match the released files (features.conv1.weight).
    features = without_children(net, "avgpool", "fc", *left_out)
    classifier = load_plain(features, own, name, classifier="fc", width=width) if own else None
    if pretrained:
        if weights is None:
            raise ValueError(f"{name} has no published weights: set pretrained=False or use resnet18")
        from mgkit.backbones.published import published_state

        net.load_state_dict(published_state(weights.url, net))
        classifier = copied_weights(net.fc)
    return Backbone(name, features, width, classifier=classifier)


def build_senet154(name: str, pretrained: bool, own: OwnWeights | None) -> Backbone:
    """Build SENet154 (Hu et al. 2018) of timm, whose port has the parameter names of the released files."""
    net = timm_model("legacy_senet154", pretrained)
    linear = net.last_linear
    features, width = without_children(net, "global_pool", "last_linear"), linear.in_features
    classifier = copied_weights(linear) if pretrained else None
    if own:
        classifier = load_plain(features, own, name, classifier="last_linear", width=width)
    return Backbone(name, features, width, dropout=0.2, classifier=classifier)


def build_nasnet(name: str, pretrained: bool, own: OwnWeights | None) -> Backbone:
    """Build NASNet-A-Mobile, with weights of the 2018 port."""
    from mgkit.backbones.nasnet import nasnet_a_mobile
    from mgkit.backbones.published import published_state

    net = nasnet_a_mobile()
    classifier = load_cells(net, published_state(NASNET_URL, net)) if pretrained else None
    return with_relu(name, net, load_nasnet(net, own, name) if own else classifier)


def build_pnasnet(name: str, pretrained: bool, own: OwnWeights | None) -> Backbone:
    """Build PNASNet-5-Large, with timm's copy of the weights of the 2018 port."""
    from mgkit.backbones.nasnet import pnasnet5_large

    net = pnasnet5_large()
    classifier = load_cells(net, timm_model("pnasnet5large", True).state_dict()) if pretrained else None
    return with_relu(name, net, load_nasnet(net, own, name) if own else classifier)


def load_nasnet(net: nn.Module, own: OwnWeights, name: str) -> tuple[Tensor, Tensor] | None:
    """Load a NASNet's own weights; return the file's classifier, if there is one."""
    return load_plain(net, own, name, classifier="last_linear", width=net.width)


def with_relu(name: str, net: nn.Module, classifier: tuple[Tensor, Tensor] | None) -> Backbone:
    """Append the last ReLU to a NASNet, with the parameter names of the released files."""
    features = nn.Sequential(nn.Sequential(OrderedDict(base_net=net)), nn.ReLU())
    half = (0.5, 0.5, 0.5)
    return Backbone(
        name, features, net.width, mean=half, std=half, dropout=0.5, twin="0.base_net", classifier=classifier
    )


def load_cells(net: nn.Module, state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Load the state of a 2018 port (timm uses its names); return its classifier, no background class."""
    cells = {key: value for key, value in state.items() if not key.startswith("last_linear.")}
    net.load_state_dict(cells)
    weight, bias = state["last_linear.weight"], state["last_linear.bias"]
    background = len(bias) - 1000  # 1 in files with 1001 classes, where it is the first
    return weight[background:].clone(), bias[background:].clone()


def build_timm(name: str, pretrained: bool, own: OwnWeights | None) -> Backbone:
    """Build a model of timm up to its last feature map."""
    model = name.removeprefix(TIMM)
    if pretrained and is_elsewhere(model):
        own, pretrained = read_weights(weights_file(model)), False
    net = timm_model(model, pretrained)
    has_classifier = load_timm(net, own, name) if own else pretrained
    return timm_backbone(name, net, has_classifier, own=bool(own))


def build_lite0(name: str, pretrained: bool, own: OwnWeights | None) -> Backbone:
    """Build EfficientNet-Lite0 of timm, with weights of TensorFlow's from an installed package."""
    from mgkit.backbones.published import LITE0, packaged_state

    net = timm_model("tf_efficientnet_lite0", False)
    if pretrained:
        net.load_state_dict(packaged_state(LITE0, net))
    has_classifier = load_timm(net, own, name) if own else pretrained
    # Mean and std 0.5 by measurement: top-1 of 1,000 photographs of ImageNet, 224 px, square, is 86.2 %; with
    # ImageNet's mean and std 76.5 % (-9.7 ± 2.3, paired), with 127/255 and 128/255, as in TensorFlow, 86.3 %.
    # Undecided: bicubic instead of bilinear, +0.8 ± 1.0; without antialiasing, +0.7 ± 0.7, both +1.0 ± 1.1.
    half = (0.5, 0.5, 0.5)
    return replace(timm_backbone(name, net, has_classifier, own=bool(own)), mean=half, std=half)


def timm_backbone(name: str, net: nn.Module, pretrained: bool, *, own: bool = False) -> Backbone:
    """Return a model of timm up to its last feature map, and its classifier if it is pretrained.

    own: whether the classifier may have any number of classes, not ImageNet's alone
    """
    config = net.pretrained_cfg
    features = TimmFeatures(name, net)
    net.eval()
    with torch.no_grad():
        maps = features(noise(net))
    if not isinstance(maps, Tensor) or maps.ndim != 4:
        raise ValueError(f"backbone {name!r} gives tokens, not maps [B,C,h,w]: choose a convolutional one")
    if pretrained and (maps < 0).any():
        say_once(f"{name}: its feature maps have negative values; GeM pools a channel above its least value")
    wanted = pretrained and (own or net.num_classes == 1000)
    classifier = timm_classifier(net, features) if wanted else None
    net.reset_classifier(0, "")
    net.train()
    mean, std = tuple(config["mean"]), tuple(config["std"])
    return Backbone(name, features, maps.shape[1], mean, std, classifier=classifier)


class TimmFeatures(nn.Module):
    """A timm model up to its last feature map, [B,3,H,W] -> [B,C,h,w]; ValueError for a wrong image size."""

    def __init__(self, name: str, net: nn.Module):
        super().__init__()
        self.name, self.net = name, net
        config = net.pretrained_cfg
        self.only_size = config["input_size"][-2:] if config.get("fixed_input_size") else None
        self.channels_last = getattr(net, "output_fmt", "NCHW") == "NHWC"

    def forward(self, images: Tensor) -> Tensor:
        if self.only_size and images.shape[-2:] != self.only_size:
            only, got = (" x ".join(map(str, size)) for size in (self.only_size, images.shape[-2:]))
            raise ValueError(f"{self.name} takes images of {only} px only, got {got}")
        maps = self.net.forward_features(images)
        return maps.permute(0, 3, 1, 2) if self.channels_last and maps.ndim == 4 else maps


@torch.no_grad()
def timm_classifier(net: nn.Module, features: TimmFeatures) -> tuple[Tensor, Tensor] | None:
    """Return the classifier if behind GeM with p = 1 it gives the model's own logits, else None.

    It does not where the model's head does more than average, such as a norm or a hidden layer.
    """
    linear = net.get_classifier()
    if not isinstance(linear, nn.Linear):
        return None
    images = noise(net)
    maps = features(images)
    scale = maps.abs().amax()  # random weights may give maps near GeM's floor
    pooled = gem(maps / scale, 1.0) * scale  # [1,C]
    if pooled.shape[1] != linear.in_features:
        return None
    ours, theirs = linear(pooled), net(images)
    return copied_weights(linear) if (ours - theirs).norm() <= 1e-4 * theirs.norm() else None


def noise(net: nn.Module) -> Tensor:
    """One random image of a timm model's native size, [1,3,H,W]."""
    return torch.randn(1, *net.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(0))


def timm_model(model: str, pretrained: bool) -> nn.Module:
    """Create a timm model with its classifier; raise OSError if its weights cannot be fetched."""
    import timm

    if is_elsewhere(model):
        return model_elsewhere(model)
    if not pretrained:
        return timm.create_model(model)
    try:
        return timm.create_model(model, pretrained=True)
    except Exception as error:  # the hub's client raises its own types
        reason = str(error).strip().split("\n")[0]
        raise OSError(
            f"timm's weights of {model} could not be fetched ({reason}): build it once where there is a "
            "network and copy its caches (~/.cache/huggingface, ~/.cache/torch) here"
        ) from None


def without_children(net: nn.Module, *children: str) -> nn.Sequential:
    """Return the network's other children as a sequence, under their names."""
    kept = {name: module for name, module in net.named_children() if name not in children}
    return nn.Sequential(OrderedDict(kept))


def copied_weights(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Return copies of a classifier's weight and bias."""
    return linear.weight.detach().clone(), linear.bias.detach().clone()


BUILDERS: dict[str, Callable[[str, bool, OwnWeights | None], Backbone]] = {
    **dict.fromkeys(RESNETS, build_resnet),
    "senet154": build_senet154,
    "nasnetamobile": build_nasnet,
    "pnasnet5large": build_pnasnet,
    "efficientnet_lite0": build_lite0,
}
