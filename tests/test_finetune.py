"""p*: the steps of SGD, the sweep over p, in one process or several."""

import copy
import math
from contextlib import nullcontext
from unittest.mock import patch

import numpy as np
import pytest
import torch
from support import in_processes, one_line_error
from torch.nn import functional as F

from mgkit.data.decoding import UnreadableImageError, load_image
from mgkit.data.loader import UnreadableImages
from mgkit.features import Passes, classifier_inputs, classify, feature_maps, whole_shapes
from mgkit.finetune import (
    SMALLEST_P,
    cross_entropy,
    descend_p,
    feature_windows,
    finetune_classifier,
    finetune_p,
    images_a_window,
    joined,
    set_p,
    sweep_hits,
    sweep_p,
)
from mgkit.machine.distributed import rank, world_size
from mgkit.machine.frozen import frozen
from mgkit.metrics import topk_accuracy
from mgkit.pooling import FLOOR
from mgkit.transforms import eval_transform
from mgkit.whitening import fit_pca_whitening, whiten

PS = [1.0, 2.5, 6.0, math.inf]
FLOAT32 = dict(precision="float32")  # comparisons between batch sizes would see bf16 round


def count_images(net):
    """A list that gets the batch size of every pass of the backbone."""
    passes = []
    net.features.register_forward_hook(lambda module, inputs, maps: passes.append(len(maps)))
    return passes


def descend_by_hand(maps, target, weight, bias, *, p, lr, momentum, step_size):
    """SGD with momentum on p alone in float64; pooling written out, the gradient by central differences."""

    def loss_of(batch, labels, exponent):
        total = 0.0
        for x, label in zip(batch, labels, strict=True):
            x = x.double().clamp(min=FLOOR).flatten(1)
            pooled = (x**exponent).mean(1) ** (1 / exponent)
            logits = weight @ pooled + bias
            total += (logits.logsumexp(0) - logits[label]).item()
        return total / len(batch)

    weight, bias = weight.double(), bias.double()
    steps, velocity, path = math.ceil(len(maps) / step_size), 0.0, []
    for i in range(steps):
        batch, labels = (x[i * step_size : (i + 1) * step_size] for x in (maps, target))
        loss = loss_of(batch, labels, p)
        gradient = (loss_of(batch, labels, p + 1e-5) - loss_of(batch, labels, p - 1e-5)) / 2e-5
        velocity = momentum * velocity + gradient
        p -= lr * (1 - i / steps) ** 0.9 * velocity
        path.append((loss, p))
    return np.array(path)


def in_steps(maps, target, step_size):
    return [
        (list(maps[i : i + step_size]), target[i : i + step_size]) for i in range(0, len(maps), step_size)
    ]


def put_classifier(net, weight, bias):
    net.classifier = torch.nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        net.classifier.weight.copy_(weight)
        net.classifier.bias.copy_(bias)


def test_descent_is_the_hand_written_loop(tiny_net):
    maps = torch.rand(14, 8, 3, 4, generator=torch.Generator().manual_seed(0)) * 2
    target = torch.arange(14) % 3
    hyper = dict(lr=10.0, momentum=0.9)
    path = descend_p(tiny_net, in_steps(maps, target, 4), steps=4, **hyper)
    expected = descend_by_hand(
        maps, target, tiny_net.classifier.weight.detach(), tiny_net.classifier.bias.detach(), p=3.0,
        step_size=4, **hyper,
    )  # fmt: skip
    assert abs(path[-1, 1] - 3.0) > 0.02  # p moved
    np.testing.assert_allclose(path[:, 0], expected[:, 0], rtol=1e-5)
    np.testing.assert_allclose(path[:, 1] - 3, expected[:, 1] - 3, rtol=1e-3)
    assert tiny_net.pool.p.item() == pytest.approx(path[-1, 1])


def test_descent_matches_the_reference(pieces, relative, tiny_net):
    maps, target, weight, bias = (
        torch.from_numpy(pieces[f"finetune__{k}"]) for k in ("features", "target", "W", "b")
    )
    put_classifier(tiny_net, weight, bias)
    path = descend_p(tiny_net, in_steps(maps, target, 4), steps=12, lr=0.005, momentum=0.9)
    assert relative(path[:, 0], pieces["finetune__loss_and_p"][:, 0]) < 1e-4
    assert relative(path[:, 1] - 3, pieces["finetune__loss_and_p"][:, 1] - 3) < 1e-4


