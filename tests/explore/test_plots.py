"""Every figure is drawn and saved without a warning, and its axes say what they show."""

import io
import math
import os
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from figures import saved
from matplotlib.text import Text
from PIL import Image
from support import noise

from mgkit.benchmarks.find import find_sets
from mgkit.data.layouts import class_folders
from mgkit.data.loader import ImageDataset
from mgkit.explore import plots, retrieval_plots
from mgkit.explore.style import NotebookFigure
from mgkit.explore.toys.svm import ToyRuns
from mgkit.mini.make import CROPS, QUALITIES
from mgkit.retrieval.protocols import Difference, retrieve
from mgkit.retrieval.ranking import RERANKED
from mgkit.stages.results import Accuracy, Adaptation, PSearch, ResolutionCurves, Retrieval
from mgkit.transforms import train_transform


def assert_labelled(figure):
    for axes in figure.axes:
        assert axes.get_title() and axes.get_xlabel() and axes.get_ylabel()


def search(sizes=(64, 96), ps=(1.0, 3.0, 5.0)):
    rng = np.random.default_rng(0)
    top1 = rng.uniform(size=(len(sizes), len(ps)))
    return PSearch(
        sizes=list(sizes),
        ps=list(ps),
        p_star=[2.5 + s for s in range(len(sizes))],
        paths=[rng.uniform(1, 4, (10 + s, 2)) for s in range(len(sizes))],
        top1=top1,
        top5=top1,
        intervals=np.stack([0.9 * top1, 0.9 * top1 + 0.1], axis=-1),
        training_p=3.0,
        crop="rect",
        top1_at_training_p=top1[:, 1].tolist(),
        top1_at_p_star=top1[:, 2].tolist(),
        gains=[Difference(after - before, -1.0, 1.0) for before, after in top1[:, 1:3]],
    )


@pytest.mark.parametrize("epochs", [1, 3])
def test_training_curves(epochs):
    keys = ("loss", "cross_entropy", "margin", "top1", "val_top1", "beta")
    lines = [{"epoch": e + 1} | {key: 1 / (e + 1) for key in keys} for e in range(epochs)]
    figure = saved(plots.training_curves, lines)
    assert_labelled(figure)
    assert [len(axes.lines) for axes in figure.axes] == [3, 2, 1]
    assert figure.axes[1].lines[0].get_ydata()[0] == 100  # per cent


def panel_titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.axison]


def test_training_curves_of_a_run_that_noted_less():
    lines = [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0, "val_top1": 0.5}, {"epoch": 3, "loss": 0.5}]
    figure = saved(plots.training_curves, lines)
    assert panel_titles(figure) == ["Losses", "Accuracy"]
    [losses], [accuracy] = (axes.lines for axes in figure.axes)
    assert losses.get_xydata().tolist() == [[1, 2], [2, 1], [3, 0.5]]
    assert accuracy.get_xydata().tolist() == [[2, 50]]


@pytest.mark.parametrize(
    "draw", [plots.training_curves, plots.training_steps, lambda lines: plots.compare_runs({"train": lines})]
)
def test_a_run_that_noted_nothing_gives_a_figure_that_says_so(draw):
    for lines in ([], [{"epoch": 1, "step": 4, "lr": 0.1}]):
        [axes] = saved(draw, lines).axes
        assert not axes.lines and axes.texts[0].get_text().startswith("no ")


STEP = {"loss": 2.0, "cross_entropy": 3.0, "margin": 1.0, "images_per_second": 500.0, "data_wait": 0.2}


@pytest.mark.parametrize("count", [1, 3, 5000])
def test_training_steps_have_panels_for_what_is_there(count):
    lines = [{"step": 10 * (k + 1)} | STEP for k in range(count)]
    figure = saved(plots.training_steps, lines)
    assert panel_titles(figure) == ["Losses", "Speed", "Waiting for images"]
    assert [len(axes.lines) for axes in figure.axes] == [3, 1, 1]
    assert figure.axes[2].lines[0].get_ydata()[0] == 20  # per cent
    lines[-1] |= {"gradient_share": 0.75}
    figure = saved(plots.training_steps, lines)
    assert_labelled(figure)
    assert panel_titles(figure)[3].startswith("Gradient share")
    assert figure.axes[3].lines[0].get_xydata().tolist() == [[10 * count, 75]]
    figure = saved(plots.training_steps, [{"step": 1, "lr": 0.1, "loss": float("nan")}])
    assert panel_titles(figure) == ["Losses"]


