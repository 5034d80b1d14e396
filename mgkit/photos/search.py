"""Search in a person's own pictures: near-duplicates, similar pictures, classes (06).

The pictures are only read; results go to outputs/.
"""

import csv
import io
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mgkit.config import PhotosConfig
from mgkit.data.decoding import UnreadableImageError, without_warnings
from mgkit.data.folders import check_folder
from mgkit.data.images import ImageList, evenly
from mgkit.engine.feature_store import features_folder, stored_features
from mgkit.engine.holding import holding
from mgkit.engine.launch import on_all_devices
from mgkit.engine.run import Run, stage_folder
from mgkit.explore.browse import (
    Classes,
    Collection,
    Describe,
    class_names,
    class_probabilities,
    likely_classes,
    pooled_picture,
)
from mgkit.features import ROWS, Passes, plain, to_descriptors
from mgkit.machine.distributed import main_first
from mgkit.machine.files import find_path
from mgkit.machine.printable import csv_name, shown_name
from mgkit.model import MultiGrain, Whitening, append_one
from mgkit.photos.duplicates import (
    EDITS,
    Group,
    Threshold,
    calibrated,
    edited_copies,
    near_duplicates,
    neighbours_without_self,
    pairs_beyond,
)
from mgkit.photos.folder import PhotoFolder, find_photos
from mgkit.photos.given import GivenPhotoTask
from mgkit.photos.growing import growing_features
from mgkit.retrieval import indices
from mgkit.retrieval.descriptor_files import read_descriptors
from mgkit.retrieval.search import top_k
from mgkit.stages.inputs import data_root, is_mini, validation_data
from mgkit.stages.train import trained_network
from mgkit.stages.whiten import whitened_network
from mgkit.whitening import fit_pca_whitening

MINI_FOLDERS = (
    "holidays/jpg",
    "copydays/original",
    "copydays/strong",
    "copydays/jpegqual/20",
    "unlabelled/whiten",
)
IMAGES_PER_DIMENSION = 10  # needed to learn a whitening without shrinkage
FEWEST_TO_WHITEN = 100  # pictures
# Towards equal variances, with fewer pictures per dimension. Lite0, 320 px, 100, 300 and 800 pictures: all
# views of an object are among 8 neighbours of 100.0, 99.6 and 99.0 % of them; with 0.5 of 85.6, 95.4 and
# 98.2 %, without a whitening of 100.0, 99.2 and 98.5 %.
SHRINKAGE = 0.9
SAMPLED = 200  # pictures whose edited copies calibrate the threshold
NEIGHBOURS = 32  # per picture, searched for near-duplicates
MOST_EXACT = 50_000  # pictures up to which search is exact
LARGE_INDEX = "HNSW32"
CHECKED_CLASSES = 500  # validation images that the pictures are compared with
FARTHEST = 0.05  # quantile of the similarities between validation images
FITTING = 0.7  # share of the pictures that must lie above it
BEST_CLASSES = 5


@dataclass(frozen=True)
class PhotoTask:
    """Pictures, network and settings of a search.

    p: pooling exponent.
    passes: how images are embedded; its `unreadable` collects the files that cannot be decoded.
    """

    config: PhotosConfig
    folder: PhotoFolder
    net: MultiGrain
    p: float
    passes: Passes

    @property
    def origin(self) -> dict[str, str]:
        """The network's file and its SHA-256, for the provenance of a run."""
        return {"checkpoint": self.net.source, "sha256": self.net.source_sha256}

    @property
    def settings(self) -> dict:
        """How pictures are read, for results.json."""
        return {"size": self.config.size, "p": self.p}

    @property
    def network(self) -> str:
        """The network, its resolution and pooling exponent, for the report."""
        return f"{self.net.name}, {self.config.size} px, p = {self.p:.2f}"

    def describe(self) -> str:
        """One line: the network, its resolution and pooling exponent."""
        net, published = self.net, self.config.pretrained_backbone
        source = "its published ImageNet weights" if published else shown_name(net.source)
        return f"network: {net.name} with {source}, {self.config.size} px, p = {self.p:.2f}"

    def photo_features(self) -> np.ndarray:
        """Pooled features of the pictures [N,C]; only new pictures are embedded."""
        return self.stored(growing_features, self.folder.images, "photos", p=self.p)

    def features(self, images: ImageList, name: str) -> np.ndarray:
        """Pooled features [N,C], read from disk if stored there; NaN rows for unreadable images."""
        return self.stored(stored_features, images, name, ps=[self.p])[0]

    def stored(self, features: Callable, images: ImageList, name: str, **exponents):
        """Call `stored_features` or `growing_features` with the options of this task."""
        config = self.config
        try:
            with without_warnings():
                return features(
                    self.net, images, size=config.size, folder=features_folder(config.experiment),
                    passes=self.passes, description=f"{name}, {config.size} px", **exponents,
                )  # fmt: skip
        except UnreadableImageError as error:
            raise UnreadableImageError(f"photos: {shown_name(str(error))}") from None


