"""The joint objective: distance-weighted triplets, the margin loss, and its mix with cross-entropy."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLOSEST = 0.5  # distances are clamped below at it: no negative is drawn for being nearly equal
FARTHEST = 1.4  # negatives past it hardly ever give a loss, so they are not drawn


@torch.no_grad()
def distance_weighted_probabilities(e: Tensor, target: Tensor) -> Tensor:
    """How probable each image is as a negative of each anchor (section 3.3; Wu et al. 2017).

    e: L2-normalised embeddings [B,D]. target: instance of each, [B]. Returns [B,B], rows sum to 1: weight 1/q(d)
    with `q(d) ∝ d^(D-2) (1 - d²/4)^((D-3)/2)`, zero past 1.4 and for the anchor's own instance. A row whose
    weights all vanish is uniform over its negatives; a row without a negative is zero.

    The weights are float32 numbers relative to the largest of the whole batch, as in the released trainings: in
    high dimension, far rows underflow to zero beside a close pair, and then draw uniformly.
    """
    e = e.float()
    dim = e.shape[1]
    square = e.square().sum(1)
    distance_square = square[:, None] + square[None, :] - 2 * e @ e.T
    distance = distance_square.clamp(min=0).sqrt().fill_diagonal_(1.0)
    distance = distance.clamp(min=CLOSEST)
    # 1 - d²/4 is zero for opposite embeddings; the floor keeps inf out of the maximum.
    log_weight = (2.0 - dim) * distance.log() - (dim - 3) / 2 * (1 - distance.square() / 4).clamp(
        min=1e-6
    ).log()
    weight = (log_weight - log_weight[distance < FARTHEST].max()).exp().clamp(max=1.0)

    negative = target[:, None] != target[None, :]
    weight = weight * (negative & (distance < FARTHEST))
    vanished = weight.sum(1, keepdim=True) == 0
    weight = torch.where(vanished, negative.float(), weight)
    total = weight.sum(1, keepdim=True)  # may be subnormal, or zero in a row without negatives
    return weight / torch.where(total > 0, total, 1.0)


@torch.no_grad()
def sample_triplets(
    e: Tensor, target: Tensor, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """One distance-weighted negative for every anchor and each of its positives.

    e: L2-normalised embeddings [B,D]. target: instances [B]. Returns indices (anchor, positive, negative), [T] each, by
    anchor, then positive. The negatives of an anchor differ from one another while it has enough of them.
    An image without a positive, or without a negative, gives no triplet: T may be 0.
    """
    probability = distance_weighted_probabilities(e, target)
    same = (target[:, None] == target[None, :]).fill_diagonal_(False)
    same &= (probability.sum(1) > 0)[:, None]
    anchor, positive = same.nonzero(as_tuple=True)
    if not len(anchor):
        return anchor, positive, anchor.clone()

    draws = same.sum(1)  # how many negatives each anchor wants
    most = int(draws.max())
    # An exponential race: the first k to arrive at rate `probability` are k draws without replacement.
    device = generator.device if generator is not None else e.device
    noise = torch.empty(probability.shape, device=device).exponential_(generator=generator).to(e.device)
    # In float64: the smallest float32 probability arrives late, but before what is never to be drawn.
    rate = probability.double()
    arrival = torch.where(rate > 0, noise.double().clamp(min=1e-30) / rate, math.inf)
    order = arrival.topk(most, dim=1, largest=False).indices  # [B,most], by arrival
    scarce = (probability > 0).sum(1) < draws  # then draw with replacement
    if scarce.any():
        rows = probability[scarce].to(device)
        order[scarce] = torch.multinomial(rows, most, replacement=True, generator=generator).to(e.device)
    wanted = torch.arange(most, device=e.device)[None, :] < draws[:, None]
    return anchor, positive, order[wanted]


class MarginLoss(nn.Module):
    """`[d_ap - β + α]₊ + [β - d_an + α]₊`, summed, over the number of terms above zero (section 3.3).

    beta: initial boundary between positive and negative distances, learned. margin: α.
    """

    def __init__(self, beta: float = 1.2, margin: float = 0.2):
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(float(beta)))
        self.margin = margin

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """Embeddings [T,D] each -> scalar; 0, with gradients 0, for T = 0."""
        positive_loss = (distance(anchor, positive) - self.beta + self.margin).relu()
        negative_loss = (self.beta - distance(anchor, negative) + self.margin).relu()
        # A triplet with both terms counts twice: they are separate pairs.
        pairs = (positive_loss > 0).sum() + (negative_loss > 0).sum()
        return (positive_loss.sum() + negative_loss.sum()) / pairs.clamp(min=1)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distance of rows, [T,D] -> [T]; the 1e-8 keeps the gradient of equal rows finite."""
    return ((a - b).square().sum(1) + 1e-8).sqrt()


