"""The retrieval protocols against slow oracles; and the chain of stages that an evaluation starts where none was run."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import flat_name, one_line_error, write_devkit

from mgkit.config import ClassifyConfig, NetworkConfig, RetrievalConfig, make
from mgkit.datasets import labelled_images
from mgkit.evaluate import (
    RetrievalResult,
    evaluate_classification,
    evaluate_retrieval,
    failures_first,
    retrieve,
    shown,
)
from mgkit.experiment import read_results
from mgkit.retrieval_sets import RetrievalSet, unlabelled
from mgkit.whitening import whitened_network


def made_up(sizes, measure="mAP"):
    """Groups of those sizes; the first image of each (all of them, for the score) asks for the others."""
    groups = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    asked = [(q, group) for group in groups for q in (group if measure == "score" else group[:1])]
    images = unlabelled(Path("."), [f"{i}.jpg" for i in range(sum(sizes))])
    positives = tuple(group[group != q] for q, group in asked)
    queries = np.array([q for q, _ in asked])
    return RetrievalSet("made up", images, queries, np.arange(len(images)), positives, measure)


def copies(originals, distractors, copied):
    """Copydays: copy k shows original copied[k]; neither the copies nor the distractors answer."""
    database, count = originals + distractors, originals + distractors + len(copied)
    return RetrievalSet(
        "copies",
        unlabelled(Path("."), [f"{i}.jpg" for i in range(count)]),
        np.arange(database, count),
        np.arange(database),
        tuple(np.array([original]) for original in copied),
    )


def random_descriptors(count, seed, dimension=6):
    rows = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def slow_ranking(retrieval_set, descriptors, query):
    """The database by falling similarity, the query among it where it belongs to it."""
    similarity = {int(i): float(descriptors[i] @ descriptors[query]) for i in retrieval_set.database}
    return sorted(similarity, key=similarity.get, reverse=True)


def slow_average_precision(ranking, query, positives):
    """Holidays' own evaluation: drop the query, then sum trapezoids under precision-recall."""
    found, area, rank = 0, 0.0, 0
    for image in ranking:
        if image == query:
            continue
        if image in positives:
            before = found / rank if rank else 1.0
            found += 1
            area += (before + found / (rank + 1)) / 2 / len(positives)
        rank += 1
    return area


@pytest.mark.parametrize("seed", range(5))
def test_holidays_against_the_slow_oracle(seed):
    each = made_up([2, 3, 4, 5, 2, 6])
    descriptors = random_descriptors(22, seed)
    expected = [
        slow_average_precision(slow_ranking(each, descriptors, q), q, set(positives.tolist()))
        for q, positives in zip(each.queries, each.positives, strict=True)
    ]
    result = retrieve(each, descriptors)
    assert result.per_query == pytest.approx(expected, abs=1e-9)
    assert result.value == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("seed", range(5))
