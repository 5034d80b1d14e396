"""The parameters of each stage: a frozen dataclass with types and ranges. Unknown names raise ValueError."""

import ast
import dataclasses
import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from mgkit.backbones.build import check_backbone
from mgkit.machine.files import read_text

Name = Annotated[str, Field(pattern=r"^[\w][\w.\-]*$")]  # becomes a folder of outputs/
BackboneName = Annotated[str, AfterValidator(check_backbone)]
BackboneNameOrEmpty = Annotated[str, AfterValidator(lambda name: name and check_backbone(name))]
Count = Annotated[int, Field(ge=1)]
Pixels = Annotated[int, Field(ge=8)]
Infinity = BeforeValidator(lambda value: math.inf if value in ("inf", "Inf") else value)  # YAML's is .inf
Exponent = Annotated[float, Field(gt=0), Infinity]  # inf is max pooling
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Sizes = Annotated[list[Pixels], Field(min_length=1)]
Crop = Literal["square", "rect"]

Processes = Literal["auto"] | Count

AnyConfig = TypeVar("AnyConfig", bound="StageConfig")

# Settings that do not change results beyond rounding; a run may resume with other values.
EXECUTION_SETTINGS = frozenset(
    {
        "workers", "gpus", "nnodes", "node_rank", "rdzv_endpoint", "max_restarts", "compile", "resume",
        "dry_run", "checkpoint_minutes", "keep_checkpoints", "log_every", "gradient_share_every",
        "on_unreadable",
    }
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class StageConfig:
    """The parameters that all stages share.

    stage: name of the stage, and of its folder below outputs/<experiment>/
    notebook: name of the notebook that runs it

    Raises ValueError, naming the parameter, for an unknown name, a wrong type or a value out of range.
    """

    stage: ClassVar[str]
    notebook: ClassVar[str]

    experiment: Name = "mini"  # results go to outputs/<experiment>/<stage>/
    data: str = "mini"  # a folder, or mini: the embedded set, drawn on first use
    workers: Annotated[int, Field(ge=0)] = 2  # processes that load images
    gpus: Processes = "auto"  # processes, one per GPU; auto: all GPUs, or one process on the CPU
    precision: Literal["auto", "bf16", "float32"] = "auto"
    on_unreadable: Literal["raise", "skip"] = "raise"
    exif: Literal["auto", "apply", "ignore"] = "auto"
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1  # held out where data has no val/


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class TrainConfig(StageConfig):
    """Joint training (section 4.1)."""

    stage: ClassVar[str] = "train"
    notebook: ClassVar[str] = "01_train"

    backbone: BackboneName = "resnet8"
    pretrained_backbone: bool = False
    p: Exponent = 3.0
    lambda_: Annotated[float, Field(ge=0, le=1)] = 0.5
    repetitions: Count = 3
    augmentation: Literal["torch", "full", "senet", "AA"] = "full"
    crop_scale: Annotated[float, Field(gt=0, le=1)] = 0.3
    size: Pixels = 64
    batch_size: Annotated[int, Field(ge=2)] = 36
    epochs: Count = 4
    len_factor: Annotated[float, Field(gt=0)] = 2.0
    lr: Rate = 0.02
    lr_drops: list[Annotated[int, Field(ge=0)]] = dataclasses.field(default_factory=lambda: [2])
    lr_gamma: Rate = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Rate = 1e-4
    beta: Rate = 1.2
    beta_lr: Rate = 1.0
    margin: Rate = 0.2
    seed: Annotated[int, Field(ge=0)] = 0
    init_from: str = ""  # checkpoint with the initial weights: a file or a released name
    global_sampling: bool = False
    batch_norm: Literal["local", "sync", "frozen"] = "local"
    accumulate: Count = 1
    lr_batch_size: Annotated[int, Field(ge=0)] = 0
    compile: bool = False
    nnodes: Count = 1
    node_rank: Annotated[int, Field(ge=0)] = 0
    rdzv_endpoint: str = ""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    resume: bool = True
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 10.0
    keep_checkpoints: Count = 2
    log_every: Count = 20
    gradient_share_every: Annotated[int, Field(ge=0)] = 0
    dry_run: bool = False

    def __post_init__(self):
        if self.lambda_ < 1 and self.repetitions == 1:
            raise ValueError(
                f"lambda_={self.lambda_} needs positives for the margin loss: repetitions must be at least 2 "
                "(or lambda_ 1)"
            )
        if self.batch_size < self.repetitions:
            raise ValueError(f"batch_size {self.batch_size} is smaller than repetitions {self.repetitions}")
        if self.init_from and self.pretrained_backbone:
            raise ValueError("init_from and pretrained_backbone both give the initial weights: choose one")
        if self.node_rank >= self.nnodes:
            raise ValueError(f"node_rank {self.node_rank} must be below nnodes {self.nnodes}")
        if self.nnodes > 1 and not self.rdzv_endpoint:
            raise ValueError("nnodes > 1 needs rdzv_endpoint: host:port of node 0, the same on every node")


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class NetworkConfig(StageConfig):
    """The parameters of stages that start from a trained network."""

    checkpoint: str = ""  # a file or a released name; empty: that of the experiment's earlier stages
    backbone: BackboneNameOrEmpty = ""  # for checkpoints that do not name it, and for pretrained_backbone
    pretrained_backbone: bool = False  # published ImageNet weights instead of a checkpoint
    batch_size: Count = 32

    def __post_init__(self):
        if self.pretrained_backbone and (self.checkpoint or not self.backbone):
            raise ValueError("pretrained_backbone needs a backbone and no checkpoint")


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class FinetunePConfig(NetworkConfig):
    """p* at each evaluation resolution (section 3.5)."""

    stage: ClassVar[str] = "finetune_p"
    notebook: ClassVar[str] = "02_finetune_p"

    sizes: Sizes = dataclasses.field(default_factory=lambda: [64, 96, 128, 160])
    crop: Crop = "rect"
    images_per_class: Count = 40
    step_size: Count = 4  # images per step of SGD
    lr: Rate = 0.03
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    ps: Annotated[list[Exponent], Field(min_length=1)] = dataclasses.field(
        default_factory=lambda: [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0]
    )
    seed: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class WhitenConfig(NetworkConfig):
    """PCA whitening on unlabelled images (section 3.6)."""

    stage: ClassVar[str] = "whiten"
    notebook: ClassVar[str] = "03_whiten"

    size: Pixels = 96
    crop: Crop = "rect"
    p: Exponent | None = None  # None: p* found by 02 at this size
    unlabelled: str = ""  # a folder or list; empty: data's unlabelled/whiten, else its training images
    images: Count = 20000
    shrinkage: Annotated[float, Field(ge=0, le=1)] = 0.1


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class ClassifyConfig(NetworkConfig):
    """Top-1/top-5 (section 4.2)."""

    stage: ClassVar[str] = "evaluate_imagenet"
    notebook: ClassVar[str] = "04_evaluate_imagenet"

    sizes: Sizes = dataclasses.field(default_factory=lambda: [64, 96, 128, 160])
    crops: Annotated[list[Crop], Field(min_length=1)] = dataclasses.field(
        default_factory=lambda: ["square", "rect"]
    )


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class RetrievalConfig(NetworkConfig):
    """Retrieval on the sets found below data (section 4.3)."""

    stage: ClassVar[str] = "evaluate_retrieval"
    notebook: ClassVar[str] = "05_evaluate_retrieval"

    sets: list[str] = dataclasses.field(default_factory=list)  # empty: every set found below data
    distractors: str = ""  # a folder or list; empty: data's unlabelled/distractors, if present
    size: Pixels = 96
    crop: Crop = "rect"
    p: Exponent | None = None  # None: the whitened network's own
    scales: Annotated[list[Annotated[float, Field(gt=0, allow_inf_nan=False)]], Field(min_length=1)] = (
        dataclasses.field(default_factory=lambda: [0.70711, 1.0, 1.41421])
    )  # of the multi-scale descriptor, as factors of size; [1.0]: single scale only
    dims: Count | None = 64  # also evaluate descriptors reduced to this many dimensions; None: do not
    resolutions: list[Pixels] = dataclasses.field(default_factory=lambda: [64, 96, 128, 160])  # of figure 4
    indices: list[str] = dataclasses.field(  # as text separated by ;, since faiss strings contain commas
        default_factory=lambda: ["IVF16,Flat", "PCAR64,PQ32", "PCAR64,IVF16,PQ32"],
        metadata={"separator": ";"},
    )


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class PhotosConfig(NetworkConfig):
    """A search through a person's own pictures."""

    stage: ClassVar[str] = "search_photos"
    notebook: ClassVar[str] = "06_search_your_photos"

    photos: list[str] = dataclasses.field(  # folders, as text separated by ;, since names may contain commas
        default_factory=list, metadata={"separator": ";"}
    )  # empty: scenes, copies and distractors of the embedded set, or data
    size: Pixels = 96
    p: Exponent | None = None  # None: the network's own
    whitening: Literal["auto", "photos", "network", "none"] = "auto"
    threshold: Annotated[float, Field(gt=0, le=1)] | None = None  # cosine; None: calibrated
    false_rate: Annotated[float, Field(gt=0, lt=0.5)] = 0.02
    index: str = ""  # a faiss string; empty: exact search, or HNSW for a large collection
    queries: Annotated[int, Field(ge=0)] = 12  # shown in the report
    k: Count = 8
    on_unreadable: Literal["raise", "skip"] = "skip"


def make(cls: type[AnyConfig], values: Mapping[str, Any]) -> AnyConfig:
    """Build a config from values; lists may be given as text, such as `64, 96`.

    Raises ValueError, one line that names the parameter, for values that the config does not allow.
    """
    known = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            suggestion = f"did you mean {close[0]}? " if close else ""
            names = ", ".join(sorted(known))
            raise ValueError(f"unknown parameter {key!r}: {suggestion}{cls.__name__} has {names}")
    values = {
        key: value if known[key].default_factory is dataclasses.MISSING else as_list(known[key], value)
        for key, value in values.items()
    }
    try:
        return cls(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{key}: {reason}, got {first['input']!r}" if key else reason) from None


def as_list(field: dataclasses.Field, value: Any) -> list:
    """Read a list from the text of `-p sizes "64, 96"`, or from a single value, as of `-p sizes 64`.

    Raises ValueError, naming the parameter, for a text that is not a list.
    """
    if isinstance(value, str):
        separator = field.metadata.get("separator")  # where items may contain commas and brackets
        text = value.strip()
        try:
            listed = yaml.safe_load(text if text.startswith("[") else f"[{text}]")
        except yaml.YAMLError:
            listed = None
        if separator and not (text.startswith("[") and isinstance(listed, list)):
            return [item.strip() for item in text.split(separator) if item.strip()]
        if not isinstance(listed, list):
            raise ValueError(f"{field.name}: a list is wanted, such as 64, 96 or [64, 96], got {value!r}")
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
    values = yaml.safe_load(read_text(path))
    try:
        if not isinstance(values, dict):
            raise ValueError("must be a mapping of parameters to values")
        return make(cls, values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
