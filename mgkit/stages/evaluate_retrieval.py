"""Retrieval: every set below data with every kind of descriptor, and what grows out of it (05, section 4.3)."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from mgkit.benchmarks.find import GROUPS, SET_NAMES, distractor_record, distractor_source, find_sets, is_there
from mgkit.benchmarks.retrieval_set import RetrievalSet
from mgkit.config import FinetunePConfig, RetrievalConfig
from mgkit.data.images import ImageList, evenly
from mgkit.engine.feature_store import features_folder, stored_features
from mgkit.engine.launch import on_all_devices
from mgkit.engine.run import Run, add_results, read_results
from mgkit.features import Passes, multi_scale, plain, whitened
from mgkit.machine.files import find_path
from mgkit.metrics import topk_accuracy
from mgkit.model import MultiGrain
from mgkit.retrieval import indices
from mgkit.retrieval.protocols import RetrievalResult, difference, measured_value, retrieve, score_bias, shown
from mgkit.stages.inputs import data_root, in_classes_of, validation_data
from mgkit.stages.results import ResolutionCurves, Retrieval
from mgkit.stages.whiten import whitened_network

NPROBE = 4  # lists of an IVF index that a query looks into
FEWEST_INDEXED = 1000  # images


@dataclass(frozen=True)
class RetrievalTask:
    """What 05 works on: the network, the exponent it was trained with and the one it pools with, the sets."""

    config: RetrievalConfig
    net: MultiGrain
    training_p: float
    p: float
    sets: list[RetrievalSet]
    passes: Passes

    @property
    def dimensions(self) -> int:
        """Of the network's descriptor."""
        return self.net.width + (self.net.whitening is not None)

    def features(self, images: ImageList, *, size: int, ps: list[float], name: str) -> list[np.ndarray]:
        """Pooled features [N,C] for each exponent, from disk where an earlier run left them."""
        return stored_features(
            self.net, images.with_exif(self.config.exif), size=size, ps=ps,
            folder=features_folder(self.config.experiment), passes=self.passes, description=f"{name}, {size} px",
        )  # fmt: skip

    def descriptors(self, each: RetrievalSet, *, size: int) -> np.ndarray:
        """The network's own descriptors of a set's images at a size (px), [N,D]: whitened where it has a whitening."""
        [pooled] = self.features(each.images, size=size, ps=[self.p], name=each.name)
        return plain(pooled) if self.net.whitening is None else whitened(self.net, pooled)


def by_images(sets: list[RetrievalSet]) -> list[list[RetrievalSet]]:
    """The sets, those that share their images together: they share the pass over them too."""
    groups: dict[int, list[RetrievalSet]] = {}
    for each in sets:
        groups.setdefault(id(each.images), []).append(each)
    return list(groups.values())


def retrieval_task(config: RetrievalConfig) -> RetrievalTask:
    """Load the network that 03 left, or the configured one, and find the sets below data."""
    net, checkpoint = whitened_network(config)
    sets = find_sets(data_root(config.data), names=config.sets, distractors=given_distractors(config))
    p = net.pool.p.item() if config.p is None else config.p
    task = RetrievalTask(config, net, checkpoint.get("training_p", p), p, sets, Passes.of(config))
    check_before_work(task)
    return task


def given_distractors(config: RetrievalConfig) -> str:
    """The config's folder or list of distractors, found from here or from the project's root; empty where none is given."""
    return str(find_path(config.distractors)) if config.distractors else ""


def check_before_work(task: RetrievalTask) -> None:
    """ValueError, naming the parameter, for dims, scales or indices that this network's descriptors cannot have."""
    config = task.config
    if task.net.whitening is not None and (config.dims or 1) > task.dimensions:
        raise ValueError(f"dims: at most the {task.dimensions} of the whitened descriptor, got {config.dims}")
    sizes = scaled_sizes(config)
    if min(sizes) < 8 or len(set(sizes)) < len(sizes):
        raise ValueError(
            f"scales: times size {config.size} they give {sizes} px; distinct ones of at least 8 are wanted"
        )
    for factory in config.indices:
        try:
            indices.check_factory(factory, task.dimensions)
        except ValueError as error:
            raise ValueError(f"indices: {error}") from None