def test_runs_of_unequal_length_are_compared():
    keys = ("loss", "cross_entropy", "margin", "top1", "val_top1", "beta")
    runs = {
        name: [{"epoch": e + 1, "step": e} | dict.fromkeys(keys, 1 / (e + 1)) for e in range(epochs)]
        for name, epochs in (("train", 5), ("train.1", 2), ("train.2", 0))
    }
    runs["older"] = [{"epoch": 1, "val_top1": 0.4}]
    figure = saved(plots.compare_runs, runs)
    assert_labelled(figure)
    assert [len(axes.lines) for axes in figure.axes] == [2, 2, 2, 2, 3, 2]
    assert [len(line.get_xdata()) for line in figure.axes[4].lines] == [5, 2, 1]
    assert [line.get_ydata()[0] for line in figure.axes[4].lines] == [100, 100, 40]
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["train", "train.1", "older"]


def test_many_runs_are_told_apart():
    runs = {str(k): [{"epoch": e, "loss": k} for e in (1, 2)] for k in range(20)}
    [axes] = saved(plots.compare_runs, runs).axes
    looks = {(line.get_color(), line.get_marker(), str(line._dash_pattern)) for line in axes.lines}
    assert len(looks) == 20


def test_figure_5_has_the_shares_at_both_ends_of_the_training():
    shares = {0.5: [(0, 0.9), (60, 0.7), (120, 0.6)], 0.0: [(0, 0.0)], 1: [(0, 1.0), (120, 1.0)], 0.3: []}
    figure = saved(plots.gradient_shares, shares)
    assert_labelled(figure)
    first, last, equal = figure.axes[0].lines
    assert first.get_xydata().tolist() == [[0, 0], [0.5, 90], [1, 100]]
    assert last.get_xydata().tolist() == [[0, 0], [0.5, 60], [1, 100]]
    assert set(equal.get_ydata()) == {50}
    assert len(figure.legends[0].get_texts()) == 3


def test_figure_5_without_a_measurement_says_so():
    [axes] = saved(plots.gradient_shares, {0.5: []}).axes
    assert axes.texts[0].get_text() == "no gradient was measured"


def test_the_classes_half_of_figure_4_has_a_line_a_whole_exponent():
    [axes] = saved(plots.search_by_resolution, search(ps=(1.0, 1.5, 3.0, math.inf))).axes
    assert [line.get_label() for line in axes.lines] == ["p = 1", "p = 3", "max pooling"]
    assert axes.lines[1].get_ydata().tolist() == (100 * search(ps=(1.0, 1.5, 3.0, 4.0)).top1[:, 2]).tolist()
    [axes] = saved(plots.search_by_resolution, search(ps=(1.5, 2.5, 3.5))).axes
    assert len(axes.lines) == 3  # without a whole one: all


@pytest.mark.parametrize("ps", [(1.0, 4.0, math.inf), (math.inf,) * 3])
def test_max_pooling_has_the_last_tick(ps):
    found = search(ps=ps)
    found.top1[:, 2] = 1  # max pooling is best everywhere
    left, right = saved(plots.p_search, found).axes
    largest = max(4.0 if 4.0 in ps else 0, *found.p_star)
    [place] = {left.lines[0].get_xdata()[2], *right.lines[1].get_ydata()}
    assert largest < place < np.inf
    for axis in (left.xaxis, right.yaxis):
        *others, last = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
        assert (last[0], last[1].get_text()) == (place, "max")
        assert all(at <= largest and float(label.get_text()) == at for at, label in others)


def test_without_max_pooling_there_is_no_such_tick():
    for axes in saved(plots.p_search, search()).axes:
        assert "max" not in [label.get_text() for label in [*axes.get_xticklabels(), *axes.get_yticklabels()]]


