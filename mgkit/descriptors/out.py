"""Embed images and leave their descriptors in files; `mgkit.retrieval.descriptor_files` has the format.

Each list of images gets a folder of its own in outputs/<experiment>/descriptors/. Sets that share their
images share it. Images that cannot be read have no row; left_out.csv lists them.
"""

import csv
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path

import faiss
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mgkit.benchmarks.own import plain_set
from mgkit.benchmarks.retrieval_set import RetrievalSet
from mgkit.config import DescribeConfig
from mgkit.data.images import ImageList, image_shapes
from mgkit.engine.feature_store import identity_of_network
from mgkit.engine.holding import holding
from mgkit.engine.launch import on_all_devices
from mgkit.engine.provenance import provenance
from mgkit.engine.run import Run, papermill_command, stage_folder
from mgkit.features import ROWS, JoinedRows, Passes, plain, whitened
from mgkit.machine.files import find_path, sync, writing
from mgkit.machine.printable import csv_name, file_stem, shown_name
from mgkit.retrieval import indices
from mgkit.retrieval.descriptor_files import COLUMNS, DESCRIPTORS, IMAGES, INDEX, MANIFEST, relative_names
from mgkit.retrieval.search import slices
from mgkit.stages.inputs import data_root
from mgkit.stages.retrieval_task import RetrievalTask, by_images, sets_of
from mgkit.stages.whiten import whitened_network

LEFT_OUT = "left_out.csv"


def describe(config: DescribeConfig) -> list[Path]:
    """Embed the images on all devices, write their descriptors, and return the folders.

    Images are those below `images`, or of the sets below `data`. The features are stored as those of 05 are,
    so an interrupted call goes on. Raises as `on_all_devices`, `find_sets` and `holding`; ValueError for an
    index that cannot be built of the descriptors.
    """
    task = describe_task(config)
    on_all_devices(config, lambda config: embed_here(task))
    every = by_images(task.sets)
    folders = [stage_folder(config) / name for name in folder_names(every)]
    with holding(config) as joined:
        if not (joined or config.node_rank):  # the first machine writes
            run = Run(config, **task.origin, images=[sets[0].images for sets in every])
            counts = [write_folder(task, sets, folder) for sets, folder in zip(every, folders, strict=True)]
            written = {folder.name: count for folder, count in zip(folders, counts, strict=True)}
            run.results(task_settings(task) | {"rows": written})
    task.passes.unreadable.report()
    return folders


def run_describing(config: DescribeConfig) -> None:
    """Embed the images in this process, or in each of several."""
    embed_here(describe_task(config))


def describe_task(config: DescribeConfig) -> RetrievalTask:
    """Load the network of 03, or the configured one, and find the images."""
    net, checkpoint = whitened_network(config)
    sets = [plain_set(find_path(config.images))] if config.images else sets_of(config)
    own_p = net.pool.p.item()
    p = own_p if config.p is None else config.p
    task = RetrievalTask(config, net, checkpoint.get("training_p", own_p), p, sets, Passes.of(config))
    if config.index:
        indices.check_factory(config.index, task.dimensions)
    return task


def embed_here(task: RetrievalTask) -> None:
    for sets in by_images(task.sets):
        pooled(task, sets[0])


def pooled(task: RetrievalTask, one: RetrievalSet) -> np.ndarray | JoinedRows:
    """Pooled features of a set's images [N,C], from disk; NaN for unreadable images."""
    [rows] = task.features_of(one, size=task.config.size, ps=[task.p])
    return rows


def folder_names(every: list[list[RetrievalSet]]) -> list[str]:
    """A name for the folder of each list of images, with a number if it is taken.

    It is what the names of its sets begin with, without distractors.
    """
    names = []
    for sets in every:
        common = os.path.commonprefix([one.name for one in sets]).split(" + ")[0]
        stem = file_stem(common.strip() or sets[0].name)
        taken = sum(name == stem or name.startswith(f"{stem}.") for name in names)
        names.append(f"{stem}.{taken}" if taken else stem)
    return names


# --- A folder