def embed_sets(task: RetrievalTask) -> None:
    """Have all images that the task is about embedded, on all devices; `task.features` then reads from disk. Raises as `on_all_devices`."""
    on_all_devices(task.config, lambda config: embed_here(task))


def run_embedding(config: RetrievalConfig) -> None:
    """What `embed_sets` does, in this process, or in each of those that are joined."""
    embed_here(retrieval_task(config))


def embed_here(task: RetrievalTask) -> None:
    """Every pass over images that `evaluate_retrieval`, `resolution_curves` and `index_table` need the features of."""
    config = task.config
    for sets in by_images(task.sets):
        images, name = sets[0].images, sets[0].name
        task.features(images, size=config.size, ps=own_exponents(task), name=name)
        for size in scaled_sizes(config):
            task.features(images, size=size, ps=[task.p], name=name)
    classes, sets = curve_images(task)
    ps = list(curve_exponents(task).values())
    every = ([classes] if classes else []) + [of_images[0].images for of_images in by_images(sets)]
    for size in config.resolutions:
        for images in every:
            task.features(images, size=size, ps=ps, name="figure 4")


def evaluate_retrieval(task: RetrievalTask) -> list[Retrieval]:
    """Every set with every kind of descriptor, set by set; each image passes once through the backbone for each scale.

    Writes outputs/<experiment>/evaluate_retrieval/results.json, and what distractors were used, by name and SHA-256.
    """
    run = Run(task.config, checkpoint=task.net.source)
    record_distractors(task, run)
    found = []
    for sets in by_images(task.sets):
        of_images = [
            Retrieval(kind.name, kind.p, each, result, kind.over)
            for kind in descriptor_kinds(task, sets[0])
            for each, result in measured(sets, kind)
        ]
        found += [with_gain(r, of_images) for each in sets for r in of_images if r.result.name == each.name]
    task.passes.unreadable.report()
    run.results({
        "size": task.config.size, "crop": task.config.crop, "scales": task.config.scales,
        "rows": [as_row(r) for r in found],
    })  # fmt: skip
    return found


@dataclass(frozen=True)
class DescriptorKind:
    """A name, the exponent p, descriptors [N,D], which kind they are held against, and whether scores are normalised."""

    name: str
    p: float
    descriptors: np.ndarray
    over: str = ""
    normalise: bool = False


def own_exponents(task: RetrievalTask) -> list[float]:
    """What the network was trained with and what it pools with, once if they are the same."""
    return list(dict.fromkeys([task.training_p, task.p]))


def descriptor_kinds(task: RetrievalTask, each: RetrievalSet) -> Iterator[DescriptorKind]:
    """Kinds of descriptor of a set's images, one after the other: pooled, whitened, reduced, at several scales, normalised."""
    config, net, p = task.config, task.net, task.p
    features = task.features(each.images, size=config.size, ps=own_exponents(task), name=each.name)
    name, rows = "GeM, training p", plain(features[0])
    yield DescriptorKind(name, task.training_p, rows)
    if p != task.training_p:
        over, name, rows = name, "GeM, p*", plain(features[-1])
        yield DescriptorKind(name, p, rows, over)
    if net.whitening is not None:
        over, name, rows = name, "GeM, p*, whitened", whitened(net, features[-1])
        yield DescriptorKind(name, p, rows, over)
    whole = name
    if net.whitening is not None and config.dims is not None:
        over, name, rows = name, f"{name}, {config.dims} d", whitened(net, features[-1], dims=config.dims)
        yield DescriptorKind(name, p, rows, over)
    if np.isfinite(rows[each.background, 0]).any():
        yield DescriptorKind(f"{name}, scores normalised", p, rows, over=name, normalise=True)
    if config.scales != [1.0]:
        yield DescriptorKind(f"{whole}, {len(config.scales)} scales", p, at_scales(task, each), over=whole)


