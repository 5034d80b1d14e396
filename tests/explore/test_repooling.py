"""Cached feature maps give the results of a pass over the images for any p; a match sums its positions."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import one_line_error, write_picture

from mgkit.config import FinetunePConfig, make
from mgkit.data.layouts import class_folders
from mgkit.data.loader import UnreadableImages
from mgkit.explore import repooling
from mgkit.explore.repooling import (
    CachedMaps,
    Repooling,
    SetMaps,
    exponents,
    held_for,
    images_held,
    match,
    part_of,
    position_shares,
    positions_for_half,
    set_maps,
    size_to_hold,
)
from mgkit.features import classify, embed
from mgkit.finetune import set_p
from mgkit.metrics import topk_accuracy
from mgkit.pooling import gem, l2_normalize
from mgkit.retrieval.protocols import by_descriptors, measured_value, nearest

EXPONENTS = [1.0, 2.5, 10.0, math.inf]


@pytest.mark.parametrize("crop", ["rect", "square"])
def test_held_maps_pool_as_a_pass_over_the_images_does(tiny_net, uneven_images, crop):
    held = CachedMaps(tiny_net, uneven_images, size=32, crop=crop, description=None)
    expected = embed(tiny_net, uneven_images, size=32, crop=crop, ps=EXPONENTS, description=None)
    for p, rows in zip(EXPONENTS, expected, strict=True):
        np.testing.assert_allclose(held.outputs(p)["normalized_embedding"].numpy(), rows, atol=1e-5)


def test_the_slider_pools_signed_maps_as_a_pass_does(signed_net, uneven_images):
    images = uneven_images.subset([0, 5, 10, 20])
    options = dict(size=signed_net.features.own_size[0], crop="square", description=None, precision="float32")
    held = CachedMaps(signed_net, images, **options)
    expected = embed(signed_net, images, ps=EXPONENTS, **options)
    for p, rows in zip(EXPONENTS, expected, strict=True):
        assert held.pooled(p).shape == (4, signed_net.width)
        np.testing.assert_allclose(held.outputs(p)["normalized_embedding"].numpy(), rows, atol=1e-5)
    changed = np.abs(expected[0] - expected[-1]).max()
    assert (changed > 1e-3) == (signed_net.tokens != "class")
    found = held.match(0, 3, 2.5)
    e, f = (l2_normalize(gem(held.map(i)[None], 2.5, signed=True))[0] for i in (0, 3))
    assert found.first.shape == held.map(0).shape[1:]
    for heat in (found.first, found.second):
        assert heat.sum() == pytest.approx((e @ f).item(), abs=1e-5)
    assert found.similarity == pytest.approx((e @ f).item(), abs=1e-5)


def test_maps_of_one_image(tiny_net, uneven_images):
    held = CachedMaps(tiny_net, uneven_images, size=32, description=None)
    for index in (0, 5, len(held) - 1):
        torch.testing.assert_close(gem(held.map(index)[None], 3.0)[0], held.pooled(3.0)[index])


def test_unreadable_images_are_left_out(tiny_net, tmp_path):
    for name in ("a/0.png", "a/1.png", "b/0.png"):
        write_picture(tmp_path / name, seed=len(name))
    (tmp_path / "a" / "1.png").write_bytes(b"no image")
    images = class_folders(tmp_path)
    held = CachedMaps(
        tiny_net, images, size=16, description=None, unreadable=UnreadableImages("skip"), crop="square"
    )
    assert held.kept.tolist() == [True, False, True]
    assert held.images.paths == (images.paths[0], images.paths[2]) and len(held) == 2
    assert torch.isfinite(held.pooled(2.0)).all()


def test_what_is_held_stays_within_the_bound(tiny_net, uneven_images, searched_set):
    of_one = images_held(tiny_net, 32, 2**20)
    memory = 2**20 // of_one * 10
    assert images_held(tiny_net, 32, memory) in (9, 10)
    held = Repooling(tiny_net, uneven_images, searched_set, size=32, memory=2 * memory, description=None)
    assert held.validation.nbytes <= memory and held.searched.maps.nbytes <= memory
    assert 9 <= len(held.validation) <= 10 and 9 <= len(held.searched.maps) <= 10
    assert set(held.validation.images.labels) == {0, 1, 2}, "a part is spread over all classes"
    assert f"{len(held.validation)} of 24 validation images" in held.describe()
    assert "of 24 images of classes" in held.describe()


def test_a_part_of_a_set_holds_queries_with_their_answers(searched_set):
    part = part_of(searched_set, 9)
    assert len(part.images) == 9
    assert set(part.images.labels[part.queries]) == {0, 2}, "queries are spread over the set"
    assert all(len(positives) > 0 for positives in part.positives)
    whole = part_of(searched_set, 100)
    assert len(whole.images) == 24 and len(whole.queries) == 6


def test_the_largest_size_that_leaves_room(tiny_net, monkeypatch):
    of_one = repooling.CACHE_BYTES // 2 // images_held(tiny_net, 32, repooling.CACHE_BYTES // 2)
    monkeypatch.setattr(repooling, "CACHE_BYTES", 2 * 64 * of_one)
    assert size_to_hold(tiny_net, [16, 32, 64, 128]) == 32
    assert size_to_hold(tiny_net, [64, 128]) == 64


def test_what_02_and_05_hold(retrieved, mini_root, chain, monkeypatch):
    monkeypatch.chdir(chain.folder)
    task, _ = retrieved
    values = {"experiment": "t", "data": str(mini_root), "workers": 0, "sizes": [32, 48]}
    held = held_for(make(FinetunePConfig, values), task.net)
    assert held.size == 48 and len(held.validation) == 36 and held.searched.set.name == "holidays"
    of_05 = set_maps(task, "ukbench")
    assert of_05.set.name == "ukbench" and len(of_05.maps) == len(of_05.set.images) == 12
    with one_line_error(ValueError, "nowhere", "holidays"):
        set_maps(task, "nowhere")


def test_accuracy_and_neighbours_are_those_of_the_stages(tiny_net, uneven_images, searched_set):
    held = Repooling(tiny_net, uneven_images, searched_set, size=32, description=None)
    for p in EXPONENTS:
        logits, labels = classify(tiny_net, uneven_images, size=32, crop="rect", p=p, description=None)
        assert held.top1(p) == pytest.approx(topk_accuracy(logits, labels, ks=(1,))[0])
        rows = embed(set_p(tiny_net, p), uneven_images, size=32, description=None)
        descriptors = held.searched.descriptors(p)
        [found], [scores] = nearest(searched_set, by_descriptors(searched_set, rows), np.array([4]), 5)
        ours = held.searched.neighbours(4, descriptors, 5)
        assert [image for image, _, _ in ours] == found.tolist()
        np.testing.assert_allclose([score for _, score, _ in ours], scores, atol=1e-5)
        assert [right for _, _, right in ours] == [searched_set.right(4, image) for image in found]
        summary = held.summary(p, descriptors)
        assert f"mAP {100 * measured_value(searched_set, rows):.1f} %" in summary
        assert f"top-1 {100 * held.top1(p):.1f} % on 24 images" in summary


def test_no_forward_pass_after_the_first(tiny_net, uneven_images, searched_set):
    held = Repooling(tiny_net, uneven_images, searched_set, size=32, description=None)
    tiny_net.features.register_forward_pre_hook(lambda *_: pytest.fail("the backbone ran again"))
    held.summary(2.0, held.searched.descriptors(2.0))
    held.searched.titles(2.0)


def test_titles_have_the_failures_first(tiny_net, searched_set):
    held = SetMaps(tiny_net, searched_set, size=32, description=None)
    values = [float(title.split()[1]) for title in held.titles(3.0).values()]
    assert len(values) == 6 and values == sorted(values)
    values, worst_to_best = held.per_query(3.0), list(held.examples(3.0, 3))
    assert values[worst_to_best[0]] == values.min() and values[worst_to_best[-1]] == values.max()
    unjudged = SetMaps(tiny_net, replace(searched_set, measure="none", junk=()), size=32, description=None)
    assert list(unjudged.titles(3.0)) == [0, 1, 2, 3, 4, 5]
    assert unjudged.examples(3.0, 3) == {0: "query", 2: "query", 5: "query"}
    assert all(right is None for _, _, right in unjudged.neighbours(0, unjudged.descriptors(3.0), 3))


@pytest.mark.parametrize("among", [1.0, 3.0, 3.7, 10.0, 25.0, math.inf])
def test_exponents(among):
    offered = exponents(among)
    assert among in offered and offered[-1] == math.inf and offered == sorted(set(offered))
    steps = np.diff(np.log([p for p in offered if p <= 10]))
    assert steps.max() < 0.25


# --- Matches


def maps(seed, shape=(8, 4, 6)):
    """A random feature map after a ReLU."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).relu()


