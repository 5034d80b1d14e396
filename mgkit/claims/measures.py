"""What is measured of every trained network: each image and query apart, so that arms can be compared."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from pydantic import BaseModel, Field, FiniteFloat, PositiveInt

from mgkit.benchmarks.find import find_sets, is_there
from mgkit.benchmarks.retrieval_set import RetrievalSet, unlabelled
from mgkit.claims.copies import set_of_copies
from mgkit.claims.plan import Training, samples
from mgkit.config import ClaimsConfig, TrainConfig, different
from mgkit.data.decoding import WHOLE
from mgkit.data.images import ImageList, list_hash
from mgkit.engine.run import experiment_folder
from mgkit.features import Passes, check_finite, frozen_backbone, plain, pooled
from mgkit.machine.files import find_path, remove_partial, write_text
from mgkit.machine.records import check_values, read_json
from mgkit.metrics import target_ranks
from mgkit.model import MultiGrain
from mgkit.retrieval.protocols import retrieve
from mgkit.stages.inputs import data_root, in_classes_of

TOP1, COPIES = "top-1", "copies"
SETS = ("holidays", "ukbench", "copydays")
UNITS = {
    TOP1: "top-1",
    "holidays": "mAP",
    "ukbench": "score",
    COPIES: "mAP",
}  # measures, as protocols names them
TITLES = {TOP1: "top-1", "holidays": "Holidays", "ukbench": "UKBench", COPIES: "copies"}
PLACES = ("experiment", "data")  # parameters of 01 that say where, not what
DIGITS = 4  # of an average precision in a file


@dataclass(frozen=True)
class Evaluation:
    """What all networks are measured on.

    images: labelled for validation
    sets: {measure: retrieval set}
    groups: what each image or query shows, {measure: [Q]}; those of one group are drawn together
    """

    images: ImageList
    sets: Mapping[str, RetrievalSet]
    groups: Mapping[str, np.ndarray]

    def record(self, config: ClaimsConfig) -> dict:
        """What decides on the measured values, beside the network."""
        hashes = {TOP1: list_hash(self.images)} | {
            name: list_hash(one.images) for name, one in self.sets.items() if name != COPIES
        }
        return {"size": config.eval_size, "images": hashes, "copies": len(self.sets[COPIES].queries)}


def evaluation(config: ClaimsConfig, val_images: ImageList) -> Evaluation:
    """The validation images, and the retrieval sets below `benchmarks`; without Copydays, copies are made.

    Raises as `find_sets` and `set_of_copies`.
    """
    root = find_path(config.benchmarks) if config.benchmarks else data_root(config.data)
    names = [name for name in SETS if is_there(root, name)]
    found = find_sets(root, names=names, incomplete=config.on_unreadable) if names else []
    sets = {name: one for name, one in zip(names, found, strict=True) if name != "copydays"}
    if "copydays" in names:
        sets[COPIES] = found[names.index("copydays")]
    else:
        sets[COPIES] = set_of_copies(val_images, config.copies, config.experiment)
    groups = {name: groups_of(one) for name, one in sets.items()}
    return Evaluation(val_images, sets, {TOP1: np.arange(len(val_images))} | groups)


def groups_of(one: RetrievalSet) -> np.ndarray:
    """A number for what each query shows, [Q]: the first image among it and its positives."""
    return np.array([
        min(query, *positives) for query, positives in zip(one.queries, one.positives, strict=True)
    ])  # fmt: skip


def measure(net: MultiGrain, on: Evaluation, config: ClaimsConfig) -> dict[str, np.ndarray]:
    """Whether each image is right, and the measure of each query, {measure: [Q]}; NaN for unreadable ones.

    By GeM descriptors with the network's own p, at `eval_size` (px); every image passes once.
    """
    passes = Passes.of(config, backbone=frozen_backbone(net, config.precision), description=None)
    images = in_classes_of(net, on.images)
    lists = [images, *(one.images for one in on.sets.values())]
    rows, *of_sets = pooled_once(net, lists, size=config.eval_size, passes=passes)
    values = {TOP1: hits_of(net, rows, images)}
    if np.isnan(values[TOP1]).all():
        raise passes.unreadable.none_readable()
    for (name, one), of_set in zip(on.sets.items(), of_sets, strict=True):
        values[name] = query_values(one, plain(of_set))
    return values


def pooled_once(
    net: MultiGrain, lists: Sequence[ImageList], *, size: int, passes: Passes
) -> list[np.ndarray]:
    """GeM-pooled features [N,C] of each list; an image that is in several passes once."""
    keys = [[(one.exif, path, one.views.get(i, WHOLE)) for i, path in enumerate(one.paths)] for one in lists]
    features = {}
    for exif in dict.fromkeys(one.exif for one in lists):
        own = [key for key in dict.fromkeys(chain(*keys)) if key[0] == exif]
        views = {i: view for i, (_, _, view) in enumerate(own) if view != WHOLE}
        images = unlabelled(lists[0].root, [path for _, path, _ in own], exif=exif, views=views)
        [rows] = pooled(net, images, size=size, ps=[net.pool.p.item()], passes=passes)
        features |= zip(own, rows, strict=True)
    return [np.stack([features[key] for key in of_list]) for of_list in keys]


def hits_of(net: MultiGrain, rows: np.ndarray, images: ImageList) -> np.ndarray:
    """Whether each image's most probable class is right, [N] of 0 and 1, by its pooled features [N,C].

    NaN for an unreadable image. Raises ValueError, naming an image, for class scores that are not finite.
    """
    readable = np.flatnonzero(np.isfinite(rows[:, 0]))
    with torch.no_grad():
        output = net.head(torch.from_numpy(rows[readable]).to(net.classifier.weight.device))
    scores = output["classifier_output"].cpu()  # [n,K]
    check_finite(scores, images, torch.from_numpy(readable), what="class scores")
    hits = np.full(len(rows), np.nan)
    hits[readable] = (target_ranks(scores, torch.from_numpy(images.labels[readable])) < 1).numpy()
    return hits


def query_values(one: RetrievalSet, rows: np.ndarray) -> np.ndarray:
    """The measure of each query [Q] by descriptors [N,D]; NaN for unreadable queries."""
    readable = np.isfinite(rows[:, 0])
    kept = readable[one.queries] & np.array([readable[answers].any() for answers in one.positives])
    values = np.full(len(one.queries), np.nan)
    values[kept] = retrieve(one.only(readable), rows[readable]).per_query
    return values


# --- Files


class Kept(BaseModel):
    """What was measured of a training, as it is kept.

    training: its parameters of 01, but those that say where
    train_images: hash of the list of training images
    evaluation: what decides on the values beside the network
    samples: that the training saw
    """

    training: dict[str, object]
    train_images: str
    evaluation: dict[str, object]
    samples: PositiveInt


class Measured(Kept):
    """The values of `measure`.

    values: {measure: [Q]}; None for unreadable images
    diagnosis: of `mgkit.claims.diagnosis`
    seconds: that the training took
    """

    values: dict[str, list[FiniteFloat | None]] = Field(min_length=1)
    diagnosis: dict[str, FiniteFloat]
    seconds: FiniteFloat

    def arrays(self) -> dict[str, np.ndarray]:
        """The values as arrays, NaN for None."""
        return as_arrays(self.values)


AnyKept = TypeVar("AnyKept", bound=Kept)


def path_of(training: Training, config: ClaimsConfig) -> Path:
    """The file of a training's measured values."""
    return experiment_folder(config.experiment) / "measured" / f"{training.name}.json"


