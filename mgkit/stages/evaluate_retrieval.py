"""Retrieval on every set below data with every kind of descriptor (05, section 4.3)."""

from collections.abc import Iterator
from dataclasses import asdict, replace

import numpy as np

from mgkit.benchmarks.find import distractor_record, distractor_source
from mgkit.benchmarks.retrieval_set import RetrievalSet
from mgkit.config import RetrievalConfig
from mgkit.data.images import evenly
from mgkit.engine.holding import holding
from mgkit.engine.launch import on_all_devices
from mgkit.engine.run import Run, add_results
from mgkit.features import rows_at
from mgkit.machine.timing import timed
from mgkit.retrieval import indices
from mgkit.retrieval.protocols import (
    RetrievalResult,
    by_descriptors,
    difference,
    retrieve,
    rows_by_image,
    score_bias,
    shown,
)
from mgkit.retrieval.ranking import RERANKED, reranked
from mgkit.retrieval.rejection import Rejection
from mgkit.stages.descriptor_kinds import DescriptorKind, descriptor_kinds, own_descriptors, own_exponents
from mgkit.stages.figure_4 import curve_exponents, curve_images
from mgkit.stages.inputs import data_root
from mgkit.stages.results import Retrieval
from mgkit.stages.retrieval_task import (
    AnyTask,
    GivenTask,
    RetrievalTask,
    by_images,
    given,
    retrieval_task,
    scaled_sizes,
)

NPROBE = 4  # lists of an IVF index that a query searches
FEWEST_INDEXED = 1000  # images


def embed_sets(task: AnyTask) -> None:
    """Embed all images of the task on all devices, cached for `task.features`; raises as `on_all_devices`.

    Where descriptors are given, nothing is embedded.
    """
    if isinstance(task, GivenTask):
        print(f"nothing is embedded: the {task.name} are given")
        return
    on_all_devices(task.config, lambda config: embed_here(task))


def run_embedding(config: RetrievalConfig) -> None:
    """`embed_sets` in this process, or in each of several."""
    embed_here(retrieval_task(config))


def embed_here(task: RetrievalTask) -> None:
    """All passes whose features `evaluate_retrieval`, `resolution_curves` and `index_table` need.

    Those of figure 4 come first: they have the most exponents, and often the others among them.
    """
    config = task.config
    classes, sets = curve_images(task)
    ps = list(curve_exponents(task).values())
    for size in config.resolutions:
        if classes:
            task.features(classes, size=size, ps=ps, name="figure 4, classes")
        for of_images in by_images(sets):
            task.features_of(of_images[0], size=size, ps=ps)
    for of_images in by_images(task.sets):
        task.features_of(of_images[0], size=config.size, ps=own_exponents(task))
        for size in scaled_sizes(config):
            task.features_of(of_images[0], size=size, ps=[task.p])


def evaluate_retrieval(task: AnyTask) -> list[Retrieval]:
    """Evaluate every set with every kind of descriptor; one backbone pass per image and scale.

    Writes results.json, and distractors.sha256 with the names and SHA-256 of the distractors, unless another
    process has just written them; see `holding`, whose errors are raised. Each of several machines evaluates
    from the stored features, the first one writes.
    """
    config = task.config
    with holding(config) as joined:
        run = None if joined or config.node_rank else Run(config, **task.origin)
        if run:
            record_distractors(task, run)
        found = measured_sets(task)
        if run:
            run.results(task.settings | {"rows": [as_row(r) for r in found]})
    return found


def measured_sets(task: AnyTask) -> list[Retrieval]:
    """Evaluate every set with every kind of descriptor, each with its gain over the one before."""
    found = []
    for sets in by_images(task.sets):
        readable = task.readable(sets[0])  # the same for all kinds, which are compared
        of_images = [
            Retrieval(kind.name, kind.p, one, result, kind.over)
            for kind in descriptor_kinds(task, sets[0], readable)
            for one, result in measured(sets, kind, readable, task.config.false_rate)
        ]
        found += [with_gain(r, of_images) for one in sets for r in of_images if r.result.name == one.name]
    task.passes.unreadable.report()
    return found


@timed("search")
def evaluate_reranking(task: AnyTask) -> list[Retrieval]:
    """Evaluate the sets after query expansion and re-ranking, by the network's own descriptors.

    Returns for each set and kind the plain ranking, then each of the config's with its gain over it. Adds
    reranked to results.json.
    """
    found = []
    for sets in by_images(task.sets) if task.config.reranking else ():
        readable = task.readable(sets[0])
        for kind in own_descriptors(task, sets[0]):
            rows = rows_at(kind.descriptors, np.flatnonzero(readable))
            for one in sets:
                if one.measure != "none" and one.level is None:
                    found += rankings(task.config, one.only(readable), kind, rows)
    order = {one.name: place for place, one in enumerate(task.sets)}
    found.sort(key=lambda r: order[r.retrieval_set.name])
    add_results(task.config, {"reranked": [as_row(r) for r in found]})
    return found