def at_scales(task: RetrievalTask, each: RetrievalSet) -> np.ndarray:
    """Descriptors from every scale of the config together, [N,D]."""
    return multi_scale([task.descriptors(each, size=size) for size in scaled_sizes(task.config)])


def scaled_sizes(config: RetrievalConfig) -> list[int]:
    """The sizes (px) of the multi-scale descriptor."""
    return [round(scale * config.size) for scale in config.scales]


def measured(
    sets: list[RetrievalSet], kind: DescriptorKind
) -> Iterator[tuple[RetrievalSet, RetrievalResult]]:
    """Every set with one kind of descriptor, without the images that could not be read; prints a line each."""
    readable = np.isfinite(kind.descriptors[:, 0])
    rows = kind.descriptors if readable.all() else kind.descriptors[readable]
    for each in sets:
        left = each.only(readable)
        bias = score_bias(left, rows) if kind.normalise else None
        result = retrieve(left, rows, bias=bias)
        if each.level is None:  # Copydays' eighteen levels have their table
            measure = f"{result.measure} " if result.measure != "none" else ""
            print(f"{each.name}, {kind.name}: {measure}{shown(result)}", flush=True)
        yield left, result


def with_gain(retrieval: Retrieval, found: list[Retrieval]) -> Retrieval:
    """The same with what it gains on the kind it is held against."""
    base = [r for r in found if r.descriptor == retrieval.over and r.result.name == retrieval.result.name]
    if not base or retrieval.result.measure == "none":
        return retrieval
    return replace(retrieval, gain=difference(base[0].result, retrieval.result))


def as_row(retrieval: Retrieval) -> dict:
    """A line of results.json: plain values."""
    result, gain = retrieval.result, retrieval.gain
    row = {
        "set": result.name, "descriptor": retrieval.descriptor, "p": retrieval.p, "measure": result.measure,
        "queries": len(result.per_query), "database": len(retrieval.retrieval_set.database), "value": None,
    }  # fmt: skip
    if result.measure == "none":
        return row
    row |= {"value": result.value, "interval": list(result.interval), "others": result.others}
    return row | ({"over": retrieval.over, "gain": asdict(gain)} if gain else {})


def record_distractors(task: RetrievalTask, run: Run) -> None:
    """Leave distractors.sha256 in the run's folder: which files they were, for `sha256sum -c` in theirs."""
    source = distractor_source(data_root(task.config.data), given_distractors(task.config))
    for sets in by_images(task.sets):
        each = sets[0]
        if len(each.distractors):
            path = run.write("distractors.sha256", distractor_record(each.images, each.distractors, source))
            print(f"{len(each.distractors)} distractors, listed with their hashes in {path}")


def resolution_curves(task: RetrievalTask) -> ResolutionCurves:
    """mAP and top-1 against resolution for the training exponent and each p* of 02, one backbone pass a resolution (figure 4).

    Plain GeM embeddings, as in the figure. top-1 where data has classes that the network knows. results.json gets the curves.
    """
    sizes = task.config.resolutions
    exponents = curve_exponents(task)
    ps = list(exponents.values())
    values, measures = {}, {}

    def put(name: str, measure: str, s: int, j: int, value: float) -> None:
        measures[name] = measure
        values.setdefault(name, np.full((len(sizes), len(ps)), np.nan))[s, j] = value

    classes, sets = curve_images(task)
    for s, size in enumerate(sizes):
        if classes is not None:
            for j, features in enumerate(task.features(classes, size=size, ps=ps, name="figure 4")):
                put("top-1", "top-1", s, j, top1(task.net, features, classes.labels))
        for of_images in by_images(sets):
            images = of_images[0].images
            for j, features in enumerate(task.features(images, size=size, ps=ps, name="figure 4")):
                readable = np.isfinite(features[:, 0])
                rows = plain(features[readable])
                for each in of_images:
                    put(each.name, each.measure, s, j, measured_value(each.only(readable), rows))
    curves = ResolutionCurves(sizes, exponents, values, measures)
    add_results(task.config, {"figure_4": {
        "sizes": sizes, "exponents": exponents, "values": {name: of_name.tolist() for name, of_name in values.items()},
    }})  # fmt: skip
    return curves