UNEVEN = [224, 256, 288, 320, 352, 384, 500, 800]
LONG = [f"holidays_of_my_family_in_2019_and_2020_at_the_sea_{k}" for k in range(4)]


def adapted(sizes):
    """p*, FixRes and both at every size; each gains a point more than the one before."""
    gains = {"training p": 0.0, "p*": 0.01, "FixRes": 0.02, "FixRes with p*": 0.03}
    return [
        Adaptation(
            method, size, 3.0, 1, 1, 0.5 + gain, (0.4, 0.6), Difference(gain, gain - 0.005, gain + 0.01)
        )
        for size in sizes
        for method, gain in gains.items()
    ]


@pytest.mark.parametrize("sizes", [[96], [64, 96]])
def test_adaptations_have_a_line_each_and_gains_with_bars(sizes):
    figure = saved(plots.adaptations_by_size, adapted(sizes))
    assert_labelled(figure)
    left, right = figure.axes
    assert [line.get_label() for line in left.lines] == ["training p", "p*", "FixRes", "FixRes with p*"]
    assert [line.get_ydata()[0] for line in left.lines] == pytest.approx([50, 51, 52, 53])
    assert [list(line.get_xdata()) for line in left.lines] == [sizes] * 4 and len(left.collections) == 4
    assert [bars.get_label() for bars in right.containers] == ["p*", "FixRes", "FixRes with p*"]
    for k, bars in enumerate(right.containers, 1):
        [segments] = [whiskers.get_segments() for whiskers in bars[2]]
        np.testing.assert_allclose([segment[:, 1] for segment in segments], [[k - 0.5, k + 1]] * len(sizes))
    assert len(figure.legends[0].get_texts()) == 4


def size_figures(sizes):
    """The axes of every figure with sizes at x."""
    rows = [Accuracy("rect", size, "p*", 3.0, 0.5, 0.9, (0.4, 0.6)) for size in sizes]
    values = {name: np.ones((len(sizes), 1)) for name in LONG}
    curves = ResolutionCurves(sizes, {"p = 3": 3.0}, values, dict.fromkeys(values, "mAP"))
    return [
        saved(plots.p_search, search(sizes)).axes[1],
        saved(plots.accuracy_by_size, rows).axes[0],
        *saved(plots.adaptations_by_size, adapted(sizes)).axes,
        *saved(retrieval_plots.resolution_figure, curves).axes,
    ]


def overlaps(texts):
    """How many of these texts touch the next one."""
    boxes = [text.get_window_extent() for text in texts]
    return sum(one.overlaps(other) for one, other in pairwise(boxes))


@pytest.mark.parametrize("sizes", [UNEVEN, [64, 96, 1600], list(range(64, 672, 32)), [96]])
def test_the_numbers_of_uneven_sizes_do_not_overlap(sizes):
    for axes in size_figures(sizes):
        named = [int(label.get_text()) for label in axes.get_xticklabels()]
        assert not overlaps(axes.get_xticklabels())
        assert named[0] == sizes[0] and named[-1] == sizes[-1] and set(named) <= set(sizes)
        assert set(named) | set(axes.xaxis.get_minorticklocs()) == set(sizes)


def test_few_even_sizes_all_have_numbers():
    for axes in size_figures([64, 96, 128, 160]):
        assert [label.get_text() for label in axes.get_xticklabels()] == ["64", "96", "128", "160"]


def test_long_names_of_sets_do_not_overlap(whole_sets):
    found = [replace(whole_sets[0], result=replace(whole_sets[0].result, name=name)) for name in LONG]
    [axes] = saved(retrieval_plots.retrieval_bars, found).axes
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert len(set(names)) == 4 and not overlaps(axes.get_xticklabels())
    curves = ResolutionCurves(
        [64], {"p = 3": 3.0}, {n: np.ones((1, 1)) for n in LONG}, dict.fromkeys(LONG, "mAP")
    )
    for figure in (
        saved(retrieval_plots.precision_recall, found),
        saved(retrieval_plots.resolution_figure, curves),
    ):
        shown = figure.axes[:4]
        assert [axes.get_title() for axes in shown] == names
        assert not overlaps([axes.title for axes in shown])