def test_descent_never_leaves_the_exponents_that_gem_has(tiny_net):
    maps, target = torch.rand(12, 8, 3, 4), torch.arange(12) % 3
    path = descend_p(tiny_net, in_steps(maps, target, 2), steps=6, lr=1e4, momentum=0.9)
    assert (path[:, 1] >= SMALLEST_P * (1 - 1e-6)).all() and np.isfinite(path).all()


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_descent_leaves_p_as_it_was_after_an_error_and_its_gradient_always(tiny_net, error):
    p, grad = tiny_net.pool.p, torch.tensor(5.0)
    p.grad = grad

    def batches():
        yield from in_steps(torch.rand(8, 8, 3, 4), torch.arange(8) % 3, 4)
        if error:
            raise error

    with pytest.raises(error) if error else nullcontext():
        descend_p(tiny_net, batches(), steps=2, lr=10.0, momentum=0.9)
    assert (p.item() == 3) == bool(error)
    assert not p.requires_grad and p.grad is grad and grad.item() == 5


def test_descent_refuses_maps_that_are_not_finite(tiny_net):
    maps, target = torch.rand(8, 8, 3, 4), torch.arange(8) % 3
    maps[5, 2, 1, 1] = math.nan
    with one_line_error(ValueError, "step 2 is not finite", "weights hold NaN", "precision=float32"):
        descend_p(tiny_net, in_steps(maps, target, 4), steps=2, lr=0.1, momentum=0.9)
    assert tiny_net.pool.p.item() == 3


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused_and_leave_p(tiny_net, uneven_images, value):
    for where, of_sweep, of_descent in (
        (tiny_net.classifier, "the class scores of", "the loss of step 1"),
        (tiny_net.features[3], "the class scores of", "the features of"),
    ):
        where.weight.data[0, 0] = value
        with one_line_error(ValueError, of_sweep, uneven_images.root, "not finite", "precision=float32"):
            sweep_p(tiny_net, uneven_images, sizes=[24], ps=PS)
        with one_line_error(ValueError, of_descent, "not finite", "precision=float32"):
            finetune_p(tiny_net, uneven_images, size=24)
        assert tiny_net.pool.p.item() == 3 and not tiny_net.pool.p.requires_grad


@pytest.mark.parametrize("crop", ["rect", "square"])
def test_finetune_p_is_descent_over_images_taken_one_by_one(tiny_net, uneven_images, crop):
    twin = copy.deepcopy(tiny_net)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(7)).tolist()
    transform = eval_transform(32, crop)
    images = [transform(load_image(uneven_images.paths[i])) for i in order]
    with torch.no_grad():
        maps = [twin.features(image[None])[0] for image in images]
    target = torch.from_numpy(uneven_images.labels[order])
    expected = descend_p(twin, in_steps(maps, target, 4), steps=6, lr=0.1, momentum=0.9)
    path = finetune_p(tiny_net, uneven_images, size=32, crop=crop, lr=0.1, seed=7, **FLOAT32)
    assert path.shape == (6, 2) and abs(path[-1, 1] - 3) > 1e-3
    np.testing.assert_allclose(path, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "options", [dict(batch_size=1), dict(batch_size=3), dict(batch_size=64), dict(workers=1)]
)
@pytest.mark.parametrize("step_size", [1, 5])
def test_p_star_depends_neither_on_the_batch_size_nor_on_workers(tiny_net, uneven_images, options, step_size):
    def path(**more):
        net = copy.deepcopy(tiny_net)
        return finetune_p(net, uneven_images, size=32, step_size=step_size, lr=0.1, **FLOAT32, **more)

    np.testing.assert_allclose(path(**options), path(), rtol=1e-5)


@pytest.fixture
def small_windows(monkeypatch):
    """Windows of 32 images, whatever room there is."""
    monkeypatch.setattr("mgkit.finetune.BYTES_A_WINDOW", 0)