def write_folder(task: RetrievalTask, sets: list[RetrievalSet], folder: Path) -> int:
    """Write the descriptors of the images that sets share; returns the number of rows.

    The folder appears when it is complete. Descriptors are computed and written by blocks of rows.
    """
    images = sets[0].images.with_exif(task.config.exif)
    features = pooled(task, sets[0])
    kept = np.isfinite(features[:, 0])
    with whole_folder(folder) as partial_folder:
        write_rows(task, features, kept, partial_folder / DESCRIPTORS)
        write_images(task, images, groups(sets), kept, partial_folder)
        if task.config.index:
            write_index(task.config.index, partial_folder)
        manifest = manifest_of(task, sets, int(kept.sum()))
        (partial_folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    print(f"{shown_name(folder)}: {kept.sum()} rows of {task.dimensions} dimensions", flush=True)
    return int(kept.sum())


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to fill, which replaces `folder` after the block, and is removed on an error."""
    partial_folder, aside = (folder.with_name(f".{folder.name}.{end}") for end in ("partial", "old"))
    with writing(folder):
        shutil.rmtree(partial_folder, ignore_errors=True)  # left by a process that was killed
        partial_folder.mkdir(parents=True)
        try:
            yield partial_folder
            for path in partial_folder.iterdir():
                sync(path)
            if folder.exists():
                shutil.rmtree(aside, ignore_errors=True)
                os.rename(folder, aside)  # as a folder that holds files cannot be replaced
            os.rename(partial_folder, folder)
            sync(folder.parent)
        finally:
            shutil.rmtree(partial_folder, ignore_errors=True)
            shutil.rmtree(aside, ignore_errors=True)


def write_rows(task: RetrievalTask, features: np.ndarray | JoinedRows, kept: np.ndarray, path: Path) -> None:
    """Write descriptors as an array of numpy [n,D], from features [N,C] of which n are `kept` [N]."""
    describe_block = plain if task.net.whitening is None else partial(whitened, task.net)
    dtype = np.dtype(task.config.dtype).newbyteorder("<")
    header = {"descr": dtype.str, "fortran_order": False, "shape": (int(kept.sum()), task.dimensions)}
    with open(path, "wb") as file:  # not a memory map, through which a full disk would end the process
        np.lib.format.write_array_header_1_0(file, header)
        for part in slices(len(kept), ROWS):
            file.write(describe_block(features[part][kept[part]]).astype(dtype))


def write_images(
    task: RetrievalTask, images: ImageList, group_of: list[str], kept: np.ndarray, folder: Path
) -> None:
    """Write images.csv, a line for each of the images that are `kept` [N]; left_out.csv has the others."""
    names = relative_names(images, root_of(task.config))
    there, others = np.flatnonzero(kept).tolist(), np.flatnonzero(~kept).tolist()
    shapes = image_shapes(images.subset(there))
    with open(folder / IMAGES, "w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(COLUMNS)
        for row, (i, (width, height)) in enumerate(zip(there, shapes, strict=True)):
            size = os.path.getsize(images.paths[i])
            lines.writerow((row, csv_name(names[i]), size, width, height, csv_name(group_of[i])))
    reasons = task.passes.unreadable.reasons
    with open(folder / LEFT_OUT, "w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(("path", "why"))
        lines.writerows((csv_name(names[i]), reasons.get(images.paths[i], "")) for i in others)


def root_of(config: DescribeConfig) -> str:
    """The folder that the paths in images.csv are relative to: `images`, or `data`, or that of the file."""
    root = os.path.realpath(find_path(config.images) if config.images else data_root(config.data))
    return os.path.dirname(root) if os.path.isfile(root) else root


def groups(sets: list[RetrievalSet]) -> list[str]:
    """The class of each image [N]; without classes, a number that images share which answer each other.

    Empty for an image that is in no class, or answers none.
    """
    images = sets[0].images
    if images.classes:
        return [images.classes[label] if label >= 0 else "" for label in images.labels]
    asking = np.concatenate([np.repeat(one.queries, [len(of) for of in one.positives]) for one in sets])
    answering = np.concatenate([np.concatenate([*one.positives, one.queries[:0]]) for one in sets])
    pairs = coo_array((np.ones(len(asking)), (asking, answering)), shape=(len(images),) * 2)
    _, component = connected_components(pairs, directed=False)
    grouped = np.bincount(component)[component] > 1
    _, number = np.unique(component[grouped], return_inverse=True)
    found = np.full(len(images), "", dtype=object)
    found[grouped] = [str(one) for one in number]
    return found.tolist()


def write_index(factory: str, folder: Path) -> None:
    """Build an index of the written rows by inner product, block by block, and write it."""
    rows = np.load(folder / DESCRIPTORS, mmap_mode="r", allow_pickle=False)
    index = indices.build_index(factory, rows).index
    with indices.one_line_errors(f"{folder / INDEX}"):
        faiss.write_index(index, str(folder / INDEX))


# --- The manifest


def task_settings(task: RetrievalTask) -> dict:
    """How the descriptors were made, as the manifest and results.json say it."""
    config, net = task.config, task.net
    pooled_by = None if net.tokens == "class" else "inf" if math.isinf(task.p) else task.p
    return {
        "network": net.name,
        "checkpoint": net.source or "published weights",
        "checkpoint_sha256": net.source_sha256 or None,
        "weights_sha256": identity_of_network(net)["sha256"],
        "size": config.size,
        "crop": config.crop,
        "p": pooled_by,
        "tokens": net.tokens,
        "whitening": "none" if net.whitening is None else "PCA",
        "dimensions": task.dimensions,
        "dtype": config.dtype,
    }


def manifest_of(task: RetrievalTask, sets: list[RetrievalSet], count: int) -> dict:
    """What is in a folder of descriptors, and how it was made."""
    images = sets[0].images
    return task_settings(task) | {
        "count": count,
        "left_out": len(images) - count,
        "normalised": "L2",
        "index": task.config.index or None,
        "images": [one.name for one in sets],
        "root": root_of(task.config),
        "exif": images.with_exif(task.config.exif).exif,
        "made_by": f"mgkit {metadata.version('mgkit')}",
        "command": papermill_command(task.config),
        "provenance": provenance(),
    }
