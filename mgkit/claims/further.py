"""Claims that are tried on trained networks: p*, whitening, several scales (sections 3.5, 3.6)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import Field, FiniteFloat, PositiveInt, model_validator

from mgkit.benchmarks.retrieval_set import RetrievalSet
from mgkit.claims.measures import (
    TOP1,
    Evaluation,
    Kept,
    as_arrays,
    as_lists,
    path_of,
    query_values,
    read_kept,
    record_of,
    write_kept,
)
from mgkit.claims.plan import Training
from mgkit.config import ClaimsConfig, FinetunePConfig, RetrievalConfig, WhitenConfig
from mgkit.data.images import ImageList, list_hash
from mgkit.data.layouts import plain_images
from mgkit.features import (
    Passes,
    embed,
    frozen_backbone,
    multi_scale,
    plain,
    pooled,
    to_descriptors,
    whole_shapes,
)
from mgkit.finetune import finetune_p, set_p, sweep_hits
from mgkit.machine.distributed import from_main, is_main, main_first
from mgkit.machine.files import find_path
from mgkit.model import MultiGrain, Whitening, append_one
from mgkit.stages.inputs import data_root, in_classes_of
from mgkit.whitening import fit_pca_whitening

FURTHER_ARM = "joint"
GEM, SCALES = "GeM", "GeM, several scales"  # kinds of what is measured, as `with_p` and `whitened_on`

Values = dict[str, np.ndarray]  # {measure: [Q]}


def with_p(name: str, size: int) -> str:
    """The kind of classes by the exponent `p` or `p*` at a size (px)."""
    return f"{name} at {size} px"


def whitened_on(count: int) -> str:
    """The kind of descriptors with a whitening fitted on so many images."""
    return f"{GEM}, whitened on {count} images"


@dataclass(frozen=True)
class FurtherClaim:
    """A claim on one network: the kind `after` is better than the kind `before`.

    whitening: number of images of the whitening that is claimed; 0 for another claim
    """

    text: str
    before: str
    after: str
    whitening: int = 0


class Further(Kept):
    """What was measured of a trained network with p*, whitening and several scales.

    p: that it was trained with
    p_star: learned at each size, {size (px): p*}
    whitening: numbers of images that whitenings were fitted on
    values: {kind: {measure: [Q]}}; None for unreadable images
    """

    p: FiniteFloat
    p_star: dict[PositiveInt, FiniteFloat]
    whitening: list[PositiveInt]
    values: dict[str, dict[str, list[FiniteFloat | None]]] = Field(min_length=1)

    @model_validator(mode="after")
    def has_all_kinds(self):
        for claim in self.claims():
            before, after = (self.values.get(kind, {}).keys() for kind in (claim.before, claim.after))
            if not before or before != after:
                raise ValueError(
                    f"values of {claim.before!r} and {claim.after!r} should have the same measures"
                )
        return self

    def arrays(self, kind: str) -> Values:
        """The values of a kind as arrays, NaN for None."""
        return as_arrays(self.values[kind])

    def claims(self) -> list[FurtherClaim]:
        """The claims that it tries."""
        found = [
            FurtherClaim(f"p* at {size} px (against the training p)", with_p("p", size), with_p("p*", size))
            for size in sorted(self.p_star)
        ]
        found += [
            FurtherClaim(f"whitening on {count} images (against none)", GEM, whitened_on(count), count)
            for count in sorted(self.whitening)
        ]
        return [*found, FurtherClaim("several scales (against one)", GEM, SCALES)]


# --- Measuring


def measure_further(
    training: Training, config: ClaimsConfig, network: Callable[[Training], MultiGrain | None],
    train_images: ImageList, on: Evaluation,
) -> None:  # fmt: skip
    """Measure a training's network with p*, whitening and several scales, unless that is kept already.

    network: loads a training's network, None if it is not there; called only if there is something to measure
    """
    images = main_first(lambda: unlabelled_images(config, train_images))
    record = record_of(training, config, train_images, evaluated(config, on, images))
    path = further_path(training, config)
    if from_main(lambda: read_kept(path, Further, record)) is not None:
        return
    net = network(training)
    if net is None:
        return
    p = net.pool.p.item()
    passes = Passes.of(config, backbone=frozen_backbone(net, config.precision), description=None)
    p_star = learned_exponents(net, config.larger_sizes, train_images, passes, seed=training.seed)
    values = classified(net, on.images, p_star, passes)
    whitenings = fitted_whitenings(net, config, images, passes, seed=training.seed)
    for name, one in on.sets.items():
        for kind, descriptors in descriptors_of(net, one, config.eval_size, whitenings, passes):
            values.setdefault(kind, {})[name] = query_values(one, descriptors)
    passes.unreadable.report()
    if is_main():
        lists = {kind: as_lists(of_kind) for kind, of_kind in values.items()}
        write_kept(
            path, Further(**record, p=p, p_star=p_star, whitening=list(whitenings), values=lists)
        )  # fmt: skip


def learned_exponents(
    net: MultiGrain, sizes: Sequence[int], train_images: ImageList, passes: Passes, *, seed: int
) -> dict[int, float]:
    """p* at each size by SGD on training images, as 02 learns it by default; the network keeps its p.

    seed: of the order of the images
    """
    of_02, found = FinetunePConfig(), {}
    images = in_classes_of(net, train_images.first_per_class(of_02.images_per_class))
    p, shapes = net.pool.p.item(), whole_shapes(images, passes.crop)
    for size in sizes:
        path = finetune_p(
            net, images, size=size, step_size=of_02.step_size, lr=of_02.lr, momentum=of_02.momentum,
            seed=seed, shapes=shapes, passes=passes,
        )  # fmt: skip
        set_p(net, p)
        found[size] = float(path[-1, 1])
    return found


def classified(
    net: MultiGrain, val_images: ImageList, p_star: Mapping[int, float], passes: Passes
) -> dict[str, Values]:
    """Whether each image is right at each size with the network's p and with p*, {kind: {top-1: [N]}}."""
    images, values = in_classes_of(net, val_images), {}
    p, shapes = net.pool.p.item(), whole_shapes(images, passes.crop)
    for size, star in p_star.items():
        hits = sweep_hits(
            net, images, sizes=[size], ps=[p, star], ks=(1,), shapes=shapes, passes=passes
        )  # [1,2,1,N]
        for name, of_p in zip(("p", "p*"), hits[0, :, 0], strict=True):
            values[with_p(name, size)] = {TOP1: of_p}
    return values