def test_p_star_does_not_depend_on_the_windows(tiny_net, uneven_images, monkeypatch):
    many = uneven_images.subset([*range(24)] * 3)

    def passes_and_path(room):
        monkeypatch.setattr("mgkit.finetune.BYTES_A_WINDOW", room)
        net = copy.deepcopy(tiny_net)
        passes = count_images(net)
        return passes, finetune_p(net, many, size=32, lr=0.1, **FLOAT32)

    small_passes, small = passes_and_path(0)
    large_passes, large = passes_and_path(2**27)
    assert sum(small_passes) == sum(large_passes) == 72 and len(large_passes) < len(small_passes)
    np.testing.assert_allclose(small, large, rtol=1e-5)


def test_a_window_has_the_images_whose_maps_fit():
    assert images_a_window(2048, 500, 32) == 2**27 // (4 * 2048 * 16**2)
    assert images_a_window(4320, 2000, 32) == 32  # but whole batches
    assert images_a_window(512, 32, 32) == 1024


def test_gradients_stay_on_between_windows(tiny_net, uneven_images, small_windows):
    many = uneven_images.subset([*range(24)] * 2)
    windows = feature_windows(tiny_net, many, size=24, step_size=1, passes=Passes(batch_size=4))
    assert all(torch.is_grad_enabled() and not maps[0].requires_grad for maps, _ in windows)


@pytest.mark.parametrize("step_size", [1, 4, 7])
def test_windows_give_the_images_in_order(tiny_net, uneven_images, step_size, small_windows):
    many = uneven_images.subset([*range(24), *range(23, -1, -1), *range(5)])  # more than a window
    passes = Passes(batch_size=4, **FLOAT32)
    windows = list(feature_windows(tiny_net, many, size=24, step_size=step_size, passes=passes))
    assert torch.cat([labels for _, labels in windows]).tolist() == many.labels.tolist()
    assert [len(labels) for _, labels in windows[:-1]] == [step_size] * (len(windows) - 1)
    features = [x for maps, _ in windows for x in maps]
    for i in (0, 24, 52):
        image = eval_transform(24, "rect")(load_image(many.paths[i]))
        with torch.no_grad():
            torch.testing.assert_close(features[i], tiny_net.features(image[None])[0], rtol=1e-4, atol=1e-5)


def test_finetuning_touches_p_alone(tiny_net, uneven_images):
    before = copy.deepcopy(tiny_net.state_dict())
    trainable = {name: parameter.requires_grad for name, parameter in tiny_net.named_parameters()}
    finetune_p(tiny_net.train(), uneven_images, size=32, lr=0.1)  # also where the network was training
    after = tiny_net.state_dict()
    assert [key for key in after if not torch.equal(after[key], before[key])] == ["pool.p"]
    assert {name: q.requires_grad for name, q in tiny_net.named_parameters()} == trainable
    assert all(parameter.grad is None for parameter in tiny_net.parameters())


def test_the_backbone_sees_each_image_once_when_p_is_learned(tiny_net, uneven_images):
    passes = count_images(tiny_net)
    finetune_p(tiny_net, uneven_images, size=32)
    assert sum(passes) == 24 and len(passes) < 24  # and shapes share passes


def whitened(net):
    pooled = torch.rand(400, net.width, generator=torch.Generator().manual_seed(0))
    rows = torch.cat([pooled, torch.ones(400, 1)], 1)
    return whiten(net, *fit_pca_whitening(F.normalize(rows)))


@pytest.mark.parametrize("crop", ["rect", "square"])
@pytest.mark.parametrize("whitening", [False, True])
def test_the_sweep_is_one_evaluation_a_p_and_size(tiny_net, uneven_images, crop, whitening):
    net = whitened(tiny_net) if whitening else tiny_net
    sizes = [24, 41]
    swept = sweep_p(net, uneven_images, sizes=sizes, ps=PS, ks=(1, 2), crop=crop, **FLOAT32)
    assert swept.shape == (2, 4, 2)
    for s, size in enumerate(sizes):
        for j, p in enumerate(PS):
            own = set_p(copy.deepcopy(net), p)
            logits, labels = classify(own, uneven_images, size=size, crop=crop, batch_size=1, **FLOAT32)
            assert swept[s, j].tolist() == pytest.approx(topk_accuracy(logits, labels, (1, 2)))
    assert len(np.unique(swept)) > 1  # the accuracies differ, so the comparison shows something


