"""PCA whitening against scikit-learn and the reference; folding it changes no class."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgkit.features import classify
from mgkit.model import append_one
from mgkit.whitening import eigh, fit_pca_whitening, fold, gram, moments, whiten


def correlated_rows(n, dim, seed=0):
    random = np.random.default_rng(seed)
    return (random.standard_normal((n, dim)) @ random.standard_normal((dim, dim)) + 3.0).astype(np.float32)


def fitted_whitening(net, seed=0):
    """A whitening learned on embeddings like those of a network of this width."""
    pooled = torch.from_numpy(np.abs(correlated_rows(300, net.width, seed)))
    return fit_pca_whitening(append_one(pooled))


def test_whitened_rows_match_scikit_learn():
    from sklearn.decomposition import PCA  # takes two seconds to import

    x = correlated_rows(500, 7)
    mean, projection = fit_pca_whitening(x)
    pca = PCA(whiten=True).fit(x.astype(np.float64))
    theirs = pca.transform(x)
    ours = ((torch.from_numpy(x) - mean) @ projection).numpy()
    signs = np.sign((ours * theirs).sum(0))  # the only freedom: also the order is by falling variance
    np.testing.assert_allclose(ours * signs, theirs, atol=1e-3)
    np.testing.assert_allclose(mean, pca.mean_, rtol=1e-5)


def test_fit_matches_the_reference(pieces, relative):
    x = torch.from_numpy(pieces["whiten__input"])
    mean, projection = fit_pca_whitening(pieces["whiten__input"])
    rows = (x - mean) @ projection
    assert relative(mean, pieces["whiten__mean"]) < 1e-5
    # The value is of float32 and 9.5e-6 from the exact one.
    assert relative(rows[:40] @ rows[:40].T, pieces["whiten__gram"]) < 1e-4


def test_folded_classifier_matches_the_reference(pieces, relative):
    joined, mean, projection = (torch.from_numpy(pieces[f"whiten__{k}"]) for k in ("W", "mean", "P"))
    weight, bias = fold(joined[:, :-1], joined[:, -1], mean, projection)
    assert relative(weight, pieces["whiten__W_after"]) < 1e-5
    assert relative(bias, pieces["whiten__b_after"]) < 1e-5


@settings(max_examples=20, deadline=None)
@given(dim=st.integers(1, 10), seed=st.integers(0, 999), as_tensor=st.booleans())
def test_whitened_rows_have_identity_covariance(dim, seed, as_tensor):
    x = correlated_rows(60, dim, seed)
    mean, projection = fit_pca_whitening(torch.from_numpy(x) if as_tensor else x)
    assert mean.dtype == projection.dtype == torch.float32
    rows = (torch.from_numpy(x).double() - mean.double()) @ projection.double()
    np.testing.assert_allclose(np.atleast_2d(np.cov(rows.numpy(), rowvar=False)), np.eye(dim), atol=5e-3)
    np.testing.assert_allclose(rows.mean(0), np.zeros(dim), atol=5e-3)


def test_moments_in_chunks_are_those_of_numpy():
    x = correlated_rows(50, 4)
    for chunk in (1, 7, 50, 99):
        mean, covariance = moments(torch.from_numpy(x), chunk)
        np.testing.assert_allclose(mean, x.astype(np.float64).mean(0), rtol=1e-12)
        np.testing.assert_allclose(covariance, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-9)


def test_products_and_eigenvectors_are_those_of_torch():
    x = torch.from_numpy(correlated_rows(30, 6)).double()[::2]  # rows that do not lie side by side
    torch.testing.assert_close(gram(x), x.T @ x)
    values, vectors = eigh(gram(x))
    torch.testing.assert_close(values, torch.linalg.eigvalsh(x.T @ x))
    torch.testing.assert_close(vectors @ values.diag() @ vectors.T, x.T @ x)


@pytest.mark.parametrize("shrinkage", [0.1, 0.5, 1.0])
def test_shrinkage_pulls_variances_to_their_mean(shrinkage):
    x = correlated_rows(200, 5)
    mean, projection = fit_pca_whitening(x, shrinkage=shrinkage)
    variances = np.linalg.eigvalsh(np.cov(x.astype(np.float64), rowvar=False))[::-1]
    kept = (1 - shrinkage) * variances + shrinkage * variances.mean()
    rows = ((torch.from_numpy(x) - mean) @ projection).numpy()
    np.testing.assert_allclose(np.cov(rows, rowvar=False), np.diag(variances / kept), atol=1e-3)


@pytest.mark.parametrize(
    "x",
    [correlated_rows(5, 8), np.ones((10, 3), np.float32), np.tile(correlated_rows(20, 3), (1, 2))],
    ids=["fewer images than dimensions", "equal rows", "copied columns"],
)
def test_vanishing_variances_raise_and_say_how_many(x):
    empty = x.shape[1] - np.linalg.matrix_rank(np.cov(x.astype(np.float64), rowvar=False), tol=1e-6)
    with pytest.raises(ValueError, match=rf"leave {empty} of {x.shape[1]} directions without variance"):
        fit_pca_whitening(x)


def test_shrinkage_makes_a_singular_fit_possible():
    _, projection = fit_pca_whitening(correlated_rows(5, 8), shrinkage=0.1)
    assert projection.isfinite().all() and np.linalg.matrix_rank(projection.numpy()) == 8
    with pytest.raises(ValueError, match="without variance"):
        fit_pca_whitening(np.ones((10, 3), np.float32), shrinkage=0.1)  # nothing to shrink to


@pytest.mark.parametrize("shape", [(1, 4), (0, 4), (4,), (2, 3, 4)])
def test_fit_needs_two_rows(shape):
    with pytest.raises(ValueError, match="at least two embeddings"):
        fit_pca_whitening(np.zeros(shape, np.float32))


def test_a_fit_takes_embeddings_as_they_come_from_a_network(tiny_net):
    x = tiny_net(torch.rand(40, 3, 16, 16))["embedding"]
    assert x.requires_grad
    for found, expected in zip(fit_pca_whitening(x), fit_pca_whitening(x.detach()), strict=True):
        assert torch.equal(found, expected) and not found.requires_grad


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_fit_rejects_values_that_are_not_finite(value):
    x = correlated_rows(20, 3)
    x[4, 1] = value
    with pytest.raises(ValueError, match="not finite"):
        fit_pca_whitening(x)


def test_whitening_keeps_every_class_and_the_logits_up_to_a_positive_factor(tiny_net, uneven_images):
    after = whiten(tiny_net, *fitted_whitening(tiny_net))
    logits, _ = classify(tiny_net, uneven_images, size=40, precision="float32")
    folded, _ = classify(after, uneven_images, size=40, precision="float32")
    factor = (logits * folded).sum(1, keepdim=True) / folded.square().sum(1, keepdim=True)
    assert (factor > 0).all()
    assert (factor * folded - logits).norm() <= 1e-4 * logits.norm()
    assert torch.equal(logits.argmax(1), folded.argmax(1))


def test_the_factor_is_the_norm_of_the_embedding_with_its_one(tiny_net):
    pooled = torch.rand(6, 8)
    after = whiten(tiny_net, *fitted_whitening(tiny_net))
    with torch.no_grad():
        logits, folded = (net.head(pooled)["classifier_output"] for net in (tiny_net, after))
    norm = (pooled.square().sum(1, keepdim=True) + 1).sqrt()
    torch.testing.assert_close(folded * norm, logits, rtol=1e-4, atol=1e-4)


def test_whitened_descriptors_are_those_of_the_fit(tiny_net):
    pooled = torch.rand(6, 8)
    mean, projection = fitted_whitening(tiny_net)
    with torch.no_grad():
        output = whiten(tiny_net, mean, projection).head(pooled)
    expected = (append_one(pooled) - mean) @ projection
    torch.testing.assert_close(output["embedding"], expected)
    torch.testing.assert_close(output["normalized_embedding"].norm(dim=1), torch.ones(6))


def test_whitening_leaves_the_original_as_it_was(tiny_net):
    before = copy.deepcopy(tiny_net.state_dict())
    mean, projection = fitted_whitening(tiny_net)
    after = whiten(tiny_net, mean, projection)
    for tensor in [*after.parameters(), *after.buffers()]:
        tensor.data.fill_(5)
    assert tiny_net.whitening is None and tiny_net.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in tiny_net.state_dict().items())
    assert not (mean == 5).any() and not (projection == 5).any()


@pytest.mark.parametrize("training", [False, True])
def test_whitening_keeps_the_mode(tiny_net, training):
    after = whiten(tiny_net.train(training), *fitted_whitening(tiny_net))
    assert all(module.training == training for module in after.modules())


def test_a_second_whitening_is_rejected(tiny_net):
    after = whiten(tiny_net, *fitted_whitening(tiny_net))
    with pytest.raises(ValueError, match="already whitened"):
        whiten(after, *fitted_whitening(tiny_net))


@pytest.mark.parametrize(
    ("mean", "projection"),
    [((8,), (8, 8)), ((9,), (9, 8)), ((9,), (8, 8)), ((1, 9), (9, 9)), ((10,), (10, 10))],
)
def test_matrices_of_another_size_are_rejected(tiny_net, mean, projection):
    with pytest.raises(ValueError, match=r"takes mean \[9\] and projection \[9,9\]"):
        whiten(tiny_net, torch.zeros(mean), torch.ones(projection))


@torch.no_grad()
def test_a_network_of_signed_maps_is_whitened_behind_its_neck(signed_net):
    images = torch.randn(6, 3, *signed_net.features.own_size, generator=torch.Generator().manual_seed(0))
    output = signed_net(images)
    rows = append_one(output["embedding"])
    mean, projection = fit_pca_whitening(rows, shrinkage=0.5)
    whitened = whiten(signed_net, mean, projection)(images)
    torch.testing.assert_close(whitened["embedding"], (rows - mean) @ projection, rtol=1e-4, atol=1e-4)
    norm = (output["embedding"].square().sum(1, keepdim=True) + 1).sqrt()
    expected = output["classifier_output"]
    torch.testing.assert_close(whitened["classifier_output"] * norm, expected, rtol=1e-3, atol=1e-2)
    assert torch.equal(whitened["classifier_output"].argmax(1), expected.argmax(1))