def fitted_whitenings(
    net: MultiGrain, config: ClaimsConfig, images: ImageList, passes: Passes, *, seed: int
) -> dict[int, Whitening]:
    """{n: a whitening fitted on n images} for n of `whitening_images`; on all images where n is above them.

    images: unlabelled
    seed: of the order of the images, of which the first n are taken
    """
    if not config.whitening_images:
        return {}
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    taken = images.subset(order[: max(config.whitening_images)].tolist())
    [rows] = pooled(net, taken, size=config.eval_size, ps=[net.pool.p.item()], passes=passes)
    rows = append_one(torch.from_numpy(rows[np.isfinite(rows[:, 0])]))  # [n,C] -> [n,C+1]
    counts = sorted({min(count, len(rows)) for count in config.whitening_images})
    shrinkage = WhitenConfig().shrinkage
    return {n: Whitening(*fit_pca_whitening(rows[:n], shrinkage=shrinkage)) for n in counts}


def descriptors_of(
    net: MultiGrain, one: RetrievalSet, size: int, whitenings: Mapping[int, Whitening], passes: Passes
) -> Iterator[tuple[str, np.ndarray]]:
    """Descriptors [N,D] of a set's images by their kind: plain, with each whitening, of several scales.

    size: of the first two (px), and of scale 1
    """
    [rows] = pooled(net, one.images, size=size, ps=[net.pool.p.item()], passes=passes)  # [N,C]
    whole = plain(rows)
    yield GEM, whole
    for count, whitening in whitenings.items():
        yield whitened_on(count), to_descriptors(rows, whitening)
    sizes = [round(scale * size) for scale in RetrievalConfig().scales]
    yield SCALES, multi_scale([
        whole if scaled == size else embed(net, one.images, size=scaled, passes=passes) for scaled in sizes
    ])  # fmt: skip


def unlabelled_images(config: ClaimsConfig, train_images: ImageList) -> ImageList:
    """The images in unlabelled/whiten below `benchmarks`, or below `data`, or the training images."""
    roots = [find_path(config.benchmarks)] if config.benchmarks else []
    for root in [*roots, data_root(config.data)]:
        folder = root / "unlabelled" / "whiten"
        if folder.is_dir():
            return plain_images(folder, purpose="unlabelled").with_exif(config.exif)
    return train_images


# --- Files


def further_path(training: Training, config: ClaimsConfig) -> Path:
    """The file of what was measured further of a training."""
    path = path_of(training, config)
    return path.with_name(f"{path.stem}-further.json")


def evaluated(config: ClaimsConfig, on: Evaluation, unlabelled: ImageList) -> dict:
    """What decides on the values that are measured further, beside the network and training images."""
    of_02 = FinetunePConfig()
    return on.record(config) | {
        "larger_sizes": sorted(config.larger_sizes),
        "p_star": [of_02.images_per_class, of_02.step_size, of_02.lr, of_02.momentum],
        "unlabelled": list_hash(unlabelled), "whitening_images": sorted(config.whitening_images),
        "shrinkage": WhitenConfig().shrinkage, "scales": RetrievalConfig().scales,
    }  # fmt: skip


def read_further(
    trainings: Sequence[Training], config: ClaimsConfig, train_images: ImageList, on: Evaluation
) -> list[Further]:
    """What is kept of these trainings and measured with these parameters on these images.

    Raises ValueError, naming the file, for a damaged one.
    """
    if not trainings:
        return []
    of_all = evaluated(config, on, unlabelled_images(config, train_images))
    found = (
        read_kept(further_path(one, config), Further, record_of(one, config, train_images, of_all))
        for one in trainings
    )
    return [one for one in found if one is not None]