def test_hits_are_those_of_each_image_and_nan_for_an_unreadable_one(tiny_net, image_folders):
    images = image_folders([(40, 30), (30, 40), (33, 33), (40, 30)])
    logits, labels = classify(set_p(copy.deepcopy(tiny_net), 2.0), images, size=24, crop="rect", **FLOAT32)
    expected = [topk_accuracy(logits[i : i + 1], labels[i : i + 1], (1, 2)) for i in range(12)]
    with open(images.paths[7], "wb"):
        pass
    expected[7] = (math.nan, math.nan)
    unreadable = UnreadableImages("skip")
    hits = sweep_hits(tiny_net, images, sizes=[24], ps=[2.0], ks=(1, 2), unreadable=unreadable, **FLOAT32)
    assert hits.shape == (1, 1, 2, 12)
    np.testing.assert_array_equal(hits[0, 0].T, expected)


def test_the_sweep_runs_the_backbone_once_an_image_and_size(tiny_net, uneven_images):
    passes = count_images(tiny_net)
    sweep_p(tiny_net, uneven_images, sizes=[24, 32, 40], ps=PS, batch_size=5)
    assert sum(passes) == 3 * 24 and max(passes) <= 5


def test_the_sweep_freezes_the_backbone_once_for_all_sizes(tiny_net, uneven_images):
    with patch("mgkit.features.frozen", wraps=frozen) as made:
        several = sweep_p(tiny_net, uneven_images, sizes=[24, 32, 40], ps=PS)
        assert made.call_count == 1
        alone = [sweep_p(tiny_net, uneven_images, sizes=[size], ps=PS)[0] for size in (24, 32, 40)]
        assert made.call_count == 4 and np.array_equal(several, alone)


def test_the_sweep_reads_the_headers_once_for_all_sizes(tiny_net, uneven_images, headers):
    sizes = [24, 32, 40, 48]
    several = sweep_p(tiny_net, uneven_images, sizes=sizes, ps=PS)
    assert headers.call_count == len(uneven_images)
    alone = [sweep_p(tiny_net, uneven_images, sizes=[size], ps=PS)[0] for size in sizes]
    assert headers.call_count == 5 * len(uneven_images) and np.array_equal(several, alone)
    sweep_p(tiny_net, uneven_images, sizes=sizes, ps=PS, crop="square")
    assert headers.call_count == 5 * len(uneven_images)


def test_the_sweep_takes_shapes_that_were_read_before(tiny_net, uneven_images, headers):
    shapes = whole_shapes(uneven_images, "rect")
    one_by_one = [
        sweep_p(tiny_net, uneven_images, sizes=[size], ps=PS, shapes=shapes)[0] for size in (24, 40)
    ]
    assert headers.call_count == len(uneven_images)
    assert np.array_equal(one_by_one, sweep_p(tiny_net, uneven_images, sizes=[24, 40], ps=PS))


def test_shapes_that_are_given_are_not_read_again_and_go_with_their_images(tiny_net, uneven_images, headers):
    shapes = whole_shapes(uneven_images, "rect")
    path, other = (
        finetune_p(copy.deepcopy(tiny_net), uneven_images, size=32, lr=0.1, shapes=given, **FLOAT32)
        for given in (shapes, None)
    )
    np.testing.assert_array_equal(path, other)
    assert headers.call_count == 2 * len(uneven_images)  # those above, and for the path without


@pytest.mark.parametrize(("at_least", "sizes"), [(1, [1, 2, 3, 1]), (3, [3, 3, 1]), (64, [7])])
def test_small_batches_of_the_sweep_are_joined_in_order(at_least, sizes):
    rows, labels = torch.rand(2, 7, 5), torch.arange(7)
    batches = zip(
        rows.split([1, 2, 3, 1], dim=1), labels.split([1, 2, 3, 1]), labels.split([1, 2, 3, 1]), strict=True
    )
    found = list(joined(batches, at_least=at_least))
    assert [len(indices) for *_, indices in found] == sizes
    for column, dim, whole in ((0, 1, rows), (1, 0, labels), (2, 0, labels)):
        assert torch.equal(torch.cat([batch[column] for batch in found], dim), whole)
    assert not list(joined([]))