@dataclass(frozen=True)
class FoundPhotos:
    """Results of a search in N pictures.

    descriptors: L2-normalised ([N,D]); NaN where unreadable.
    whitened: which whitening was chosen, and why.
    groups: near-duplicates, as indices of pictures.
    pairs: number of pairs above the threshold.
    labels, probabilities: of the most probable classes ([N,5]); -1 and NaN where unreadable.
    class_names: empty where the network's classes do not fit the pictures; `fit` says why.
    left_out: {path: reason} of files that were not searched.
    more_pairs: whether there may be more pairs than were counted.
    """

    task: PhotoTask | GivenPhotoTask
    descriptors: np.ndarray
    whitening: Whitening | None
    whitened: str
    threshold: Threshold
    groups: list[Group]
    pairs: int
    labels: np.ndarray
    probabilities: np.ndarray
    class_names: tuple[str, ...]
    fit: str
    left_out: dict[str, str]
    more_pairs: bool = False

    @property
    def images(self) -> ImageList:
        return self.task.folder.images

    @property
    def readable(self) -> np.ndarray:
        """Indices of the pictures that could be read."""
        return np.flatnonzero(np.isfinite(self.descriptors[:, 0]))

    def classes(self, i: int) -> Classes:
        """Names and probabilities of a picture's most probable classes; empty if the classes do not fit."""
        if not self.class_names:
            return []
        pairs = zip(self.labels[i], self.probabilities[i], strict=True)
        return [(self.class_names[k], float(p)) for k, p in pairs]

    def by_class(self, *, classes: int, each: int) -> list[tuple[str, int, list[int]]]:
        """(name, number of pictures, indices of the most probable) of the most frequent classes."""
        if not self.class_names:
            return []
        best = self.labels[self.readable, 0]
        found = []
        for label, count in Counter(best.tolist()).most_common(classes):
            members = self.readable[best == label]
            order = np.argsort(-self.probabilities[members, 0], kind="stable")[:each]
            found.append((self.class_names[label], count, members[order].tolist()))
        return found

    def collection(self, queries: Sequence[int] | None = None) -> Collection:
        """The pictures to browse; queries: indices, None for all."""
        classes = self.classes if self.class_names else None
        return Collection(
            self.images, self.descriptors, queries=queries, titles=self.titles(), classes=classes
        )

    def titles(self) -> dict[int, str]:
        """Captions of the pictures that are in a group."""
        return {i: f"(group {number})" for number, group in enumerate(self.groups, 1) for i in group.members}

    def sample(self, count: int) -> list[int]:
        """Indices of `count` readable pictures, evenly spaced."""
        return self.readable[evenly(len(self.readable), count)].tolist()

    def path(self, i: int) -> str:
        """A picture's path below the folder."""
        return os.path.relpath(self.images.paths[i], self.images.root)

    def name(self, i: int) -> str:
        """The same, printable."""
        return shown_name(self.path(i))

    def describe(self) -> str:
        """One line: the number of near-duplicates, groups and pairs."""
        inside = sum(len(group.members) for group in self.groups)
        pairs = f"{'at least ' if self.more_pairs else ''}{self.pairs:,} pairs"
        return (
            f"{inside:,} of {len(self.readable):,} pictures are near-duplicates, in "
            f"{len(self.groups):,} groups joined by {pairs}"
        )


def photo_task(config: PhotosConfig) -> PhotoTask | GivenPhotoTask:
    """Find the pictures and the network: that of 03, the configured one, or that of 01; or descriptors.

    Raises what `find_photos`, `whitened_network`, `read_descriptors` and `indices.check_factory` raise;
    FileNotFoundError, NotADirectoryError or PermissionError for a missing `data` folder; ValueError if
    results would be written among the pictures.
    """
    if config.data != "mini":
        check_folder(data_root(config.data), "data")
    folder = main_first(lambda: find_photos(photo_folders(config), side=config.size, exif=config.exif))
    outputs = stage_folder(config).resolve()
    for root in photo_folders(config):
        if outputs.is_relative_to(root.resolve()):
            raise ValueError(
                f"photos: results would be written among the pictures, to {shown_name(outputs)}: choose a "
                "folder that does not hold outputs/"
            )
    if config.descriptors:
        folders = read_descriptors(config.descriptors)
        if config.index:
            indices.check_factory(config.index, folders[0].rows.shape[1])
        return GivenPhotoTask(config, folder, folders, Passes.of(config))
    try:
        net = whitened_network(config)[0]
    except FileNotFoundError:
        net = trained_network(config)[0]
    if config.index:
        indices.check_factory(config.index, net.width + (config.whitening != "none"))
    p = net.pool.p.item() if config.p is None else config.p
    return PhotoTask(config, folder, net, p, Passes.of(config))


