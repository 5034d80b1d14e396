"""07 where much is missing: it says what, in lines, and ends well. The cells run in this process."""

import pytest
from notebook_support import QUICK

from mgkit.claims import plots

NAME = "07_claims"


@pytest.fixture
def run(mini_root, here, run_here):
    """A function that runs 07 on the classes of the reduced set; returns what it printed, and its figures."""
    shared = {"experiment": "t", "data": str(mini_root / "imagenet")}
    return lambda **parameters: run_here(NAME, **(shared | QUICK[NAME] | parameters))


def test_one_training_alone(run, here):
    text, figures = run(arms=["joint"], seeds=[0], copies=4, further=False)
    for line in (
        "arms (joint): no two make a claim",
        "Holidays, UKBench: not in ",
        "seeds: with one, every verdict is undecided",
        "budgets: with one, there are points instead of curves",
        "every arm has the learning rate 0.02",
        "no crossings: they take two budgets",
        "not tried: they take further=True",
        "β = ",
        "trainings measured: 1, of 0.036k samples",
        "no claim was tried",
    ):
        assert line in text
    assert "not shown" not in text and figures == 1  # the curves alone
    written = here / "outputs" / "t" / "claims" / "claims.txt"
    assert "no claim was tried" in written.read_text(encoding="utf-8")
    assert len(list((here / "outputs" / "t" / "copies").rglob("*.jpg"))) == 4


def test_no_training_before_the_time_is_over(run, here):
    text, figures = run(hours=1e-9, copies=4, lrs=[0.02, 0.04])
    assert "0 of 8 trainings are measured: the same command goes on" in text
    assert "λ=1, N=1: no learning rate has been tried yet" in text
    assert "trainings measured: 0" in text and "no claim was tried" in text
    assert "not shown" not in text and figures == 1  # which says that nothing is measured
    assert (here / "outputs" / "t" / "claims" / "curves.png").is_file()


def test_a_figure_that_fails_does_not_take_the_rest_along(run, here, monkeypatch):
    def fail(*_):
        raise KeyError("a fault")

    monkeypatch.setattr(plots, "budget_curves", fail)
    text, figures = run(hours=1e-9, copies=4)
    assert "not shown: the budget curves (KeyError" in text and figures == 0
    assert (here / "outputs" / "t" / "claims" / "claims.txt").is_file()