def test_the_sweep_leaves_the_network_as_it_was(tiny_net, uneven_images):
    before = copy.deepcopy(tiny_net.state_dict())
    sweep_p(tiny_net, uneven_images, sizes=[24], ps=PS)
    assert all(torch.equal(value, before[key]) for key, value in tiny_net.state_dict().items())


def test_max_pooling_has_no_p_to_learn(tiny_net, image_folders):
    with torch.no_grad():
        tiny_net.pool.p.fill_(float("inf"))
    with pytest.raises(ValueError, match="p = inf"):
        finetune_p(tiny_net, image_folders([(20, 20)]), size=16)


def test_each_exponent_is_swept_with_its_own_classifier(tiny_net, uneven_images):
    ps, classifiers = [1.0, 3.0, 3.0], [torch.nn.Linear(8, 3), tiny_net.classifier, torch.nn.Linear(8, 3)]
    hits = sweep_hits(tiny_net, uneven_images, sizes=[24], ps=ps, classifiers=classifiers, **FLOAT32)
    for j, (p, classifier) in enumerate(zip(ps, classifiers, strict=True)):
        other = copy.deepcopy(tiny_net)
        other.set_classifier(classifier)
        np.testing.assert_array_equal(
            hits[:, j], sweep_hits(other, uneven_images, sizes=[24], ps=[p], **FLOAT32)[:, 0]
        )
    assert len({hits[0, j, 0].tobytes() for j in range(3)}) == 3


# --- Networks of signed maps, with a neck or the tokens of a transformer


def size_for(net):
    """A size (px) at which maps have several positions: beit takes its own alone."""
    return 224 if net.features.is_fixed else 96


def maps_one_by_one(net, images, *, size, crop):
    transform = eval_transform(size, crop, mean=net.mean, std=net.std)
    with torch.no_grad():
        return [net.features(transform(load_image(path))[None])[0] for path in images.paths]


def logits_by_formula(net, x, p):
    """Class scores [K] of a map [C,h,w] in float64, pooling written out."""
    least = x.amin((1, 2), keepdim=True)
    offset = torch.where(least < 0, least - FLOOR, 0)
    pooled = ((x - offset).clamp(min=FLOOR) ** p).mean((1, 2)) ** (1 / p) + offset[:, 0, 0]
    embedding = pooled[None] if net.neck is None else net.neck(pooled[None])
    return net.classifier(embedding)[0]


def descend_by_autograd(net, maps, target, *, p, lr, momentum, step_size):
    """SGD on p alone in float64, one map at a time."""
    net, p, velocity, path = copy.deepcopy(net).double(), torch.tensor(p).double(), 0.0, []
    starts = range(0, len(maps), step_size)
    for i, start in enumerate(starts):
        p.requires_grad_(True)
        batch = [(maps[k].double(), target[k]) for k in range(start, min(start + step_size, len(maps)))]
        losses = [F.cross_entropy(logits_by_formula(net, x, p), label) for x, label in batch]
        loss = sum(losses) / len(losses)
        [gradient] = torch.autograd.grad(loss, p)
        velocity = momentum * velocity + gradient
        p = (p - lr * (1 - i / len(starts)) ** 0.9 * velocity).detach()
        path.append((loss.item(), p.item()))
    return np.array(path)


def test_p_star_on_signed_maps_is_that_of_a_plain_loop(signed_net, uneven_images):
    options = dict(lr=0.1, momentum=0.9)
    size, crop = size_for(signed_net), "square"
    order = torch.randperm(24, generator=torch.Generator().manual_seed(7)).tolist()
    images = uneven_images.subset(order)
    maps = maps_one_by_one(signed_net, images, size=size, crop=crop)
    target = torch.from_numpy(images.labels)
    expected = descend_by_autograd(signed_net, maps, target, p=3.0, step_size=4, **options)
    path = finetune_p(signed_net, uneven_images, size=size, crop=crop, seed=7, **options, **FLOAT32)
    np.testing.assert_allclose(path[:, 0], expected[:, 0], rtol=1e-4)
    moved = abs(expected[-1, 1] - 3)
    np.testing.assert_allclose(path[:, 1], expected[:, 1], rtol=0, atol=1e-5 + 1e-2 * moved)
    assert (moved > 0.01) == (signed_net.tokens != "class")  # which no p changes


