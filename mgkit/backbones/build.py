"""Backbones by name: a network up to its last feature map, randomly initialised or with its published ImageNet weights."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models import resnet

# Imported where used, since most runs do without: timm (takes seconds), the NASNets, and published weights.

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

RESNETS = {  # name: (block, blocks a stage, published weights)
    # Not in the paper, but right for small images on two cores: without the fourth stage maps stay large and steps cheap.
    "resnet8": (resnet.BasicBlock, (1, 1, 1, 0), None),
    "resnet18": (resnet.BasicBlock, (2, 2, 2, 2), resnet.ResNet18_Weights.IMAGENET1K_V1),
    "resnet50": (resnet.Bottleneck, (3, 4, 6, 3), resnet.ResNet50_Weights.IMAGENET1K_V1),
    "resnet101": (resnet.Bottleneck, (3, 4, 23, 3), resnet.ResNet101_Weights.IMAGENET1K_V1),
    "resnet152": (resnet.Bottleneck, (3, 8, 36, 3), resnet.ResNet152_Weights.IMAGENET1K_V1),
}
NASNET_URL = "http://data.lip6.fr/cadene/pretrainedmodels/nasnetamobile-7e03cead.pth"
TIMM = "timm/"  # before a name: any model of timm that has feature maps


@dataclass(frozen=True)
class Backbone:
    """A network [B,3,H,W] -> [B,width,h,w], and how its input is normalised.

    dropout: share of the embedding that training hides from the classifier. twin: the submodule of features that holds the
    classifier as well, as `last_linear`, in the released files; empty where none does. classifier: the published
    one for ImageNet, weight [1000,width] and bias [1000], where it reads the pooled features.
    """

    name: str
    features: nn.Module
    width: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    dropout: float = 0.0
    twin: str = ""
    classifier: tuple[Tensor, Tensor] | None = None


def backbone_names() -> list[str]:
    """The names that `build_backbone` knows, without those of timm."""
    return list(BUILDERS)


def check_backbone(name: str) -> str:
    """The name itself, or a ValueError that lists the known ones."""
    if name.startswith(TIMM):
        return check_timm(name)
    if name not in BUILDERS:
        known = ", ".join(backbone_names())
        raise ValueError(f"backbone {name!r} is unknown; one of {known}, or {TIMM}<name> for a model of timm")
    return name


def check_timm(name: str) -> str:
    """The name itself, or a ValueError if timm has no such model, or not with that tag."""
    import timm

    model = name.removeprefix(TIMM)
    try:
        timm.get_pretrained_cfg(model, allow_unregistered=False)
    except RuntimeError:
        family = model.split("_")[0].split(".")[0]
        raise ValueError(
            f"backbone {name!r} is unknown: timm {timm.__version__} has no {model!r} (see timm.list_models('*{family}*'))"
        ) from None
    return name


def build_backbone(name: str, pretrained: bool = False) -> Backbone:
    """The backbone of that name, randomly initialised, or with the weights published for ImageNet and their classifier.

    Raises ValueError for an unknown name, one without published weights, or a model without feature maps; OSError, saying how
    to proceed, where weights are not here and cannot be fetched.
    """
    check_backbone(name)
    if name.startswith(TIMM):
        return build_timm(name, pretrained)
    return BUILDERS[name](name, pretrained)


def build_resnet(name: str, pretrained: bool) -> Backbone:
    """A ResNet of torchvision, with its first published weights, the paper's off-the-shelf ones."""
    block, blocks, weights = RESNETS[name]
    net = resnet.ResNet(block, [max(1, count) for count in blocks])
    left_out = [f"layer{i}" for i, count in enumerate(blocks, 1) if count == 0]
    width = net.fc.in_features // 2 ** len(left_out)  # a stage doubles the channels
    classifier = None
    if pretrained:
        if weights is None:
            raise ValueError(f"{name} has no published weights: leave pretrained off, or take resnet18")
        from mgkit.backbones.published import published_state

        net.load_state_dict(published_state(weights.url, net))
        classifier = of_imagenet(net.fc)
    # The children keep their names, so that state dicts read features.conv1.weight, as the released files do.
    return Backbone(name, without(net, "avgpool", "fc", *left_out), width, classifier=classifier)


def build_senet154(name: str, pretrained: bool) -> Backbone:
    """SENet154 (Hu et al. 2018) from timm, whose port keeps the names of the released files."""
    net = timm_model("legacy_senet154", pretrained)
    linear = net.last_linear
    return Backbone(
        name, without(net, "global_pool", "last_linear"), linear.in_features, dropout=0.2,
        classifier=of_imagenet(linear) if pretrained else None,
    )  # fmt: skip


