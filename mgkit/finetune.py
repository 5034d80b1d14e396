"""p*, the pooling exponent for an evaluation resolution: by SGD on p alone, or by a sweep (section 3.5).

FixRes, its rival, fine-tunes the classifier at the resolution (Touvron et al. 2019, arXiv 1906.06423). The
classifier reads nothing but the embedding. So the images pass through the frozen network once, and SGD on
their embeddings equals SGD on the images. A batch norm before the pooling cannot be learned from embeddings:
FixRes with the last batch norm takes a pass in every epoch. A scale and a shift behind the pooling need not
be learned, since a linear classifier absorbs them.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mgkit.data.images import ImageList
from mgkit.features import (
    WHY_NOT_FINITE,
    Passes,
    by_window,
    check_finite,
    feature_maps,
    frozen_backbone,
    pool_by_all,
    whole_shapes,
)
from mgkit.machine.device import one_thread
from mgkit.machine.distributed import all_gather_object, all_reduce, is_initialized, run_in_all, world_size
from mgkit.metrics import target_ranks
from mgkit.model import MultiGrain

BYTES_A_WINDOW = 2**27  # of feature maps: 334 images of 224 px by a ResNet-50, or 64 of 500 px
SMALLEST_P = 0.1  # SGD on p stops here; GeM needs p > 0


def finetune_p(
    net: MultiGrain, images: ImageList, *, size: int, step_size: int = 4, lr: float = 0.005,
    momentum: float = 0.9, seed: int = 0, shapes: Sequence[tuple[int, int]] | None = None,
    passes: Passes | None = None, **changes,
) -> np.ndarray:  # fmt: skip
    """One epoch of SGD on p alone; returns loss and p after each step, [n,2] (section 3.5).

    images: labelled training images
    size: resolution (px)
    step_size: images per step
    lr: learning rate; at step i of n it is lr·(1-i/n)^0.9
    shapes: as for `features.feature_maps`
    passes, changes: as for `features.embed`

    Starts from the network's p and leaves it at p*, or unchanged after an error. Raises ValueError for p =
    inf and, naming an image, for feature maps that are not finite; an error of one process is raised in all.
    """
    passes = replace(passes or Passes(), **changes)
    if math.isinf(net.pool.p.item()):
        raise ValueError("p* cannot be learned from p = inf, which has no gradient: start from a finite p")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    features = feature_windows(
        net, images.subset(order), size=size, step_size=step_size,
        passes=replace(passes, description=f"p* at {passes.crop} {size} px"),
        shapes=[shapes[i] for i in order] if shapes else None,
    )  # fmt: skip
    steps = math.ceil(len(images) / step_size)
    return descend_p(net, features, steps=steps, lr=lr, momentum=momentum)


def feature_windows(
    net: MultiGrain, images: ImageList, *, size: int, step_size: int, passes: Passes,
    shapes: Sequence[tuple[int, int]] | None = None,
) -> Iterator[tuple[list[Tensor], Tensor]]:  # fmt: skip
    """The images of each step, in order: maps, a list of [C,h,w], and labels [step_size].

    A window of several steps passes through the backbone at once, so that images of one shape share a batch.
    Each process gets its share of every step, which may be empty. An error of one process is raised in all;
    ValueError, naming an image, for maps that are not finite.
    """
    at_once = images_a_window(net.width, size, passes.batch_size, stride=net.stride)
    window = step_size * max(1, at_once // step_size)
    batches = feature_maps(net, images, size=size, passes=passes, window=window, shapes=shapes)
    windows = by_window(batches, window, len(images))

    def next_samples() -> dict[int, tuple[Tensor, int]] | None:
        of_window = next(windows, None)
        if of_window is None:
            return None
        samples = {}
        for maps, labels, indices in of_window:
            check_finite(maps, images, indices)
            samples |= zip(indices.tolist(), zip(maps, labels.tolist(), strict=True), strict=True)
        return samples

    while (samples := run_in_all(next_samples)) is not None:
        readable = sorted(i for of_rank in all_gather_object(list(samples)) for i in of_rank)
        for start in range(0, len(readable), step_size):
            mine = [samples[i] for i in readable[start : start + step_size] if i in samples]
            yield [x for x, _ in mine], torch.tensor([label for _, label in mine], dtype=torch.int64)


def images_a_window(width: int, size: int, batch_size: int, *, stride: int = 32) -> int:
    """The number of images per window, whose feature maps [width,h,w] are held at once.

    Rare shapes make small batches, which are slower: the smaller the images, the larger the window.
    """
    bytes_a_map = 4 * width * math.ceil(size / stride) ** 2
    at_least = max(32, batch_size)
    if is_initialized():
        at_least *= 2 * world_size()  # enough batches for every process
    at_most = 1024  # beyond this, batches hardly grow, but steps wait
    return max(at_least, min(BYTES_A_WINDOW // bytes_a_map, at_most))


def descend_p(
    net: MultiGrain, batches: Iterable[tuple[list[Tensor], Tensor]], *, steps: int, lr: float, momentum: float
) -> np.ndarray:
    """SGD on the network's p alone; returns loss and p after each step, [n,2] (section 3.5).

    batches: feature maps, a list of b tensors [C,h,w], and labels [b]; this process's share of them
    steps: number of batches
    lr: learning rate of the first step; it falls to 0 as (1 - i/steps)^0.9

    An error leaves p unchanged. Raises ValueError for a loss that is not finite.
    """
    p = net.pool.p
    path = []
    with learned(p):
        optimizer = torch.optim.SGD([p], lr=lr, momentum=momentum)
        schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, power=0.9)
        for features, labels in batches:
            loss, p.grad = p.new_zeros(()), torch.zeros_like(p)
            if features:
                with one_thread():
                    pooled = torch.cat([net.pooled_maps(x[None]) for x in features])  # [b,C]
                    logits = net.head(pooled)["classifier_output"]  # [b,K]
                    loss = F.cross_entropy(logits, labels.to(p.device), reduction="sum")
                    loss.backward(inputs=[p])
            # Loss and gradient over the images of all processes, which take the same step.
            *sums, images = all_reduce(torch.stack([loss.detach(), p.grad, p.new_tensor(len(features))]))
            loss, p.grad = (x / images for x in sums)
            if not (loss.isfinite() and p.grad.isfinite()):
                raise ValueError(
                    f"p* cannot be learned: the loss of step {len(path) + 1} is not finite: {WHY_NOT_FINITE}"
                )
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                p.clamp_(min=SMALLEST_P)
            path.append((loss.item(), p.item()))
    return np.array(path)


@contextmanager
def learned(p: nn.Parameter) -> Iterator[None]:
    """Let p require a gradient within the block; an error in the block restores the value of p."""
    start, requires_grad, grad = p.detach().clone(), p.requires_grad, p.grad
    p.requires_grad_(True)
    try:
        yield
    except BaseException:
        with torch.no_grad():
            p.copy_(start)
        raise
    finally:
        p.requires_grad_(requires_grad)
        p.grad = grad


# --- FixRes


def finetune_classifier(
    classifier: nn.Linear, rows: np.ndarray, labels: np.ndarray, *, lr: float = 1.0, epochs: int = 20,
    batch_size: int = 32, momentum: float = 0.9, seed: int = 0,
) -> nn.Linear:  # fmt: skip
    """A copy of a network's classifier, fine-tuned by SGD on its embeddings; the network does not change.

    rows: embeddings of training images ([N,D]), see `features.classifier_inputs`; NaN rows are left out
    labels: their classes ([N])
    lr: learning rate, divided by the mean squared length of [embedding;1], so that one value suits all
        networks; at step i of n it is lr·(1-i/n)^0.9
    epochs: passes over the rows
    batch_size: rows per step
    seed: of the order of the rows

    Raises ValueError for no rows, and for weights that do not stay finite.
    """
    classifier = copy.deepcopy(classifier).requires_grad_(True)
    inputs, targets = known_rows(rows, labels, device=classifier.weight.device)
    steps = epochs * -(-len(inputs) // batch_size)
    squared = 1 + inputs.square().sum(1).mean().item()  # the bias reads a constant 1
    optimizer = torch.optim.SGD(classifier.parameters(), lr=lr / squared, momentum=momentum)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, power=0.9)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for batch in torch.randperm(len(inputs), generator=generator).split(batch_size):
            loss = F.cross_entropy(classifier(inputs[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    if not all(weight.isfinite().all() for weight in classifier.parameters()):
        raise ValueError(f"FixRes: the classifier does not stay finite: choose a lower rate than {lr:g}")
    return classifier.requires_grad_(False)


@torch.no_grad()
def cross_entropy(classifier: nn.Linear, rows: np.ndarray, labels: np.ndarray) -> float:
    """The mean cross-entropy of a classifier on embeddings [N,D] with classes [N]; NaN rows are left out."""
    inputs, targets = known_rows(rows, labels, device=classifier.weight.device)
    return F.cross_entropy(classifier(inputs), targets).item()


def known_rows(rows: np.ndarray, labels: np.ndarray, *, device: torch.device) -> tuple[Tensor, Tensor]:
    """The rows without NaN [n,D] and their labels [n] on a device; ValueError if there are none."""
    known = ~np.isnan(rows).any(axis=1)
    if not known.any():
        raise ValueError("there is no embedding to fine-tune the classifier on")
    return torch.from_numpy(rows[known]).to(device), torch.from_numpy(labels[known]).to(device)


# --- Accuracy as a function of p


def sweep_p(
    net: MultiGrain, images: ImageList, *, sizes: Sequence[int], ps: Sequence[float],
    ks: Sequence[int] = (1, 5), passes: Passes | None = None, **changes,
) -> np.ndarray:  # fmt: skip
    """Top-k accuracy in 0..1 for every size, p and k, [S,P,len(ks)], in one pass per size (figure 4).

    Parameters and errors as of `sweep_hits`, of which it is the mean over the readable images.
    """
    hits = sweep_hits(net, images, sizes=sizes, ps=ps, ks=ks, passes=passes, **changes)
    return np.nanmean(hits, axis=-1)


def sweep_hits(
    net: MultiGrain, images: ImageList, *, sizes: Sequence[int], ps: Sequence[float],
    ks: Sequence[int] = (1, 5), shapes: Sequence[tuple[int, int]] | None = None,
    classifiers: Sequence[nn.Linear] | None = None, passes: Passes | None = None, **changes,
) -> np.ndarray:  # fmt: skip
    """Whether each image's class is among the first k, for every size and p: [S,P,len(ks),N] of 0 and 1.

    images: labelled images [N]
    sizes: resolutions [S] (px)
    ps: pooling exponents [P]
    shapes: as for `features.feature_maps`; None reads them once for all sizes
    classifiers: of each exponent [P]; None: the network's own
    passes, changes: as for `features.embed`

    NaN for an unreadable image. In all processes the same, and so are errors: UnreadableImageError if no
    image is readable, ValueError, naming an image, for class scores that are not finite.
    """
    passes = replace(passes or Passes(), **changes)
    passes = replace(passes, backbone=passes.backbone or frozen_backbone(net, passes.precision))
    shapes = whole_shapes(images, passes.crop) if shapes is None else shapes
    hits = np.full((len(sizes), len(ps), len(ks), len(images)), np.nan)

    def own_hits(size: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Indices [b] and hits [P,len(ks),b] of each batch in this process's share."""
        found, read = [], partial(pool_by_all, net, ps)
        options = dict(size=size, passes=passes, shapes=shapes)
        for rows, labels, indices in joined(feature_maps(net, images, read=read, **options)):
            with torch.no_grad():
                logits = class_scores(net, rows, classifiers)  # [P,b,K]
            check_finite(logits.transpose(0, 1), images, indices, what="class scores")
            ranks = target_ranks(logits.flatten(0, 1), labels.repeat(len(ps))).view(len(ps), -1)
            within = torch.stack([ranks < k for k in ks], dim=1)  # [P,len(ks),b]
            found.append((indices.cpu().numpy(), within.cpu().numpy()))
        return found

    for s, size in enumerate(sizes):
        for of_process in all_gather_object(run_in_all(partial(own_hits, size))):
            for indices, within in of_process:
                hits[s][..., indices] = within
        if np.isnan(hits[s]).all():
            raise passes.unreadable.none_readable()
    return hits


