"""Descriptors from pooled features: against the network's own forward pass, in blocks, from disk."""

import numpy as np
import pytest
import torch
from support import one_line_error

from mgkit import features as descriptors
from mgkit.features import multi_scale, plain, whitened
from mgkit.whitening import whiten


def pooled_rows(n=11, width=8, seed=0):
    return np.abs(np.random.default_rng(seed).normal(size=(n, width))).astype(np.float32)


@pytest.fixture
def whitened_net(tiny_net):
    generator = torch.Generator().manual_seed(1)
    return whiten(tiny_net, torch.randn(9, generator=generator) / 9, torch.randn(9, 9, generator=generator))


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_plain_descriptors_are_unit_vectors_along_the_pooled_features():
    rows = pooled_rows()
    found = plain(rows)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, unit(rows), atol=1e-5)


def test_whitened_descriptors_are_the_network_s(whitened_net):
    rows = pooled_rows()
    with torch.no_grad():
        expected = whitened_net.head(torch.from_numpy(rows))["normalized_embedding"].numpy()
    np.testing.assert_allclose(whitened(whitened_net, rows), expected, atol=1e-6)


@pytest.mark.parametrize("dims", [2, 5, 9])
def test_fewer_dimensions_are_the_first_ones_normalised_anew(whitened_net, dims):
    rows = pooled_rows()
    all_of_them = whitened(whitened_net, rows)
    np.testing.assert_allclose(
        whitened(whitened_net, rows, dims=dims), unit(all_of_them[:, :dims]), atol=1e-3
    )


@pytest.mark.parametrize("dims", [0, 10])
def test_dims_must_be_those_of_the_descriptor(whitened_net, dims):
    with one_line_error(ValueError, "dims", "9", dims):
        whitened(whitened_net, pooled_rows(), dims=dims)


def test_a_network_without_whitening_is_named(tiny_net):
    with one_line_error(ValueError, "tiny", "03_whiten"):
        whitened(tiny_net, pooled_rows())


def test_scales_are_summed_and_normalised():
    parts = [unit(pooled_rows(seed=seed)) for seed in range(3)]
    np.testing.assert_allclose(multi_scale(parts), unit(sum(parts)), atol=1e-5)
    np.testing.assert_allclose(multi_scale(parts[:1]), parts[0], atol=1e-5)


def test_blocks_and_files_on_disk_change_nothing(whitened_net, tmp_path, monkeypatch):
    rows = pooled_rows(23)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    expected = plain(rows), whitened(whitened_net, rows)
    monkeypatch.setattr(descriptors, "ROWS", 5)
    np.testing.assert_array_equal(plain(mapped), expected[0])
    np.testing.assert_allclose(whitened(whitened_net, mapped), expected[1], atol=1e-6)


def test_an_unreadable_image_s_row_stays_nan(whitened_net):
    rows = pooled_rows()
    rows[3] = np.nan
    for found in (plain(rows), whitened(whitened_net, rows), multi_scale([plain(rows)] * 2)):
        assert np.flatnonzero(~np.isfinite(found[:, 0])).tolist() == [3]
