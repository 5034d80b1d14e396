"""p*: the pooling exponent for each evaluation resolution, by SGD on p alone, or by a sweep (section 3.5)."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mgkit.data.images import ImageList
from mgkit.data.loader import UnreadableImages
from mgkit.features import (
    WHY_NOT_FINITE,
    by_window,
    check_finite,
    feature_maps,
    frozen_backbone,
    whole_shapes,
)
from mgkit.machine.distributed import all_gather_object, all_reduce, is_initialized, run_in_all, world_size
from mgkit.machine.progress import progress
from mgkit.metrics import target_ranks
from mgkit.model import MultiGrain
from mgkit.pooling import gem

BYTES_A_WINDOW = 2**27  # of feature maps: 334 images of 224 px by a ResNet-50, or 64 of 500 px
SMALLEST_P = 0.1  # SGD never steps to an exponent that GeM does not have


def finetune_p(
    net: MultiGrain,
    images: ImageList,
    *,
    size: int,
    crop: str = "rect",
    step_size: int = 4,
    lr: float = 0.005,
    momentum: float = 0.9,
    seed: int = 0,
    shapes: Sequence[tuple[int, int]] | None = None,
    **options,
) -> np.ndarray:
    """One epoch of SGD on p alone, everything else frozen, from the network's own p (section 3.5).

    images: labelled training images. size: pixels. step_size: images a step. lr: at step i of n, lr·(1-i/n)^0.9.
    shapes, options: as for `embed.feature_maps`. The network's p is left at p*; where it was, after an error. Returns (loss, p) after each
    step, [n,2]. Raises ValueError for p = inf and, naming an image, for feature maps that are not finite; of several processes all do.
    """
    if math.isinf(net.pool.p.item()):
        raise ValueError(
            "p* cannot be learned from p = inf: max pooling has no gradient in p; start from a finite p"
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    features = feature_windows(
        net, images.subset(order), size=size, crop=crop, step_size=step_size,
        shapes=[shapes[i] for i in order] if shapes else None, **options,
    )  # fmt: skip
    steps = math.ceil(len(images) / step_size)
    bar = progress(features, f"p* at {crop} {size} px", total=steps, unit="step")
    return descend_p(net, bar, steps=steps, lr=lr, momentum=momentum)


def feature_windows(
    net: MultiGrain, images: ImageList, *, step_size: int, batch_size: int = 32, **options
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """The images in order, step_size at a time: (maps, a list of [C,h,w], labels [step_size]).

    The backbone sees a window of many steps at once, so that whole images of one shape can share a forward pass. Of several
    processes, each has its share of a step, perhaps nothing. What is raised in one process, is raised in all; ValueError, naming an
    image, for maps that are not finite.
    """
    window = step_size * max(1, images_a_window(net.width, options["size"], batch_size) // step_size)
    batches = feature_maps(net, images, batch_size=batch_size, window=window, description=None, **options)
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


def images_a_window(width: int, size: int, batch_size: int) -> int:
    """Of how many images the feature maps [width,h,w] are held at once.

    Rare shapes make small batches, which cost more an image: the smaller the images, the more.
    """
    bytes_a_map = 4 * width * math.ceil(size / 32) ** 2
    at_least = max(32, batch_size)
    if is_initialized():
        at_least *= 2 * world_size()  # enough batches for all processes
    at_most = 1024  # beyond, batches hardly grow, but steps wait
    return max(at_least, min(BYTES_A_WINDOW // bytes_a_map, at_most))


def descend_p(
    net: MultiGrain, batches: Iterable[tuple[list[Tensor], Tensor]], *, steps: int, lr: float, momentum: float
) -> np.ndarray:
    """SGD on the network's p alone; returns (loss, p) after each step, [n,2] (section 3.5).

    batches: feature maps, a list of b tensors [C,h,w], and their labels [b]; of several processes, each has its share.
    steps: number of batches.
    lr: of the first step; it falls to 0 as (1 - i/steps)^0.9.

    An error leaves p as it was. Raises ValueError for a loss that is not finite.
    """
    p = net.pool.p
    path = []
    with learned(p):
        optimizer = torch.optim.SGD([p], lr=lr, momentum=momentum)
        schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, power=0.9)
        for features, labels in batches:
            loss, p.grad = p.new_zeros(()), torch.zeros_like(p)
            if features:
                pooled = torch.cat([net.pool(x[None]) for x in features])  # [b,C]
                logits = net.head(pooled)["classifier_output"]  # [b,K]
                loss = F.cross_entropy(logits, labels.to(p.device), reduction="sum")
                loss.backward(inputs=[p])
            # Loss and gradient over the images of all processes, which so take the same step.
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
    """For the block p requires a gradient; after it that and `p.grad` are as before, and after an error p itself is, too."""
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


def sweep_p(
    net: MultiGrain, images: ImageList, *, sizes: Sequence[int], ps: Sequence[float], ks=(1, 5), **options
) -> np.ndarray:
    """Accuracy for every p at every size, the backbone running once an image and size (figure 4).

    sizes: pixels. ps: exponents. options: as for `embed.feature_maps`. Returns top-k accuracies in 0..1, [S,P,len(ks)], over
    the images of all processes, which raise the same: UnreadableImageError where none is readable, ValueError, naming an image, for
    class scores that are not finite.
    """
    unreadable = options.setdefault("unreadable", UnreadableImages())
    if "backbone" not in options:
        options["backbone"] = frozen_backbone(net, options.get("precision", "auto"))
    if "shapes" not in options:
        options["shapes"] = whole_shapes(images, options.get("crop", "rect"))
    accuracy = np.zeros((len(sizes), len(ps), len(ks)))

    def counted(size: int) -> tuple[Tensor, Tensor]:
        """Of this process's share: how many images are right [P,len(ks)], how many there are."""
        right, seen = torch.zeros(len(ps), len(ks), dtype=torch.int64), torch.zeros((), dtype=torch.int64)
        for maps, labels, indices in feature_maps(net, images, size=size, **options):
            seen += len(labels)
            with torch.no_grad():
                pooled = torch.stack([gem(maps, p) for p in ps])  # [P,b,C]
                logits = net.head(pooled.flatten(0, 1))["classifier_output"]  # [Pb,K]
                of_images = logits.view(len(ps), len(labels), -1).transpose(0, 1)  # [b,P,K]
                check_finite(of_images, images, indices, what="class scores")
                ranks = target_ranks(logits, labels.repeat(len(ps))).view(len(ps), -1)
                right += torch.stack([(ranks < k).sum(1) for k in ks], dim=1).cpu()
        return right, seen

    for s, size in enumerate(sizes):
        right, seen = map(all_reduce, run_in_all(partial(counted, size)))
        if not seen:
            raise unreadable.none_readable()
        accuracy[s] = (right.double() / seen).numpy()
    return accuracy


def set_p(net: MultiGrain, p: float) -> MultiGrain:
    """The network itself, pooling with p from now on."""
    with torch.no_grad():
        net.pool.p.fill_(p)
    return net