def test_equal_lines_lie_on_wider_ones(found):
    kinds = [f"kind {k}" for k in range(9)]
    alike = [replace(found[0], descriptor=kind) for kind in kinds]
    curves = ResolutionCurves(
        [64, 96], dict.fromkeys(kinds, 3.0), {"top-1": np.ones((2, 9))}, {"top-1": "top-1"}
    )
    rows = [
        Accuracy(crop, 64, p, 3.0, 0.5, 0.9, (0.4, 0.6))
        for crop in ("square", "rect")
        for p in ("trained", "p*")
    ]
    for figure in (
        saved(retrieval_plots.precision_recall, alike),
        saved(retrieval_plots.resolution_figure, curves),
        saved(plots.accuracy_by_size, rows),
    ):
        lines = figure.axes[0].lines
        widths = [line.get_linewidth() for line in lines]
        assert widths == sorted(set(widths), reverse=True) and len(widths) in (4, 9)
        assert len({(line.get_color(), str(line._unscaled_dash_pattern)) for line in lines}) == len(lines)


def test_a_single_line_is_thin():
    assert plots.line_sizes(0, 1) == plots.line_sizes(4, 5)


def test_many_sizes_are_told_apart():
    sizes = range(32, 672, 32)
    left, _ = saved(plots.p_search, search(sizes)).axes
    curves = [line for line in left.lines if line.get_label().endswith(" px")]
    assert len({(line.get_color(), line.get_marker()) for line in curves}) == len(sizes) == 20


@pytest.mark.parametrize("draw", [plots.p_search, plots.p_paths])
@pytest.mark.parametrize("sizes", [(64,), (64, 96), tuple(range(32, 320, 32))])
def test_figures_of_the_search_for_p(draw, sizes):
    figure = saved(draw, search(sizes))
    assert_labelled(figure)
    shown = {text.get_text() for axes in figure.axes for text in axes.get_legend().get_texts()}
    assert {f"{size} px" for size in sizes} <= shown


@pytest.mark.parametrize("shrinkage", [0.0, 0.1])
def test_spectrum(shrinkage):
    variances = np.array([0.5, 0.2, 1e-4, 0.0])
    figure = saved(plots.spectrum, variances, shrinkage)
    assert_labelled(figure)
    assert len(figure.axes[0].lines) == (2 if shrinkage else 1)


def test_accuracy_by_size():
    rows = [
        Accuracy(crop, size, exponent, 3.0, 0.5, 0.9, (0.4, 0.6))
        for crop in ("square", "rect")
        for size in (64, 96)
        for exponent in ("trained", "p*")
    ]
    figure = saved(plots.accuracy_by_size, rows)
    assert_labelled(figure)
    assert len(figure.axes[0].lines) == 4
    for band in figure.axes[0].collections:
        heights = band.get_paths()[0].vertices[:, 1]
        assert heights.min() == pytest.approx(40) and heights.max() == pytest.approx(60)  # per cent


KINDS = ("GeM, training p", "GeM, p*", "GeM, p*, whitened")


@pytest.fixture(scope="module")
def found(mini_root):
    """Three kinds of descriptor on every set of the mini set and every level of Copydays, random ones."""
    rng = np.random.default_rng(0)
    results = []
    for each in find_sets(mini_root):
        for kind in KINDS:
            rows = rng.normal(size=(len(each.images), 8)).astype(np.float32)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            results.append(Retrieval(kind, 3.0, each, retrieve(each, rows)))
    return results


@pytest.fixture(scope="module")
def whole_sets(found):
    return [r for r in found if r.retrieval_set.level is None]


NAMES = ["holidays", "ukbench", "copydays + 6 distractors"]


