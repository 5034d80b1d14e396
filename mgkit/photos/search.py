"""Search in a person's own pictures: near-duplicates, similar pictures, classes (06).

The pictures are only read; results go to outputs/.
"""

import numpy as np
from PIL import Image

from mgkit.config import PhotosConfig
from mgkit.engine.holding import holding
from mgkit.engine.launch import on_all_devices
from mgkit.engine.run import Run
from mgkit.explore.browse import Classes, Describe, likely_classes, pooled_picture
from mgkit.features import rows_at, to_descriptors
from mgkit.machine.distributed import is_main
from mgkit.model import Whitening
from mgkit.photos.classes import BEST_CLASSES, check_classes, top_classes
from mgkit.photos.copies.calibration import learn_thresholds
from mgkit.photos.copies.edits import EMBEDDED, edited_copies
from mgkit.photos.copies.groups import Group, Measure, matches, near_duplicates, pairs_beyond
from mgkit.photos.copies.keep import Keeping
from mgkit.photos.copies.pairs import find_pairs, nearby
from mgkit.photos.copies.thresholds import Thresholds
from mgkit.photos.embedding.forecast import Forecast, seconds_to_search
from mgkit.photos.embedding.nearest import KeptLists, neighbours, neighbours_elsewhere
from mgkit.photos.embedding.whitening import KeptWhitening, choose_whitening, identity_of
from mgkit.photos.found import FoundPhotos, left_out_of, write_results
from mgkit.photos.given import GivenPhotoTask
from mgkit.photos.task import PhotoTask, photo_task

SAMPLED = 200  # pictures whose edited copies calibrate the threshold
THUMBNAILS = 500  # of the report, about, which take as long as embedding half as many pictures


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
    copy_features(task, sampled(task, task.photo_features(forecast(task))))


def forecast(task: PhotoTask) -> Forecast:
    """What says how long the whole run takes, when the first pictures have been embedded."""
    if not is_main():
        return Forecast(say=lambda line: None)
    count = len(task.folder.images)
    return Forecast(
        beside=SAMPLED * len(EMBEDDED) + THUMBNAILS,
        search=lambda: seconds_to_search(count, task.net.width + 1),
    )


def sampled(task: PhotoTask | GivenPhotoTask, rows: np.ndarray) -> np.ndarray:
    """Indices of readable pictures whose edited copies are looked at; from features [N,C].

    They are those of the least keys, which are as good as random: in a folder that grows, most stay the same.
    """
    readable = np.flatnonzero(np.isfinite(rows[:, 0]))
    return np.sort(readable[np.argsort(task.keys[readable], kind="stable")[:SAMPLED]])


def copy_features(task: PhotoTask, chosen: np.ndarray) -> np.ndarray:
    """Pooled features [m·E,C] of the edited copies of m pictures, by index."""
    return task.copy_features(edited_copies(task.folder.images.subset(chosen)))


def copy_similarities(
    task: PhotoTask, rows: np.ndarray, chosen: np.ndarray, whitening: Whitening | None
) -> np.ndarray:
    """Similarities [m,F] of embedded copies to their originals [m], from features [N,C]; NaN: unreadable."""
    originals = to_descriptors(rows[chosen], whitening)[:, None]  # [m,1,D]
    copies = to_descriptors(copy_features(task, chosen), whitening).reshape(len(chosen), len(EMBEDDED), -1)
    return (originals * copies).sum(2)


def thresholds_of(
    task: PhotoTask | GivenPhotoTask,
    readable: np.ndarray,
    scores: np.ndarray,
    nearest: np.ndarray,
    chosen: np.ndarray,
    cosines: np.ndarray,
) -> Thresholds:
    """The thresholds of both grades.

    scores, nearest: of the neighbours of the readable pictures [n,k], as indices of these.
    chosen, cosines: indices of some pictures [m], similarities of their embedded copies to them [m,F].
    """
    place = np.searchsorted(readable, chosen)
    farther = np.where(np.isfinite(scores[place]), readable[nearest[place]], -1)
    return learn_thresholds(
        task.folder.images, task.comparisons, scores, chosen, farther, cosines,
        similar=scores[place], false_rate=task.config.false_rate, given=task.config.threshold,
    )  # fmt: skip


