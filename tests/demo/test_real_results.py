"""The measures, curves and the table of `make real`, from results of its stages."""

import json

import pytest
from real_support import DESCRIPTION, RESULTS

from mgkit.demo.real_results import (
    PSTAR,
    RETRIEVE,
    TOLERANCES,
    WHITEN,
    real_curves,
    real_measures,
    real_table,
)
from mgkit.demo.reference import Measure


def test_measures_have_the_tolerance_of_what_they_measure():
    found = real_measures(RESULTS)
    assert found["p* at 224 px"] == Measure(1.14, TOLERANCES["p*"])
    assert found["top-1, square 224 px, training p"] == Measure(0.861, TOLERANCES["top-1"])
    assert found["top-1, square 224 px, p*"] == Measure(0.862, TOLERANCES["top-1"])
    assert found["holidays, GeM, p*"] == Measure(0.75, TOLERANCES["mAP"])
    assert found["ukbench, GeM, training p"] == Measure(3.91, TOLERANCES["score"])
    assert found["validation images"] == Measure(1000, 0.0)
    assert found["images that whitening was fitted to"] == Measure(1000, 0.0)
    assert found["images whose class folding keeps, share"] == Measure(1.0, 0.0)
    assert len(found) == 10  # without the set that has no ground truth


@pytest.mark.parametrize("left", [[], [PSTAR], [WHITEN], [RETRIEVE], [PSTAR, RETRIEVE]])
def test_a_part_of_the_stages_is_enough(left):
    results = {name: RESULTS[name] for name in left}
    assert real_measures(results).items() <= real_measures(RESULTS).items()
    assert real_curves(results).items() <= real_curves(RESULTS).items()
    assert real_table(results, DESCRIPTION).startswith("EfficientNet-Lite0")


def test_whitening_without_a_check_of_the_classes():
    bare = {key: value for key, value in RESULTS[WHITEN].items() if key not in ("same_class", "val_images")}
    assert list(real_measures({WHITEN: bare})) == ["images that whitening was fitted to"]
    assert "keeps the predicted class" not in real_table({WHITEN: bare}, DESCRIPTION)


def test_re_ranking_has_lines_of_its_own():
    [row, *_] = [row for row in RESULTS[RETRIEVE]["rows"] if "gain" in row]
    reranked = {RETRIEVE: RESULTS[RETRIEVE] | {"reranked": [row | {"descriptor": "GeM + DBA"}]}}
    text = real_table(reranked, DESCRIPTION)
    assert "05, re-ranked" in text and f"{row['set']}: GeM + DBA" in text
    assert "re-ranked" not in real_table(RESULTS, DESCRIPTION)
    [curve] = real_curves(reranked)["reranked"]
    assert curve["descriptor"] == "GeM + DBA" and curve["gain"]["low"] == row["gain"]["low"]


def test_figure_4_may_be_missing():
    bare = {RETRIEVE: {"rows": RESULTS[RETRIEVE]["rows"]}}
    assert real_curves(bare)["figure_4"] == {} and "figure 4" not in real_table(bare, DESCRIPTION)


def test_curves_are_numbers_with_intervals():
    found = real_curves(RESULTS)
    curve = found["accuracy_against_p"]
    assert curve["p_star"] == [1.14, 1.7444] and curve["gains"][1] == {
        "value": 0.02,
        "low": 0.01,
        "high": 0.03,
    }
    assert curve["intervals"][1][0] == [0.84, 0.88] and "paths" not in curve
    assert found["spectrum"] == [0.12346, 0.01]
    assert found["accuracy_against_resolution"][0]["interval"] == [0.841, 0.881]
    assert found["figure_4"]["values"]["ukbench"] == [[3.9], [3.8]]
    json.dumps(found)


def test_the_table_has_every_measurement():
    lines = real_table(RESULTS, DESCRIPTION).splitlines()

    def cells(start):
        [line] = [line for line in lines if line.startswith(start)]
        return line.removeprefix(start).split("  ")

    def values(start):
        return [cell.strip() for cell in cells(start) if cell.strip()]

    assert values("224 px") == ["1.14", "1", "76.4 %", "76.9 %", "+0.5 (-1.0 … +2.0)", "undecided"]
    assert values("320 px") == ["1.74", "2", "86.0 %", "88.0 %", "+2.0 (+1.0 … +3.0)", "better"]
    assert values("square, training p") == ["86.1 (84.1 … 88.1)"]
    assert values("holidays: GeM, p*") == [
        "1.74", "75.0 %", "71.0 … 79.0", "+2.0 (+1.0 … +3.0)", "better, over GeM, training p",
    ]  # fmt: skip
    assert values("ukbench: GeM, training p") == ["1.00", "3.91 of 4", "3.88 … 3.94"]
    assert values("ukbench: training p = 1") == ["3.90 of 4", "3.80 of 4"]
    assert "  holidays: 525 images, longest side 75 to 448 px, median 448 px" in lines
    assert any("it keeps the predicted class of 100.00 % of 1000 images" in line for line in lines)
    assert all(line == line.rstrip() for line in lines)


def test_one_folder_for_two_sets_is_one_line():
    both = {f"imagenet/{split}": DESCRIPTION["imagenet/val"] for split in ("train", "val")}
    assert "imagenet/train, imagenet/val: 1000 images" in real_table({}, both)
