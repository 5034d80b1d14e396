"""The figures of the explorers are drawn without a warning, and show what the explorers show."""

import math
from dataclasses import replace

import numpy as np
import pytest
from figures import saved
from support import noise

from mgkit.explore import stills
from mgkit.explore.browse import Collection
from mgkit.explore.repooling import Repooling, SetMaps
from mgkit.explore.toys.batch import ToyBatches


def titles(axes):
    return [each.get_title() for each in axes if each.images]


def test_repooled(tiny_net, uneven_images, searched_set):
    repooling = Repooling(tiny_net, uneven_images, searched_set, size=32, description=None)
    figure = saved(stills.repooled, repooling, k=4)
    assert len(figure.axes) == 4 * 5
    rows = [figure.axes[start : start + 5] for start in range(0, 20, 5)]
    for p, row in zip((1.0, 3.0, 10.0, math.inf), rows, strict=True):
        assert (
            "max pooling" in row[0].get_ylabel() if math.isinf(p) else f"p = {p:.2f}" in row[0].get_ylabel()
        )
        assert f"top-1 {100 * repooling.top1(p):.1f} %" in row[0].get_ylabel()
        assert titles(row)[0] == "query" and all(title[0] in "✓✗–" for title in titles(row)[1:])


def test_repooled_without_ground_truth(tiny_net, uneven_images, searched_set):
    unjudged = replace(searched_set, measure="none", junk=())
    repooling = Repooling(tiny_net, uneven_images, unjudged, size=32, description=None)
    figure = saved(stills.repooled, repooling, ps=[2.0], k=3)
    assert not any(title[0] in "✓✗–" for title in titles(figure.axes))


@pytest.mark.parametrize(
    "classes", [None, lambda i: [("a class with a rather long name", 0.8), ("$x_$", 0.2)]]
)
def test_query_answers(uneven_images, classes):
    rows = np.eye(24, dtype=np.float32) + 0.1
    collection = Collection(
        uneven_images,
        rows,
        queries=[3, 9],
        truth=lambda i, j: j == 0,
        titles={3: "AP 5 %", 9: "AP 50 %"},
        classes=classes,
    )
    figure = saved(stills.query_answers, collection, queries=3, k=4)
    assert len(figure.axes) == 2 * 6
    assert titles(figure.axes)[0] == "worst: AP 5 %" and titles(figure.axes)[1].startswith("✓")
    assert "best: AP 50 %" in titles(figure.axes)
    bars = figure.axes[0]
    assert bars.axison == (classes is not None)
    if classes:
        assert bars.get_xlabel() == "probability (%)"
        assert bars.get_yticklabels()[0].get_text() == "a class wit…g name"


def test_answers_of_few_images(uneven_images):
    few = uneven_images.subset([0, 9, 20])
    figure = saved(stills.query_answers, Collection(few, np.eye(3, dtype=np.float32)), k=5)
    assert len(titles(figure.axes)) == 3 * 3  # a query and two answers each; the other axes are empty


def test_heat_is_where_it_should_be():
    heat = np.zeros((2, 3), dtype=np.float32)
    heat[1, 2] = 0.2
    hot = stills.heat_overlay(noise(0, (60, 40)), heat)
    assert hot.shape == (40, 60, 3) and 0 <= hot.min() <= hot.max() <= 1
    red = hot[..., 0] - 0.4 * np.asarray(noise(0, (60, 40)).convert("L")) / 255
    assert red[35, 55] > 0.5 > red[5, 5]


def test_matching_regions(tiny_net, searched_set):
    held = SetMaps(tiny_net, searched_set, size=32, description=None)
    figure = saved(stills.matching_regions, held, ps=(1.0, math.inf))
    *panels, bar = figure.axes
    assert len(panels) == 3 * 6 and bar.get_ylabel() == "share of the similarity"
    assert [title.split(":")[0] for title in titles(panels)[::6]] == ["worst", "middle", "best"]
    assert titles(panels)[1].startswith("p = 1, cosine 0.") and titles(panels)[3][0] in "✓✗–"


def test_toy_batches(tiny_net, uneven_images):
    toys = ToyBatches(tiny_net, uneven_images, size=24)
    batches = [toys.draw(copies) for copies in (2, 3)]
    figure = saved(stills.toy_batches, batches)
    first, second, curve = figure.axes
    assert_labelled_curve(curve)
    assert first.get_title() == "N = 2: 6 positive pairs, 12 triplets"
    assert second.images[0].get_array().shape[:2] == (4 * 24 + 3 * 4, 3 * 24 + 2 * 4)
    for batch, drawn in zip(batches, curve.lines, strict=True):
        assert drawn.get_ydata()[10] == pytest.approx(100 * batch.share(0.5))


def assert_labelled_curve(axes):
    assert axes.get_title() and axes.get_xlabel() and axes.get_ylabel()
