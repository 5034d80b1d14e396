"""Triplet sampling and the losses against row-by-row oracles; batches in which something is missing."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mgkit.losses import (
    JointLoss,
    MarginLoss,
    distance_weighted_probabilities,
    gradient_share,
    sample_triplets,
)


def unit_rows(n, dim, seed=0):
    x = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    return F.normalize(x)


def at_distance(d, direction, *, dim, base=0):
    """A unit vector at distance d from the base-th axis, towards the (base+direction)-th."""
    cosine = 1 - d * d / 2
    x = torch.zeros(dim)
    x[base], x[base + direction] = cosine, math.sqrt(1 - cosine**2)
    return x


def probabilities_by_rows(e, target):
    """1/q(d) row by row in float64: no common maximum, so nothing underflows that need not."""
    e, target = e.double().numpy(), target.numpy()
    count, dim = e.shape
    rows = np.zeros((count, count))
    for i in range(count):
        log_weights = {}
        for j in range(count):
            d = max(math.sqrt(((e[i] - e[j]) ** 2).sum()), 0.5)
            if target[i] != target[j] and d < 1.4:
                log_weights[j] = -((dim - 2) * math.log(d) + (dim - 3) / 2 * math.log(1 - d * d / 4))
        negatives = [j for j in range(count) if target[j] != target[i]]
        if log_weights:
            most = max(log_weights.values())
            for j, value in log_weights.items():
                rows[i, j] = math.exp(value - most)
        else:
            rows[i, negatives] = 1.0
        if negatives:
            rows[i] /= rows[i].sum()
    return rows


def margin_by_triplets(anchor, positive, negative, beta, margin):
    """The margin loss, one triplet after the other."""
    total, pairs = 0.0, 0
    for a, p, n in zip(*(x.double().numpy() for x in (anchor, positive, negative)), strict=True):
        d_ap, d_an = math.sqrt(((a - p) ** 2).sum()), math.sqrt(((a - n) ** 2).sum())
        for term in (d_ap - beta + margin, beta - d_an + margin):
            if term > 0:
                total, pairs = total + term, pairs + 1
    return total / max(pairs, 1)


# --- probabilities


@settings(max_examples=20, deadline=None)
@given(images=st.integers(2, 8), copies=st.integers(1, 3), dim=st.integers(3, 12), seed=st.integers(0, 999))
def test_probabilities_are_those_of_the_formula(images, copies, dim, seed):
    e, target = unit_rows(images * copies, dim, seed), torch.arange(images).repeat_interleave(copies)
    assume((torch.pdist(e.double()) - 1.4).abs().min() > 1e-5)  # at the cut-off rounding decides
    ours = distance_weighted_probabilities(e, target)
    np.testing.assert_allclose(ours, probabilities_by_rows(e, target), atol=2e-4)


def test_probabilities_match_the_reference(pieces, relative):
    ours = distance_weighted_probabilities(
        torch.from_numpy(pieces["sampling__embedding"]), torch.from_numpy(pieces["sampling__target"])
    )
    assert relative(ours, pieces["sampling__probability"]) < 1e-5


@settings(max_examples=30, deadline=None)
@given(
    target=st.lists(st.integers(0, 4), min_size=2, max_size=12).filter(lambda t: len(set(t)) > 1),
    dim=st.sampled_from([2, 3, 16, 512]),
    spread=st.floats(0, 2),
)
def test_rows_sum_to_one_and_leave_out_the_own_instance(target, dim, spread):
    target = torch.tensor(target)
    e = F.normalize(torch.eye(1, dim) + spread * unit_rows(len(target), dim))
    p = distance_weighted_probabilities(e, target)
    torch.testing.assert_close(p.sum(1), torch.ones(len(target)))
    assert (p[target[:, None] == target[None, :]] == 0).all() and (p >= 0).all()


def test_rows_past_the_cutoff_are_uniform_over_negatives():
    e = torch.cat([torch.eye(4, 8), -torch.eye(4, 8)])  # all distances are sqrt(2) or 2
    target = torch.tensor([0, 0, 1, 2, 3, 4, 5, 6])
    p = distance_weighted_probabilities(e, target)
    torch.testing.assert_close(p[0], torch.tensor([0, 0, 1, 1, 1, 1, 1, 1]) / 6)
    torch.testing.assert_close(p[2], torch.tensor([1, 1, 0, 1, 1, 1, 1, 1]) / 7)


def test_only_negatives_under_the_cutoff_are_drawn():
    e = torch.stack([at_distance(d, i + 1, dim=8) for i, d in enumerate([0.0, 1.0, 1.39, 1.41, 1.9])])
    p = distance_weighted_probabilities(e, torch.arange(5))[0]
    assert (p[1:3] > 0).all() and (p[3:] == 0).all()


def test_distances_under_the_clamp_are_equally_probable():
    e = torch.stack([at_distance(d, i + 1, dim=8) for i, d in enumerate([0.0, 0.0, 0.2, 0.49])])
    p = distance_weighted_probabilities(e, torch.arange(4))[0]
    torch.testing.assert_close(p[1:], torch.full((3,), 1 / 3))


def test_a_batch_of_one_instance_has_only_zero_rows():
    assert (distance_weighted_probabilities(unit_rows(4, 8), torch.zeros(4, dtype=torch.int64)) == 0).all()


def test_rows_of_barely_representable_weights_sum_to_one():
    """In 512-d a close pair makes weights at distance 0.62 subnormal float32 numbers, not zero."""
    near = [at_distance(d, i, dim=512) for i, d in ((1, 0.0), (1, 0.62), (2, 0.62))]
    pair = [at_distance(d, 1, dim=512, base=100) for d in (0.0, 0.5)]
    p = distance_weighted_probabilities(torch.stack(near + pair), torch.arange(5))
    torch.testing.assert_close(p.sum(1), torch.ones(5))
    torch.testing.assert_close(p[0], torch.tensor([0, 0.5, 0.5, 0, 0]))


# --- triplets


@settings(max_examples=30, deadline=None)
@given(
    target=st.lists(st.integers(0, 4), min_size=1, max_size=12),
    seed=st.integers(0, 99),
    dim=st.sampled_from([3, 16, 256]),
)
def test_every_anchor_meets_each_positive_once_and_negatives_differ(target, seed, dim):
    target = torch.tensor(target)
    e = F.normalize(torch.eye(1, dim) + 0.7 * unit_rows(len(target), dim, seed))
    triplets = sample_triplets(e, target, generator=torch.Generator().manual_seed(seed))
    drawn = list(zip(*(t.tolist() for t in triplets), strict=True))
    several = len(set(target.tolist())) > 1
    expected = [
        (a, p)
        for a in range(len(target))
        for p in range(len(target))
        if several and a != p and target[a] == target[p]
    ]
    assert [(a, p) for a, p, _ in drawn] == expected
    probability = distance_weighted_probabilities(e, target)
    for a in range(len(target)):
        negatives = [n for anchor, _, n in drawn if anchor == a]
        assert all(target[n] != target[a] and probability[a, n] > 0 for n in negatives)
        if (probability[a] > 0).sum() >= len(negatives):
            assert len(set(negatives)) == len(negatives)


def test_a_barely_representable_negative_comes_before_the_own_instance():
    """Of two negatives one has probability 4e-41: drawing both must not end at a copy of the anchor."""
    e = torch.stack(
        [at_distance(0, 1, dim=512)] * 3 + [at_distance(0.5, 1, dim=512), at_distance(0.61, 2, dim=512)]
    )
    target = torch.tensor([0, 0, 0, 1, 2])
    assert 0 < distance_weighted_probabilities(e, target)[0, 4] < torch.finfo(torch.float32).tiny
    for seed in range(20):
        anchor, _, negative = sample_triplets(e, target, generator=torch.Generator().manual_seed(seed))
        assert (target[anchor] != target[negative]).all()


def test_negatives_repeat_where_there_are_too_few():
    e, target = unit_rows(5, 8), torch.tensor([0, 0, 0, 0, 1])
    anchor, positive, negative = sample_triplets(e, target, generator=torch.Generator().manual_seed(0))
    assert len(anchor) == 12 and (negative == 4).all()


def test_the_same_seed_gives_the_same_triplets():
    e, target = unit_rows(24, 8), torch.arange(8).repeat_interleave(3)

    def drawn(seed):
        return torch.stack(sample_triplets(e, target, generator=torch.Generator().manual_seed(seed)))

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_negatives_are_drawn_as_often_as_their_probability_says():
    e = F.normalize(torch.eye(1, 6) + 0.6 * unit_rows(8, 6, seed=4))
    target = torch.tensor([0, 0, 1, 2, 3, 4, 5, 6])  # one draw an anchor, for anchors 0 and 1
    generator = torch.Generator().manual_seed(0)
    draws = 1500
    count = Counter(sample_triplets(e, target, generator=generator)[2][0].item() for _ in range(draws))
    expected = distance_weighted_probabilities(e, target)[0].numpy()
    assert expected.max() < 0.9 and (expected > 0.02).sum() >= 3  # the case is not trivial
    frequency = np.array([count[j] for j in range(8)]) / draws
    np.testing.assert_allclose(frequency, expected, atol=6 * 0.5 / math.sqrt(draws))


def test_negatives_are_the_first_of_a_sorted_race():
    e, target = unit_rows(60, 8), torch.arange(15).repeat_interleave(4)
    rate = distance_weighted_probabilities(e, target).double()
    noise = torch.empty(60, 60).exponential_(generator=torch.Generator().manual_seed(5))
    arrival = torch.where(rate > 0, noise.double() / rate, math.inf)
    _, _, negative = sample_triplets(e, target, generator=torch.Generator().manual_seed(5))
    assert torch.equal(negative.view(60, 3), arrival.argsort(dim=1)[:, :3])


def test_an_image_alone_gives_no_triplet():
    anchor, positive, _ = sample_triplets(unit_rows(3, 8), torch.tensor([0, 0, 1]))
    assert anchor.tolist() == [0, 1] and positive.tolist() == [1, 0]


# --- margin loss


@settings(max_examples=20, deadline=None)
@given(
    count=st.integers(1, 12), dim=st.integers(2, 8), beta=st.floats(0.3, 1.8), margin=st.floats(0, 0.5),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_margin_loss_is_the_mean_over_active_pairs(count, dim, beta, margin, seed):
    anchor, positive, negative = unit_rows(3 * count, dim, seed).double().split(count)
    loss = MarginLoss(beta, margin).double()
    expected = margin_by_triplets(anchor, positive, negative, loss.beta.item(), margin)
    assert loss(anchor, positive, negative).item() == pytest.approx(expected, abs=1e-5)


def test_margin_loss_counts_positive_and_negative_terms_separately():
    anchor, positive, negative = (torch.tensor([[x, 0.0]]) for x in (0.0, 1.2, 1.0))
    loss = MarginLoss(beta=1.1, margin=0.2)(anchor, positive, negative)
    assert loss.item() == pytest.approx((0.3 + 0.3) / 2, abs=1e-6)


def test_margin_loss_and_its_gradients_match_the_reference(pieces, relative):
    inputs = {
        k: torch.from_numpy(pieces[f"margin__{k}"]).requires_grad_()
        for k in ("anchor", "positive", "negative")
    }
    module = MarginLoss()
    loss = module(**inputs)
    loss.backward()
    assert relative(loss, pieces["margin__loss"]) < 1e-5
    assert relative(module.beta.grad, pieces["margin__grad_beta"]) < 1e-5
    for name, value in inputs.items():
        assert relative(value.grad, pieces[f"margin__grad_{name}"]) < 1e-5


def test_no_triplet_gives_zero_with_zero_gradients():
    e = torch.zeros(0, 4, requires_grad=True)
    module = MarginLoss()
    loss = module(e, e, e)
    loss.backward()
    assert loss.item() == 0 and module.beta.grad.item() == 0


# --- joint loss


def output_of(e, classes=3):
    """What a network would return for these (leaf) embeddings."""
    return {"normalized_embedding": e, "classifier_output": e[:, :classes] * 2}


def opposite():
    x = unit_rows(1, 8)
    return torch.cat([x, x, -x, -x])


HARD_BATCHES = {
    "a single instance": (unit_rows(4, 8), [0, 0, 0, 0]),
    "every image alone": (unit_rows(4, 8), [0, 1, 2, 3]),
    "one image": (unit_rows(1, 8), [0]),
    "one image alone": (unit_rows(5, 8), [0, 0, 1, 1, 2]),
    "all equal": (unit_rows(1, 8).repeat(4, 1), [0, 0, 1, 1]),
    "antipodal negatives": (opposite(), [0, 0, 1, 1]),
    "antipodal positives": (opposite(), [0, 1, 0, 1]),
    "all past the cut-off": (torch.eye(6, 8), [0, 0, 1, 1, 2, 2]),
    "zero rows": (torch.zeros(4, 8), [0, 0, 1, 1]),
    "2048 channels": (F.normalize(torch.eye(1, 2048) + 0.9 * unit_rows(6, 2048)), [0, 0, 0, 1, 1, 1]),
}


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("case", HARD_BATCHES)
def test_hard_batches_give_finite_loss_and_gradients(case, lambda_):
    rows, instance = HARD_BATCHES[case]
    e = rows.clone().requires_grad_()
    joint = JointLoss(lambda_)
    label = torch.arange(len(e)) % 3
    parts = joint(output_of(e), label, torch.tensor(instance), generator=torch.Generator().manual_seed(0))
    parts["loss"].backward()
    assert all(value.isfinite() for value in parts.values())
    assert e.grad.isfinite().all()
    assert joint.margin_loss.beta.grad is None or joint.margin_loss.beta.grad.isfinite()


@pytest.mark.parametrize("case", ["a single instance", "every image alone", "one image"])
def test_batches_without_triplets_train_on_cross_entropy_alone(case):
    rows, instance = HARD_BATCHES[case]
    label = torch.arange(len(rows)) % 3
    parts = JointLoss(0.5)(output_of(rows), label, torch.tensor(instance))
    assert parts["margin"].item() == 0
    assert parts["loss"].item() == pytest.approx(0.5 * parts["cross_entropy"].item())


@pytest.mark.parametrize("lambda_", [0.0, 0.3, 1.0])
def test_joint_loss_mixes_its_two_parts(lambda_):
    e, instance, label = unit_rows(9, 8), torch.arange(3).repeat_interleave(3), torch.arange(9) % 3
    parts = JointLoss(lambda_)(output_of(e), label, instance, generator=torch.Generator().manual_seed(3))
    logits = e[:, :3].double() * 2
    entropy = np.mean([(row.logsumexp(0) - row[k]).item() for row, k in zip(logits, label, strict=True)])
    triplets = sample_triplets(e, instance, generator=torch.Generator().manual_seed(3))
    margin = margin_by_triplets(*(e[index] for index in triplets), 1.2, 0.2)
    assert parts["cross_entropy"].item() == pytest.approx(entropy, abs=1e-5)
    assert parts["loss"].item() == pytest.approx(lambda_ * entropy + (1 - lambda_) * margin, abs=1e-5)


def test_joint_loss_and_its_gradient_are_those_of_indexed_rows():
    """Exactly: the same rows, and their gradients summed in the same order."""
    target, gradients = torch.arange(20).repeat_interleave(3), []
    for plain in (True, False):
        e = unit_rows(60, 16).requires_grad_()
        generator = torch.Generator().manual_seed(2)
        if plain:
            triplets = sample_triplets(e, target, generator=generator)
            loss = MarginLoss()(*(e[index] for index in triplets))
        else:
            loss = JointLoss(0.0)(output_of(e), torch.zeros_like(target), target, generator=generator)[
                "margin"
            ]
        gradients.append((loss.detach(), *torch.autograd.grad(loss, e)))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_lambda_one_never_samples(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("sampled")

    monkeypatch.setattr("mgkit.losses.sample_triplets", fail)
    e, label = unit_rows(4, 8), torch.tensor([0, 1, 2, 0])
    parts = JointLoss(1.0)(output_of(e), label, torch.arange(4))
    assert parts["loss"].item() == parts["cross_entropy"].item() and parts["margin"].item() == 0
    with pytest.raises(AssertionError, match="sampled"):
        JointLoss(0.99)(output_of(e), label, torch.arange(4))


@pytest.mark.parametrize("lambda_", [-0.01, 1.01, 2, math.nan, math.inf])
def test_lambda_outside_zero_to_one_is_rejected(lambda_):
    with pytest.raises(ValueError, match="lambda_ must lie between 0"):
        JointLoss(lambda_)


# --- gradient shares


def head_of(rows, seed=0):
    """What a network's head makes of pooled features that need gradients, and the classifier that it uses."""
    torch.manual_seed(seed)
    classifier = torch.nn.Linear(rows.shape[1], 3).to(rows.dtype)
    pooled = rows.clone().requires_grad_()
    embedding = pooled * 1.5  # as in a network, no leaf
    output = {
        "embedding": embedding,
        "normalized_embedding": F.normalize(embedding),
        "classifier_output": classifier(embedding),
    }
    return output, pooled, classifier