def test_retrieval_bars_name_their_sets_and_have_intervals(found, whole_sets):
    figure = saved(retrieval_plots.retrieval_bars, found)
    [axes] = figure.axes
    assert axes.get_title() and axes.get_ylabel()
    assert [label.get_text() for label in axes.get_xticklabels()] == NAMES
    scale = [25 if r.result.measure == "score" else 100 for r in whole_sets]
    bars = [container for container in axes.containers if hasattr(container, "patches")]
    heights = [bar.get_height() for container in bars for bar in container.patches]
    assert heights == pytest.approx([s * r.result.value for s, r in zip(scale, whole_sets, strict=True)])
    whiskers = [container for container in axes.containers if not hasattr(container, "patches")]
    ends = [segment[:, 1] for container in whiskers for segment in container[2][0].get_segments()]
    expected = [
        (s * min(r.result.interval[0], r.result.value), s * max(r.result.interval[1], r.result.value))
        for s, r in zip(scale, whole_sets, strict=True)
    ]
    np.testing.assert_allclose(ends, expected)


def test_precision_against_recall_has_a_panel_a_set_and_a_line_a_kind(found):
    figure = saved(retrieval_plots.precision_recall, found)
    assert_labelled(figure)
    assert [axes.get_title() for axes in figure.axes] == NAMES
    assert all(len(axes.lines) == len(KINDS) for axes in figure.axes)
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(KINDS)


def test_the_legend_names_a_kind_that_the_first_set_does_not_have(whole_sets):
    found = [r for r in whole_sets if (r.result.name, r.descriptor) != (NAMES[0], KINDS[2])]
    [legend] = saved(retrieval_plots.precision_recall, found).legends
    assert [text.get_text() for text in legend.get_texts()] == list(KINDS)


def test_level_curves_rise_to_the_harder_copies(found):
    figure = saved(retrieval_plots.level_curves, found)
    assert_labelled(figure)
    crops, quality = figure.axes
    assert crops.lines[0].get_xdata().tolist() == sorted(CROPS)
    assert quality.lines[0].get_xdata().tolist() == sorted(QUALITIES)
    assert quality.get_xlim()[0] > quality.get_xlim()[1]  # best quality at the left
    levels = {r.retrieval_set.level: 100 * r.result.value for r in found if r.descriptor == KINDS[1]}
    np.testing.assert_allclose(crops.lines[1].get_ydata(), [levels["crops", n] for n in sorted(CROPS)])


def test_gains_of_re_ranking_have_a_panel_a_set_and_a_bar_a_kind_and_descriptor(reranked):
    figure = saved(retrieval_plots.reranking_gains, reranked)
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in panels] == NAMES
    for axes, name in zip(panels, NAMES, strict=True):
        gains = [r for r in reranked if r.result.name == name and r.gain]
        scale = 1 if gains[0].result.measure == "score" else 100
        drawn = [container.lines[0].get_xdata()[0] for container in axes.containers]
        assert drawn == pytest.approx([scale * r.gain.value for r in gains])
        assert [label.get_text() for label in axes.get_yticklabels()] == list(RERANKED.values())
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(KINDS[1:3])
    saved(retrieval_plots.reranking_gains, [])


def test_rejection_curves_pass_through_their_threshold(with_strangers):
    figure = saved(retrieval_plots.rejection_curves, with_strangers[:1])
    [axes] = figure.axes
    assert_labelled(figure)
    accepted, right, star, _ = axes.lines
    one = with_strangers[0].result.rejection
    assert star.get_xdata()[0] == 100 * one.accepted[~one.answered].mean()
    at = np.flatnonzero(right.get_xdata() == star.get_xdata()[0])
    assert star.get_ydata()[0] <= right.get_ydata()[at].max() <= accepted.get_ydata()[at].max()


def test_rejected_queries_are_marked(with_strangers):
    r = with_strangers[0]
    figure = saved(retrieval_plots.rejection_grid, r, queries=3, k=2)
    titles = [axes.get_title() for axes in figure.axes]
    assert [title.split(" ")[0] for title in titles[::3]] == ["with"] * 3 + ["no"] * 3
    one, faded = r.result.rejection, [axes.images[0].get_alpha() is not None for axes in figure.axes]
    rejected = [title.endswith("rejected") for title in titles[::3]]
    assert any(rejected) and faded[1::3] == faded[2::3] == rejected and not any(faded[::3])
    most_alike = one.best[~one.answered].max() >= one.threshold
    assert rejected[3] == (not most_alike)