def photo_folders(config: PhotosConfig) -> list[Path]:
    """The configured folders; else those of the mini set, or the whole `data` folder."""
    if config.photos:
        return [find_path(folder) for folder in config.photos]
    root = main_first(lambda: data_root(config.data))
    return [root / name for name in MINI_FOLDERS] if is_mini(config.data) else [root]


def embed_photos(task: PhotoTask | GivenPhotoTask) -> None:
    """Embed all pictures on all devices and store the features. Raises as `on_all_devices`.

    Where descriptors are given, nothing is embedded.
    """
    if isinstance(task, GivenPhotoTask):
        return
    on_all_devices(task.config, lambda config: embed_here(task))


def run_photos(config: PhotosConfig) -> None:
    """`embed_photos` in this process, or in each process of the group."""
    embed_here(photo_task(config))


def embed_here(task: PhotoTask) -> None:
    copy_features(task, sampled(task.photo_features()))


def search_photos(task: PhotoTask | GivenPhotoTask) -> FoundPhotos:
    """Whiten the features, then find neighbours, threshold, near-duplicates and classes.

    Writes results.json, near_duplicates.csv and left_out.csv to outputs/<experiment>/search_photos/, unless
    another process has just written them; see `holding`, whose errors are raised. Each of several machines
    searches in the stored features, the first one writes. The names in the csv files are printable and can be
    read back (`csv_name`).
    """
    config = task.config
    with holding(config) as joined:
        options = task.origin | {"images": task.folder.images}
        run = None if joined or config.node_rank else Run(config, **options)
        found = find_given(task) if isinstance(task, GivenPhotoTask) else find_in(task)
        if run:
            write_results(run, found)
    return found


def find_in(task: PhotoTask) -> FoundPhotos:
    """Whiten the features, then find neighbours, threshold, near-duplicates and classes."""
    config = task.config
    rows = task.photo_features()  # [N,C]
    readable = np.flatnonzero(np.isfinite(rows[:, 0]))
    whitening, whitened = choose_whitening(config, task.net, rows[readable])
    descriptors = to_descriptors(rows, whitening)  # [N,D]
    scores, nearest = neighbours(config, descriptors[readable])  # [n,k]
    copies = copy_similarities(task, rows, whitening)  # [m,E]
    threshold = calibrated(copies, scores, false_rate=config.false_rate, given=config.threshold)
    groups, pairs = groups_of(readable, scores, nearest, threshold)
    labels, probabilities = top_classes(task.net, rows)
    names, fit = check_classes(task, rows[readable])
    return FoundPhotos(
        task, descriptors, whitening, whitened, threshold, groups, pairs, labels, probabilities, names, fit,
        left_out_of(task), more_pairs=pairs_beyond(scores, threshold.value),
    )  # fmt: skip


def find_given(task: GivenPhotoTask) -> FoundPhotos:
    """Find neighbours and near-duplicates by the given descriptors and threshold; there are no classes."""
    config, descriptors = task.config, task.descriptors()  # [N,D]
    readable = np.flatnonzero(np.isfinite(descriptors[:, 0]))
    scores, nearest = neighbours(config, descriptors[readable])  # [n,k]
    copies = np.empty((0, len(EDITS)), np.float32)
    threshold = calibrated(copies, scores, false_rate=config.false_rate, given=config.threshold)
    groups, pairs = groups_of(readable, scores, nearest, threshold)
    none = np.empty((len(descriptors), 0))
    return FoundPhotos(
        task, descriptors, None, "as they are given", threshold, groups, pairs, none.astype(int), none, (),
        "descriptors are given: no classes are shown", left_out_of(task),
        more_pairs=pairs_beyond(scores, threshold.value),
    )  # fmt: skip


def groups_of(
    readable: np.ndarray, scores: np.ndarray, nearest: np.ndarray, threshold: Threshold
) -> tuple[list[Group], int]:
    """Near-duplicates among the readable pictures [n], as indices of all, and the number of pairs."""
    groups, pairs = near_duplicates(scores, nearest, threshold.value)
    return [Group(tuple(readable[list(each.members)].tolist()), each.similarities) for each in groups], pairs


