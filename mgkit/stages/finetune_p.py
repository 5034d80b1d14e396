"""p* and the sweep over p for every evaluation resolution (02)."""

import math
from dataclasses import asdict, fields
from typing import Literal

import numpy as np
from pydantic import BaseModel, Field, PositiveInt, model_validator
from torch import nn

from mgkit.config import Exponent, FinetunePConfig, NetworkConfig
from mgkit.data.images import ImageList
from mgkit.engine.holding import holding
from mgkit.engine.launch import on_all_devices
from mgkit.engine.run import Run, latest_results, results_of_machines, stage_folder
from mgkit.features import Passes, frozen_backbone, whole_shapes
from mgkit.finetune import finetune_p, set_p, sweep_hits
from mgkit.machine.distributed import barrier, from_main, is_main
from mgkit.machine.records import check_values
from mgkit.metrics import bootstrap_mean
from mgkit.model import MultiGrain
from mgkit.retrieval.protocols import Difference, accuracy_difference
from mgkit.stages.fixres import adaptations, check_apart, fixres_classifiers
from mgkit.stages.inputs import in_classes_of, is_mini, training_data
from mgkit.stages.results import Adaptation, PSearch
from mgkit.stages.train import trained_network


def find_p(config: FinetunePConfig) -> PSearch:
    """p* and the sweep over p for the experiment's network, on all devices.

    Raises as `holding` and `on_all_devices`.
    """
    with holding(config) as joined:
        if not joined:
            on_all_devices(config, run_finetune_p)
        return read_search(config)


def run_finetune_p(config: FinetunePConfig) -> PSearch:
    """`find_p` in this process, or in each of several."""
    return search_p(config, trained_network(config)[0])


def search_p(config: FinetunePConfig, net: MultiGrain) -> PSearch:
    """p* by SGD on training images and the sweep on validation images, at every size; writes results.json."""
    if math.isinf(net.pool.p.item()):
        raise ValueError(
            f"p* cannot be learned from p = inf, with which {net.source} was trained, since max pooling has "
            "no gradient in p: train with a finite p (03 to 06 pool with the maximum, without p*)"
        )
    if net.tokens == "class":
        raise ValueError("tokens: the class token is not pooled, so that it has no p: choose patches or both")
    train_images, val_images = training_data(config)
    subset = in_classes_of(net, train_images.first_per_class(config.images_per_class))
    val_images = in_classes_of(net, val_images)
    if config.fixres_epochs:
        check_apart(subset, val_images)
    run = Run(config, checkpoint=net.source, sha256=net.source_sha256) if is_main() else None
    passes = Passes.of(config, backbone=frozen_backbone(net, config.precision))
    training_p = net.pool.p.item()
    paths = descents(config, net, subset, passes)
    p_star = [float(path[-1, 1]) for path in paths]
    fixres = fixres_classifiers(config, net, subset, p_star, passes) if config.fixres_epochs else None
    hits = sweeps(config, net, val_images, p_star, passes, fixres)  # [S,P+2,2,N], with FixRes [S,P+6,2,N]
    passes.unreadable.report()
    accuracy, count = np.nanmean(hits, axis=-1), len(config.ps)
    gains = [accuracy_difference(of_size[count, 0], of_size[count + 1, 0]) for of_size in hits]
    found = PSearch(
        sizes=config.sizes, ps=config.ps, p_star=p_star, paths=paths, training_p=training_p, crop=config.crop,
        top1=accuracy[:, :count, 0], top5=accuracy[:, :count, 1],
        intervals=np.array([[bootstrap_mean(of_p[0]) for of_p in of_size[:count]] for of_size in hits]),
        top1_at_training_p=accuracy[:, count, 0].tolist(),
        top1_at_p_star=accuracy[:, count + 1, 0].tolist(),
        gains=gains,
        adaptations=adaptations(config, net, subset, p_star, hits[:, count + 2 :, 0]) if fixres else [],
    )  # fmt: skip
    if run:
        results = {key: as_plain(value) for key, value in vars(found).items()}
        rows = {key: [asdict(row) for row in getattr(found, key)] for key in ("gains", "adaptations")}
        run.results(results | rows | {"val_images": len(val_images)})
    barrier()
    return found


def descents(config: FinetunePConfig, net: MultiGrain, images: ImageList, passes: Passes) -> list[np.ndarray]:
    """The path of `finetune_p` for each size, each from the network's own p, which is restored."""
    training_p = net.pool.p.item()
    shapes = whole_shapes(images, config.crop)
    paths = []
    for size in config.sizes:
        path = finetune_p(
            net, images, size=size, step_size=config.step_size, lr=config.lr, momentum=config.momentum,
            seed=config.seed, shapes=shapes, passes=passes,
        )  # fmt: skip
        set_p(net, training_p)
        paths.append(path)
        print(f"{config.crop} {size} px: p* = {path[-1, 1]:.2f} in {len(path)} steps on {len(images)} images")
    return paths


