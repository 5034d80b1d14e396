"""PCA whitening, fitted on unlabelled images and folded into the classifier (section 3.6)."""

import copy

import numpy as np
import torch
from torch import Tensor

from mgkit.machine.device import to_float64
from mgkit.model import MultiGrain


def fit_pca_whitening(embeddings: np.ndarray | Tensor, *, shrinkage: float = 0.0) -> tuple[Tensor, Tensor]:
    """Fit a PCA whitening, cov((x - mean) @ projection) = I (section 3.6).

    embeddings: one row per image ([N,D])
    shrinkage: s, replaces eigenvalues λ by (1-s)·λ + s·mean(λ); for fewer than 10 images per dimension

    Returns mean [D] and projection [D,D] in float32, components by decreasing variance, signs arbitrary.
    Raises ValueError for fewer than two rows, non-finite values, and zero variances without shrinkage.
    """
    x = torch.as_tensor(embeddings).detach()
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"whitening needs at least two embeddings [N,D], got {tuple(x.shape)}")
    mean, covariance = moments(x)
    if not covariance.isfinite().all():
        raise ValueError("whitening: some embeddings are not finite")
    values, vectors = eigh(covariance)
    values, vectors = values.flip(0), vectors.flip(1)
    values = (1 - shrinkage) * values + shrinkage * values.mean()
    if values[-1] <= 1e-10 * values[0] or values[0] <= 0:
        empty = int((values <= 1e-10 * values[0]).sum())
        raise ValueError(
            f"whitening: {len(x)} embeddings leave {empty} of {x.shape[1]} directions without variance; "
            "use more images or shrinkage > 0"
        )
    return mean.float().to(x.device), (vectors / values.sqrt()).float().to(x.device)


def moments(x: Tensor, chunk: int = 4096) -> tuple[Tensor, Tensor]:
    """Return mean [D] and covariance [D,D] by `to_float64`, without a float64 copy of x."""
    mean = sum(to_float64(part).sum(0) for part in x.split(chunk)) / len(x)
    covariance = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=mean.device)
    for part in x.split(chunk):
        centred = to_float64(part) - mean  # [n,D]
        covariance += gram(centred)
    return mean, covariance / (len(x) - 1)


# On CPUs by NumPy: its product of a matrix and its transpose computes one triangle only, and its library is
# the faster one where torch's is MKL and the processor is not Intel's. A fit takes two thirds of the time.


def gram(x: Tensor) -> Tensor:
    """xᵀx: [n,D] -> [D,D]."""
    if x.device.type != "cpu":
        return x.T @ x
    rows = x.numpy()
    with np.errstate(invalid="ignore"):  # `fit_pca_whitening` refuses values that are not finite
        return torch.from_numpy(rows.T @ rows)


def eigh(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [D], ascending, and eigenvectors [D,D], in columns."""
    if symmetric.device.type != "cpu":
        return torch.linalg.eigh(symmetric)
    values, vectors = np.linalg.eigh(symmetric.numpy())
    return torch.from_numpy(values), torch.from_numpy(vectors)


def whiten(model: MultiGrain, mean: Tensor, projection: Tensor) -> MultiGrain:
    """Return a copy of the model with embeddings (l2([e;1]) - mean) projection, same classes (section 3.6).

    mean: of l2([e;1]) ([D], D = width + 1)
    projection: whitening matrix, invertible ([D,D])

    With the descriptor d, l2([e;1]) = d projection⁻¹ + mean. The classifier [W b] becomes the weight
    [W b] projection⁻ᵀ and the bias [W b] mean: the same logits up to a factor 1/‖[e;1]‖ per image.
    Raises ValueError for a whitened model, or matrices of another size.
    """
    if model.whitening is not None:
        raise ValueError("the network is already whitened: start from the checkpoint before whitening")
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
    """Fold a whitening into a classifier (section 3.6).

    weight, bias: classifier of embeddings ([K,D-1], [K])
    mean, projection: the whitening ([D], [D,D])

    Returns weight [K,D] and bias [K] on descriptors, computed in float64, as float32.
    """
    joined = to_float64(torch.cat([weight, bias[:, None]], dim=1))  # [K,D]
    mean, projection = (to_float64(x).to(joined.device) for x in (mean, projection))
    folded = torch.linalg.solve(projection, joined.T).T  # projection⁻¹ acts on descriptors d, [.,D]
    return folded.float().to(weight.device), (joined @ mean).float().to(weight.device)