def rankings(
    config: RetrievalConfig, one: RetrievalSet, kind: DescriptorKind, rows: np.ndarray
) -> Iterator[Retrieval]:
    """Evaluate a set by descriptors [N,D] as they are, and after each of the config's re-rankings."""
    before = retrieve(one, rows, false_rate=config.false_rate)
    yield Retrieval(kind.name, kind.p, one, before)
    products, own = by_descriptors(one, rows), rows_by_image(one)[one.queries]
    for method in config.reranking:
        ranking = reranked(method, products, own, k=config.expansion_k)
        after = retrieve(one, rows, ranking=ranking)
        name = f"{kind.name} + {RERANKED[method]}"
        yield Retrieval(name, kind.p, one, after, kind.name, difference(before, after))


def measured(
    sets: list[RetrievalSet], kind: DescriptorKind, readable: np.ndarray, false_rate: float
) -> Iterator[tuple[RetrievalSet, RetrievalResult]]:
    """Evaluate every set with one kind of descriptor on the readable images [N]; prints a line per set."""
    rows = rows_at(kind.descriptors, np.flatnonzero(readable))
    for one in sets:
        left = one.only(readable)
        bias = score_bias(left, rows) if kind.normalise else None
        result = retrieve(left, rows, bias=bias, false_rate=false_rate)
        if one.level is None:  # the levels of Copydays have a table of their own
            measure = f"{result.measure} " if result.measure != "none" else ""
            print(f"{one.name}, {kind.name}: {measure}{shown(result)}", flush=True)
        yield left, result


def with_gain(retrieval: Retrieval, found: list[Retrieval]) -> Retrieval:
    """The same with its gain over the kind that it is compared with."""
    base = [r for r in found if r.descriptor == retrieval.over and r.result.name == retrieval.result.name]
    if not base or retrieval.result.measure == "none":
        return retrieval
    return replace(retrieval, gain=difference(base[0].result, retrieval.result))


def as_row(retrieval: Retrieval) -> dict:
    """The result as a row of results.json."""
    result, gain = retrieval.result, retrieval.gain
    row = {
        "set": result.name, "descriptor": retrieval.descriptor, "p": retrieval.p, "measure": result.measure,
        "queries": len(result.per_query), "database": len(retrieval.retrieval_set.database), "value": None,
    }  # fmt: skip
    if result.measure == "none":
        return row
    row |= {"value": result.value, "interval": list(result.interval), "others": result.others}
    if result.rejection:
        row["rejection"] = rejection_row(result.rejection)
    return row | ({"over": retrieval.over, "gain": asdict(gain)} if gain else {})


def rejection_row(found: Rejection) -> dict:
    """The figures of a rejection for results.json; None for what is not known."""

    def finite(value: float | tuple) -> float | list | None:
        if isinstance(value, tuple):
            return [finite(end) for end in value]
        return float(value) if np.isfinite(value) else None

    of_queries = ("best", "right", "answered")
    figures = {name: finite(value) for name, value in vars(found).items() if name not in of_queries}
    return figures | {"unanswered": int((~found.answered).sum())}


def record_distractors(task: AnyTask, run: Run) -> None:
    """Write distractors.sha256, for `sha256sum -c` in the distractors' folder."""
    source = distractor_source(data_root(task.config.data), given(task.config.distractors))
    lists = [sets[0] for sets in by_images(task.sets)]
    paths = dict.fromkeys(one.images.paths[i] for one in lists for i in one.distractors.tolist())
    if paths:
        path = run.write("distractors.sha256", distractor_record(paths, source))
        print(f"{len(paths)} distractors, listed with their hashes in {path}")


@timed("search")
def index_table(task: AnyTask, *, queries: int = 200) -> str:
    """Compare exact search with the config's indices on all descriptors: recall, bytes per vector, time.

    queries: number of images, spread over all sets, that query the others

    With fewer than FEWEST_INDEXED images, a line that exact search is enough.
    """
    parts = []
    for sets in by_images(task.sets):
        rows = task.descriptors(sets[0], size=task.config.size)
        parts.append(rows[np.isfinite(rows[:, 0])])
    rows = np.concatenate(parts)
    if len(rows) < FEWEST_INDEXED:
        return f"{len(rows)} images: exact search is enough; indices are compared from {FEWEST_INDEXED} on"
    asking = evenly(len(rows), queries)
    database = np.delete(rows, asking, axis=0)
    return indices.table(indices.compare(task.config.indices, database, rows[asking], nprobe=NPROBE))


def best_of_each_set(found: list[Retrieval]) -> dict[str, Retrieval]:
    """The result with the best kind of descriptor for each set, by name, without the levels of Copydays.

    Without a measure, the result with the last kind, the most complete one.
    """
    best: dict[str, Retrieval] = {}
    for r in found:
        known = best.get(r.result.name)
        if r.retrieval_set.level is None and (known is None or not r.result.value <= known.result.value):
            best[r.result.name] = r
    return best
