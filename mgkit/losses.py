"""Joint loss of MultiGrain: cross-entropy and the margin loss on distance-weighted triplets."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLOSEST = 0.5  # lower clamp on distances, so that near duplicates are not favoured
FARTHEST = 1.4  # negatives beyond this distance rarely give a loss and are not sampled


@torch.no_grad()
def distance_weighted_probabilities(e: Tensor, target: Tensor) -> Tensor:
    """Compute the probability of sampling each image as the negative of each anchor (section 3.3).

    e: L2-normalised embeddings ([B,D])
    target: instance label of each image ([B])

    Returns probabilities [B,B] whose rows sum to 1. The weight is 1/q(d), zero beyond distance 1.4 and
    within an instance, with `q(d) ∝ d^(D-2) (1 - d²/4)^((D-3)/2)` (Wu et al. 2017).
    A row whose weights all vanish is uniform over its negatives; a row without negatives is zero.

    Weights are float32 and relative to the largest in the batch, as in the released trainings: in high
    dimension, distant rows underflow to zero beside a close pair and become uniform.
    """
    e = e.float()
    dim = e.shape[1]
    square = e.square().sum(1)
    distance_square = square[:, None] + square[None, :] - 2 * e @ e.T
    distance = distance_square.clamp(min=0).sqrt().fill_diagonal_(1.0).clamp(min=CLOSEST)
    # 1 - d²/4 is zero for opposite embeddings; the floor keeps inf out of the maximum.
    cap = (1 - distance.square() / 4).clamp(min=1e-6)
    log_weight = (2.0 - dim) * distance.log() - (dim - 3) / 2 * cap.log()
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
    """Sample one distance-weighted negative for each pair of an anchor and a positive (section 3.3).

    e: L2-normalised embeddings ([B,D])
    target: instance label of each image ([B])
    generator: source of the random numbers; the default one if None

    Returns indices (anchor, positive, negative), [T] each, sorted by anchor, then positive. Negatives of an
    anchor are distinct where it has enough. An image without a positive or a negative gives no triplet.
    """
    probability = distance_weighted_probabilities(e, target)
    same = (target[:, None] == target[None, :]).fill_diagonal_(False)
    same &= (probability.sum(1) > 0)[:, None]
    anchor, positive = same.nonzero(as_tuple=True)
    if not len(anchor):
        return anchor, positive, anchor.clone()

    draws = same.sum(1)  # [B], negatives to sample for each anchor
    most = int(draws.max())
    # Exponential race: the first k arrivals at rate `probability` are k draws without replacement.
    device = generator.device if generator is not None else e.device
    noise = torch.empty(probability.shape, device=device).exponential_(generator=generator)
    # In float64, so that the smallest probability still gives a finite arrival time. MPS and some XPUs have
    # none: then on the CPU.
    exact = e.device if e.device.type == "cuda" else torch.device("cpu")
    rate = probability.to(exact).double()
    arrival = torch.where(rate > 0, noise.to(exact).double().clamp(min=1e-30) / rate, math.inf)
    order = arrival.topk(most, dim=1, largest=False).indices.to(e.device)  # [B,most], by arrival
    scarce = (probability > 0).sum(1) < draws  # these rows are sampled with replacement
    if scarce.any():
        rows = probability[scarce].to(device)
        order[scarce] = torch.multinomial(rows, most, replacement=True, generator=generator).to(e.device)
    wanted = torch.arange(most, device=e.device)[None, :] < draws[:, None]
    return anchor, positive, order[wanted]


class MarginLoss(nn.Module):
    """Margin loss `[d_ap - β + α]₊ + [β - d_an + α]₊`, averaged over non-zero terms (section 3.3).

    beta: initial value of β, the learned boundary between positive and negative distances
    margin: α
    """

    def __init__(self, beta: float = 1.2, margin: float = 0.2):
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(float(beta)))
        self.margin = margin

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """Return the loss of embeddings [T,D] as a scalar; 0, with zero gradients, for T = 0."""
        positive_loss = (distance(anchor, positive) - self.beta + self.margin).relu()
        negative_loss = (self.beta - distance(anchor, negative) + self.margin).relu()
        # The positive and the negative pair of a triplet are counted separately.
        pairs = (positive_loss > 0).sum() + (negative_loss > 0).sum()
        return (positive_loss.sum() + negative_loss.sum()) / pairs.clamp(min=1)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the Euclidean distances of rows [T,D] -> [T]; the 1e-8 keeps gradients of equal rows finite."""
    return ((a - b).square().sum(1) + 1e-8).sqrt()


class JointLoss(nn.Module):
    """λ · cross-entropy + (1-λ) · margin loss on distance-weighted triplets (equation 5).

    lambda_: λ, weight of the cross-entropy (0..1)
    beta, margin: as for `MarginLoss`

    Raises ValueError for lambda_ outside 0..1.
    """

    def __init__(self, lambda_: float = 0.5, *, beta: float = 1.2, margin: float = 0.2):
        super().__init__()
        if not 0 <= lambda_ <= 1:
            raise ValueError(f"lambda_ must lie between 0 and 1 (cross-entropy alone), got {lambda_}")
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
        """Return the scalars loss, cross_entropy and margin.

        output: of `MultiGrain` (b rows)
        label, instance: of each image ([b])
        gather: collects rows of all ranks, with gradients ([b,...] -> [B,...]); None: triplets of this rank
        """
        cross_entropy = F.cross_entropy(output["classifier_output"], label)
        if self.lambda_ == 1:  # without repeated augmentation (N=1) there are no positives
            margin = cross_entropy.new_zeros(())
        else:
            e = output["normalized_embedding"]
            if gather is not None:
                e, instance = gather(e), gather(instance)
            triplets = sample_triplets(e, instance, generator=generator)
            # F.embedding is e[index] with a faster, multi-threaded backward on CPUs.
            margin = self.margin_loss(*(F.embedding(index, e) for index in triplets))  # [T,D] each
        loss = self.lambda_ * cross_entropy + (1 - self.lambda_) * margin
        return {"loss": loss, "cross_entropy": cross_entropy, "margin": margin}


def gradient_share(embedding: Tensor, cross_entropy: Tensor, margin: Tensor, lambda_: float) -> Tensor:
    """Return the share of the classification gradient, |g_class| / (|g_class| + |g_retr|) (figure 5).

    embedding: embedding that both losses were computed from ([B,C])
    cross_entropy, margin: the losses (scalars)
    lambda_: λ, weight of the cross-entropy (0..1)

    g_class and g_retr are the gradients of λ · cross_entropy and (1-λ) · margin in the embedding, |·| is
    the mean row norm. Returns a detached scalar in 0..1; λ where both gradients vanish. Keeps the graph,
    writes no .grad. Raises RuntimeError for a loss that does not depend on the embedding, for instance
    when torch.compile fused the head with the backbone.
    """
    if lambda_ in (0, 1):  # the loss of zero weight may have no graph
        return embedding.new_full((), lambda_, dtype=torch.float32)
    classes = lambda_ * mean_gradient_norm(cross_entropy, embedding)
    both = classes + (1 - lambda_) * mean_gradient_norm(margin, embedding)
    return torch.where(both > 0, classes / both, lambda_)


def mean_gradient_norm(loss: Tensor, embedding: Tensor) -> Tensor:
    """Return the norm of each row of the gradient [B,C], averaged over the batch (scalar)."""
    [gradient] = torch.autograd.grad(loss, embedding, retain_graph=True)
    return gradient.float().norm(dim=1).mean()