@pytest.mark.parametrize("panels", [1, 3, 4])
def test_figure_4_has_a_panel_a_measure_and_a_line_an_exponent(panels):
    names = ["top-1", "holidays", "ukbench", "copydays"][:panels]
    measures = dict(zip(names, ["top-1", "mAP", "score", "mAP"], strict=False))
    values = {name: np.arange(6.0).reshape(3, 2) / 6 for name in names}
    curves = ResolutionCurves([64, 96, 128], {"training p = 3": 3.0, "p* of 96 px": 3.4}, values, measures)
    figure = saved(retrieval_plots.resolution_figure, curves)
    shown = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in shown] == names
    assert all(axes.get_xlabel() == "resolution (px)" and len(axes.lines) == 2 for axes in shown)
    scale = 1 if names[-1] == "ukbench" else 100
    np.testing.assert_allclose(shown[0].lines[1].get_ydata(), 100 * values["top-1"][:, 1])
    assert ("(%)" in shown[-1].get_ylabel()) == (scale == 100)


@pytest.mark.parametrize("position", [0, 3, 8])
def test_retrieval_grids_mark_right_and_wrong(whole_sets, position):
    each = whole_sets[position]
    figure = saved(retrieval_plots.retrieval_grid, each, queries=3, k=4)
    titles = [axes.get_title() for axes in figure.axes]
    assert len(titles) == 15
    assert [title.split(":")[0] for title in titles[::5]] == ["worst", "middle", "best"]
    result = each.result
    ranked = np.argsort(result.per_query[result.shown], kind="stable")
    chosen = ranked[[0, (len(ranked) - 1) // 2, -1]]
    right = sum(
        int(np.isin(result.neighbours[s, :4], each.retrieval_set.positives[result.shown[s]]).sum())
        for s in chosen
    )
    assert sum(title.startswith("✓") for title in titles) == right
    assert sum(title.startswith("✗") for title in titles) == 12 - right


def test_a_retrieval_grid_marks_junk(mini_root):
    [each] = find_sets(mini_root, names=["holidays"])
    others = tuple(
        np.setdiff1d(each.database, [q, *answers])
        for q, answers in zip(each.queries, each.positives, strict=True)
    )
    each = replace(each, junk=others)
    rows = np.random.default_rng(0).normal(size=(len(each.images), 8)).astype(np.float32)
    retrieval = Retrieval("GeM", 3.0, each, retrieve(each, rows))
    titles = [
        axes.get_title()
        for axes in saved(retrieval_plots.retrieval_grid, retrieval, queries=2, k=len(each.images)).axes
    ]
    assert any(title.startswith("–") for title in titles) and not any(
        title.startswith("✗") for title in titles
    )


def test_a_retrieval_grid_larger_than_the_set(whole_sets):
    figure = saved(retrieval_plots.retrieval_grid, whole_sets[0], queries=100, k=100)
    assert len(figure.axes) == 4 * 11  # four queries, ten neighbours kept


def test_class_grid_names_the_classes(mini_root):
    images = class_folders(mini_root / "imagenet" / "train")
    figure = saved(plots.class_grid, images, classes=3, per_class=4)
    assert [figure.axes[row * 4].get_ylabel().strip() for row in range(3)] == list(images.classes[:3])


def test_group_grids(whole_sets):
    for each in whole_sets[::3]:
        figure = saved(plots.group_grid, each.retrieval_set, groups=4)
        assert each.retrieval_set.name in figure.get_suptitle()


def test_repeated_batch_shows_a_row_an_image(mini_root):
    images = class_folders(mini_root / "imagenet" / "train")
    dataset = ImageDataset(images, train_transform(32))
    batch = [(index, 10 * index + copy) for index in (3, 5) for copy in range(3)]
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    figure = saved(plots.repeated_batch, dataset, batch, repetitions=3, mean=mean, std=std)
    assert len(figure.axes) == 6
    assert [figure.axes[k].get_ylabel().strip() for k in (0, 3)] == ["image 3", "image 5"]


def test_image_grid_leaves_gaps_where_rows_are_short():
    figure = saved(plots.image_grid, [[noise(0)] * 3, [noise(1)]])
    assert [bool(axes.images) for axes in figure.axes] == [True, True, True, True, False, False]


def test_a_normalised_picture_is_given_back():
    picture = np.asarray(noise(0)) / 255
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.3, 0.4])
    tensor = torch.from_numpy(((picture - mean) / std).transpose(2, 0, 1))
    assert np.allclose(plots.undo_normalization(tensor, mean, std), picture, atol=1e-6)


