"""The parameters of each stage: a frozen dataclass with types and ranges. Unknown names raise ValueError."""

import ast
import dataclasses
import difflib
import math
import os
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from mgkit.backbones.build import check_backbone
from mgkit.machine.records import first_problem, read_yaml, shown

MOST_PIXELS = 8192  # of a side; the paper's largest is 1131
MOST_ITEMS = 1000  # of a list
MOST_SEED = 2**32 - 1
MOST_PROCESSES = 64  # on a machine
LONGEST_NAME, LONGEST_TEXT = 200, 4096  # bytes
SMALLEST_P, LARGEST_P = 0.01, 1000.0  # beyond, powers in float32 lose their precision
# Of 06 on photographs: EfficientNet-Lite0, and p* as 02 finds it for that network at this size.
PHOTO_BACKBONE, PHOTO_SIZE, PHOTO_P = "efficientnet_lite0", 320, 1.74
SMALL_SIZE = 96  # px, of 06 with the network of an experiment
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # on Windows


def check_text(text: str) -> str:
    """Raise ValueError for a text that no path of a file can be."""
    if "\0" in text or len(text) > LONGEST_TEXT:
        raise ValueError(f"at most {LONGEST_TEXT} characters, none of them NUL, are wanted")
    if text.startswith("~") and os.path.expanduser(text) == text:
        raise ValueError("there is no such user's home (./~ for a name that starts with ~)")
    return text


def check_name(name: str) -> str:
    """Raise ValueError for a name that cannot be a folder of outputs/ on every system."""
    if not re.fullmatch(r"\w([\w.\-]*[\w\-])?", name) or RESERVED.fullmatch(name):
        raise ValueError("a name of letters, digits, _, - and . that may be a folder is wanted")
    if len(os.fsencode(name)) > LONGEST_NAME:
        raise ValueError(f"a name of at most {LONGEST_NAME} bytes is wanted")
    return name


def check_exponent(p: float) -> float:
    if not (SMALLEST_P <= p <= LARGEST_P or p == math.inf):
        raise ValueError(f"a number from {SMALLEST_P} to {LARGEST_P:g}, or inf (max pooling), is wanted")
    return p


def check_processes(value: int | str) -> int | str:
    if value != "auto" and not (isinstance(value, int) and 1 <= value <= MOST_PROCESSES):
        raise ValueError(f"auto, or a number from 1 to {MOST_PROCESSES}, is wanted")
    return value


def check_endpoint(endpoint: str) -> None:
    """Raise ValueError for what is not host:port; an IPv6 address is in brackets."""
    match = re.fullmatch(r"(?:[\w.-]+|\[[0-9a-fA-F:.]+\]):([0-9]{1,5})", endpoint)
    if not match or not 1 <= int(match[1]) < 2**16:
        raise ValueError(
            "rdzv_endpoint: host:port of node 0 is wanted, such as node0:29500 or [2001:db8::1]:29500, "
            f"got {shown(endpoint)}"
        )


def check_distinct(values: list) -> list:
    for k, value in enumerate(values):
        if value in values[:k]:
            raise ValueError(f"{shown(value)} is listed twice")
    return values


def whole(least: int, most: int) -> Any:
    """The type of a whole number in a range."""
    return Annotated[int, Field(ge=least, le=most)]