def parts_of(output, instance, lambda_):
    label = torch.arange(len(instance)) % 3
    generator = torch.Generator().manual_seed(0)
    return JointLoss(lambda_)(output, label, torch.tensor(instance), generator=generator)


def share_by_images(rows, instance, lambda_):
    """The share from two whole backward passes, one per head, and a loop over the images."""
    lengths = []
    for name, weight in (("cross_entropy", lambda_), ("margin", 1 - lambda_)):
        output, pooled, _ = head_of(rows)
        (weight * parts_of(output, instance, lambda_)[name]).backward()
        by_image = [math.sqrt(sum((g.item() / 1.5) ** 2 for g in row)) for row in pooled.grad]
        lengths.append(sum(by_image) / len(by_image))
    return lengths[0] / sum(lengths)


@settings(max_examples=15, deadline=None)
@given(
    images=st.integers(2, 4), dim=st.integers(3, 9), lambda_=st.floats(0.01, 0.99), length=st.floats(0.1, 30),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_gradient_share_is_that_of_two_separate_backward_passes(images, dim, lambda_, length, seed):
    rows = length * unit_rows(3 * images, dim, seed).double()
    instance = [i // 3 for i in range(3 * images)]
    output, *_ = head_of(rows)
    parts = parts_of(output, instance, lambda_)
    share = gradient_share(output["embedding"], parts["cross_entropy"], parts["margin"], lambda_)
    assert share.item() == pytest.approx(share_by_images(rows, instance, lambda_), rel=1e-5)
    assert share.shape == () and not share.requires_grad


def test_gradient_share_changes_nothing_of_the_training_step():
    rows, instance = unit_rows(9, 8), [i // 3 for i in range(9)]
    gradients = []
    for watched in (False, True):
        output, pooled, classifier = head_of(rows)
        parts = parts_of(output, instance, 0.5)
        if watched:
            gradient_share(output["embedding"], parts["cross_entropy"], parts["margin"], 0.5)
            assert pooled.grad is None and classifier.weight.grad is None
        parts["loss"].backward()
        gradients.append((pooled.grad, classifier.weight.grad))
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@pytest.mark.parametrize("lambda_", [0, 0.0, 1, 1.0])
def test_gradient_share_of_a_single_loss(lambda_):
    output, *_ = head_of(unit_rows(6, 8))
    parts = parts_of(output, [0, 0, 1, 1, 2, 2], lambda_)  # with λ=1 the margin loss has no graph
    share = gradient_share(output["embedding"], parts["cross_entropy"], parts["margin"], lambda_)
    assert share.item() == lambda_ and share.dtype == torch.float32


def test_without_triplets_the_whole_gradient_is_the_classes():
    output, *_ = head_of(unit_rows(4, 8))
    parts = parts_of(output, [0, 1, 2, 3], 0.2)
    assert gradient_share(output["embedding"], parts["cross_entropy"], parts["margin"], 0.2).item() == 1


@pytest.mark.parametrize("lambda_", [0.2, 0.7])
def test_gradient_share_where_nothing_pulls_is_lambda(lambda_):
    embedding = unit_rows(4, 8).requires_grad_()
    nothing = 0 * embedding.sum()
    share = gradient_share(embedding, nothing, nothing, lambda_)
    assert share.item() == pytest.approx(lambda_)