def test_a_folder_without_ground_truth_is_shown_without_verdicts(mini_root):
    [each] = find_sets(mini_root / "unlabelled" / "whiten" / "00")
    rows = np.eye(len(each.images), 8, dtype=np.float32) + 0.1
    without = Retrieval("GeM", 3.0, each, retrieve(each, rows))
    titles = [
        axes.get_title() for axes in saved(retrieval_plots.retrieval_grid, without, queries=2, k=3).axes
    ]
    assert titles.count("query") == 2 and not any(mark in "".join(titles) for mark in "✓✗")
    for draw in (retrieval_plots.retrieval_bars, retrieval_plots.precision_recall):
        [axes] = saved(draw, [without]).axes
        assert not axes.patches and "no ground truth" in axes.texts[0].get_text()


# --- Figures of 00


def test_the_samplings_of_figure_a3():
    accuracy = {kind: np.full((4, 30), value) for kind, value in (("uniform", 0.8), ("paired", 0.9))}
    figure = saved(plots.samplings, ToyRuns(accuracy, 0.95))
    assert_labelled(figure)
    uniform, paired, limit = figure.axes[0].lines
    assert uniform.get_xydata()[0].tolist() == [1, 80] and paired.get_xydata()[-1].tolist() == [30, 90]
    assert set(limit.get_ydata()) == {95}
    assert "mean of 4 runs" in figure.axes[0].get_title() and len(figure.legends[0].get_texts()) == 3


def test_toy_batches_are_marked_among_the_points():
    points, labels = np.arange(8.0).reshape(4, 2), np.array([1, 1, -1, 1])
    figure = saved(plots.toy_batches, points, labels, {"uniform": points[:2], "paired": points[2:]})
    assert_labelled(figure)
    assert [axes.get_title() for axes in figure.axes] == ["uniform", "paired"]
    below, above, batch, _ = figure.axes[1].lines
    assert (len(below.get_xdata()), len(above.get_xdata())) == (1, 3)
    assert batch.get_xydata().tolist() == points[2:].tolist()
    assert below.get_marker() != above.get_marker()


def test_the_architecture_bears_the_shapes_of_the_run():
    names = ("image", "feature map", "embedding", "classifier_output", "normalized_embedding")
    shapes = {name: [k, 7] for k, name in enumerate(names)}
    figure = saved(plots.architecture, "resnet8", 2.5, shapes)
    words = " ".join(text.get_text() for text in figure.axes[0].texts)
    assert "resnet8" in words and "p = 2.5" in words
    assert all(f"{k}×7" in words for k in range(5))


# --- In a notebook


def shown_in_notebook(figure):
    """The one picture that a notebook shows of the figure, its type and its bytes."""
    [(kind, content)] = figure._repr_mimebundle_().items()
    return Image.open(io.BytesIO(content)), kind, len(content)


def test_notebooks_show_curves_in_their_colours_and_photographs_in_few_bytes():
    figure = plots.samplings(ToyRuns({"uniform": np.linspace(0, 1, 60).reshape(2, 30)}, 0.9))
    picture, kind, size = shown_in_notebook(figure)
    assert kind == "image/png" and picture.format == "PNG" and picture.mode == "P" and size < 20_000
    colours = np.array([colour for _, colour in picture.convert("RGB").getcolors()])
    for wanted in [(0, 0x72, 0xB2), (255, 255, 255)]:
        assert np.abs(colours - wanted).max(axis=1).min() <= 2
    figure = plots.image_grid([[noise(k, (128, 96)) for k in range(6)]] * 3)
    picture, kind, size = shown_in_notebook(figure)
    whole = io.BytesIO()
    figure.savefig(whole, format="png", dpi=120, bbox_inches="tight")
    assert kind == "image/jpeg" and picture.format == "JPEG" and size < len(whole.getvalue()) / 3


