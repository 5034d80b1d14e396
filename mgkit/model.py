"""The MultiGrain network: backbone -> GeM -> (whitening) -> embedding and class scores."""

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mgkit.backbones.backbone import Backbone
from mgkit.backbones.build import TIMM, build_backbone
from mgkit.backbones.timm_sources import is_elsewhere
from mgkit.machine.printable import say_once, shortened
from mgkit.pooling import GeM, check_exponent, l2_normalize


class PCA(nn.Module):
    """Affine map (x - pca_m) pca_P of rows [N,D], with the parameter names of the released files."""

    def __init__(self, mean: Tensor, projection: Tensor):
        super().__init__()
        self.register_buffer("pca_m", mean)  # [D]
        self.register_buffer("pca_P", projection)  # [D,D]

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.pca_m) @ self.pca_P


class Whitening(nn.Module):
    """[e;1] -> L2 -> PCA: pooled features [B,C] -> descriptors [B,C+1] (section 3.6)."""

    def __init__(self, mean: Tensor, projection: Tensor):
        super().__init__()
        self.pca = PCA(mean, projection)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.pca(append_one(pooled))


def append_one(pooled: Tensor) -> Tensor:
    """Return l2([e;1]), [B,C] -> [B,C+1]; the last channel replaces the classifier's bias (section 3.6)."""
    return l2_normalize(torch.cat([pooled, torch.ones_like(pooled[:, :1])], dim=1))


