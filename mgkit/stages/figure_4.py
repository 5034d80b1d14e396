"""mAP and top-1 against resolution for several exponents (05, figure 4)."""

import numpy as np
import torch

from mgkit.benchmarks.find import SET_NAMES, is_there
from mgkit.benchmarks.own import GROUPS
from mgkit.benchmarks.retrieval_set import RetrievalSet
from mgkit.config import FinetunePConfig
from mgkit.data.images import ImageList
from mgkit.engine.run import add_results
from mgkit.features import plain, rows_at
from mgkit.metrics import topk_accuracy
from mgkit.model import MultiGrain
from mgkit.retrieval.protocols import measured_value
from mgkit.stages.descriptor_kinds import POOLED
from mgkit.stages.finetune_p import learned_exponents
from mgkit.stages.inputs import data_root, in_classes_of, validation_data
from mgkit.stages.results import ResolutionCurves
from mgkit.stages.retrieval_task import RetrievalTask, by_images


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
            for j, features in enumerate(task.features_of(of_images[0], size=size, ps=ps)):
                readable = np.isfinite(features[:, 0])
                rows = rows_at(plain(features), np.flatnonzero(readable))
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
    """The images of figure 4: labelled ones, if there are any, and the sets, each with its own images."""
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