DOLLARS = ("$x_$", r"a$b$ \frac")  # no mathematics, and mathematics but for us


@pytest.mark.parametrize("name", DOLLARS)
def test_a_dollar_in_a_name_is_a_dollar(found, mini_root, name):
    """In titles, at ticks, at the left of rows, in legends, for all figures alike."""
    renamed = [replace(r, descriptor=name, result=replace(r.result, name=name)) for r in found[:3]]
    images = replace(class_folders(mini_root / "imagenet" / "train"), classes=(name,))
    curves = ResolutionCurves([64, 96], {name: 3.0}, {name: np.ones((2, 1))}, {name: "mAP"})
    figures = [
        saved(retrieval_plots.retrieval_bars, renamed),
        saved(retrieval_plots.precision_recall, renamed),
        saved(retrieval_plots.resolution_figure, curves),
        saved(retrieval_plots.retrieval_grid, renamed[0], queries=1, k=1),
        saved(plots.class_grid, images, per_class=1),
        saved(plots.compare_runs, {name: [{"epoch": 1, "loss": 1.0}]}),
    ]
    for figure in figures:
        named = [text for text in figure.findobj(Text) if name in text.get_text()]
        assert named and not any(text.get_parse_math() for text in named)


def test_the_ticks_of_logarithmic_axes_are_powers():
    figure = saved(plots.spectrum, np.array([0.5, 1e-2, 1e-4]), 0.1)
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        labels = [label for label in axis.get_ticklabels() if "^" in label.get_text()]
        assert labels and all(label.get_parse_math() for label in labels)


def test_every_figure_is_of_the_kind_that_notebooks_show_so():
    for figure, _ in (plots.axes_grid(1, 1), plots.axes_grid(2, 3)):
        assert isinstance(figure, NotebookFigure)


def test_names_that_are_not_text_and_unreadable_images_are_drawn(tmp_path):
    """A class of Latin-1 bytes, one of 255 bytes with line breaks, letters that the font lacks."""
    for name in (b"caf\xe9", b"\n" * 100 + b"x" * 155, "犬 🏖️".encode()):
        folder = os.path.join(os.fsencode(tmp_path), name)
        os.mkdir(folder)
        noise(len(name)).save(os.path.join(os.fsdecode(folder), "1.png"))
        with open(os.path.join(folder, b"2.png"), "wb") as file:
            file.write(b"no picture")
    images = class_folders(tmp_path)
    figure = saved(plots.class_grid, images)
    assert {r"caf\xe9", "犬 🏖️"} < {axes.get_ylabel().strip() for axes in figure.axes}
    assert max(len(axes.get_ylabel()) for axes in figure.axes) < 30
    assert (figure.axes[1].images[0].get_array()[0, 0] == (200, 200, 200)).all()
    saved(plots.compare_runs, {images.classes[0]: [{"epoch": 1, "loss": 1.0}]})
    dataset = ImageDataset(images, train_transform(16))
    saved(
        plots.repeated_batch, dataset, [(i, 0) for i in range(4)], repetitions=2, mean=(0,) * 3, std=(1,) * 3
    )


def test_a_saved_figure_is_shown_without_drawing_it_again_unless_it_has_changed(monkeypatch):
    figure = plots.samplings(ToyRuns({"uniform": np.linspace(0, 1, 60).reshape(2, 30)}, 0.9))
    drawn = shown_in_notebook(figure)[0].convert("RGB")
    figure.savefig(io.BytesIO(), format="png", dpi=120, bbox_inches="tight")
    draws, draw = [], NotebookFigure.draw
    monkeypatch.setattr(NotebookFigure, "draw", lambda *given: draws.append(1) or draw(*given))
    shown = shown_in_notebook(figure)[0].convert("RGB")
    assert not draws and np.abs(np.subtract(shown.size, drawn.size)).max() <= 2
    alike = np.asarray(shown.resize(drawn.size), float) - np.asarray(drawn, float)
    assert np.abs(alike).mean() < 12  # of 255: lines are drawn a fraction of a pixel apart
    figure.axes[0].set_title("another")
    assert shown_in_notebook(figure)[0].convert("RGB").tobytes() != shown.tobytes() and draws