@pytest.mark.parametrize("whitening", [False, True])
def test_the_sweep_over_signed_maps_is_one_evaluation_a_p(signed_net, uneven_images, whitening):
    net = whitened(signed_net) if whitening else signed_net
    options = dict(size=size_for(net), crop="square", **FLOAT32)
    swept = sweep_p(net, uneven_images, ps=PS, ks=(1, 2), sizes=[options.pop("size")], **options)
    for j, p in enumerate(PS):
        own = set_p(copy.deepcopy(net), p)
        logits, labels = classify(own, uneven_images, size=size_for(net), batch_size=1, **options)
        assert swept[0, j].tolist() == pytest.approx(topk_accuracy(logits, labels, (1, 2)))


# --- FixRes

SGD = dict(lr=0.5, epochs=3, batch_size=5, momentum=0.8, seed=4)


def finetune_on_images(net, images, labels, *, lr, epochs, batch_size, momentum, seed):
    """SGD written out, on the classifier alone; every image passes through the network in eval mode."""
    net = copy.deepcopy(net).eval().requires_grad_(False)
    weights = [net.classifier.weight.requires_grad_(True), net.classifier.bias.requires_grad_(True)]
    velocity, step = [torch.zeros_like(w) for w in weights], 0
    with torch.no_grad():
        rows = torch.stack([net(image[None])["embedding"][0] for image in images])
    rate, steps = lr / (1 + rows.square().sum(1).mean()), epochs * math.ceil(len(images) / batch_size)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for start in range(0, len(images), batch_size):
            batch = order[start : start + batch_size]
            logits = torch.cat([net(images[i][None])["classifier_output"] for i in batch])
            loss = -logits.log_softmax(1)[range(len(batch)), labels[batch]].mean()
            gradients = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                for w, v, gradient in zip(weights, velocity, gradients, strict=True):
                    v.mul_(momentum).add_(gradient)
                    w -= rate * (1 - step / steps) ** 0.9 * v
            step += 1
    return [w.detach() for w in weights]


