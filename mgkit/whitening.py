"""PCA whitening learned on unlabelled images and folded into the classifier (section 3.6)."""

import copy

import numpy as np
import torch
from torch import Tensor

from mgkit.model import MultiGrain


def fit_pca_whitening(embeddings: np.ndarray | Tensor, *, shrinkage: float = 0.0) -> tuple[Tensor, Tensor]:
    """PCA whitening of rows: mean [D] and projection [D,D] with cov((x - mean) @ projection) = I, in float32.

    embeddings: [N,D]. shrinkage s: eigenvalues become (1-s)·λ + s·mean(λ), which a set of fewer than some ten images a
    dimension wants and the paper's 20,000 images do without. Components by falling variance; signs are free. Raises
    ValueError for fewer than two rows, values that are not finite, or variances that vanish and are not shrunk.
    """
    x = torch.as_tensor(embeddings).detach()
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"whitening needs at least two embeddings [N,D], got {tuple(x.shape)}")
    mean, covariance = moments(x)
    if not covariance.isfinite().all():
        raise ValueError("whitening: some embeddings are not finite")
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    values, vectors = values.flip(0), vectors.flip(1)
    values = (1 - shrinkage) * values + shrinkage * values.mean()
    if values[-1] <= 1e-10 * values[0] or values[0] <= 0:
        empty = int((values <= 1e-10 * values[0]).sum())
        raise ValueError(
            f"whitening: {len(x)} embeddings leave {empty} of {x.shape[1]} directions without variance; "
            "use more images or shrinkage > 0"
        )
    return mean.float(), (vectors / values.sqrt()).float()


def moments(x: Tensor, chunk: int = 4096) -> tuple[Tensor, Tensor]:
    """Mean [D] and covariance [D,D] in float64, without a second copy of the data."""
    mean = sum(part.sum(0, dtype=torch.float64) for part in x.split(chunk)) / len(x)
    covariance = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for part in x.split(chunk):
        centred = part - mean  # [n,D] in float64, as the mean is
        covariance.addmm_(centred.T, centred)
    return mean, covariance / (len(x) - 1)


def whiten(model: MultiGrain, mean: Tensor, projection: Tensor) -> MultiGrain:
    """A copy of the model whose embedding is (l2([e;1]) - mean) projection and whose classes are what they were.

    mean [D], projection [D,D], D = width + 1, projection invertible. With the descriptor d, l2([e;1]) = d projection⁻¹ + mean, so
    the classifier [W b] becomes weight [W b] projection⁻ᵀ, bias [W b] mean: the same logits up to 1/‖[e;1]‖ an image.
    Raises ValueError for a model that is whitened already, or matrices of another size.
    """
    if model.whitening is not None:
        raise ValueError("the network is whitened already: start from the checkpoint before whitening")
    size = model.width + 1
    if tuple(mean.shape) != (size,) or tuple(projection.shape) != (size, size):
        raise ValueError(
            f"whitening a {model.name} takes mean [{size}] and projection [{size},{size}], "
            f"got {list(mean.shape)} and {list(projection.shape)}"
        )
    weight, bias = fold(model.classifier.weight, model.classifier.bias, mean, projection)
    whitened = copy.deepcopy(model)
    device = model.classifier.weight.device
    whitened.set_whitening(mean.to(device, copy=True), projection.to(device, copy=True), weight, bias)
    return whitened.train(model.training)


@torch.no_grad()
def fold(weight: Tensor, bias: Tensor, mean: Tensor, projection: Tensor) -> tuple[Tensor, Tensor]:
    """The classifier [K,D-1], [K] on embeddings -> [K,D], [K] on whitened descriptors; in float64, returned as float32."""
    joined = torch.cat([weight, bias[:, None]], dim=1).double()  # [K,D]
    mean, projection = mean.to(joined), projection.to(joined)
    folded = torch.linalg.solve(projection, joined.T).T  # projection⁻¹ acts on descriptors d, [.,D]
    return folded.float(), (joined @ mean).float()
