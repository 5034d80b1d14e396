"""The response time of an explorer's controls with warm caches: the slowest of several moves, two threads.

Images are the photos in memory or on disk that the other benchmarks take; networks are untrained, which costs
as much. The bound is wall-clock time; a front end adds its own.
"""

import datetime
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import process_time

import numpy as np
import torch
from measuring import Row, photo_folder, seconds

from mgkit.benchmarks.retrieval_set import RetrievalSet
from mgkit.data.layouts import class_folders
from mgkit.explore import widgets
from mgkit.explore.browse import Collection, describe_with
from mgkit.explore.repooling import CACHE_BYTES, Repooling, SetMaps, images_held
from mgkit.explore.toys.batch import ToyBatches
from mgkit.features import embed
from mgkit.model import get_multigrain

WANTED = 0.2  # seconds
MOVES = 12
# A network and its image size (px): the mini set's, and a ResNet-50 with as many maps as an explorer holds.
SETTINGS = (("resnet8", 96), ("resnet50", 224))


@contextmanager
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def waited(stage: str, move: Callable[[], object]) -> Row:
    """The slowest of the moves, the first of which, with all that it may have to decode, is one of them."""
    taken, cpu = [], []
    for _ in range(MOVES):
        began = process_time()
        taken.append(seconds(move))
        cpu.append(process_time() - began)
    return Row(
        f"{stage}: slowest of {MOVES} moves", max(taken), None, "s", max(taken), WANTED, True, of="s",
        raw={"seconds": taken, "cpu_seconds": cpu},
    )  # fmt: skip


def through(control) -> Callable[[], None]:
    """A function that moves a control on to its next option, over and over."""
    values = itertools.cycle([value for _, value in control.options][1:])
    return lambda: setattr(control, "value", next(values))


def rows() -> list[Row]:
    with two_threads():
        return [row for name, size in SETTINGS for row in rows_of(name, size)]


def rows_of(name: str, size: int) -> Iterator[Row]:
    """Every control of every explorer."""
    torch.manual_seed(0)
    images = class_folders(photo_folder())
    net = get_multigrain(name, num_classes=len(images.classes)).eval()
    at_most = images_held(net, size, CACHE_BYTES)
    images = images.subset(np.random.default_rng(0).permutation(len(images))[:at_most])
    queries = np.arange(0, len(images), 4)
    same = tuple(np.setdiff1d(np.flatnonzero(images.labels == images.labels[q]), [q]) for q in queries)
    searched = RetrievalSet("photos", images, queries, np.arange(len(images)), same)
    what = f"{name}, {size} px"

    slider = widgets.p_slider(Repooling(net, images, searched, size=size, description=None))
    held = len(slider.repooling.validation) + len(slider.repooling.searched.maps)
    yield waited(f"p slider, {what}, {held} maps: p", through(slider.p))
    yield waited(f"p slider, {what}: query", through(slider.query))

    rows = embed(net, images, size=size, description=None)
    browser = widgets.query_browser(Collection(images, rows), describe=describe_with(net, size=size))
    yield waited(f"query browser, {what}: query", through(browser.query))
    contents = itertools.cycle(Path(path).read_bytes() for path in images.paths[:MOVES])
    yield waited(f"query browser, {what}: a picture brought along", lambda: bring(browser, next(contents)))

    heats = widgets.heat_maps(SetMaps(net, searched, size=size, description=None))
    for which, control in (("p", heats.p), ("query", heats.query), ("neighbour", heats.neighbour)):
        yield waited(f"heat maps, {what}: {which}", through(control))

    toy = widgets.toy_batch(ToyBatches(net, images, size=64 if size < 128 else size))
    numbers = itertools.cycle([1, 2, 4, 6, 3])
    yield waited(f"toy batch, {what}: N", lambda: setattr(toy.copies, "value", next(numbers)))
    weights = itertools.cycle(np.linspace(0, 1, 9))
    yield waited(f"toy batch, {what}: λ", lambda: setattr(toy.lambda_, "value", next(weights)))


def bring(browser, content: bytes) -> None:
    now = datetime.datetime.now(datetime.timezone.utc)
    given = {"name": "picture.jpg", "type": "image/jpeg", "size": len(content), "last_modified": now}
    browser.upload.value = ({**given, "content": memoryview(content)},)
