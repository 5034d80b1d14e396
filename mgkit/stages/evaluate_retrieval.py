"""Retrieval on every set below data with every kind of descriptor (05, section 4.3)."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np
import torch

from mgkit.backbones.backbone import TOKENS
from mgkit.benchmarks.find import GROUPS, SET_NAMES, distractor_record, distractor_source, find_sets, is_there
from mgkit.benchmarks.retrieval_set import RetrievalSet
from mgkit.config import FinetunePConfig, RetrievalConfig
from mgkit.data.images import ImageList, evenly
from mgkit.engine.feature_store import features_folder, stored_features
from mgkit.engine.holding import holding
from mgkit.engine.launch import on_all_devices
from mgkit.engine.run import Run, add_results
from mgkit.features import Passes, multi_scale, plain, whitened
from mgkit.machine.files import find_path
from mgkit.metrics import topk_accuracy
from mgkit.model import MultiGrain, with_tokens
from mgkit.retrieval import indices
from mgkit.retrieval.protocols import RetrievalResult, difference, measured_value, retrieve, score_bias, shown
from mgkit.stages.finetune_p import learned_exponents
from mgkit.stages.inputs import data_root, in_classes_of, validation_data
from mgkit.stages.results import ResolutionCurves, Retrieval
from mgkit.stages.whiten import whitened_network

POOLED = {"patches": "GeM", "class": "class token", "both": "class token and GeM"}  # by tokens
NPROBE = 4  # lists of an IVF index that a query searches
FEWEST_INDEXED = 1000  # images


@dataclass(frozen=True)
class RetrievalTask:
    """The inputs of 05.

    training_p: exponent that the network was trained with
    p: exponent that it pools with
    learned_p: whether that is a p* of 02; else it was given
    passes: how images are embedded
    """

    config: RetrievalConfig
    net: MultiGrain
    training_p: float
    p: float
    sets: list[RetrievalSet]
    passes: Passes
    learned_p: bool = True

    @cached_property
    def embedder(self) -> MultiGrain:
        """What images pass through: the network, or one with all its tokens if it has a class token."""
        return with_tokens(self.net, "both") if self.net.has_class_token else self.net

    @property
    def dimensions(self) -> int:
        """Dimensions of the network's descriptor."""
        return self.net.width + (self.net.whitening is not None)

    def features(
        self, images: ImageList, *, size: int, ps: list[float], name: str, tokens: str = ""
    ) -> list[np.ndarray]:
        """Pooled features [N,C] for each exponent, cached on disk; tokens: empty for the network's own."""
        images, folder = images.with_exif(self.config.exif), features_folder(self.config.experiment)
        passes = replace(self.passes, description=f"{name}, {size} px")
        every = stored_features(self.embedder, images, size=size, ps=ps, folder=folder, passes=passes)
        columns = columns_of(tokens or self.net.tokens, self.embedder)
        return [rows[:, columns] for rows in every]

    def descriptors(self, one: RetrievalSet, *, size: int) -> np.ndarray:
        """The network's own descriptors [N,D] of a set's images at a size (px)."""
        [pooled] = self.features(one.images, size=size, ps=[self.p], name=one.name)
        return plain(pooled) if self.net.whitening is None else whitened(self.net, pooled)

    def readable(self, one: RetrievalSet) -> np.ndarray:
        """Whether each of a set's images [N] was read, and passed through the network, at all scales."""
        sizes = [self.config.size, *(scaled_sizes(self.config) if self.config.scales != [1.0] else [])]
        passed = np.ones(len(one.images), dtype=bool)
        for size in sizes:
            [pooled] = self.features(one.images, size=size, ps=[self.p], name=one.name)
            passed &= np.isfinite(pooled[:, 0])
        return passed


def columns_of(tokens: str, embedder: MultiGrain) -> slice:
    """The columns of these tokens among the features of a network that may give both, class token first."""
    half = embedder.width // 2
    if tokens == embedder.tokens:
        return slice(None)
    return slice(0, half) if tokens == "class" else slice(half, None)


def by_images(sets: list[RetrievalSet]) -> list[list[RetrievalSet]]:
    """Group the sets that share their images, and so the pass over them."""
    groups: dict[int, list[RetrievalSet]] = {}
    for one in sets:
        groups.setdefault(id(one.images), []).append(one)
    return list(groups.values())


def retrieval_task(config: RetrievalConfig) -> RetrievalTask:
    """Load the network of 03, or the configured one, and find the sets below data."""
    net, checkpoint = whitened_network(config)
    sets = find_sets(
        data_root(config.data), names=config.sets, distractors=given_distractors(config),
        incomplete=config.on_unreadable,
    )  # fmt: skip
    own_p = net.pool.p.item()
    p = own_p if config.p is None else config.p
    learned = config.p is None and checkpoint.get("learned_p", True)
    training_p = checkpoint.get("training_p", own_p)
    task = RetrievalTask(config, net, training_p, p, sets, Passes.of(config), learned)
    check_before_work(task)
    return task