def left_out_of(task: PhotoTask | GivenPhotoTask) -> dict[str, str]:
    """{path: reason} of the files that were not searched."""
    unreadable = task.passes.unreadable.reasons
    return task.folder.left_out | {path: without_name(path, why) for path, why in unreadable.items()}


def without_name(path: str, why: str) -> str:
    """Why a picture was left out, without the name that the message begins with."""
    name = shown_name(path)
    for start in (f"cannot read the image {name}: ", f"cannot use the image {name}: ", f"{name} "):
        why = why.removeprefix(start)
    return why


def write_results(run: Run, found: FoundPhotos) -> None:
    run.write("near_duplicates.csv", duplicates_csv(found))
    reasons = [(csv_name(path), why) for path, why in found.left_out.items()]
    run.write("left_out.csv", as_csv(["file", "why"], reasons))
    threshold = found.threshold
    run.results({
        "pictures": len(found.images), "readable": len(found.readable), "left_out": len(found.left_out),
        **found.task.settings, "whitening": found.whitened, "threshold": threshold.value,
        "false_images": threshold.false_images if math.isfinite(threshold.false_images) else None,
        "copies_found": threshold.found, "groups": len(found.groups), "pairs": found.pairs,
        "more_pairs": found.more_pairs, "classes": found.fit,
    })  # fmt: skip


def duplicates_csv(found: FoundPhotos) -> str:
    rows = [
        (number, csv_name(found.path(i)), f"{similarity:.4f}")
        for number, group in enumerate(found.groups, 1)
        for i, similarity in zip(group.members, group.similarities, strict=True)
    ]
    return as_csv(["group", "file", "similarity to the nearest of its group"], rows)


