"""The kinds of descriptor that 05 compares: pooled, whitened, reduced, normalised, multi-scale."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from mgkit.backbones.backbone import TOKENS
from mgkit.benchmarks.retrieval_set import RetrievalSet
from mgkit.features import multi_scale, plain, whitened
from mgkit.stages.retrieval_task import GivenTask, RetrievalTask, scaled_sizes

POOLED = {"patches": "GeM", "class": "class token", "both": "class token and GeM"}  # by tokens


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


def own_names(task: RetrievalTask | GivenTask) -> tuple[str, str, str]:
    """Names of the network's own descriptors: with its training p, with p* or a given p, and whitened.

    A class token has no p: the first two are the same. Given descriptors are all the same.
    """
    if isinstance(task, GivenTask):
        return (task.name,) * 3
    name = POOLED[task.net.tokens]
    if task.net.tokens == "class":
        return name, name, f"{name}, whitened"
    tuned = f"{name}, p*" if task.learned_p else f"{name}, p = {task.p:g}"
    return f"{name}, training p", tuned, f"{tuned}, whitened"


def own_descriptors(task: RetrievalTask | GivenTask, one: RetrievalSet) -> Iterator[DescriptorKind]:
    """The network's own descriptors of a set's images, before whitening and, if it has one, after.

    Or the given ones.
    """
    if isinstance(task, GivenTask):
        yield DescriptorKind(task.name, None, task.descriptors(one, size=task.config.size))
        return
    p = None if task.net.tokens == "class" else task.p
    trained, tuned, white = own_names(task)
    [pooled] = task.features_of(one, size=task.config.size, ps=[task.p])
    yield DescriptorKind(tuned if len(own_exponents(task)) > 1 else trained, p, plain(pooled))
    if task.net.whitening is not None:
        yield DescriptorKind(white, p, whitened(task.net, pooled))


def descriptor_kinds(
    task: RetrievalTask | GivenTask, one: RetrievalSet, readable: np.ndarray
) -> Iterator[DescriptorKind]:
    """All kinds of descriptor of a set's images: pooled, whitened, reduced, normalised, multi-scale.

    Of a network with a class token also those of its other tokens, compared with its own before whitening.

    readable: see `RetrievalTask.readable` ([N])
    """
    if isinstance(task, GivenTask):
        yield from given_kinds(task, one, readable)
        return
    config, net, p = task.config, task.net, None if task.net.tokens == "class" else task.p
    features = task.features_of(one, size=config.size, ps=own_exponents(task))
    trained, tuned, white = own_names(task)
    name, rows = trained, plain(features[0])
    yield DescriptorKind(name, p and task.training_p, rows)
    if len(features) > 1:
        over, name, rows = name, tuned, plain(features[-1])
        yield DescriptorKind(name, p, rows, over)
    for tokens in TOKENS if net.has_class_token else ():
        if tokens != net.tokens:
            [others] = task.features_of(one, size=config.size, ps=[task.p], tokens=tokens)
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


def given_kinds(task: GivenTask, one: RetrievalSet, readable: np.ndarray) -> Iterator[DescriptorKind]:
    """The given descriptors of a set's images; with normalised scores, where there is a background."""
    [kind] = own_descriptors(task, one)
    yield kind
    if readable[one.background].any():
        yield replace(kind, name=f"{kind.name}, scores normalised", over=kind.name, normalise=True)
