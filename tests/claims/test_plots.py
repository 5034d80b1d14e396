"""Figures of 07: what they show is what was measured, and shapes as well as colours tell it."""

import math

import numpy as np
import pytest
from claims_outcomes import outcome
from figures import saved

from mgkit.claims import plots
from mgkit.claims.statistics import Paired
from mgkit.claims.verdicts import Verdict, crossings, verdicts

CROSSING = {
    "plain": {1: [0.40, 0.42, 0.41], 4: [0.50, 0.52, 0.51]},
    "repeated": {1: [0.30, 0.32, 0.31], 4: [0.60, 0.62, 0.61]},
}
T = 4.302653  # of Student's distribution with 2 degrees of freedom, 97.5 %


def drawn(panel, **look):
    """The points of all lines of a panel with this look, [n,2]."""
    lines = [
        line for line in panel.lines if all(getattr(line, f"get_{key}")() == x for key, x in look.items())
    ]
    return np.concatenate([np.column_stack(line.get_data()) for line in lines] or [np.zeros((0, 2))])


def assert_labelled(figure):
    for panel in figure.axes:
        assert panel.get_title() and panel.get_xlabel()
    assert figure.axes[0].get_ylabel()


def texts(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


# --- Curves


def test_budget_curves_show_every_training_and_the_means():
    found = outcome(CROSSING)
    figure = saved(plots.budget_curves, found, {})
    assert_labelled(figure)
    assert [panel.get_title() for panel in figure.axes] == ["top-1", "copies"]
    panel = figure.axes[0]
    assert drawn(panel, linestyle="-") == pytest.approx(np.array([(100, 41), (400, 51)]))  # plain
    assert drawn(panel, linestyle="--") == pytest.approx(np.array([(100, 31), (400, 61)]))
    dots = drawn(panel, linestyle="None", marker="s")
    expected = [(100, 30), (100, 32), (100, 31), (400, 60), (400, 62), (400, 61)]
    assert dots == pytest.approx(np.array(expected))
    low, high = panel.get_ylim()
    assert low < 30 and high > 62 and panel.get_xscale() == "log"
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["0.1k", "0.4k"]
    assert texts(figure) == ["λ=1, N=1", "λ=1, N=3"]


def test_the_area_is_the_interval_of_student_s_distribution():
    panel = plots.budget_curves(outcome(CROSSING), {}).axes[0]
    corners = panel.collections[0].get_paths()[0].vertices
    half = T * 1 / math.sqrt(3)  # points: the seeds are one point apart
    for samples, mean in ((100, 41), (400, 51)):
        heights = sorted(set(corners[corners[:, 0] == samples][:, 1].round(4)))
        assert heights == pytest.approx([mean - half, mean + half], abs=1e-3)


def test_a_single_seed_has_no_interval():
    found = outcome({arm: {b: values[:1] for b, values in c.items()} for arm, c in CROSSING.items()})
    panel = saved(plots.budget_curves, found, {}).axes[0]
    for area in panel.collections:
        assert not [path for path in area.get_paths() if np.isfinite(path.vertices).all() and len(path)]


def test_a_ring_is_where_the_mean_lines_cross():
    found = outcome(CROSSING)
    at = crossings(verdicts(found))
    figure = saved(plots.budget_curves, found, at)
    # The difference is -10 at 100 samples and +10 at 400: 0 at 200, in the middle on a logarithmic axis.
    rings = drawn(figure.axes[0], markersize=11)
    assert rings == pytest.approx(np.array([(200, 46)]))
    assert texts(figure)[-1] == "ahead from here on"


def test_without_a_crossing_there_is_no_ring():
    ahead = {"plain": {1: [0.1, 0.12], 4: [0.2, 0.22]}, "repeated": {1: [0.3, 0.31], 4: [0.4, 0.41]}}
    found = outcome(ahead)
    figure = saved(plots.budget_curves, found, crossings(verdicts(found)))
    assert not len(drawn(figure.axes[0], markersize=11)) and "ahead from here on" not in texts(figure)


def test_one_budget_gives_a_point_with_a_bar_per_arm_side_by_side():
    found = outcome({arm: {4: curve[4]} for arm, curve in CROSSING.items()})
    panel = saved(plots.budget_curves, found, {}).axes[0]
    (plain,), (repeated,) = drawn(panel, linestyle="-"), drawn(panel, linestyle="--")
    assert plain[0] < 400 < repeated[0] and (plain[1], repeated[1]) == pytest.approx((51, 61))
    bars = [c.get_segments()[0] for c in panel.collections]
    assert [bar[:, 1].tolist() for bar in bars] == [
        pytest.approx([mean - T / math.sqrt(3), mean + T / math.sqrt(3)], abs=1e-3) for mean in (51, 61)
    ]


def test_a_score_is_not_in_per_cent():
    panel = saved(plots.budget_curves, outcome(CROSSING, measures=["ukbench"]), {}).axes[0]
    assert drawn(panel, linestyle="-")[0] == pytest.approx([100, 0.41])
    assert panel.get_ylabel() == "score (of 4)"


def test_what_is_not_measured_yet_is_said():
    found = outcome({"plain": {1: [0.3]}})
    empty = type(found)(found.config, [], {}, [], found.groups)
    panel = saved(plots.budget_curves, empty, {}).axes[0]
    assert panel.texts[0].get_text() == "nothing is measured yet"


def test_close_budgets_share_a_label():
    curve = {b: [0.3, 0.31] for b in (10, 11, 12, 100)}
    panel = saved(plots.budget_curves, outcome({"plain": curve}), {}).axes[0]
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["1k", "10k"]


# --- Learning rates


def test_the_star_is_at_the_rate_that_an_arm_takes():
    rates = {"plain": {0.02: 0.3, 0.04: 0.5}, "joint": {0.02: 0.4, 0.04: 0.2}}
    found = outcome({arm: {1: [0.3]} for arm in rates}, rates=rates, lrs=[0.02, 0.04])
    panel = saved(plots.learning_rates, found).axes[0]
    assert drawn(panel, marker="*") == pytest.approx(np.array([(1, 50), (0, 40)]))
    assert drawn(panel, linestyle="-") == pytest.approx(np.array([(0, 30), (1, 50)]))
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["0.02", "0.04"]


# --- Differences


def verdict(difference, low, high, *, measure="top-1", claim="a claim", samples=100, paper=(0.5, 0.52)):
    """A verdict whose interval is from low to high; a single seed for infinite ends."""
    seeds = 3 if math.isfinite(low) else 1
    beyond = (high - low) * 0.025 / 0.95  # 5 % of the draws are not in the interval
    draws = np.linspace(low - beyond, high + beyond, 4001) if seeds > 1 else np.full(9, math.nan)
    of_seeds = np.full(seeds, difference)
    return Verdict(claim, measure, samples, paper, 0.5, 0.5 + difference, Paired(of_seeds, draws, 0.01))


def intervals(panel):
    """The ends of the horizontal lines of a panel, [low, high] each."""
    lines = [line.get_xdata() for line in panel.lines if line.get_marker() == "None"]
    return [list(ends) for ends in lines if len(set(ends)) == 2]


def test_shape_and_colour_tell_the_verdict():
    found = [verdict(0.02, 0.01, 0.03), verdict(-0.02, -0.03, -0.01, samples=200)]
    found += [verdict(0.005, -0.01, 0.02, samples=400)]
    figure = saved(plots.differences, found)
    assert_labelled(figure)
    panel = figure.axes[0]
    looks = {">": (2, 1), "<": (-2, 2), "o": (0.5, 3), "D": (2, 4)}  # the heading is row 0
    for marker, place in looks.items():
        assert drawn(panel, marker=marker) == pytest.approx(np.array([place])), marker
    colours = {
        line.get_color() for line in panel.lines if line.get_marker() in "><o" and len(line.get_xdata())
    }
    assert len(colours) == 3
    ends = [(-3, -1), (-1, 2), (1, 3)]
    assert sorted(map(tuple, intervals(panel))) == [pytest.approx(each, abs=0.01) for each in ends]
    assert [tick.get_text() for tick in panel.get_yticklabels()] == ["0.1k", "0.2k", "0.4k", "paper"]
    assert panel.texts[0].get_text() == "a claim"
    assert texts(figure) == ["holds", "does not", "undecided", "the paper's difference"]


def test_the_paper_s_mark_is_hollow():
    panel = plots.differences([verdict(0.02, 0.01, 0.03)]).axes[0]
    [mark] = [line for line in panel.lines if line.get_marker() == "D" and len(line.get_xdata())]
    assert mark.get_markerfacecolor() == "none"


def test_a_single_seed_is_undecided_and_has_no_bar():
    panel = saved(plots.differences, [verdict(0.02, -math.inf, math.inf, paper=None)]).axes[0]
    assert len(drawn(panel, marker="o")) == 1 and not len(drawn(panel, marker="D"))
    assert not intervals(panel)


def test_an_endless_interval_does_not_hide_the_others():
    found = [verdict(0.02, 0.01, 0.03, paper=None), verdict(0.01, -9, 9, samples=200, paper=None)]
    left, right = saved(plots.differences, found).axes[0].get_xlim()
    assert left == -right and 2 < right < 20


def test_measures_have_panels_of_their_own_units():
    found = [verdict(0.02, 0.01, 0.03), verdict(0.1, 0.05, 0.15, measure="ukbench")]
    figure = saved(plots.differences, found)
    assert [panel.get_title() for panel in figure.axes] == ["top-1", "UKBench"]
    assert [panel.get_xlabel() for panel in figure.axes] == ["difference (points)", "difference (of 4)"]
    assert drawn(figure.axes[1], marker=">")[0, 0] == pytest.approx(0.1)


def test_other_claims_have_a_row_each_and_no_paper():
    found = [
        verdict(0.02, 0.01, 0.03, claim="p* at 96 px", paper=None),
        verdict(0.01, -0.01, 0.03, claim="several scales", measure="copies", paper=None),
    ]
    figure = saved(plots.further_differences, found)
    labels = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert labels == ["p* at 96 px", "several scales"]
    assert texts(figure) == ["holds", "does not", "undecided"]
    assert drawn(figure.axes[1], marker="o") == pytest.approx(np.array([(1, 1)]))


@pytest.mark.parametrize("draw", [plots.differences, plots.further_differences, plots.whitening_curves])
def test_without_a_claim_a_figure_says_so(draw):
    assert "no " in saved(draw, []).axes[0].texts[0].get_text()


def test_the_gain_by_whitening_against_its_images():
    of = {n: verdict(gain, gain - 0.01, gain + 0.01).paired for n, gain in ((500, -0.01), (2000, 0.03))}
    figure = saved(plots.whitening_curves, [(n, "holidays", one) for n, one in of.items()])
    assert_labelled(figure)
    panel = figure.axes[0]
    assert drawn(panel, linestyle="-") == pytest.approx(np.array([(500, -1), (2000, 3)]))
    ends = [segment[:, 1].tolist() for segment in panel.collections[0].get_segments()]
    assert ends == [pytest.approx([-2, 0], abs=0.01), pytest.approx([2, 4], abs=0.01)]


def test_a_whitening_of_a_single_seed_has_no_bar():
    one = verdict(0.01, -math.inf, math.inf).paired
    figure = saved(plots.whitening_curves, [(500, "holidays", one)])
    assert drawn(figure.axes[0], marker="o") == pytest.approx(np.array([(500, 1)]))