def build_nasnet(name: str, pretrained: bool) -> Backbone:
    """NASNet-A-Mobile, with the weights of the 2018 port."""
    from mgkit.backbones.nasnet import nasnet_a_mobile
    from mgkit.backbones.published import published_state

    net = nasnet_a_mobile()
    classifier = load_cells(net, published_state(NASNET_URL, net)) if pretrained else None
    return with_relu(name, net, classifier)


def build_pnasnet(name: str, pretrained: bool) -> Backbone:
    """PNASNet-5-Large, with timm's copy of the weights of the 2018 port."""
    from mgkit.backbones.nasnet import pnasnet5_large

    net = pnasnet5_large()
    classifier = load_cells(net, timm_model("pnasnet5large", True).state_dict()) if pretrained else None
    return with_relu(name, net, classifier)


def with_relu(name: str, net: nn.Module, classifier: tuple[Tensor, Tensor] | None) -> Backbone:
    """A NASNet, its last ReLU behind it, under the names of the released files."""
    features = nn.Sequential(nn.Sequential(OrderedDict(base_net=net)), nn.ReLU())
    half = (0.5, 0.5, 0.5)
    return Backbone(
        name, features, net.width, mean=half, std=half, dropout=0.5, twin="0.base_net", classifier=classifier
    )


def load_cells(net: nn.Module, state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Load the state of a 2018 port, or of timm's, which has its names; returns its classifier, without the background."""
    cells = {key: value for key, value in state.items() if not key.startswith("last_linear.")}
    net.load_state_dict(cells)
    weight, bias = state["last_linear.weight"], state["last_linear.bias"]
    background = len(bias) - 1000  # 1 in the files that have 1001 classes, where it comes first
    return weight[background:].clone(), bias[background:].clone()


def build_timm(name: str, pretrained: bool) -> Backbone:
    """A model of timm up to its last feature map."""
    net = timm_model(name.removeprefix(TIMM), pretrained)
    config = net.pretrained_cfg
    features = TimmFeatures(name, net)
    net.eval()
    with torch.no_grad():
        maps = features(torch.zeros(1, *config["input_size"]))
    if not isinstance(maps, Tensor) or maps.ndim != 4:
        raise ValueError(
            f"backbone {name!r} has no feature maps [B,C,h,w] but tokens: choose a convolutional network"
        )
    classifier = timm_classifier(net, features) if pretrained else None
    net.reset_classifier(0, "")
    net.train()
    return Backbone(
        name, features, maps.shape[1], tuple(config["mean"]), tuple(config["std"]), classifier=classifier
    )


class TimmFeatures(nn.Module):
    """Images [B,3,H,W] -> the last feature map of a timm model, [B,C,h,w]. ValueError for a size that it cannot take."""

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
    """The model's classifier, if all that its head does is to average the maps and apply it."""
    linear = net.get_classifier()
    if not isinstance(linear, nn.Linear) or linear.out_features != 1000:
        return None
    images = torch.randn(1, *net.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(0))
    pooled = features(images).mean(dim=(-2, -1))  # [1,C]
    alone = pooled.shape[1] == linear.in_features and torch.allclose(
        linear(pooled), net(images), rtol=1e-3, atol=1e-4
    )
    return of_imagenet(linear) if alone else None


def timm_model(model: str, pretrained: bool) -> nn.Module:
    """timm's model, with its classifier. OSError where its weights cannot be fetched."""
    import timm

    if not pretrained:
        return timm.create_model(model)
    try:
        return timm.create_model(model, pretrained=True)
    except Exception as error:  # the hub's client has its own kinds, and changes them
        reason = str(error).strip().split("\n")[0]
        raise OSError(
            f"timm's weights of {model} could not be fetched ({reason}): build it pretrained once where there is a network "
            "and copy its caches (~/.cache/huggingface, ~/.cache/torch) here"
        ) from None


def without(net: nn.Module, *children: str) -> nn.Sequential:
    """The network's other children in a row, under their names."""
    kept = {name: module for name, module in net.named_children() if name not in children}
    return nn.Sequential(OrderedDict(kept))


def of_imagenet(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """A classifier's weight and bias, apart from its network."""
    return linear.weight.detach().clone(), linear.bias.detach().clone()


BUILDERS: dict[str, Callable[[str, bool], Backbone]] = {
    **dict.fromkeys(RESNETS, build_resnet),
    "senet154": build_senet154,
    "nasnetamobile": build_nasnet,
    "pnasnet5large": build_pnasnet,
}