def given_distractors(config: RetrievalConfig) -> str:
    """The path of the config's distractors, from here or from the project's root; empty for none."""
    return str(find_path(config.distractors)) if config.distractors else ""


def check_before_work(task: RetrievalTask) -> None:
    """Raise ValueError for dims, scales or indices that do not fit the network's descriptors."""
    config = task.config
    if task.net.whitening is not None and (config.dims or 1) > task.dimensions:
        raise ValueError(f"dims: at most the {task.dimensions} of the whitened descriptor, got {config.dims}")
    sizes = scaled_sizes(config)
    if min(sizes) < 8 or len(set(sizes)) < len(sizes):
        raise ValueError(
            f"scales: times size {config.size} they give {sizes} px; distinct sizes of at least 8 are needed"
        )
    for factory in config.indices:
        try:
            indices.check_factory(factory, task.dimensions)
        except ValueError as error:
            raise ValueError(f"indices: {error}") from None


def embed_sets(task: RetrievalTask) -> None:
    """Embed all images of the task on all devices, cached for `task.features`; raises as `on_all_devices`."""
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
    every = {"classes": classes} if classes else {}
    every |= {of_images[0].name: of_images[0].images for of_images in by_images(sets)}
    for size in config.resolutions:
        for name, images in every.items():
            task.features(images, size=size, ps=ps, name=f"figure 4, {name}")
    for sets in by_images(task.sets):
        images, name = sets[0].images, sets[0].name
        task.features(images, size=config.size, ps=own_exponents(task), name=name)
        for size in scaled_sizes(config):
            task.features(images, size=size, ps=[task.p], name=name)


def evaluate_retrieval(task: RetrievalTask) -> list[Retrieval]:
    """Evaluate every set with every kind of descriptor; one backbone pass per image and scale.

    Writes results.json, and distractors.sha256 with the names and SHA-256 of the distractors, unless another
    process has just written them; see `holding`, whose errors are raised.
    """
    config, net = task.config, task.net
    with holding(config) as joined:
        run = None if joined else Run(config, checkpoint=net.source, sha256=net.source_sha256)
        if run:
            record_distractors(task, run)
        found = measured_sets(task)
        if run:
            run.results({
                "size": config.size, "crop": config.crop, "scales": config.scales,
                "rows": [as_row(r) for r in found],
            })  # fmt: skip
    return found


def measured_sets(task: RetrievalTask) -> list[Retrieval]:
    """Evaluate every set with every kind of descriptor, each with its gain over the one before."""
    found = []
    for sets in by_images(task.sets):
        readable = task.readable(sets[0])  # the same for all kinds, which are compared
        of_images = [
            Retrieval(kind.name, kind.p, one, result, kind.over)
            for kind in descriptor_kinds(task, sets[0], readable)
            for one, result in measured(sets, kind, readable)
        ]
        found += [with_gain(r, of_images) for one in sets for r in of_images if r.result.name == one.name]
    task.passes.unreadable.report()
    return found


@dataclass(frozen=True)
class DescriptorKind:
    """One kind of descriptor.

    p: pooling exponent; None for a class token, which is not pooled
    descriptors: of all images of a set [N,D]
    over: the kind that it is compared with; empty for none
    normalise: whether scores are normalised by the background images
    """

    name: str
    p: float | None
    descriptors: np.ndarray
    over: str = ""
    normalise: bool = False


def own_exponents(task: RetrievalTask) -> list[float]:
    """The exponents that the network was trained with and pools with; one if they give the same."""
    return [task.p] if task.net.tokens == "class" else list(dict.fromkeys([task.training_p, task.p]))


def own_names(task: RetrievalTask) -> tuple[str, str, str]:
    """Names of the network's own descriptors: with its training p, with p* or a given p, and whitened.

    A class token has no p: the first two are the same.
    """
    name = POOLED[task.net.tokens]
    if task.net.tokens == "class":
        return name, name, f"{name}, whitened"
    tuned = f"{name}, p*" if task.learned_p else f"{name}, p = {task.p:g}"
    return f"{name}, training p", tuned, f"{tuned}, whitened"


def descriptor_kinds(
    task: RetrievalTask, one: RetrievalSet, readable: np.ndarray
) -> Iterator[DescriptorKind]:
    """All kinds of descriptor of a set's images: pooled, whitened, reduced, normalised, multi-scale.

    Of a network with a class token also those of its other tokens, compared with its own before whitening.

    readable: see `RetrievalTask.readable` ([N])
    """
    config, net, p = task.config, task.net, None if task.net.tokens == "class" else task.p
    features = task.features(one.images, size=config.size, ps=own_exponents(task), name=one.name)
    trained, tuned, white = own_names(task)
    name, rows = trained, plain(features[0])
    yield DescriptorKind(name, p and task.training_p, rows)
    if len(features) > 1:
        over, name, rows = name, tuned, plain(features[-1])
        yield DescriptorKind(name, p, rows, over)
    for tokens in TOKENS if net.has_class_token else ():
        if tokens != net.tokens:
            [others] = task.features(one.images, size=config.size, ps=[task.p], name=one.name, tokens=tokens)
            yield DescriptorKind(
                POOLED[tokens], None if tokens == "class" else task.p, plain(others), over=name
            )
    if net.whitening is not None:
        over, name, rows = name, white, whitened(net, features[-1])
        yield DescriptorKind(name, p, rows, over)
    whole = name
    if net.whitening is not None and config.dims is not None:
        over, name, rows = name, f"{name}, {config.dims} d", whitened(net, features[-1], dims=config.dims)
        yield DescriptorKind(name, p, rows, over)
    if readable[one.background].any():
        yield DescriptorKind(f"{name}, scores normalised", p, rows, over=name, normalise=True)
    if config.scales != [1.0]:
        rows = multi_scale([task.descriptors(one, size=size) for size in scaled_sizes(config)])
        yield DescriptorKind(f"{whole}, {len(config.scales)} scales", p, rows, over=whole)