def sweeps(
    config: FinetunePConfig, net: MultiGrain, images: ImageList, p_star: list[float], passes: Passes,
    fixres: list[list[nn.Linear]] | None,
) -> np.ndarray:  # fmt: skip
    """Top-1 and top-5 hits of each image, for each size with P exponents, its own p and p*, [S,P+2,2,N].

    With the classifiers of `fixres_classifiers`, [S,4], its own p and p* come twice more, [S,P+6,2,N].
    """
    shapes, hits = whole_shapes(images, config.crop), []
    for s, size in enumerate(config.sizes):
        rivals = [net.pool.p.item(), p_star[s]]
        ps, classifiers = [*config.ps, *rivals], None
        if fixres:
            classifiers = [net.classifier] * len(ps) + fixres[s]
            ps += 2 * rivals
        hits.append(
            sweep_hits(
                net, images, sizes=[size], ps=ps, shapes=shapes, classifiers=classifiers, passes=passes
            )
        )
    return np.concatenate(hits)


def read_search(config: FinetunePConfig) -> PSearch:
    """The findings of `search_p`, read from results.json."""
    results = results_of_machines(config)
    values = {field.name: results[field.name] for field in fields(PSearch)}
    arrays = {key: np.array(values[key]) for key in ("top1", "top5", "intervals")}
    arrays["paths"] = [np.array(path) for path in values["paths"]]
    gains = [Difference(**gain) for gain in values["gains"]]
    rivals = [
        Adaptation(**row | {"interval": tuple(row["interval"]), "gain": Difference(**row["gain"])})
        for row in values["adaptations"]
    ]
    return PSearch(**values | arrays | {"gains": gains, "adaptations": rivals})


def as_plain(value):
    """Convert arrays, and lists of arrays, to lists."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [as_plain(item) for item in value] if isinstance(value, list) else value


def p_star(config: NetworkConfig, net: MultiGrain, *, size: int, crop: str) -> float:
    """p* of the experiment's 02 for a resolution, or for the nearest one of 02.

    On the embedded set a missing 02 is run first; on other data, or for a network off the shelf, which has
    other classes than that set, a message is printed and the network's p returned, as it always is for max
    pooling.
    """
    if math.isinf(net.pool.p.item()):
        print(f"{net.source} was trained with p = inf (max pooling), which is its p at every size")
        return math.inf
    earlier = FinetunePConfig(experiment=config.experiment, data=config.data, checkpoint=config.checkpoint)
    found = from_main(lambda: sound_exponents(earlier))
    if found is None and is_mini(config.data) and not config.off_the_shelf():
        with holding(earlier):
            found = from_main(lambda: sound_exponents(earlier))
            if found is None:  # no other process has learned it meanwhile
                print("p* has not been learned yet: running 02_finetune_p first")
                search_p(earlier, net)
                found = from_main(lambda: learned_exponents(earlier))
    if found is None:
        p = net.pool.p.item()
        print(f"no p* in {stage_folder(earlier)}: pooling with the training exponent {p:g}")
        return p
    sizes = found.sizes
    nearest = int(np.argmin(np.abs(np.array(sizes) - size)))
    if sizes[nearest] != size or found.crop != crop:
        print(f"p* was learned at {found.crop} {sizes} px: taking that of {sizes[nearest]} px")
    return found.p_star[nearest]


class Learned(BaseModel):
    """What later stages read of the results of 02."""

    sizes: list[PositiveInt] = Field(min_length=1)
    p_star: list[Exponent]  # a p that ran away is refused
    crop: Literal["square", "rect"]

    @model_validator(mode="after")
    def one_of_each(self):
        if len(self.sizes) != len(self.p_star):
            raise ValueError(f"p_star has {len(self.p_star)} values for {len(self.sizes)} sizes")
        return self


def sound_exponents(config: FinetunePConfig) -> Learned | None:
    """As `learned_exponents`; on the embedded set damaged results are said in a line, and count as none."""
    try:
        return learned_exponents(config)
    except ValueError as error:
        if not is_mini(config.data):
            raise
        print(error)
        return None


def learned_exponents(config: FinetunePConfig) -> Learned | None:
    """The p* of the latest 02; None if it has not been run. Raises ValueError for damaged results."""
    results = latest_results(config)
    path = stage_folder(config) / "results.json"
    return None if results is None else check_values(path, Learned, results)
