"""Repeated augmentation on a toy problem: a linear SVM on points in the plane, trained by SGD (appendix A.3).

The second coordinate determines the class; the first is noise of larger variance. The augmentation mirrors
the first, as a flip mirrors an image. Batches hold two samples: of two points (*uniform*), or a point and its
mirror image (*paired*, repeated augmentation with N=2), whose gradients in the first coordinate cancel. As in
the paper, the figure is a mean of 100 runs; the distribution of the points and the step size are ours.
"""

from typing import Literal, NamedTuple, get_args

import numpy as np

Sampling = Literal["uniform", "paired"]

CENTRE = (3.0, 1.0)  # of class 1; that of class -1 is (3, -1)
SPREAD = (2.0, 0.7)  # standard deviations of both classes
MIRROR = np.array([-1.0, 1.0])  # the augmentation, as factors of the coordinates


class ToyRuns(NamedTuple):
    """Accuracy (0..1) on test points after each step, {sampling: [runs, steps]}.

    limit: accuracy of an SVM fitted to all training points and their mirror images.
    """

    accuracy: dict[Sampling, np.ndarray]
    limit: float


def toy_points(count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points [count,2] of two classes, and their labels [count], -1 or 1."""
    labels = random.choice([-1.0, 1.0], count)
    centres = np.stack([np.full(count, CENTRE[0]), CENTRE[1] * labels], axis=1)
    return centres + random.normal(size=(count, 2)) * SPREAD, labels


def with_mirror_images(points: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points [n,2] -> [2n,2], labels [n] -> [2n]."""
    return np.concatenate([points, points * MIRROR]), np.concatenate([labels, labels])


def draw_batches(
    points: np.ndarray, labels: np.ndarray, sampling: Sampling, *, runs: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A batch of two for each of R runs, from points [n,2] and labels [n] -> [R,2,2] and [R,2]."""
    if sampling == "uniform":  # two points, each mirrored with probability 0.5
        index = random.integers(len(points), size=(runs, 2))
        mirrored = random.random((runs, 2)) < 0.5
    else:  # a point and its mirror image
        index = random.integers(len(points), size=(runs, 1)).repeat(2, axis=1)
        mirrored = np.tile([False, True], (runs, 1))
    return np.where(mirrored[:, :, None], MIRROR, 1) * points[index], labels[index]


def hinge_step(w: np.ndarray, x: np.ndarray, y: np.ndarray, *, lr: float) -> np.ndarray:
    """SGD step on the hinge loss max(0, 1 - y w·x) for R runs: w [R,2], x [R,B,2], y [R,B] -> w [R,2]."""
    inside = y * np.einsum("rbd,rd->rb", x, w) < 1  # zero gradient elsewhere
    gradient = -((inside * y)[:, :, None] * x).mean(axis=1)  # [R,2]
    return w - lr * gradient


def compare_samplings(
    *, runs: int = 100, steps: int = 100, points: int = 200, lr: float = 0.2, seed: int = 0
) -> ToyRuns:
    """Train SVMs with each sampling, on the same points, each run with other initial weights and batches."""
    from sklearn.svm import LinearSVC  # takes a second to import

    random = np.random.default_rng(seed)
    x, y = toy_points(points, random)
    test_x, test_y = with_mirror_images(*toy_points(1000, random))
    first = random.normal(size=(runs, 2))
    accuracy = {}
    for sampling in get_args(Sampling):
        w, found = first, []
        for _ in range(steps):
            w = hinge_step(w, *draw_batches(x, y, sampling, runs=runs, random=random), lr=lr)
            right = np.sign(test_x @ w.T) == test_y[:, None]  # [2000,R]
            found.append(right.mean(axis=0))
        accuracy[sampling] = np.stack(found, axis=1)
    best = LinearSVC(fit_intercept=False).fit(*with_mirror_images(x, y))
    return ToyRuns(accuracy, best.score(test_x, test_y))