class MultiGrain(nn.Module):
    """Network with one embedding for classes, instances and copies (figure 1).

    backbone: from `build_backbone`; its published classifier and classes are used if they are num_classes
    p: exponent of GeM
    num_classes: number of classes K
    learn_p: whether p requires a gradient

    Inputs are images [B,3,H,W], or a list of [3,h,w] of different sizes, normalised with `mean` and `std`.
    Attributes: name (of the backbone), tokens (that are its feature map), stride (of that, px), width
    (channels C of the embedding before whitening), classes (names of the classes, empty if unknown),
    unclassified (why the classifier is random beside published weights, else empty), source (file the network
    was loaded from, empty if none), source_sha256 (of that file, empty if unknown).
    """

    def __init__(self, backbone: Backbone, *, p: float = 3.0, num_classes: int = 1000, learn_p: bool = False):
        super().__init__()
        self.name, self.tokens, self.stride = backbone.name, backbone.tokens, backbone.stride
        self.width, self.mean, self.std = backbone.width, backbone.mean, backbone.std
        self.features = backbone.features
        self.twin = backbone.twin
        self.pool = GeM(p, learn_p=learn_p, signed=backbone.signed)
        self.neck = backbone.neck  # a method of `features`, with whose weights it is saved
        self.whitening: Whitening | None = None
        self.dropout = nn.Dropout(backbone.dropout)
        self.set_classifier(nn.Linear(backbone.width, num_classes))
        self.classes: tuple[str, ...] = ()
        self.unclassified = backbone.unclassified
        if backbone.classifier is not None:
            self.take_classifier(*backbone.classifier, backbone.classes)
        self.source = self.source_sha256 = ""

    def forward(self, images: Tensor | list[Tensor]) -> dict[str, Tensor]:
        """Return embedding [B,D], normalized_embedding [B,D] and classifier_output [B,K]."""
        return self.head(self.pooled(images))

    @property
    def has_class_token(self) -> bool:
        """Whether the backbone is a transformer with a class token."""
        return getattr(self.features, "has_class", False)

    @property
    def classifies(self) -> bool:
        """Whether the classifier is one, not random weights beside published ones."""
        return not self.unclassified

    def pooled(self, images: Tensor | list[Tensor]) -> Tensor:
        """Apply backbone and GeM, -> [B,C]; images of equal shape in a list share a forward pass."""
        if isinstance(images, Tensor):
            return self.pooled_maps(self.features(images))
        shapes: dict[torch.Size, list[int]] = {}
        for i, image in enumerate(images):
            shapes.setdefault(image.shape, []).append(i)
        batches = (torch.stack([images[i] for i in same]) for same in shapes.values())
        rows = [self.pooled_maps(self.features(batch)) for batch in batches]
        order = torch.tensor([i for same in shapes.values() for i in same], device=rows[0].device)
        return torch.cat(rows)[order.argsort()]

    def pooled_maps(self, maps: Tensor, p: float | None = None) -> Tensor:
        """Apply GeM, with exponent p or its own, and the published head's neck: [B,·,h,w] -> [B,C]."""
        pooled = self.pool(maps, p)
        return pooled if self.neck is None else self.neck(pooled)

    def head(self, pooled: Tensor) -> dict[str, Tensor]:
        """Return the outputs of `forward` for pooled features [B,C], in float32 also under autocast."""
        with torch.autocast(pooled.device.type, enabled=False):
            embedding = pooled if self.whitening is None else self.whitening(pooled)
            return {
                "embedding": embedding,
                "normalized_embedding": l2_normalize(embedding),
                "classifier_output": self.classifier(self.dropout(embedding)),
            }

    def set_classifier(self, classifier: nn.Linear) -> None:
        """Set the classifier; NASNets hold the same module a second time, as their released files do."""
        self.classifier = classifier
        if self.twin:
            self.features.get_submodule(self.twin).last_linear = classifier

    def take_classifier(self, weight: Tensor, bias: Tensor, classes: tuple[str, ...]) -> None:
        """Take a published classifier with its classes, if it has as many as the network."""
        count = self.classifier.out_features
        if len(bias) != count:
            self.unclassified = f"it has {len(bias)} classes, not {count}"
            return
        self.copy_to_classifier(weight, bias)
        self.classes = classes

    @torch.no_grad()
    def copy_to_classifier(self, weight: Tensor, bias: Tensor) -> None:
        """Copy weight [K,D] and bias [K] into the classifier."""
        self.classifier.weight.copy_(weight)
        self.classifier.bias.copy_(bias)

    def set_whitening(self, mean: Tensor, projection: Tensor, weight: Tensor, bias: Tensor) -> None:
        """Set the whitening (mean [D], projection [D,D]) and its classifier ([K,D], [K]), D = width + 1."""
        self.whitening = Whitening(mean, projection)
        self.set_classifier(nn.Linear(weight.shape[1], weight.shape[0], device=weight.device))
        self.copy_to_classifier(weight, bias)

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False):
        """Load a state dict as in torch; the state of a whitened network adds the whitening first.

        Raises ValueError for the state of another network, before anything is changed.
        """
        check_state(self, state_dict)
        self.unclassified = ""
        if "whitening.pca.pca_m" in state_dict and self.whitening is None:
            classes, size = self.classifier.out_features, self.width + 1
            empty = torch.empty(size, size, device=self.classifier.weight.device)
            classifier = empty.new_empty(classes, size), empty.new_empty(classes)
            self.set_whitening(empty[0].clone(), empty, *classifier)
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


def with_tokens(net: MultiGrain, tokens: str) -> MultiGrain:
    """A network with the same backbone, not a copy, that pools other tokens, one of TOKENS.

    It is for embedding: its classifier has random weights, and it has no whitening. Raises ValueError for a
    network without a class token.
    """
    if not net.has_class_token:
        raise ValueError(f"tokens: {net.name} has no class token")
    features = copy.copy(net.features)
    features.choose(tokens)
    before, after = (2 if each == "both" else 1 for each in (net.tokens, tokens))
    backbone = Backbone(
        net.name, features, net.width // before * after, net.mean, net.std, tokens=tokens,
        signed=net.pool.signed, stride=net.stride, neck=net.neck and features.neck,
        unclassified="it pools other tokens",
    )  # fmt: skip
    other = MultiGrain(backbone, p=net.pool.p.item(), num_classes=1)
    return other.train(net.training).to(net.classifier.weight.device)