def search_photos(task: PhotoTask | GivenPhotoTask) -> FoundPhotos:
    """Whiten the features, then find neighbours, threshold, near-duplicates and classes.

    Writes results.json, near_duplicates.csv, left_out.csv and, with `against`, against.csv to
    outputs/<experiment>/search_photos/, unless another process has just written them; see `holding`, whose
    errors are raised. Each of several machines searches in the stored features, the first one writes.
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
    of_readable, keys = rows_at(rows, readable), task.keys[readable]
    kept = KeptWhitening(task.kept_in / "whitening.npz", keys)
    whitening, whitened = choose_whitening(config, task.net, of_readable, kept)
    descriptors = to_descriptors(rows, whitening)  # [N,D]
    lists = KeptLists(task.kept_in / "neighbours.npz", f"{identity_of(whitening)} {config.index}")
    scores, nearest = neighbours(config, rows_at(descriptors, readable), keys, lists)  # [n,k]
    chosen = sampled(task, rows)
    cosines = copy_similarities(task, rows, chosen, whitening)  # [m,F]
    thresholds = thresholds_of(task, readable, scores, nearest, chosen, cosines)
    groups, pairs, more = groups_of(task, descriptors, scores, nearest, thresholds)
    labels, probabilities = top_classes(task.net, rows)
    names, fit = check_classes(task, of_readable)
    return FoundPhotos(
        task, descriptors, whitening, whitened, thresholds, groups, pairs, labels, probabilities, names, fit,
        left_out_of(task), task.looks.facts, more_pairs=more,
    )  # fmt: skip


def find_given(task: GivenPhotoTask) -> FoundPhotos:
    """Find neighbours and near-duplicates by the given descriptors and threshold; there are no classes."""
    config, descriptors = task.config, task.descriptors()  # [N,D]
    readable = np.flatnonzero(np.isfinite(descriptors[:, 0]))
    scores, nearest = neighbours(config, rows_at(descriptors, readable))  # [n,k]
    chosen = sampled(task, descriptors)
    unknown = np.empty((0, len(EMBEDDED)), np.float32)
    thresholds = thresholds_of(task, readable, scores, nearest, chosen, unknown)
    groups, pairs, more = groups_of(task, descriptors, scores, nearest, thresholds)
    none = np.empty((len(descriptors), 0))
    return FoundPhotos(
        task, descriptors, None, "as they are given", thresholds, groups, pairs, none.astype(int), none, (),
        "descriptors are given: no classes are shown", left_out_of(task), task.looks.facts, more_pairs=more,
    )  # fmt: skip


def groups_of(
    task: PhotoTask | GivenPhotoTask,
    descriptors: np.ndarray,
    scores: np.ndarray,
    nearest: np.ndarray,
    thresholds: Thresholds,
) -> tuple[list[Group], int, bool]:
    """Near-duplicates, the number of pairs, and whether there may be more.

    descriptors: of all pictures [N,D].
    scores, nearest: of the neighbours of the readable ones [n,k], as indices of these.
    """
    readable, own = np.flatnonzero(np.isfinite(descriptors[:, 0])), task.folder.own
    others = len(readable) - 1
    if own is not None:
        mine = int((readable < own).sum())
        others = len(readable) - mine
        scores, nearest = neighbours_elsewhere(task.config, rows_at(descriptors, readable), mine)
    near = nearby(scores, nearest, thresholds)
    near[:, :2] = readable[near[:, :2]]
    taken = task.looks.table["taken"]
    pairs = find_pairs(descriptors, near, task.comparisons, thresholds, own=own, taken=taken)
    keeping = Keeping(task.config.keep, task.folder.images.paths, task.looks.facts)
    least = thresholds.moment.value
    if own is None:
        measure = Measure(lambda *ends: task.comparisons.aligned(np.stack(ends, 1)), thresholds.file.value)
        groups = near_duplicates(
            pairs, descriptors, least=least, choose=keeping.choose, may_go=keeping.may_go, measure=measure
        )
    else:
        groups = matches(pairs, len(descriptors), own, choose=keeping.choose, covers=keeping.covers)
    return groups, len(pairs), pairs_beyond(scores, least, others)


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
