"""The figures of 06: what they show, labelled, for the least that there can be too."""

import io
from dataclasses import replace

import numpy as np
import pytest

from mgkit.photos.copies.edits import EDITS
from mgkit.photos.copies.groups import Group
from mgkit.photos.copies.pairs import SAME_FILE, SAME_MOMENT
from mgkit.photos.copies.thresholds import Thresholds, calibrated
from mgkit.photos.report.plots import classes_of_photos, duplicate_groups, map_of_photos, threshold_figure


def drawn(figure):
    figure.savefig(io.BytesIO(), format="png")
    return figure


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def test_the_threshold_stands_between_strangers_and_copies():
    rng = np.random.default_rng(0)
    threshold = calibrated(rng.uniform(0.6, 1, (50, len(EDITS))), rng.uniform(0.1, 0.4, (300, 1)))
    lower = replace(threshold, value=threshold.value / 2)
    panels = drawn(threshold_figure(Thresholds(threshold, lower))).axes
    assert [axes.get_title() for axes in panels] == ["The same file, edited", "The same moment"]
    assert [axes.get_xlabel() for axes in panels] == ["correlation of aligned pictures", "cosine similarity"]
    for axes, each in zip(panels, (threshold, lower), strict=True):
        assert axes.get_ylabel() == "share (%)"
        assert axes.get_legend().get_texts()[-1].get_text() == f"threshold {each.value:.2f}"
        for patch in axes.patches:
            assert 0 < patch.get_path().vertices[:, 1].max() <= 100


def test_a_figure_of_one_picture_s_threshold():
    threshold = calibrated(np.full((1, len(EDITS)), 0.9), np.empty((1, 0)))
    assert drawn(threshold_figure(Thresholds(threshold, threshold))).axes


@pytest.mark.filterwarnings("error")
def test_a_figure_of_neighbours_that_an_index_missed():
    rng = np.random.default_rng(0)
    copies, scores = rng.uniform(0.6, 1, (50, len(EDITS))), rng.uniform(0.1, 0.4, (300, 2))
    scores[100:, 1] = scores[::3, 0] = -np.inf
    threshold = calibrated(copies, scores)
    for each in (
        threshold,
        replace(threshold, nearest=scores[:, 0]),
        replace(threshold, nearest=np.full(9, -np.inf)),
    ):
        for axes in drawn(threshold_figure(Thresholds(each, each))).axes:
            assert -0.1 < axes.get_xlim()[0] < 0.8


def test_groups_have_a_row_each_with_similarities_the_picture_that_stays_first(found):
    moment = Group((0, 5), (0.7, 0.8), kept=1)
    photos = found([f"{i}.jpg" for i in range(12)], groups=[(0, 1), range(2, 12), moment])
    figure = drawn(duplicate_groups(photos, SAME_FILE))
    assert titles(figure) == ["keep", "0.90", "keep", *["0.90"] * 6]
    assert titles(drawn(duplicate_groups(photos, SAME_MOMENT))) == ["keep", "0.70"]
    assert [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()] == ["2 pictures ", "10 pictures "]


def test_classes_have_a_row_each_the_surest_first(found):
    figure = drawn(classes_of_photos(found([f"{i}.jpg" for i in range(6)], labels=[0, 1, 0, 0, 1, 7])))
    labels = [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()]
    assert [label.split(":")[0].split("\n") for label in labels][0] == ["class <0>", "3 pictures "]
    probabilities = [int(title.split()[0]) for title in titles(figure)]
    assert probabilities[:3] == sorted(probabilities[:3], reverse=True) and len(probabilities) == 6


def test_a_dollar_in_the_name_of_a_class_is_a_dollar(found):
    photos = found(["0.jpg"], labels=[0])
    photos = replace(photos, class_names=("$x_$", *photos.class_names[1:]))
    figure = drawn(classes_of_photos(photos))
    assert figure.axes[0].get_ylabel().startswith("$x_$\n")
    assert not figure.axes[0].yaxis.label.get_parse_math()


def test_without_groups_a_grade_has_no_figure(found):
    with pytest.raises(ValueError, match="no groups of the same moment"):
        duplicate_groups(found(["0.jpg", "1.jpg"], groups=[(0, 1)]), SAME_MOMENT)


def test_the_map_shows_pictures_on_white(found, here):
    [axes] = drawn(map_of_photos(found([f"{i}.jpg" for i in range(12)]), columns=6, rows=4)).axes
    mosaic = np.asarray(axes.images[0].get_array())
    cells = mosaic.reshape(4, 48, 6, 48, 3).transpose(0, 2, 1, 3, 4).reshape(24, -1)
    assert 2 <= (cells.min(1) < 255).sum() <= 12


def test_too_few_pictures_have_no_map(found, here):
    with pytest.raises(ValueError, match="too few different pictures"):
        map_of_photos(found(["0.jpg", "1.jpg"]))