@pytest.mark.parametrize("whitening", [False, True])
def test_fixres_on_embeddings_is_sgd_on_the_images(tiny_net, uneven_images, whitening):
    net = whitened(tiny_net) if whitening else tiny_net
    net.dropout.p = 0.5  # which is off in eval mode
    set_p(net, 2.0)
    images = [eval_transform(32, "rect")(load_image(path)) for path in uneven_images.paths]
    expected = finetune_on_images(net, images, torch.from_numpy(uneven_images.labels), **SGD)
    [rows] = classifier_inputs(net, uneven_images, size=32, ps=[2.0], passes=Passes(**FLOAT32))
    before = copy.deepcopy(net.state_dict())
    tuned = finetune_classifier(net.classifier, rows, uneven_images.labels, **SGD)
    assert (tuned.weight - net.classifier.weight).abs().max() > 0.01  # it learned something
    for found, wanted in zip((tuned.weight, tuned.bias), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(weight.requires_grad for weight in tuned.parameters())


@pytest.fixture
def embedded():
    """Embeddings [30,8] and labels [30] of three classes."""
    rows = torch.rand(30, 8, generator=torch.Generator().manual_seed(0)).numpy()
    return rows, np.arange(30) % 3


def test_fixres_depends_on_the_seed_alone(tiny_net, embedded):
    def weight(seed):
        return finetune_classifier(tiny_net.classifier, *embedded, seed=seed).weight

    assert torch.equal(weight(0), weight(0)) and not torch.equal(weight(0), weight(1))


def test_fixres_leaves_rows_of_unreadable_images_out(tiny_net, embedded):
    rows, labels = embedded
    gaps, kept = rows.copy(), np.setdiff1d(np.arange(30), [3, 17])
    gaps[[3, 17]] = math.nan
    known = finetune_classifier(tiny_net.classifier, rows[kept], labels[kept])
    assert torch.equal(finetune_classifier(tiny_net.classifier, gaps, labels).weight, known.weight)
    assert cross_entropy(known, gaps, labels) == pytest.approx(cross_entropy(known, rows[kept], labels[kept]))


@pytest.mark.parametrize("scale", [1, 30, 1e3])
def test_one_learning_rate_suits_short_and_long_embeddings(tiny_net, embedded, scale):
    rows, labels = scale * embedded[0], embedded[1]
    tiny_net.classifier.weight.data /= scale
    tuned = finetune_classifier(tiny_net.classifier, rows, labels)
    before, after = (cross_entropy(each, rows, labels) for each in (tiny_net.classifier, tuned))
    assert after < 0.9 * before


def test_fixres_refuses_what_it_cannot_learn_from(tiny_net, embedded):
    rows, labels = embedded
    with one_line_error(ValueError, "no embedding"):
        finetune_classifier(tiny_net.classifier, np.full_like(rows, math.nan), labels)
    with one_line_error(ValueError, "does not stay finite", "lower rate than 0.5"):
        finetune_classifier(tiny_net.classifier, np.full_like(rows, math.inf), labels, lr=0.5)


# --- Several processes


def shared_descent(net, images, options):
    """The path of finetune_p in this process of several, and what p was left at."""
    net, skipping = copy.deepcopy(net), UnreadableImages("skip")  # processes share what they are given
    with patch("mgkit.finetune.BYTES_A_WINDOW", 0):  # several windows
        path = finetune_p(net, images, size=32, lr=0.1, seed=3, unreadable=skipping, **FLOAT32, **options)
    return path, net.pool.p.item()


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("options", [dict(batch_size=3), dict(step_size=1), dict(crop="square")])
def test_p_star_does_not_depend_on_the_number_of_processes(tiny_net, uneven_images, processes, options):
    many = uneven_images.subset([*range(24)] * 3)
    alone, _ = shared_descent(tiny_net, many, options)
    assert abs(alone[-1, 1] - 3) > 1e-3
    for path, p in in_processes(processes, shared_descent, tiny_net, many, options):
        np.testing.assert_allclose(path, alone, rtol=1e-5)
        assert p == pytest.approx(path[-1, 1])


def shared_sweep(net, images, options):
    unreadable = UnreadableImages("skip")
    found = sweep_p(
        net, images, sizes=[24, 32], ps=PS, ks=(1, 2), unreadable=unreadable, **FLOAT32, **options
    )
    unreadable.report()
    return found, sorted(unreadable.reasons)


@pytest.mark.parametrize("processes", [2, 3])
def test_the_sweep_counts_the_images_of_all_processes(tiny_net, image_folders, processes):
    images = image_folders([(40, 30), (30, 40), (33, 33), (40, 30), (20, 20)])
    broken = images.paths[7]
    with open(broken, "wb"):
        pass
    alone, reasons = shared_sweep(tiny_net, images, {"batch_size": 2})
    assert reasons == [broken]
    for found, of_rank in in_processes(processes, shared_sweep, tiny_net, images, {"batch_size": 2}):
        np.testing.assert_array_equal(found, alone)
        assert of_rank == [broken]  # whoever met it


def refused_by_all(net, images):
    """The last process alone gets maps that are not finite."""

    def spoilt(*args, **options):
        for maps, *rest in feature_maps(*args, **options):
            yield maps * (math.nan if rank() == world_size() - 1 else 1), *rest

    with patch("mgkit.finetune.feature_maps", spoilt):
        with one_line_error(ValueError, "the class scores of", images.root, "not finite"):
            sweep_p(net, images, sizes=[24], ps=PS)
        with one_line_error(ValueError, "the features of", images.root, "not finite"):
            finetune_p(net, images, size=24)
    assert net.pool.p.item() == 3


def test_what_is_not_finite_in_one_process_is_refused_by_all(tiny_net, uneven_images):
    in_processes(2, refused_by_all, tiny_net, uneven_images)


def nothing_readable(net, images):
    with pytest.raises(UnreadableImageError, match="none of 3 images is readable"):
        sweep_p(net, images, sizes=[24], ps=PS, unreadable=UnreadableImages("skip"))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_sweep_over_nothing_readable_is_refused_by_all(tiny_net, image_folders, processes):
    images = image_folders([(20, 20)])
    for path in images.paths:
        with open(path, "wb"):
            pass
    in_processes(processes, nothing_readable, tiny_net, images)