@pytest.mark.parametrize("p", [0.5, *EXPONENTS, 100.0])
def test_contributions_sum_to_the_similarity(p):
    x, y = maps(0), maps(1, (8, 3, 5))
    found = match(x, y, p)
    e, f = (l2_normalize(gem(each[None], p))[0] for each in (x, y))
    assert found.similarity == pytest.approx((e @ f).item(), abs=1e-5)
    for heat, shape in ((found.first, (4, 6)), (found.second, (3, 5))):
        assert heat.shape == shape and (heat >= 0).all()
        assert heat.sum() == pytest.approx(found.similarity, abs=1e-5)


@pytest.mark.parametrize("p", [0.5, *EXPONENTS, 100.0])
def test_contributions_of_signed_maps_sum_to_the_similarity(p):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(8, *shape, generator=generator) - 1 for shape in ((4, 6), (3, 5)))
    found = match(x, y, p, signed=True)
    e, f = (l2_normalize(gem(each[None], p, signed=True))[0] for each in (x, y))
    assert found.similarity == pytest.approx((e @ f).item(), abs=1e-5)
    for heat in (found.first, found.second):
        assert heat.sum() == pytest.approx(found.similarity, abs=1e-5)


def test_a_contribution_is_what_its_definition_says():
    x, y, p = maps(2), maps(3), 3.0
    e, f = gem(x[None], p)[0], gem(y[None], p)[0]
    powers = x.clamp(min=1e-6) ** p
    expected = sum(powers[c] / powers[c].sum() * e[c] * f[c] / (e.norm() * f.norm()) for c in range(len(x)))
    torch.testing.assert_close(torch.from_numpy(match(x, y, p).first), expected, rtol=1e-4, atol=1e-6)


