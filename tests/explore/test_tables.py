"""The tables have a line for every measurement."""

import re
from dataclasses import replace

import numpy as np

from mgkit.explore.tables import (
    VERDICT,
    adaptation_table,
    aligned,
    perfect_queries,
    precision_at_half_recall,
    rejection_table,
    table,
    weakest_and_strongest_copies,
)
from mgkit.mini.make import CROPS, QUALITIES
from mgkit.retrieval.protocols import Difference, shown
from mgkit.stages.evaluate_retrieval import best_of_each_set
from mgkit.stages.results import Adaptation


def test_the_table_has_a_line_for_every_measurement(retrieved):
    text = table(retrieved[1])
    whole = [r for r in retrieved[1] if r.retrieval_set.level is None]
    for r in whole:
        assert any(r.descriptor in line and shown(r.result) in line for line in text.splitlines())
    assert text.count(" over ") == len([r for r in whole if r.gain])
    words = [line.split(": ")[-1] for line in text.splitlines() if " over " in line]
    assert words == [VERDICT[r.gain.better] for r in whole if r.gain]
    assert text.count("mP@10") == 3
    quality = text[text.index("JPEG quality") :].splitlines()
    assert quality[1].split() == [str(n) for n in QUALITIES]
    [first] = [
        r
        for r in retrieved[1]
        if r.retrieval_set.level == ("jpegqual", QUALITIES[0]) and r.descriptor == "GeM, training p"
    ]
    assert quality[2].split()[-9] == f"{100 * first.result.value:.1f}"


def test_rejection_has_a_line_a_descriptor(with_strangers, retrieved):
    lines = rejection_table(with_strangers + retrieved[1]).splitlines()
    assert len(lines) == 2 + len(with_strangers)
    assert "4 queries with an answer, 12 without; about 5 %" in lines[0]
    assert "12 are too few: about 7.7 %" in lines[0]
    for line, r in zip(lines[2:], with_strangers, strict=True):
        one = r.result.rejection
        assert r.descriptor in line and f"{one.threshold:.3f}" in line
        assert f"{100 * one.right_rate:.1f} % (" in line and f"{100 * one.found_rate:.1f} % (" in line
    assert rejection_table(retrieved[1]) == ""


def with_result(r, **values):
    return replace(r, result=replace(r.result, **values))


def test_precision_is_read_at_half_of_the_recall(retrieved):
    [(name, r), *_] = best_of_each_set(retrieved[1]).items()
    curve = {"recall": np.array([0.0, 0.4, 0.6, 1.0]), "precision": np.array([1.0, 0.8, 0.6, 0.2])}
    text = precision_at_half_recall(
        {name: with_result(r, **curve), "plain": with_result(r, recall=np.array([]))}
    )
    assert text.startswith(f"{name}: ") and "70 %" in text and text.count("\n") == 0


def test_perfect_queries_are_counted_by_the_measure_of_the_set(retrieved):
    [r, *_] = retrieved[1]
    average = with_result(r, measure="mAP", per_query=np.array([1.0, 0.25, np.nan, 1.0]))
    score = with_result(r, measure="score", per_query=np.array([4.0, 1.0, 3.0]))
    text = perfect_queries({"a": average, "b": score, "c": with_result(r, measure="none")}).splitlines()
    assert len(text) == 2
    assert "2 of 3 queries" in text[0] and text[0].endswith("25.0 %.")
    assert "1 of 3 queries" in text[1] and text[1].endswith("1.00 of 4.")


def test_the_weakest_and_the_strongest_copies_are_told(retrieved):
    crops, qualities = weakest_and_strongest_copies(retrieved[1]).splitlines()
    assert re.search(rf"at {min(CROPS)} % cut away, .* at {max(CROPS)} % cut away", crops)
    assert re.search(rf"at JPEG quality {max(QUALITIES)}, .* at JPEG quality {min(QUALITIES)}\.", qualities)
    assert weakest_and_strongest_copies([r for r in retrieved[1] if not r.retrieval_set.level]) == ""


def test_the_table_of_adaptations_has_what_each_gains_and_costs():
    loss = Difference(-0.02, -0.03, -0.01)
    rows = [
        Adaptation(method, size, 3.0, passes, learned, 0.5, (0.4, 0.6), loss)
        for size in (64, 96)
        for method, passes, learned in (("training p", 0, 0), ("FixRes with p*", 2, 2_049_001))
    ]
    lines = adaptation_table(rows).splitlines()
    assert lines[1] == "64 px" and lines[4] == "96 px" and len(lines) == 7
    assert lines[2].split() == ["training", "p", "3.00", "50.0", "%", "40.0", "…", "60.0", "0", "0"]
    assert lines[6].endswith("-2.0 (-3.0 … -1.0)  worse           2  2,049,001")
    assert len({len(line) for line in lines if " px" not in line}) == 1


def test_columns_are_aligned():
    rows = [("a", "1", "22"), ("long", "333", "4")]
    assert aligned(rows) == ["a       1  22", "long  333   4"]
    assert aligned(rows, left=(0, 2)) == ["a       1  22", "long  333  4"]