def scaled_sizes(config: RetrievalConfig) -> list[int]:
    """The sizes (px) of the multi-scale descriptor."""
    return [round(scale * config.size) for scale in config.scales]


def measured(
    sets: list[RetrievalSet], kind: DescriptorKind, readable: np.ndarray
) -> Iterator[tuple[RetrievalSet, RetrievalResult]]:
    """Evaluate every set with one kind of descriptor on the readable images [N]; prints a line per set."""
    rows = kind.descriptors if readable.all() else kind.descriptors[readable]
    for one in sets:
        left = one.only(readable)
        bias = score_bias(left, rows) if kind.normalise else None
        result = retrieve(left, rows, bias=bias)
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
    return row | ({"over": retrieval.over, "gain": asdict(gain)} if gain else {})


def record_distractors(task: RetrievalTask, run: Run) -> None:
    """Write distractors.sha256, for `sha256sum -c` in the distractors' folder."""
    source = distractor_source(data_root(task.config.data), given_distractors(task.config))
    for sets in by_images(task.sets):
        images, distractors = sets[0].images, sets[0].distractors
        if len(distractors):
            path = run.write("distractors.sha256", distractor_record(images, distractors, source))
            print(f"{len(distractors)} distractors, listed with their hashes in {path}")


def resolution_curves(task: RetrievalTask) -> ResolutionCurves:
    """mAP and top-1 against resolution, for the training p and each p* of 02 (figure 4).

    With plain GeM embeddings, as in the paper. top-1 if data has images of the network's classes. Adds
    figure_4 to results.json.
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
                for one in of_images:
                    put(one.name, one.measure, s, j, measured_value(one.only(readable), rows))
    curves = ResolutionCurves(sizes, exponents, values, measures)
    lists = {name: of_name.tolist() for name, of_name in values.items()}
    add_results(task.config, {"figure_4": {"sizes": sizes, "exponents": exponents, "values": lists}})
    return curves


def curve_exponents(task: RetrievalTask) -> dict[str, float]:
    """The exponents of figure 4, {label: p}: the training p, each p* of 02, and those of the config."""
    if task.net.tokens == "class":
        return {POOLED["class"]: task.p}
    exponents = {f"training p = {task.training_p:g}": task.training_p}
    learned = learned_exponents(FinetunePConfig(experiment=task.config.experiment))
    for size, p in zip(learned.sizes, learned.p_star, strict=True) if learned else ():
        if size in task.config.resolutions:
            exponents[f"p* of {size} px = {p:.2f}"] = p
    others = [p for p in task.config.ps if p not in exponents.values()]
    return exponents | {f"p = {p:g}": p for p in others}


def curve_images(task: RetrievalTask) -> tuple[ImageList | None, list[RetrievalSet]]:
    """The images of figure 4: labelled ones, if there are any, and the sets without distractors."""
    if not task.config.resolutions:
        return None, []
    sets = [one.alone() for one in task.sets if one.measure != "none" and one.level is None]
    return class_images(task), sets


def class_images(task: RetrievalTask) -> ImageList | None:
    """The labelled validation images below data; None if data has retrieval sets only."""
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
    """Top-1 accuracy in 0..1 from pooled features [N,C], without unreadable images."""
    readable = np.isfinite(pooled[:, 0])
    rows = torch.from_numpy(pooled[readable]).to(net.classifier.weight.device)
    with torch.no_grad():
        logits = net.head(rows)["classifier_output"].cpu()
    return topk_accuracy(logits, torch.from_numpy(labels[readable]), ks=(1,))[0]


def best_exponents(curves: ResolutionCurves) -> str:
    """The best exponent at each resolution, one line per measure."""
    labels = list(curves.exponents)
    lines = []
    for name, values in curves.values.items():
        best_of_size = zip(curves.sizes, values.argmax(axis=1), strict=True)
        best = [f"{size} px: {labels[j]}" for size, j in best_of_size]
        lines.append(f"{name}, best {'; '.join(best)}")
    return "\n".join(lines)


def index_table(task: RetrievalTask, *, queries: int = 200) -> str:
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
