"""Backbones by name, up to their last feature map, with random or published ImageNet weights."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn
from torchvision.models import resnet

from mgkit.backbones.backbone import TOKENS, Backbone, copied_weights
from mgkit.backbones.imagenet import imagenet_names
from mgkit.backbones.own_weights import OwnWeights, load_plain, load_timm, read_weights
from mgkit.backbones.timm_models import TIMM, TimmMaps, build_timm, check_timm, timm_model
from mgkit.machine.printable import printable_errors
from mgkit.machine.records import shown

# Imported where used: timm (takes seconds), the NASNets and published weights.

RESNETS = {  # name: (block, blocks per stage, published weights)
    # Not in the paper: for small images on CPUs. Without a fourth stage, maps are larger and steps cheaper.
    "resnet8": (resnet.BasicBlock, (1, 1, 1, 0), None),
    "resnet18": (resnet.BasicBlock, (2, 2, 2, 2), resnet.ResNet18_Weights.IMAGENET1K_V1),
    "resnet50": (resnet.Bottleneck, (3, 4, 6, 3), resnet.ResNet50_Weights.IMAGENET1K_V1),
    "resnet101": (resnet.Bottleneck, (3, 4, 23, 3), resnet.ResNet101_Weights.IMAGENET1K_V1),
    "resnet152": (resnet.Bottleneck, (3, 8, 36, 3), resnet.ResNet152_Weights.IMAGENET1K_V1),
}
NASNET_URL = "http://data.lip6.fr/cadene/pretrainedmodels/nasnetamobile-7e03cead.pth"


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


@printable_errors()
def build_backbone(
    name: str, pretrained: bool = False, tokens: str = "patches", weights: str | Path = ""
) -> Backbone:
    """Build a backbone with random weights, with published ones, or with those of a file.

    name: one of `backbone_names()`, or timm/<model>
    pretrained: whether to load published weights
    tokens: which tokens of a transformer are its feature map: `patches`, `class`, or `both`
    weights: a file of one's own, see `mgkit.backbones.own_weights`

    Weights come with their classifier, if they have one. Raises ValueError for an unknown name, a network
    without published weights, without feature maps or without the tokens, and a wrong file; OSError for
    weights that cannot be fetched or are not installed, and for a missing file.
    """
    check_backbone(name)
    if tokens not in TOKENS:
        raise ValueError(f"tokens: one of {', '.join(TOKENS)} is wanted, got {shown(tokens)}")
    if weights and pretrained:
        raise ValueError("weights and pretrained_backbone both give the weights: choose one")
    own = read_weights(weights) if weights else None
    if name.startswith(TIMM):
        backbone = build_timm(name, pretrained, tokens, own)
    elif tokens == "patches":
        backbone = BUILDERS[name](name, pretrained, own)
    else:
        raise ValueError(f"tokens: {name} has no class token")
    if own and backbone.classifier is None:
        return replace(backbone, unclassified=backbone.unclassified or "the weights have none")
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
    return Backbone(name, features, width, stride=32 // 2 ** len(left_out), classifier=classifier)


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


def build_lite0(name: str, pretrained: bool, own: OwnWeights | None) -> Backbone:
    """Build EfficientNet-Lite0 of timm, with weights of TensorFlow's from an installed package."""
    from mgkit.backbones.published import LITE0, packaged_state

    net = timm_model("tf_efficientnet_lite0", False)
    if pretrained:
        net.load_state_dict(packaged_state(LITE0, net))
    has_classifier = load_timm(net, own, name).classes > 0 if own else pretrained
    linear = net.get_classifier()
    net.reset_classifier(0, "")
    # Mean and std 0.5 by measurement: top-1 of 1,000 photographs of ImageNet, 224 px, square, is 86.2 %; with
    # ImageNet's mean and std 76.5 % (-9.7 ± 2.3, paired), with 127/255 and 128/255, as in TensorFlow, 86.3 %.
    # Undecided: bicubic instead of bilinear, +0.8 ± 1.0; without antialiasing, +0.7 ± 0.7, both +1.0 ± 1.1.
    half = (0.5, 0.5, 0.5)
    return Backbone(
        name, TimmMaps(name, net, stride=32), linear.in_features, mean=half, std=half,
        classifier=copied_weights(linear) if has_classifier else None,
    )  # fmt: skip


def without_children(net: nn.Module, *children: str) -> nn.Sequential:
    """Return the network's other children as a sequence, under their names."""
    kept = {name: module for name, module in net.named_children() if name not in children}
    return nn.Sequential(OrderedDict(kept))


BUILDERS: dict[str, Callable[[str, bool, OwnWeights | None], Backbone]] = {
    **dict.fromkeys(RESNETS, build_resnet),
    "senet154": build_senet154,
    "nasnetamobile": build_nasnet,
    "pnasnet5large": build_pnasnet,
    "efficientnet_lite0": build_lite0,
}