def test_ukbench_against_the_slow_oracle(seed):
    each = made_up([4] * 6, "score")
    descriptors = random_descriptors(24, seed)
    expected = [
        sum(image // 4 == q // 4 for image in slow_ranking(each, descriptors, q)[:4]) for q in each.queries
    ]
    result = retrieve(each, descriptors)
    assert result.per_query == pytest.approx(expected)
    assert result.value == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("seed", range(5))
def test_copydays_against_the_slow_oracle(seed):
    each = copies(5, 7, [0, 0, 3, 4])
    descriptors = random_descriptors(16, seed)
    expected = [
        slow_average_precision(slow_ranking(each, descriptors, q), q, set(positives.tolist()))
        for q, positives in zip(each.queries, each.positives, strict=True)
    ]
    assert retrieve(each, descriptors).per_query == pytest.approx(expected, abs=1e-9)


def one_hot(groups):
    return np.eye(max(groups) + 1, dtype=np.float32)[groups]


def test_perfect_descriptors_get_the_best_measure():
    assert retrieve(made_up([2, 3, 4]), one_hot([0] * 2 + [1] * 3 + [2] * 4)).value == 1.0
    assert retrieve(made_up([4, 4], "score"), one_hot([0] * 4 + [1] * 4)).value == 4.0
    assert retrieve(copies(3, 2, [2, 2, 0]), one_hot([0, 1, 2, 3, 4, 2, 2, 0])).value == 1.0


def test_the_worst_descriptors_get_the_worst_measure():
    descriptors = one_hot([i % 4 for i in range(20)])  # each image is like one of every other object
    assert retrieve(made_up([4] * 5, "score"), descriptors).value == 1.0  # the query itself


def test_ties_go_against_the_answers():
    equal = np.ones((6, 1), dtype=np.float32)
    result = retrieve(made_up([2, 4]), equal)
    behind = [
        slow_average_precision([9, 9, 9, 9, 1], 0, {1}),
        slow_average_precision([9, 9, 3, 4, 5], 2, {3, 4, 5}),
    ]
    assert result.per_query == pytest.approx(behind)
    assert retrieve(made_up([4, 4], "score"), np.ones((8, 1), dtype=np.float32)).value == 1.0


def test_a_duplicate_of_the_query_that_is_no_answer_counts_against_it():
    descriptors = one_hot([0, 0, 0])  # the query, its answer, and a stranger's exact copy of it
    each = RetrievalSet(
        "d", unlabelled(Path("."), ["q", "a", "s"]), np.array([0]), np.arange(3), (np.array([1]),)
    )
    result = retrieve(each, descriptors)
    assert result.value == pytest.approx((0 / 1 + 1 / 2) / 2)


@pytest.mark.parametrize("measure", ["mAP", "score"])
def test_neighbours_come_by_falling_similarity_without_the_query(measure):
    each = made_up([4] * 5, measure)
    descriptors = random_descriptors(20, 1)
    result = retrieve(each, descriptors, k=7)
    assert result.neighbours.shape == result.scores.shape == (len(each.queries), 7)
    for q, neighbours, scores in zip(each.queries, result.neighbours, result.scores, strict=True):
        expected = [i for i in slow_ranking(each, descriptors, q) if i != q][:7]
        assert neighbours.tolist() == expected
        assert scores == pytest.approx(descriptors[neighbours] @ descriptors[q], abs=1e-6)


def test_a_query_with_duplicates_is_not_its_own_neighbour():
    each = made_up([4, 4], "score")
    result = retrieve(each, np.ones((8, 1), dtype=np.float32), k=100)
    assert result.neighbours.shape == (8, 7)
    assert all(q not in row for q, row in zip(each.queries, result.neighbours, strict=True))


def test_an_unreadable_image_leaves_the_protocol_consistent():
    each, descriptors = made_up([3, 3, 2]), random_descriptors(8, 4)
    kept = np.array([True, True, False, True, True, True, True, False])
    result = retrieve(each.only(kept), descriptors[kept])
    smaller = made_up([2, 3])
    smaller_rows = descriptors[[0, 1, 3, 4, 5]]
    assert len(result.per_query) == 2
    alone = replace(smaller, images=unlabelled(Path("."), list("abcdef")), database=np.arange(6))
    expected = retrieve(alone, np.concatenate([smaller_rows, descriptors[6:7]]))
    assert result.per_query == pytest.approx(expected.per_query)


def test_descriptors_that_do_not_fit_are_refused():
    each = made_up([2, 2])
    with one_line_error(ValueError, "3 descriptors", "4 images", "made up"):
        retrieve(each, random_descriptors(3, 0))
    descriptors = random_descriptors(4, 0)
    descriptors[1] = np.nan
    with one_line_error(ValueError, "not finite"):
        retrieve(each, descriptors)


def result_of(per_query):
    per_query = np.array(per_query)
    empty = np.zeros((len(per_query), 0))
    return RetrievalResult("r", "mAP", per_query.mean(), per_query, empty, empty)


def test_failures_come_first_then_a_spread_over_the_rest():
    result = result_of([0.9, 0.1, 0.5, 1.0, 0.0, 0.7, 0.8, 0.3])
    chosen = failures_first(result, 4)
    assert chosen[:2].tolist() == [4, 1]
    assert chosen[-1] == 3
    values = result.per_query[chosen]
    assert (np.diff(values) > 0).all()


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_no_query_is_shown_twice_nor_more_than_there_are(count):
    chosen = failures_first(result_of([0.2, 0.1, 0.3]), count)
    assert len(set(chosen.tolist())) == len(chosen) == min(count, 3)


def test_values_are_shown_in_the_unit_of_their_measure():
    assert shown(result_of([0.5, 1.0])) == "75.0 %"
    assert shown(replace(result_of([3.5]), measure="score")) == "3.50 of 4"


# --- The chain of stages


class Chain:
    """What whitened_network leaves when nothing was run before, and what it printed."""

    def __init__(self, folder, config, printed, net):
        self.folder, self.config, self.printed, self.net = folder, config, printed, net


@pytest.fixture(scope="module")
def chain(mini_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    config = make(NetworkConfig, {"experiment": "t", "data": str(mini_root), "workers": 0})
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("builtins.print", lambda *args, **_: printed.append(" ".join(map(str, args))))
        net, _ = whitened_network(config)
    return Chain(folder, config, printed, net)


@pytest.fixture
def after_chain(chain, monkeypatch):
    monkeypatch.chdir(chain.folder)
    return chain


def test_missing_stages_are_run_first_each_with_a_line(chain):
    text = "\n".join(chain.printed)
    stages = ["running 03_whiten first", "running 01_train first", "running 02_finetune_p first"]
    positions = [text.index(stage) for stage in stages]
    assert positions == sorted(positions)
    for stage in ("train", "finetune_p", "whiten"):
        assert (chain.folder / "outputs" / "t" / stage / "results.json").is_file()
    assert chain.net.whitening is not None


def test_what_is_there_is_not_run_again(after_chain, capsys):
    before = (after_chain.folder / "outputs/t/whiten/checkpoint.pth").stat().st_mtime_ns
    whitened_network(after_chain.config)
    assert "first" not in capsys.readouterr().out
    assert (after_chain.folder / "outputs/t/whiten/checkpoint.pth").stat().st_mtime_ns == before


def test_retrieval_is_measured_on_every_set_with_every_kind_of_descriptor(after_chain, mini_root, capsys):
    config = make(RetrievalConfig, {"experiment": "t", "data": str(mini_root), "workers": 0, "size": 48})
    found = evaluate_retrieval(config)
    kinds = ["GeM, training p", "GeM, p*", "GeM, p*, whitened"]
    sets = ["holidays", "ukbench", "copydays + 6 distractors"]
    assert [(r.result.name, r.descriptor) for r in found] == [(name, kind) for name in sets for kind in kinds]
    assert all(0 <= r.result.value <= (4 if r.result.measure == "score" else 1) for r in found)
    rows = read_results("t", "evaluate_retrieval")["rows"]
    assert [row["value"] for row in rows] == [r.result.value for r in found]
    assert len([line for line in capsys.readouterr().out.splitlines() if "GeM" in line]) == 9


def test_classification_is_measured_for_every_crop_size_and_exponent(after_chain, mini_root):
    values = {"sizes": [32, 64], "data": str(mini_root), "experiment": "t", "workers": 0}
    rows = evaluate_classification(make(ClassifyConfig, values))
    assert [(row.crop, row.size, row.exponent) for row in rows] == [
        (crop, size, exponent)
        for crop in ("square", "rect")
        for size in (32, 64)
        for exponent in ("trained", "p*")
    ]
    assert all(0 <= row.top1 <= row.top5 <= 1 for row in rows)
    written = json.loads((after_chain.folder / "outputs/t/evaluate_imagenet/results.json").read_text())
    assert written["images"] == 36 and len(written["rows"]) == 8


def test_flat_validation_images_alone_give_the_same_accuracy(after_chain, mini_root, tmp_path):
    val = labelled_images(mini_root)[1]
    truth = [int(label) + 1 for label in val.labels]
    write_devkit(tmp_path, dict(enumerate(val.classes, start=1)), truth)
    (tmp_path / "val").mkdir()
    for number, path in enumerate(val.paths, start=1):
        (tmp_path / "val" / flat_name(number)).symlink_to(path)
    checkpoint = str(after_chain.folder / "outputs/t/train/checkpoint.pth")
    rows = []
    for experiment, data in [("sorted", mini_root / "imagenet"), ("flat", tmp_path)]:
        values = {
            "sizes": [64],
            "data": str(data),
            "experiment": experiment,
            "workers": 0,
            "checkpoint": checkpoint,
        }
        rows.append(evaluate_classification(make(ClassifyConfig, values)))
    assert rows[0] == rows[1]


def test_on_data_of_one_s_own_a_missing_whitening_names_the_command(mini_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = make(RetrievalConfig, {"experiment": "t", "data": str(mini_root / "imagenet")})
    with one_line_error(FileNotFoundError, "papermill", "03_whiten.ipynb", mini_root / "imagenet"):
        evaluate_retrieval(config)
    assert not (tmp_path / "outputs").exists()


def test_without_ground_truth_neighbours_are_found_and_nothing_is_measured():
    everything = np.arange(4)
    nothing = (np.array([], dtype=np.int64),) * 4
    images = unlabelled(Path("."), list("abcd"))
    each = RetrievalSet("own", images, everything, everything, nothing, measure="none")
    result = retrieve(each, random_descriptors(4, 0), k=2)
    assert np.isnan(result.value) and shown(result) == "not measured: no ground truth"
    assert result.neighbours.shape == (4, 2)
    assert not (result.neighbours == everything[:, None]).any()