def test_average_pooling_shares_by_activation_and_max_pooling_by_the_strongest():
    x = maps(4)
    mean = x.clamp(min=1e-6) / x.clamp(min=1e-6).sum((1, 2), keepdim=True)
    torch.testing.assert_close(position_shares(x, 1.0), mean)
    strongest = (x == x.amax((1, 2), keepdim=True)).float()
    torch.testing.assert_close(position_shares(x, math.inf), strongest)
    torch.testing.assert_close(position_shares(x, 2000.0), strongest, atol=1e-3, rtol=0)
    flat = torch.zeros(2, 2, 2)  # a channel that is dead shares evenly
    torch.testing.assert_close(position_shares(flat, math.inf), torch.full((2, 2, 2), 0.25))


def test_the_region_that_two_images_share_is_hot():
    x, y = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)
    x[0, 1, 2] = y[0, 3, 0] = 5.0  # the same thing, elsewhere
    x[1, 0, 0] = 5.0  # something that the other has not
    found = match(x, y, 3.0)
    assert np.unravel_index(found.first.argmax(), (4, 4)) == (1, 2)
    assert np.unravel_index(found.second.argmax(), (4, 4)) == (3, 0)
    assert found.first[0, 0] < 0.01 * found.first[1, 2]


def test_positions_for_half():
    assert positions_for_half(np.array([[0.5, 0.1], [0.2, 0.2]])) == 1
    assert positions_for_half(np.full((2, 5), 0.1)) == 5
    assert positions_for_half(np.array([[3.0, -9.0], [3.0, 2.0]])) == 2  # of the positive part
    assert positions_for_half(np.array([[1.0]])) == 1


def test_a_wrong_exponent_is_an_error(tiny_net, uneven_images):
    held = CachedMaps(tiny_net, uneven_images, size=16, description=None)
    with one_line_error(ValueError, "p must be"):
        held.pooled(0.0)