def as_csv(header: Sequence[str], rows: Sequence[tuple]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def describe_with(found: FoundPhotos) -> Describe | None:
    """A function for the browser: another picture (RGB) -> descriptor [D] and classes.

    None, with a line, where descriptors are given.
    """
    task = found.task
    if isinstance(task, GivenPhotoTask):
        print("no picture can be uploaded: descriptors are given, without the network that made them")
        return None

    def describe(picture: Image.Image) -> tuple[np.ndarray, Classes]:
        pooled = pooled_picture(task.net, picture, size=task.config.size, p=task.p)
        names = found.class_names
        classes = likely_classes(task.net, pooled[0], names, count=BEST_CLASSES) if names else []
        return to_descriptors(pooled.cpu().numpy(), found.whitening)[0], classes

    return describe


# --- Whitening


def choose_whitening(config: PhotosConfig, net: MultiGrain, rows: np.ndarray) -> tuple[Whitening | None, str]:
    """The whitening of pooled features [n,C], and a phrase that names it and the reason.

    auto: learned on the pictures if there are ten per dimension; else the network's; else learned on the
    pictures with shrinkage; none for fewer than 100. Raises ValueError if the configured one is missing.
    """
    dimensions = net.width + 1
    enough = len(rows) >= IMAGES_PER_DIMENSION * dimensions
    count = f"{len(rows):,} pictures, {dimensions} dimensions"
    asked, of_network = config.whitening, net.whitening
    if asked == "none":
        return None, "no whitening, as asked for"
    if asked == "network":
        if of_network is None:
            raise ValueError("whitening: the network has none; make one with 03_whiten, or choose auto")
        return of_network, "the network's whitening (as asked for)"
    if asked == "auto" and not enough and of_network is not None:
        return of_network, f"the network's whitening ({count}: too few to learn one on them)"
    if asked == "auto" and len(rows) < FEWEST_TO_WHITEN:
        return None, f"no whitening ({count}: too few to learn one on them, and the network has none)"
    shrinkage = 0.0 if enough else SHRINKAGE
    try:
        mean, projection = fit_pca_whitening(append_one(torch.from_numpy(rows)), shrinkage=shrinkage)
    except ValueError as error:
        if asked == "photos":
            raise
        which = "no" if of_network is None else "the network's"
        return of_network, f"{which} whitening (none can be learned on the pictures: {error})"
    device = net.classifier.weight.device
    why = count if enough else f"{count}: shrunk by {shrinkage:g}"
    learned = Whitening(mean.to(device), projection.to(device))
    return learned, f"a whitening learned on the pictures themselves ({why})"


# --- Near-duplicates


def neighbours(config: PhotosConfig, descriptors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Similarities and indices [n,k] of each picture's nearest others, for descriptors [n,D]; k <= 32."""
    k = min(NEIGHBOURS + 1, len(descriptors))
    factory = config.index or (LARGE_INDEX if len(descriptors) > MOST_EXACT else "")
    if factory:
        print(f"{len(descriptors):,} pictures: approximate search by {factory}, which may miss a few")
        found = indices.search_index(indices.build_index(factory, descriptors), descriptors, k=k)
    else:
        found = top_k(descriptors, descriptors, k=k)
    return neighbours_without_self(*found)


def sampled(rows: np.ndarray) -> np.ndarray:
    """Indices of readable pictures, evenly spaced, whose edited copies are embedded; from features [N,C]."""
    readable = np.flatnonzero(np.isfinite(rows[:, 0]))
    return readable[evenly(len(readable), SAMPLED)]


def copy_features(task: PhotoTask, chosen: np.ndarray) -> np.ndarray:
    """Pooled features [m·E,C] of the edited copies of m pictures, by index."""
    return task.features(edited_copies(task.folder.images.subset(chosen)), "edited copies")


def copy_similarities(task: PhotoTask, rows: np.ndarray, whitening: Whitening | None) -> np.ndarray:
    """Similarities [m,E] of edited copies to their originals, from features [N,C]; readable ones only."""
    chosen = sampled(rows)
    originals = to_descriptors(rows[chosen], whitening)[:, None]  # [m,1,D]
    copies = to_descriptors(copy_features(task, chosen), whitening).reshape(len(chosen), len(EDITS), -1)
    similarities = (originals * copies).sum(2)
    return similarities[np.isfinite(similarities).all(1)]


# --- Classes


def top_classes(net: MultiGrain, pooled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities [N,5] of the most probable classes, from features [N,C].

    Fewer columns for fewer classes; -1 and NaN for rows that are NaN.
    """
    count = min(BEST_CLASSES, net.classifier.out_features)
    labels = np.full((len(pooled), count), -1)
    probabilities = np.full((len(pooled), count), np.nan, np.float32)
    for start in range(0, len(pooled), ROWS):
        part = np.array(pooled[start : start + ROWS])
        readable = start + np.flatnonzero(np.isfinite(part[:, 0]))
        best = class_probabilities(net, torch.from_numpy(part[readable - start])).topk(count)
        labels[readable], probabilities[readable] = best.indices.cpu().numpy(), best.values.cpu().numpy()
    return labels, probabilities


def check_classes(task: PhotoTask, rows: np.ndarray) -> tuple[tuple[str, ...], str]:
    """Class names, empty if they do not fit the pictures, and a sentence on that; from features [n,C].

    A nearest-neighbour test for out-of-distribution images (Sun et al. 2022): the classes fit if most
    pictures are as near to a validation image of `data` as those are to each other. Without validation images
    the names are returned unchecked.
    """
    data = data_of_classes(task.config)
    names, count = class_names(data, task.net), task.net.classifier.out_features
    if not task.net.classifies:
        return ((), f"{task.net.name} has no classifier ({task.net.unclassified}): no classes are shown")
    if not names:
        return (), f"the checkpoint does not name its {count} classes: none are shown"
    known = known_embeddings(task, data)
    if len(known) < 2:
        lacking = "data has no validation images of them" if data else "there are no images of them here"
        of_imagenet = "" if data else " of ImageNet"
        return names, f"whether the {len(names)} classes{of_imagenet} fit is not known: {lacking}"
    near = top_k(known, known, k=2)
    border = float(np.quantile(neighbours_without_self(*near)[0], FARTHEST))
    share = float((top_k(plain(rows), known, k=1)[0] >= border).mean())
    verdict = "the classes are shown" if share >= FITTING else "the classes do not fit, and none are shown"
    sentence = (
        f"{100 * share:.0f} % of the pictures are as near to an image of the {len(names)} known classes as "
        f"{100 * (1 - FARTHEST):.0f} % of those are to each other "
        f"(at least {100 * FITTING:.0f} % should be): {verdict}"
    )
    return (names if share >= FITTING else ()), sentence


def data_of_classes(config: PhotosConfig) -> str:
    """`data`; empty where it is the embedded set, none of whose classes a published network knows."""
    return "" if config.off_the_shelf() and is_mini(config.data) else config.data


def known_embeddings(task: PhotoTask, data: str) -> np.ndarray:
    """L2-normalised embeddings [n,C] of at most 500 validation images; none if `data` has other classes."""
    try:
        images = validation_data(replace(task.config, data=data))
    except (OSError, ValueError):
        images = None
    if images is None or not set(images.classes) <= set(task.net.classes):
        return np.empty((0, task.net.width), np.float32)
    images = images.subset(evenly(len(images), CHECKED_CLASSES))
    rows = task.features(images, "validation images")
    return plain(rows[np.isfinite(rows[:, 0])])