Text = Annotated[str, AfterValidator(check_text)]
Name = Annotated[str, AfterValidator(check_name)]  # becomes a folder of outputs/
BackboneName = Annotated[Text, AfterValidator(check_backbone)]
BackboneNameOrEmpty = Annotated[Text, AfterValidator(lambda name: name and check_backbone(name))]
Count = whole(1, 10**9)
Batch = whole(1, 2**16)  # images
Seed = whole(0, MOST_SEED)
Pixels = whole(8, MOST_PIXELS)
Infinity = BeforeValidator(lambda value: math.inf if value in ("inf", "Inf") else value)  # YAML's is .inf
Exponent = Annotated[float, AfterValidator(check_exponent), Infinity]  # inf is max pooling
Rate = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]
Distance = Annotated[float, Field(ge=0, le=10)]  # between embeddings it is at most 2
Momentum = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Scale = Annotated[float, Field(gt=0, le=8, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Distinct = AfterValidator(check_distinct)
Sizes = Annotated[list[Pixels], Field(min_length=1, max_length=MOST_ITEMS), Distinct]
Texts = Annotated[list[Text], Field(max_length=MOST_ITEMS), Distinct]
Crop = Literal["square", "rect"]
Tokens = Literal["patches", "class", "both"]  # of a transformer, that are pooled
Criterion = Literal["pixels", "camera", "date", "compression", "upright"]  # for a picture to be kept
Arm = Literal["plain", "repeated", "joint", "joint_p1", "joint_AA"]  # of 07
Reranking = Literal["average_qe", "alpha_qe", "dba", "k_reciprocal", "diffusion"]

Processes = Annotated[int | str, AfterValidator(check_processes)]

AnyConfig = TypeVar("AnyConfig", bound="StageConfig")

# Settings that do not change results beyond rounding; a run may resume with other values.
EXECUTION_SETTINGS = frozenset(
    {
        "workers", "gpus", "nnodes", "node_rank", "rdzv_endpoint", "max_restarts", "compile", "resume",
        "dry_run", "hours", "checkpoint_minutes", "keep_checkpoints", "log_every", "gradient_share_every",
        "on_unreadable",
    }
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class StageConfig:
    """The parameters that all stages share.

    stage: name of the stage, and of its folder below outputs/<experiment>/
    notebook: name of the notebook that runs it; empty for a stage that has a command instead
    command: its module, for `python -m`

    Raises ValueError, naming the parameter, for an unknown name, a wrong type or a value out of range.
    """

    stage: ClassVar[str]
    notebook: ClassVar[str]
    command: ClassVar[str] = ""

    experiment: Name = "mini"  # results go to outputs/<experiment>/<stage>/
    data: Text = "mini"  # a folder, or mini: the embedded set, drawn on first use
    workers: whole(0, 256) = 2  # processes that load images
    gpus: Processes = "auto"  # processes, one per GPU; auto: all GPUs, or one process on the CPU
    precision: Literal["auto", "bf16", "float32"] = "auto"
    on_unreadable: Literal["raise", "skip"] = "raise"
    exif: Literal["auto", "apply", "ignore"] = "auto"
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1  # held out where data has no val/
    nnodes: whole(1, 10_000) = 1  # machines
    node_rank: whole(0, 10_000) = 0  # of this machine; that of rank 0 hosts rdzv_endpoint
    rdzv_endpoint: Text = ""  # host:port

    def __post_init__(self):
        if self.node_rank >= self.nnodes:
            raise ValueError(f"node_rank {self.node_rank} must be below nnodes {self.nnodes}")
        if self.nnodes > 1 and not self.rdzv_endpoint:
            raise ValueError("nnodes > 1 needs rdzv_endpoint: host:port of node 0, the same on every node")
        if self.nnodes > 1:
            check_endpoint(self.rdzv_endpoint)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class TrainConfig(StageConfig):
    """Joint training (section 4.1)."""

    stage: ClassVar[str] = "train"
    notebook: ClassVar[str] = "01_train"

    backbone: BackboneName = "resnet8"
    pretrained_backbone: bool = False
    weights: Text = ""  # a file with the backbone's initial weights
    tokens: Tokens = "patches"
    p: Exponent = 3.0
    lambda_: Annotated[float, Field(ge=0, le=1)] = 0.5
    repetitions: Batch = 3
    augmentation: Literal["torch", "full", "senet", "AA"] = "full"
    crop_scale: Annotated[float, Field(gt=0, le=1)] = 0.3
    size: Pixels = 64
    batch_size: whole(2, 2**16) = 36
    epochs: whole(1, 10**6) = 4
    len_factor: Annotated[float, Field(gt=0, le=1000)] = 2.0
    lr: Rate = 0.02
    backbone_lr: Rate = 1.0
    lr_drops: Annotated[list[whole(0, 10**6)], Field(max_length=MOST_ITEMS)] = dataclasses.field(
        default_factory=lambda: [2]
    )
    lr_gamma: Annotated[float, Field(ge=0, le=1)] = 0.1
    momentum: Momentum = 0.9
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 1e-4
    beta: Distance = 1.2
    beta_lr: Rate = 1.0
    margin: Distance = 0.2
    seed: Seed = 0
    init_from: Text = ""  # checkpoint with the initial weights: a file or a released name
    global_sampling: bool = False
    batch_norm: Literal["local", "sync", "frozen"] = "local"
    accumulate: Batch = 1
    lr_batch_size: whole(0, 10**6) = 0
    compile: bool = False
    max_restarts: whole(0, 1000) = 3
    resume: bool = True
    checkpoint_minutes: Annotated[float, Field(gt=0, le=10**6)] = 10.0
    keep_checkpoints: whole(1, 10_000) = 2
    log_every: Count = 20
    gradient_share_every: whole(0, 10**9) = 0
    dry_run: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.lambda_ < 1 and self.repetitions == 1:
            raise ValueError(
                f"lambda_={self.lambda_} needs positives for the margin loss: repetitions must be at least 2 "
                "(or lambda_ 1)"
            )
        if self.batch_size < self.repetitions:
            raise ValueError(f"batch_size {self.batch_size} is smaller than repetitions {self.repetitions}")
        given = {"init_from": self.init_from, "pretrained_backbone": self.pretrained_backbone}
        names = [name for name, value in (given | {"weights": self.weights}).items() if value]
        if len(names) > 1:
            raise ValueError(f"{names[0]} and {names[1]} both give the initial weights: choose one")


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class NetworkConfig(StageConfig):
    """The parameters of stages that start from a trained network."""

    checkpoint: Text = ""  # a file or a released name; empty: that of the experiment's earlier stages
    backbone: BackboneNameOrEmpty = ""  # for checkpoints that do not name it, pretrained_backbone, weights
    pretrained_backbone: bool = False  # published ImageNet weights instead of a checkpoint
    weights: Text = ""  # a file with the backbone's weights instead of a checkpoint
    tokens: Tokens | None = None  # None: those of the checkpoint; patches for published weights
    batch_size: Batch = 32

    def __post_init__(self):
        super().__post_init__()
        if self.pretrained_backbone and (self.checkpoint or not self.backbone):
            raise ValueError("pretrained_backbone needs a backbone and no checkpoint")
        if self.weights and (self.checkpoint or self.pretrained_backbone or not self.backbone):
            raise ValueError("weights needs a backbone, and neither checkpoint nor pretrained_backbone")

    def off_the_shelf(self) -> bool:
        """Whether the network's weights are published ones or in a file of one's own, not a checkpoint's."""
        return self.pretrained_backbone or bool(self.weights)

    def check_alone(self, descriptors: list[str]) -> None:
        """Raise ValueError where both descriptors and a network to make them are given."""
        network = {"checkpoint": self.checkpoint, "backbone": self.backbone, "weights": self.weights}
        network["pretrained_backbone"] = self.pretrained_backbone
        too_many = [name for name, value in network.items() if value]
        if descriptors and too_many:
            raise ValueError(
                f"descriptors are given, so no network makes them: leave {' and '.join(too_many)} out"
            )


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class FinetunePConfig(NetworkConfig):
    """p* at each evaluation resolution (section 3.5)."""

    stage: ClassVar[str] = "finetune_p"
    notebook: ClassVar[str] = "02_finetune_p"

    sizes: Sizes = dataclasses.field(default_factory=lambda: [64, 96, 128, 160])
    crop: Crop = "rect"
    images_per_class: Count = 40
    step_size: Batch = 4  # images per step of SGD
    lr: Rate = 0.03
    momentum: Momentum = 0.9
    ps: Annotated[list[Exponent], Field(min_length=1, max_length=MOST_ITEMS), Distinct] = dataclasses.field(
        default_factory=lambda: [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0]
    )
    fixres_epochs: whole(0, 10_000) = 0  # of FixRes on the classifier; 0: without
    fixres_lr: Rate = 1.0  # divided by the mean squared length of the embeddings
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class WhitenConfig(NetworkConfig):
    """PCA whitening on unlabelled images (section 3.6)."""

    stage: ClassVar[str] = "whiten"
    notebook: ClassVar[str] = "03_whiten"

    size: Pixels = 96
    crop: Crop = "rect"
    p: Exponent | None = None  # None: p* found by 02 at this size
    unlabelled: Text = ""  # a folder or list; empty: data's unlabelled/whiten, else its training images
    images: whole(2, 10**9) = 20000
    shrinkage: Annotated[float, Field(ge=0, le=1)] = 0.1


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class ClassifyConfig(NetworkConfig):
    """Top-1/top-5 (section 4.2)."""

    stage: ClassVar[str] = "evaluate_imagenet"
    notebook: ClassVar[str] = "04_evaluate_imagenet"

    sizes: Sizes = dataclasses.field(default_factory=lambda: [64, 96, 128, 160])
    crops: Annotated[list[Crop], Field(min_length=1), Distinct] = dataclasses.field(
        default_factory=lambda: ["square", "rect"]
    )


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class SetsConfig(NetworkConfig):
    """The parameters of stages that embed retrieval sets."""

    sets: Texts = dataclasses.field(default_factory=list)  # empty: every set found below data
    queries: Text = ""  # a folder or csv, of queries to one's own images in data; empty: those of data
    distractors: Text = ""  # a folder or list, for every set; empty: unlabelled/distractors, for Copydays
    size: Pixels = 96
    crop: Crop = "rect"
    p: Exponent | None = None  # None: the whitened network's own


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class RetrievalConfig(SetsConfig):
    """Retrieval on the sets found below data (section 4.3)."""

    stage: ClassVar[str] = "evaluate_retrieval"
    notebook: ClassVar[str] = "05_evaluate_retrieval"

    scales: Annotated[list[Scale], Field(min_length=1, max_length=MOST_ITEMS)] = dataclasses.field(
        default_factory=lambda: [0.70711, 1.0, 1.41421]
    )  # of the multi-scale descriptor, as factors of size; [1.0]: single scale only
    dims: Count | None = 64  # also evaluate descriptors reduced to this many dimensions; None: do not
    reranking: Annotated[list[Reranking], Distinct] = dataclasses.field(
        default_factory=lambda: ["average_qe", "alpha_qe", "dba", "k_reciprocal", "diffusion"]
    )
    expansion_k: Count = 2  # nearest images that re-ranking takes for answers
    false_rate: Annotated[float, Field(gt=0, lt=1)] = 0.05  # of queries without an answer
    resolutions: Annotated[list[Pixels], Field(max_length=MOST_ITEMS), Distinct] = dataclasses.field(
        default_factory=lambda: [68, 96, 136]
    )  # of figure 4; those of the scales at 96 px, so that each image passes once at each
    ps: Annotated[list[Exponent], Field(max_length=MOST_ITEMS), Distinct] = dataclasses.field(
        default_factory=list
    )  # of figure 4, beside the training p and those that 02 found
    indices: Texts = dataclasses.field(  # as text separated by ;, since faiss strings contain commas
        default_factory=lambda: ["IVF16,Flat", "PCAR64,PQ32", "PCAR64,IVF16,PQ32"],
        metadata={"separator": ";"},
    )
    descriptors: Texts = dataclasses.field(  # folders, as text separated by ;
        default_factory=list, metadata={"separator": ";"}
    )  # of descriptors that are evaluated instead of a network's; empty: none

    def __post_init__(self):
        self.check_alone(self.descriptors)  # before the network's own check
        super().__post_init__()
        if round(max(self.scales) * self.size) > MOST_PIXELS:
            raise ValueError(f"scales: {max(self.scales):g} times size {self.size} is above {MOST_PIXELS} px")


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class DescribeConfig(SetsConfig):
    """Descriptors as files, for other programs (`python -m mgkit.descriptors`)."""

    stage: ClassVar[str] = "descriptors"
    notebook: ClassVar[str] = ""
    command: ClassVar[str] = "mgkit.descriptors"

    images: Text = ""  # a folder or list; empty: the sets found below data
    dtype: Literal["float32", "float16"] = "float32"
    index: Text = "Flat"  # a faiss string; empty: no index

    def __post_init__(self):
        super().__post_init__()
        below_data = {"sets": self.sets, "queries": self.queries, "distractors": self.distractors}
        too_many = [name for name, value in below_data.items() if value]
        if self.images and too_many:
            raise ValueError(
                f"images are given, so no sets below data are described: leave {' and '.join(too_many)} out"
            )


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class PhotosConfig(NetworkConfig):
    """A search through a person's own pictures.

    With `photos`, and no network or data of one's own, the network is EfficientNet-Lite0 with its published
    weights; the fields that choose it are filled in.
    """

    stage: ClassVar[str] = "search_photos"
    notebook: ClassVar[str] = "06_search_your_photos"

    photos: Texts = dataclasses.field(  # folders, as text separated by ;, since names may contain commas
        default_factory=list, metadata={"separator": ";"}
    )  # empty: scenes, copies and distractors of the embedded set, or data
    against: Texts = dataclasses.field(  # folders, as text separated by ;
        default_factory=list, metadata={"separator": ";"}
    )  # in which the pictures of photos are looked for, instead of among each other
    size: Pixels | None = None  # None: 320 with published or own weights, 96 with a checkpoint
    p: Exponent | None = None  # None: the network's own; p* for the default network
    whitening: Literal["auto", "photos", "network", "none"] = "auto"
    threshold: Annotated[float, Field(gt=0, le=1)] | None = None  # cosine; None: calibrated
    false_rate: Annotated[float, Field(gt=0, lt=0.5)] = 0.02
    keep: Annotated[list[Criterion], Field(min_length=1), Distinct] = dataclasses.field(
        default_factory=lambda: ["pixels", "camera", "date", "compression", "upright"]
    )  # what decides, in this order, which picture of a group is proposed to stay
    index: Text = ""  # a faiss string; empty: exact search, or HNSW for a large collection
    queries: whole(0, 1000) = 12  # shown in the report
    k: whole(1, 1000) = 8
    descriptors: Texts = dataclasses.field(  # folders, as text separated by ;
        default_factory=list, metadata={"separator": ";"}
    )  # of descriptors that are searched instead of a network's; empty: none
    on_unreadable: Literal["raise", "skip"] = "skip"

    def __post_init__(self):
        self.check_alone(self.descriptors)  # before the network's own check
        super().__post_init__()
        if self.descriptors and self.threshold is None:
            raise ValueError("descriptors: without a network, threshold cannot be calibrated: give it, too")
        if self.against and not self.photos:
            raise ValueError("against: give the folders that are looked for there, too, as photos")
        if self.descriptors and self.whitening in ("photos", "network"):
            raise ValueError("descriptors are searched as they are given: leave whitening out (auto)")
        filled = {}
        if self.photos and self.data == "mini" and not (self.checkpoint or self.backbone or self.descriptors):
            filled = {"backbone": PHOTO_BACKBONE, "pretrained_backbone": True}
            if self.p is None:
                filled["p"] = PHOTO_P
        if self.size is None:
            filled["size"] = PHOTO_SIZE if self.off_the_shelf() or filled else SMALL_SIZE
        for name, value in filled.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class ClaimsConfig(StageConfig):
    """The paper's claims, by trainings of several arms, budgets and seeds (section 4.2)."""

    stage: ClassVar[str] = "claims"
    notebook: ClassVar[str] = "07_claims"

    benchmarks: Text = ""  # a folder with holidays/, ukbench/, copydays/; empty: those below data
    arms: Annotated[list[Arm], Field(min_length=1), Distinct] = dataclasses.field(
        default_factory=lambda: ["plain", "repeated", "joint"]
    )
    budgets: Annotated[list[whole(1, 10**6)], Field(min_length=1, max_length=100), Distinct] = (
        dataclasses.field(default_factory=lambda: [2])
    )  # epochs
    seeds: Annotated[list[whole(0, 999)], Field(min_length=1), Distinct] = dataclasses.field(
        default_factory=lambda: [0, 1, 2]
    )
    lrs: Annotated[list[Rate], Field(min_length=1, max_length=100), Distinct] = dataclasses.field(
        default_factory=lambda: [0.02]
    )  # of several, the best for each arm on another seed
    lr_drops: Annotated[list[Share], Field(max_length=100), Distinct] = dataclasses.field(
        default_factory=lambda: [0.5, 0.75]
    )  # shares of a budget
    hours: Annotated[float, Field(ge=0, le=10**5)] = 0.0  # after which no training starts; 0: no limit
    backbone: BackboneName = "resnet8"
    pretrained_backbone: bool = False
    backbone_lr: Rate = 1.0
    batch_norm: Literal["local", "sync", "frozen"] = "local"
    size: Pixels = 32
    batch_size: Batch = 36
    len_factor: Annotated[float, Field(gt=0, le=1000)] = 1.0
    crop_scale: Annotated[float, Field(gt=0, le=1)] = 0.3
    eval_size: Pixels = 48
    copies: whole(2, 10**6) = 200  # made of validation images where benchmarks has no Copydays
    further: bool = False  # also p*, whitening and several scales, on the networks of one arm
    larger_sizes: Annotated[list[Pixels], Field(max_length=MOST_ITEMS), Distinct] = dataclasses.field(
        default_factory=lambda: [96, 128, 160]
    )  # of p*
    whitening_images: Annotated[list[whole(2, 10**9)], Field(max_length=MOST_ITEMS), Distinct] = (
        dataclasses.field(default_factory=lambda: [500, 2000, 8000])
    )


def make(cls: type[AnyConfig], values: Mapping[str, Any]) -> AnyConfig:
    """Build a config from values; lists may be given as text, such as `64, 96`.

    A whole number is taken for a name where a name is wanted, since papermill makes numbers of such texts.

    Raises ValueError, one line that names the parameter, for values that the config does not allow.
    """
    known = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            suggestion = f"did you mean {close[0]}? " if close else ""
            names = ", ".join(sorted(known))
            raise ValueError(f"unknown parameter {shown(key)}: {suggestion}{cls.__name__} has {names}")
    kinds = typing.get_type_hints(cls)
    try:
        return cls(**{key: as_kind(kinds[key], known[key], value) for key, value in values.items()})
    except ValidationError as error:
        raise ValueError(first_problem(error)) from None


def as_kind(kind: Any, field: dataclasses.Field, value: Any) -> Any:
    """A value as papermill passes it -> a text or a list, for the fields that are texts or lists."""
    if kind is str:
        return as_text(field.name, value)
    if field.default_factory is dataclasses.MISSING:
        return value
    if kind == list[str]:
        return [as_text(field.name, item) for item in as_list(field, value, yaml.BaseLoader)]
    return as_list(field, value, yaml.SafeLoader)


def as_text(name: str, value: Any) -> str:
    """A name that may have become a whole number; raises ValueError for what it cannot be told from."""
    if type(value) is int and len(f"{value:x}") < 20:
        print(f"{name}: the number {value} is taken for the name {str(value)!r}")
        return str(value)
    if not isinstance(value, str):
        raise ValueError(
            f"{name}: a text is wanted, got {shown(value)}: papermill's -p turns words such as 2019, 1e5 and "
            f"True into values, `-r {name} <text>` passes them as they are (as ./<text> does, for a file)"
        )
    return value


def as_list(field: dataclasses.Field, value: Any, loader: type[yaml.BaseLoader]) -> list:
    """Read a list from the text of `-p sizes "64, 96"`, or from a single value, as of `-p sizes 64`.

    loader: reads the items of a text; yaml.BaseLoader leaves them texts

    Raises ValueError, naming the parameter, for a text that is not a list.
    """
    if isinstance(value, str):
        separator = field.metadata.get("separator")  # where items may contain commas and brackets
        text = value.strip()
        listed = None
        try:
            if len(text) <= MOST_ITEMS * LONGEST_TEXT:
                listed = yaml.load(text if text.startswith("[") else f"[{text}]", Loader=loader)
        except (yaml.YAMLError, ValueError, RecursionError):
            pass
        if separator and not (text.startswith("[") and isinstance(listed, list)):
            return [item.strip() for item in text.split(separator) if item.strip()]
        if not isinstance(listed, list):
            raise ValueError(
                f"{field.name}: a list is wanted, such as 64, 96 or [64, 96], got {shown(value)}"
            )
        value = listed
    return list(value) if isinstance(value, (list, tuple)) else [value]


def from_notebook(cls: type[AnyConfig], namespace: Mapping[str, Any]) -> AnyConfig:
    """Build the config from a notebook's parameters; call with `globals()`.

    Papermill only warns of a parameter that the notebook does not have. Here an unknown name raises
    ValueError if it is assigned in a cell that starts with `# Parameters`, the notebook's own or papermill's.
    """
    names = {field.name for field in dataclasses.fields(cls)}
    for source in namespace.get("In", []):
        if source.lstrip().startswith("# Parameters"):
            names |= assigned_names(source)
    return make(cls, {name: namespace[name] for name in sorted(names) if name in namespace})


def assigned_names(source: str) -> set[str]:
    """The names that are assigned at the top level of a cell."""
    targets = []
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign):
            targets += statement.targets
        elif isinstance(statement, ast.AnnAssign):
            targets.append(statement.target)
    return {target.id for target in targets if isinstance(target, ast.Name)}


def different(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The parameters in which two configs, given as dicts, differ, EXECUTION_SETTINGS aside."""
    keys = sorted((one.keys() | other.keys()) - EXECUTION_SETTINGS)
    return [key for key in keys if key not in one or key not in other or one[key] != other[key]]


def to_yaml(config: StageConfig) -> str:
    """The config as YAML text, in the order of its fields."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)


def from_yaml(cls: type[AnyConfig], path: str | Path) -> AnyConfig:
    """Read a config from a YAML file. Raises ValueError, naming the file, as `make`."""
    values = read_yaml(Path(path))
    try:
        if not isinstance(values, dict):
            raise ValueError("must be a mapping of parameters to values")
        return make(cls, values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