class JointLoss(nn.Module):
    """λ · cross-entropy + (1-λ) · margin loss on distance-weighted triplets (equation 5).

    Raises ValueError unless 0 <= lambda_ <= 1.
    """

    def __init__(self, lambda_: float = 0.5, *, beta: float = 1.2, margin: float = 0.2):
        super().__init__()
        if not 0 <= lambda_ <= 1:
            raise ValueError(
                f"lambda_ must lie between 0 (margin loss alone) and 1 (cross-entropy alone), got {lambda_}"
            )
        self.lambda_ = lambda_
        self.margin_loss = MarginLoss(beta, margin)

    def forward(
        self,
        output: dict[str, Tensor],
        label: Tensor,
        instance: Tensor,
        generator: torch.Generator | None = None,
        gather: Callable[[Tensor], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """output: of `MultiGrain`. label, instance: [b]. Returns scalars loss, cross_entropy, margin.

        gather: rows of these images -> those of all images among which triplets are drawn, [b,...] -> [B,...], with
        gradients; for a batch that several processes share. Without it they are drawn among the b.
        """
        cross_entropy = F.cross_entropy(output["classifier_output"], label)
        if self.lambda_ == 1:  # no triplet is needed, nor can there be one with N=1
            margin = cross_entropy.new_zeros(())
        else:
            e = output["normalized_embedding"]
            if gather is not None:
                e, instance = gather(e), gather(instance)
            triplets = sample_triplets(e, instance, generator=generator)
            # e[index], but a CPU sums the gradients of an embedding's rows on all its threads.
            margin = self.margin_loss(*(F.embedding(index, e) for index in triplets))  # [T,D] each
        loss = self.lambda_ * cross_entropy + (1 - self.lambda_) * margin
        return {"loss": loss, "cross_entropy": cross_entropy, "margin": margin}


def gradient_share(embedding: Tensor, cross_entropy: Tensor, margin: Tensor, lambda_: float) -> Tensor:
    """How much of the pull on the embedding comes from the classes: |g_class| / (|g_class| + |g_retr|) (figure 5).

    g_class and g_retr are the gradients of λ · cross_entropy and (1-λ) · margin, scalars, with respect to the embedding
    [B,C] that both were computed from; |·| is the norm of an image's row, averaged over the batch. Returns a scalar in 0..1
    without graph: 1 for λ=1, 0 for λ=0, and λ where both gradients vanish and neither pulls. The graph is kept for the
    training step, no parameter's .grad is touched. RuntimeError where a loss does not depend on the embedding, as where
    torch.compile was given the head along with the backbone.
    """
    if lambda_ in (0, 1):  # the loss without weight may have no graph at all
        return embedding.new_full((), lambda_, dtype=torch.float32)
    classes = lambda_ * mean_gradient_norm(cross_entropy, embedding)
    both = classes + (1 - lambda_) * mean_gradient_norm(margin, embedding)
    return torch.where(both > 0, classes / both, lambda_)


def mean_gradient_norm(loss: Tensor, embedding: Tensor) -> Tensor:
    """The norm of each image's gradient, [B,C] -> [B], averaged -> scalar."""
    [gradient] = torch.autograd.grad(loss, embedding, retain_graph=True)
    return gradient.float().norm(dim=1).mean()