def record_of(
    training: Training, config: ClaimsConfig, train_images: ImageList, evaluation: Mapping[str, object]
) -> dict:
    """The fields of `Kept` for a training."""
    return {
        "training": settings_of(training.config(config)), "train_images": list_hash(train_images),
        "evaluation": dict(evaluation), "samples": samples(training, config, len(train_images)),
    }  # fmt: skip


def settings_of(config: TrainConfig) -> dict:
    """The parameters of a training, but those that say where."""
    return {name: value for name, value in asdict(config).items() if name not in PLACES}


def read_kept(path: Path, kind: type[AnyKept], record: Mapping[str, object]) -> AnyKept | None:
    """The content of a file of a kind; None without the file, or if it is of another record.

    Raises ValueError, naming the file, for a damaged one.
    """
    if not path.is_file():
        return None
    kept = check_values(path, kind, read_json(path))
    same = all(vars(kept)[name] == record[name] for name in ("train_images", "evaluation"))
    return kept if same and not different(kept.training, record["training"]) else None


def write_kept(path: Path, content: Kept) -> None:
    """Write a file of what was measured, whose folder this process alone writes in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_partial(path.parent, path.name)
    write_text(path, json.dumps(content.model_dump(), separators=(",", ":")) + "\n")


def as_lists(values: Mapping[str, np.ndarray]) -> dict[str, list[float | None]]:
    """Values {measure: [Q]} as lists for a file, rounded, None for NaN."""
    return {
        name: [None if np.isnan(x) else int(x) if x == int(x) else round(x, DIGITS) for x in of_name.tolist()]
        for name, of_name in values.items()
    }


def as_arrays(lists: Mapping[str, list[float | None]]) -> dict[str, np.ndarray]:
    """The lists of a file as arrays, NaN for None."""
    return {name: np.array(of_name, dtype=np.float64) for name, of_name in lists.items()}


def read_measured(
    training: Training, config: ClaimsConfig, train_images: ImageList, on: Evaluation
) -> Measured | None:
    """The kept values of a training; None without, or if they are of other parameters or images.

    Raises ValueError, naming the file, for a damaged one.
    """
    record = record_of(training, config, train_images, on.record(config))
    return read_kept(path_of(training, config), Measured, record)


def write_measured(
    training: Training, config: ClaimsConfig, train_images: ImageList, on: Evaluation,
    values: Mapping[str, np.ndarray], diagnosis: Mapping[str, float], *, seconds: float,
) -> None:  # fmt: skip
    """Keep a training's measured values."""
    record = record_of(training, config, train_images, on.record(config))
    content = Measured(**record, values=as_lists(values), diagnosis=dict(diagnosis), seconds=seconds)
    write_kept(path_of(training, config), content)