def joined(
    batches: Iterable[tuple[Tensor, Tensor, Tensor]], *, at_least: int = 64
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Join batches (rows [P,b,C], labels [b], indices [b]) to larger ones, as rare shapes make small ones."""
    parts = []

    def whole() -> tuple[Tensor, Tensor, Tensor]:
        rows, labels, indices = zip(*parts, strict=True)
        parts.clear()
        return torch.cat(rows, dim=1), torch.cat(labels), torch.cat(indices)

    for batch in batches:
        parts.append(batch)
        if sum(len(indices) for *_, indices in parts) >= at_least:
            yield whole()
    if parts:
        yield whole()


def class_scores(net: MultiGrain, pooled: Tensor, classifiers: Sequence[nn.Linear] | None) -> Tensor:
    """Class scores [P,b,K] of features [P,b,C] pooled with P exponents, by the classifier of each."""
    output = net.head(pooled.flatten(0, 1))
    if classifiers is None:
        return output["classifier_output"].unflatten(0, pooled.shape[:2])
    rows = output["embedding"].unflatten(0, pooled.shape[:2])  # [P,b,D]
    return torch.stack([classifier(of_p) for classifier, of_p in zip(classifiers, rows, strict=True)])


def set_p(net: MultiGrain, p: float) -> MultiGrain:
    """Set the pooling exponent of a network, which is returned."""
    with torch.no_grad():
        net.pool.p.fill_(p)
    return net