def check_state(net: MultiGrain, state: Mapping[str, Tensor]) -> None:
    """Raise ValueError if `state` does not belong to a network like `net`, whitened or not."""
    size = net.width + 1
    whitening = {"whitening.pca.pca_m": (size,), "whitening.pca.pca_P": (size, size)}
    whitened = any(key in state for key in whitening)
    if net.whitening is not None and not whitened:
        raise ValueError("the network is whitened, the state is not: load it into a new network")
    expected = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    twins = ["classifier"] + ([f"features.{net.twin}.last_linear"] if net.twin else [])
    if whitened:
        expected |= whitening
        expected |= {f"{twin}.weight": (net.classifier.out_features, size) for twin in twins}
    missing = sorted(expected.keys() - state.keys())
    extra = sorted(state.keys() - expected.keys())
    if missing or extra:
        found = f"lacks {len(missing)} keys ({shortened(missing[0], 80)}…)" if missing else ""
        found += " and " if missing and extra else ""
        found += f"has {len(extra)} keys too many ({shortened(extra[0], 80)}…)" if extra else ""
        raise ValueError(f"the state is not that of a {net.name}: it {found}")
    classes = state["classifier.weight"].shape[0]
    if classes != net.classifier.out_features:
        raise ValueError(f"the state is for {classes} classes, the network for {net.classifier.out_features}")
    for key, own in net.state_dict().items():
        if own.is_floating_point() and not state[key].is_floating_point():
            raise ValueError(f"{key} is {state[key].dtype}, not {own.dtype}".replace("torch.", ""))
    for key, shape in expected.items():
        if tuple(state[key].shape) != shape:
            raise ValueError(
                f"the state is not that of a {net.name}: {key} is {tuple(state[key].shape)}, not {shape}"
            )
    for twin in twins[1:]:
        for key in ("weight", "bias"):
            if not torch.equal(state[f"{twin}.{key}"], state[f"classifier.{key}"]):
                raise ValueError(
                    f"the state of a {net.name} holds its classifier twice, but {twin}.{key} differs from "
                    f"classifier.{key}: copy the right one over the other"
                )


def get_multigrain(
    backbone: str = "resnet50",
    *,
    p: float = 3.0,
    num_classes: int | None = None,
    learn_p: bool = False,
    pretrained_backbone: bool = False,
    tokens: str = "patches",
    weights: str | Path = "",
) -> MultiGrain:
    """Build a MultiGrain network, randomly initialised but for the weights that are asked for.

    backbone: name of the backbone (see `mgkit.backbones.backbone_names`)
    p: exponent of GeM (3 in the paper)
    num_classes: number of classes; None: 1000, or those of the classifier in `weights`
    learn_p: whether p requires a gradient
    pretrained_backbone: load published weights, and with as many classes their classifier; a line says where
    none fits. Those of ImageNet-1k have num_classes=1000, whose names are WordNet ids
    tokens: the tokens of a transformer that are pooled: `patches`, `class`, or `both`, one after the other
    weights: a file with the backbone's weights, instead of the published ones: a state dict with the names of
    torchvision, timm or the backbone's authors, below any prefix; a classifier in it is kept. A line says
    what was loaded, left out and missing

    Raises ValueError for an unknown backbone, p <= 0, num_classes < 1, tokens that the backbone does not
    have, a wrong file of weights, or one whose classifier has not num_classes; OSError if weights cannot be
    fetched or are not installed. Table E.1 has the backbones.
    """
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    check_exponent(p)  # before weights are fetched
    network = build_backbone(backbone, pretrained_backbone, tokens, weights)
    known = None
    if network.classifier is not None and (weights or is_elsewhere(backbone.removeprefix(TIMM))):
        known = len(network.classifier[1])
    if weights and num_classes and known and num_classes != known:
        raise ValueError(f"{weights}: its classifier has {known} classes, num_classes is {num_classes}")
    net = MultiGrain(network, p=p, num_classes=num_classes or known or 1000, learn_p=learn_p)
    net.source = str(weights)
    if not net.classifies:
        which = f"classifier of {weights}" if weights else "published classifier"
        say_once(f"{backbone}: no {which} is used: {net.unclassified}")
        if num_classes not in (None, 1000):
            net.unclassified = ""  # classes of one's own, for which the classifier will be trained
    return net
