"""The toy of figure A.3: batches, steps on the hinge loss, and the higher result of paired batches."""

import numpy as np
import pytest
import torch

from mgkit.explore.toys.svm import compare_samplings, draw_batches, hinge_step, toy_points, with_mirror_images


@pytest.fixture
def points():
    return toy_points(50, np.random.default_rng(0))


def test_the_class_lies_in_the_second_coordinate_alone():
    x, y = toy_points(20_000, np.random.default_rng(0))
    assert set(y) == {-1, 1} and x.shape == (20_000, 2)
    below, above = x[y < 0].mean(axis=0), x[y > 0].mean(axis=0)
    assert abs(below[0] - above[0]) < 0.2 and above[1] - below[1] > 1
    assert x[:, 0].mean() > 1  # the mirror image is another point


def test_paired_batches_hold_a_point_and_its_mirror_image(points):
    batch, labels = draw_batches(*points, "paired", runs=30, random=np.random.default_rng(1))
    assert batch.shape == (30, 2, 2) and labels.shape == (30, 2)
    assert np.array_equal(batch[:, 0] * [-1, 1], batch[:, 1]) and np.array_equal(labels[:, 0], labels[:, 1])
    assert len(np.unique(batch[:, 0], axis=0)) > 5  # another point for each run


def test_uniform_batches_hold_points_of_the_augmented_set_all_equally_often(points):
    batch, labels = draw_batches(*points, "uniform", runs=20_000, random=np.random.default_rng(1))
    everything, of_all = with_mirror_images(*points)
    drawn, counts = np.unique(batch.reshape(-1, 2), axis=0, return_counts=True)
    assert np.array_equal(drawn, np.unique(everything, axis=0)) and counts.min() > 0.65 * counts.mean()
    known = {tuple(x): label for x, label in zip(everything, of_all, strict=True)}
    assert all(known[tuple(x)] == label for x, label in zip(batch[:20, 0], labels[:20, 0], strict=True))


def test_a_step_is_that_of_sgd_on_the_hinge_loss(points):
    random = np.random.default_rng(2)
    x, y = draw_batches(*points, "uniform", runs=7, random=random)
    w = random.normal(size=(7, 2))
    ours = hinge_step(w, x, y, lr=0.3)
    theirs = torch.tensor(w, requires_grad=True)
    losses = (1 - torch.tensor(y) * (torch.tensor(x) @ theirs[:, :, None])[:, :, 0]).clamp(min=0)
    losses.mean(dim=1).sum().backward()
    np.testing.assert_allclose(ours, (theirs - 0.3 * theirs.grad).detach().numpy())


def test_a_pair_says_nothing_about_the_first_coordinate(points):
    batch = draw_batches(*points, "paired", runs=9, random=np.random.default_rng(3))
    w = hinge_step(np.zeros((9, 2)), *batch, lr=1.0)
    assert np.all(w[:, 0] == 0) and np.all(w[:, 1] != 0)


@pytest.mark.parametrize("seed", range(3))
def test_paired_ends_higher(seed):
    found = compare_samplings(runs=100, seed=seed)
    uniform, paired = (found.accuracy[kind][:, -20:].mean(axis=1) for kind in ("uniform", "paired"))
    assert uniform.shape == (100,)
    error = np.hypot(uniform.std(), paired.std()) / 10
    assert paired.mean() - uniform.mean() > error  # of 60 other seeds, 6.8 to 16 errors
    assert paired.mean() < found.limit + 0.005


def test_the_same_seed_gives_the_same_runs():
    one, other = compare_samplings(runs=2, steps=5), compare_samplings(runs=2, steps=5)
    assert all(np.array_equal(one.accuracy[kind], other.accuracy[kind]) for kind in one.accuracy)
    assert one.limit == other.limit and 0.8 < one.limit <= 1