def curve_exponents(task: RetrievalTask) -> dict[str, float]:
    """The exponents of figure 4, by what they are called: of training, and each p* that 02 learned for its resolutions."""
    exponents = {f"training p = {task.training_p:g}": task.training_p}
    learned = read_results(FinetunePConfig(experiment=task.config.experiment))
    learned = learned or {"sizes": [], "p_star": []}
    for size, p in zip(learned["sizes"], learned["p_star"], strict=True):
        if size in task.config.resolutions:
            exponents[f"p* of {size} px = {p:.2f}"] = p
    return exponents


def curve_images(task: RetrievalTask) -> tuple[ImageList | None, list[RetrievalSet]]:
    """What figure 4 is measured on: labelled images, if there are any, and the sets without distractors."""
    if not task.config.resolutions:
        return None, []
    sets = [each.alone() for each in task.sets if each.measure != "none" and each.level is None]
    return class_images(task), sets


def class_images(task: RetrievalTask) -> ImageList | None:
    """The labelled validation images below data; None where data holds retrieval sets only."""
    root = data_root(task.config.data)
    grouped = root.is_file() or (root / GROUPS).is_file()  # by a csv: groups, not classes
    if grouped or (not (root / "imagenet").is_dir() and any(is_there(root, name) for name in SET_NAMES)):
        return None
    try:
        return in_classes_of(task.net, validation_data(task.config))
    except (OSError, ValueError) as error:
        print(f"no top-1 in figure 4: {error}")
        return None


def top1(net: MultiGrain, pooled: np.ndarray, labels: np.ndarray) -> float:
    """top-1 accuracy in 0..1 from pooled features [N,C], unreadable images left out."""
    readable = np.isfinite(pooled[:, 0])
    rows = torch.from_numpy(pooled[readable]).to(net.classifier.weight.device)
    with torch.no_grad():
        logits = net.head(rows)["classifier_output"].cpu()
    return topk_accuracy(logits, torch.from_numpy(labels[readable]), ks=(1,))[0]


def best_exponents(curves: ResolutionCurves) -> str:
    """A line for each measure: which exponent is best at which resolution."""
    labels = list(curves.exponents)
    lines = []
    for name, values in curves.values.items():
        best = [
            f"{size} px: {labels[j]}" for size, j in zip(curves.sizes, values.argmax(axis=1), strict=True)
        ]
        lines.append(f"{name}, best {'; '.join(best)}")
    return "\n".join(lines)


def index_table(task: RetrievalTask, *, queries: int = 200) -> str:
    """Exact search and each of the config's indices on the descriptors of all sets: recall, bytes a vector, time.

    As many images as `queries`, spread over all, ask the others. Whitened descriptors where the network has them. Of fewer
    images than FEWEST_INDEXED a line says that exact search will do.
    """
    parts = []
    for sets in by_images(task.sets):
        rows = task.descriptors(sets[0], size=task.config.size)
        parts.append(rows[np.isfinite(rows[:, 0])])
    rows = np.concatenate(parts)
    if len(rows) < FEWEST_INDEXED:
        return f"{len(rows)} images: exact search is all they need; indices are compared from {FEWEST_INDEXED} on"
    asking = evenly(len(rows), queries)
    database = np.delete(rows, asking, axis=0)
    return indices.table(indices.compare(task.config.indices, database, rows[asking], nprobe=NPROBE))


def best_of_each_set(found: list[Retrieval]) -> dict[str, Retrieval]:
    """For each set, by name, what was found with the kind of descriptor that does best on it; levels of Copydays left out.

    Where nothing is measured, with the last kind, which has most of the method in it.
    """
    best: dict[str, Retrieval] = {}
    for r in found:
        known = best.get(r.result.name)
        if r.retrieval_set.level is None and (known is None or not r.result.value <= known.result.value):
            best[r.result.name] = r
    return best
