"""Every retrieval protocol against a slow oracle on random sets: ties, junk, duplicates, empty queries."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import one_line_error

from mgkit.benchmarks.retrieval_set import RetrievalSet, unlabelled
from mgkit.retrieval import protocols
from mgkit.retrieval.protocols import (
    Difference,
    RetrievalResult,
    accuracy_difference,
    difference,
    examples,
    failures_first,
    measured_value,
    retrieve,
    score_bias,
    shown,
    shown_difference,
    shown_interval,
    worst_to_best,
)
from mgkit.retrieval.ranking import Scores
from mgkit.retrieval.search import top_pairs


def images(count):
    return unlabelled(Path("."), [f"{i}.jpg" for i in range(count)])


def made_up(sizes, measure="mAP"):
    """Groups of those sizes; the first image of each (all of them, for the score) asks for the others."""
    groups = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    asked = [(q, group) for group in groups for q in (group if measure == "score" else group[:1])]
    everything = np.arange(sum(sizes))
    positives = tuple(group[group != q] for q, group in asked)
    return RetrievalSet(
        "made up", images(sum(sizes)), np.array([q for q, _ in asked]), everything, positives, measure
    )


def copies(originals, distractors, copied, measure="mAP"):
    """Copy k shows original copied[k] (None: a stranger); neither the copies nor the distractors answer."""
    database, count = originals + distractors, originals + distractors + len(copied)
    answers = tuple(np.array([] if original is None else [original], dtype=np.int64) for original in copied)
    return RetrievalSet(
        "copies", images(count), np.arange(database, count), np.arange(database), answers, measure
    )


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def random_descriptors(count, seed, dimension=6):
    return unit(np.random.default_rng(seed).normal(size=(count, dimension)))


# --- Slow oracles: explicit ranked lists, written out


def slow_similarity(a, b):
    return float(np.float32(sum(float(x) * float(y) for x, y in zip(a, b, strict=True))))


def slow_ranking(each, descriptors, q, bias=0.0):
    """Rank the database for query number q, answers last among ties; without the query and its junk."""
    query = each.queries[q]
    left_out = {int(query), *(each.junk[q].tolist() if each.junk else ())}
    similarity = {
        int(i): slow_similarity(descriptors[i], descriptors[query]) - bias
        for i in each.database
        if int(i) not in left_out
    }
    answers = set(each.positives[q].tolist())
    return sorted(similarity.items(), key=lambda item: (-item[1], item[0] in answers))


def slow_average_precision(ranking, answers):
    """Trapezoids under precision-recall, from one end of the list to the other."""
    found, area = 0, 0.0
    for rank, (image, _) in enumerate(ranking):
        if image in answers:
            before = found / rank if rank else 1.0
            found += 1
            area += (before + found / (rank + 1)) / 2 / len(answers)
    return area


def slow_map(each, descriptors):
    return [
        slow_average_precision(slow_ranking(each, descriptors, q), set(answers.tolist()))
        for q, answers in enumerate(each.positives)
        if len(answers)
    ]


def slow_micro_ap(each, descriptors, bias=None):
    """One list of all pairs, wrong ones first among equals; precision at each right one."""
    pairs = []
    for q, answers in enumerate(each.positives):
        ranking = slow_ranking(each, descriptors, q, 0.0 if bias is None else bias[q])
        pairs += [(score, image in answers.tolist()) for image, score in ranking]
    pairs.sort(key=lambda pair: (-pair[0], pair[1]))
    total, found, area = sum(map(len, each.positives)), 0, 0.0
    for rank, (_, right) in enumerate(pairs, start=1):
        if right:
            found += 1
            area += found / rank / total
    return area


def slow_score(each, descriptors):
    """How many of the object's four are among the first four, the query at the head of the list."""
    values = []
    for q, answers in enumerate(each.positives):
        first = [image for image, _ in slow_ranking(each, descriptors, q)[:3]]
        values.append(1 + sum(image in answers.tolist() for image in first))
    return values


# --- The protocols


@pytest.mark.parametrize("seed", range(4))
def test_holidays(seed):
    each, descriptors = made_up([2, 3, 4, 5, 2, 6]), random_descriptors(22, seed)
    result = retrieve(each, descriptors)
    assert result.per_query == pytest.approx(slow_map(each, descriptors), abs=1e-9)
    assert result.value == pytest.approx(np.mean(slow_map(each, descriptors)))


@pytest.mark.parametrize("seed", range(4))
def test_ukbench(seed):
    each, descriptors = made_up([4] * 6, "score"), random_descriptors(24, seed)
    result = retrieve(each, descriptors)
    assert result.per_query.tolist() == slow_score(each, descriptors)
    assert result.value == pytest.approx(np.mean(slow_score(each, descriptors)))


@pytest.mark.parametrize("seed", range(4))
def test_copydays(seed):
    each, descriptors = copies(5, 7, [0, 0, 3, 4]), random_descriptors(16, seed)
    assert retrieve(each, descriptors).per_query == pytest.approx(slow_map(each, descriptors), abs=1e-9)


@st.composite
def any_set(draw):
    """A random set with answers, junk, queries without answers, in the database or not, and duplicates."""
    count = draw(st.integers(4, 14))
    order = draw(st.permutations(range(count)))
    database = np.array(order[: draw(st.integers(2, count))])
    queries = np.array(draw(st.lists(st.sampled_from(order), min_size=1, max_size=5, unique=True)))
    answers, junk = [], []
    for query in queries:
        kinds = draw(
            st.lists(st.sampled_from(["answer", "junk", "wrong", "wrong"]), min_size=count, max_size=count)
        )
        others = [int(i) for i in database if i != query]
        answers.append(np.array([i for i in others if kinds[i] == "answer"], dtype=np.int64))
        junk.append(np.array([i for i in others if kinds[i] == "junk"], dtype=np.int64))
    distinct = draw(st.integers(1, 6))
    rows = random_descriptors(distinct, draw(st.integers(0, 99)), 3)
    which = draw(st.lists(st.integers(0, distinct - 1), min_size=count, max_size=count))
    return RetrievalSet("any", images(count), queries, database, tuple(answers), junk=tuple(junk)), rows[
        which
    ]


@settings(max_examples=60, deadline=None)
@given(any_set())
def test_any_set_as_a_mean_over_queries(drawn):
    each, descriptors = drawn
    if not any(map(len, each.positives)):
        with one_line_error(ValueError, "any", "positive"):
            retrieve(each, descriptors)
        return
    expected = slow_map(each, descriptors)
    result = retrieve(each, descriptors)
    assert result.value == pytest.approx(np.mean(expected), abs=1e-9)
    assert np.isnan(result.per_query).tolist() == [not len(answers) for answers in each.positives]
    assert measured_value(each, descriptors) == result.value


@settings(max_examples=60, deadline=None)
@given(any_set())
def test_any_set_with_all_pairs_pooled(drawn):
    each, descriptors = replace(drawn[0], measure="micro-AP"), drawn[1]
    if any(map(len, each.positives)):
        result = retrieve(each, descriptors)
        assert result.value == pytest.approx(slow_micro_ap(each, descriptors), abs=1e-9)
        assert measured_value(each, descriptors) == result.value


def slow_first_ranks(each, descriptors):
    """The place of the first answer of each query that has one, from 0."""
    return [
        next(rank for rank, (image, _) in enumerate(slow_ranking(each, descriptors, q)) if image in answers)
        for q, answers in enumerate(each.positives)
        if len(answers)
    ]


def slow_map_at(each, descriptors, k):
    """The precision at each answer among the first k, over the number of answers that fit there."""
    values = []
    for q, answers in enumerate(each.positives):
        found, total = 0, 0.0
        for rank, (image, _) in enumerate(slow_ranking(each, descriptors, q)[:k], start=1):
            if image in answers:
                found += 1
                total += found / rank
        if len(answers):
            values.append(total / min(len(answers), k))
    return values


@settings(max_examples=60, deadline=None)
@given(any_set())
def test_any_set_by_its_first_images(drawn):
    each, descriptors = replace(drawn[0], recalls=(1, 2, 5)), drawn[1]
    if not any(map(len, each.positives)):
        return
    first = np.array(slow_first_ranks(each, descriptors))
    recalls = {f"Recall@{k}": float((first < k).mean()) for k in (1, 2, 5)}
    by_map = retrieve(each, descriptors)
    assert {name: by_map.others[name] for name in recalls} == pytest.approx(recalls)
    assert by_map.others["median rank"] == np.median(first) + 1
    assert by_map.others["mAP@10"] == pytest.approx(np.mean(slow_map_at(each, descriptors, 10)))
    by_recall = retrieve(replace(each, measure="Recall@1"), descriptors)
    assert by_recall.value == pytest.approx(recalls["Recall@1"])
    assert by_recall.others["mAP"] == pytest.approx(by_map.value)
    cut = retrieve(replace(each, measure="mAP@k", cutoff=2), descriptors)
    assert cut.measure == "mAP@2" and cut.value == pytest.approx(np.mean(slow_map_at(each, descriptors, 2)))
    pooled = retrieve(replace(each, measure="micro-AP", recalls=(1,)), descriptors).others["Recall@1"]
    assert pooled <= recalls["Recall@1"] + 1e-9  # a tie beyond the images that are looked at counts as wrong
    if len(set(map(tuple, descriptors.tolist()))) == len(descriptors):
        assert pooled == pytest.approx(recalls["Recall@1"])


@settings(max_examples=40, deadline=None)
@given(any_set())
def test_scores_of_any_kind_rank_as_inner_products_do(drawn):
    each, descriptors = drawn
    if not any(map(len, each.positives)):
        return
    products = protocols.by_descriptors(each, descriptors)
    scores = Scores.collected(products.blocks(), (len(each.queries), len(each.database)))
    bias = np.linspace(0, 1, len(each.queries))
    for count in (1, 4, 100):
        theirs = top_pairs(products.queries, products.database, count=count, bias=bias)
        for ours in (scores.pairs(count, bias), products.pairs(count, bias)):
            assert all(np.array_equal(*pair) for pair in zip(ours, theirs, strict=True))
    for measure in ("mAP", "micro-AP"):
        one = replace(each, measure=measure)
        plain = retrieve(one, descriptors)
        blocks = retrieve(one, descriptors, ranking=scores)
        assert blocks.value == plain.value and blocks.others == plain.others
        np.testing.assert_array_equal(blocks.neighbours, plain.neighbours)
        np.testing.assert_array_equal(blocks.predictions.scores, plain.predictions.scores)


@settings(max_examples=40, deadline=None)
@given(any_set(), st.randoms(use_true_random=False))
def test_the_order_of_the_images_changes_nothing(drawn, random):
    each, descriptors = drawn
    if not any(map(len, each.positives)):
        return
    order = list(range(len(each.images)))
    random.shuffle(order)
    new = np.argsort(order)  # old index -> new

    def moved(lists):
        return tuple(random.sample(new[indices].tolist(), len(indices)) for indices in lists)

    database = new[each.database]
    shuffled = replace(
        each, images=each.images.subset(order), queries=new[each.queries],
        database=database[np.argsort(database)],
        positives=tuple(np.array(x, dtype=np.int64) for x in moved(each.positives)),
        junk=tuple(np.array(x, dtype=np.int64) for x in moved(each.junk)),
    )  # fmt: skip
    for measure in ("mAP", "micro-AP"):
        before = retrieve(replace(each, measure=measure), descriptors)
        after = retrieve(replace(shuffled, measure=measure), descriptors[order])
        assert after.value == before.value
        np.testing.assert_array_equal(after.per_query, before.per_query)


def test_only_the_best_pairs_are_pooled(monkeypatch):
    each = copies(3, 0, [0, 1], "micro-AP")
    descriptors = unit(np.array([[1, 0], [0, 1], [1, 1], [1, 0.1], [1, 0.2]]))
    result = retrieve(each, descriptors)
    monkeypatch.setattr(protocols, "MOST_PREDICTIONS", 2)
    capped = retrieve(each, descriptors)
    assert len(result.predictions.scores) == 6 and len(capped.predictions.scores) == 2
    assert capped.value == pytest.approx(
        0.5
    )  # one of the two answers, first; the other is not among the predictions


def test_ties_at_the_cut_of_the_best_pairs_do_not_count(monkeypatch):
    each = copies(4, 0, [0, 1, 2], "micro-AP")
    descriptors = unit(np.array([[1, 0], [1, 0], [1, 0], [0, 1], [1, 0], [1, 0], [1, 0]]))
    monkeypatch.setattr(protocols, "MOST_PREDICTIONS", 5)  # nine pairs tie
    assert len(retrieve(each, descriptors).predictions.scores) == 0
    monkeypatch.setattr(protocols, "MOST_PREDICTIONS", 10)  # below them three more do
    assert len(retrieve(each, descriptors).predictions.scores) == 9


@pytest.mark.parametrize("options", [{"k": 0}, {"show": 0}])
def test_neighbours_are_asked_of_some_queries(options):
    with one_line_error(ValueError, "at least 1"):
        retrieve(made_up([2, 2]), random_descriptors(4, 0), **options)


def test_without_a_background_scores_cannot_be_normalised():
    with one_line_error(ValueError, "copies", "background"):
        score_bias(copies(2, 0, [0]), random_descriptors(3, 0))


def one_hot(groups):
    return np.eye(max(groups) + 1, dtype=np.float32)[groups]


def test_perfect_descriptors_get_the_best_measure():
    assert retrieve(made_up([2, 3, 4]), one_hot([0] * 2 + [1] * 3 + [2] * 4)).value == 1.0
    assert retrieve(made_up([4, 4], "score"), one_hot([0] * 4 + [1] * 4)).value == 4.0
    result = retrieve(copies(3, 2, [2, 2, 0]), one_hot([0, 1, 2, 3, 4, 2, 2, 0]))
    assert result.value == 1.0 and set(result.others.values()) == {1.0}


def test_the_worst_descriptors_get_the_worst_measure():
    descriptors = one_hot([i % 4 for i in range(20)])  # each image is like one of every other object
    assert retrieve(made_up([4] * 5, "score"), descriptors).value == 1.0  # the query itself


def test_a_duplicate_of_the_query_that_is_no_answer_counts_against_it():
    each = RetrievalSet("d", images(3), np.array([0]), np.arange(3), (np.array([1]),))
    assert retrieve(each, one_hot([0, 0, 0])).value == pytest.approx((0 / 1 + 1 / 2) / 2)


def test_scores_are_normalised_by_the_background():
    each = replace(copies(2, 0, [0, None], "micro-AP"), images=images(6), background=np.array([4, 5]))
    descriptors = unit(np.array([[1, 0, 0], [0, 1, 0], [1, 0, 1], [0, 1, 0.2], [0, 0.5, 1], [0, 1, 0]]))
    bias = score_bias(each, descriptors, factor=2.0, rank=1)
    expected = [
        2 * max(slow_similarity(descriptors[q], descriptors[b]) for b in (4, 5)) for q in each.queries
    ]
    assert bias == pytest.approx(expected, abs=1e-6)
    assert score_bias(each, descriptors)[0] < bias[0]  # the 10th best of two is the last
    plain, normalised = retrieve(each, descriptors), retrieve(each, descriptors, bias=bias)
    assert (plain.value, normalised.value) == (
        0.5,
        1.0,
    )  # the stranger's match no longer stands above the copy's
    assert normalised.value == pytest.approx(slow_micro_ap(each, descriptors, bias))


# --- What is kept for looking at


@pytest.mark.parametrize("measure", ["mAP", "score"])
def test_neighbours_come_by_falling_similarity_without_the_query(measure):
    each, descriptors = made_up([4] * 5, measure), random_descriptors(20, 1)
    result = retrieve(each, descriptors, k=7, show=100)
    assert sorted(result.shown.tolist()) == list(range(len(each.queries)))
    assert result.neighbours.shape == result.scores.shape == (len(each.queries), 7)
    for q, neighbours, scores in zip(result.shown, result.neighbours, result.scores, strict=True):
        assert neighbours.tolist() == [image for image, _ in slow_ranking(each, descriptors, q)][:7]
        assert scores == pytest.approx(descriptors[neighbours] @ descriptors[each.queries[q]], abs=1e-6)


def test_a_query_with_duplicates_is_not_its_own_neighbour():
    each = made_up([4, 4], "score")
    result = retrieve(each, np.ones((8, 1), dtype=np.float32), k=100, show=100)
    assert result.neighbours.shape == (8, 7)
    assert all(each.queries[q] not in row for q, row in zip(result.shown, result.neighbours, strict=True))


def test_only_so_many_queries_are_kept():
    result = retrieve(made_up([4] * 20, "score"), random_descriptors(80, 2), show=6)
    assert len(result.shown) == len(result.neighbours) == 6
    assert result.per_query[result.shown[0]] == result.per_query.min()


def test_failures_come_first_then_a_spread_over_the_rest():
    per_query = np.array([0.9, 0.1, 0.5, np.nan, 1.0, 0.0, 0.7, 0.8, 0.3])
    chosen = failures_first(per_query, 4)
    assert chosen[:2].tolist() == [5, 1] and chosen[-1] == 4
    assert (np.diff(per_query[chosen]) > 0).all()


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_no_query_is_shown_twice_nor_more_than_there_are(count):
    chosen = failures_first(np.array([0.2, 0.1, 0.3]), count)
    assert len(set(chosen.tolist())) == len(chosen) == min(count, 3)


def slow_worst_to_best(per_query, count):
    """`worst_to_best` by a sorted list: the positions at evenly spaced ranks, rounded down."""
    ranked = sorted((value, q) for q, value in enumerate(per_query.tolist()) if value == value)
    count = min(count, len(ranked))
    if count < 2:
        return [q for _, q in ranked[:count]]
    return [ranked[k * (len(ranked) - 1) // (count - 1)][1] for k in range(count)]


@pytest.mark.parametrize("queries", [1, 2, 3, 4, 9, 40])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_queries_from_the_worst_to_the_best(queries, count):
    random = np.random.default_rng(queries)
    per_query = random.permutation(np.arange(queries) // 3 / queries)  # with ties
    per_query[random.integers(queries)] = np.nan if queries > 3 else 0.5
    assert worst_to_best(per_query, count).tolist() == slow_worst_to_best(per_query, count)


def test_examples_say_which_is_the_worst_the_middle_and_the_best():
    per_query = np.array([0.5, 1.0, 0.25, np.nan, 0.75, 0.0])
    assert examples(per_query, "mAP", 3) == {5: "worst: AP 0 %", 0: "middle: AP 50 %", 1: "best: AP 100 %"}
    assert examples(4 * per_query, "score", 2) == {5: "worst: score 0 of 4", 1: "best: score 4 of 4"}
    assert list(examples(per_query, "mAP", 4).values())[1:3] == ["query: AP 25 %", "query: AP 50 %"]
    assert examples(per_query[:1], "mAP", 3) == {0: "worst: AP 50 %"}
    assert examples(per_query[3:4], "mAP", 3) == {}
    assert examples(np.full(9, np.nan), "none", 3) == {0: "query", 4: "query", 8: "query"}


def test_without_ground_truth_neighbours_are_found_and_nothing_is_measured():
    everything = np.arange(4)
    nothing = (np.array([], dtype=np.int64),) * 4
    each = RetrievalSet("own", images(4), everything, everything, nothing, measure="none")
    result = retrieve(each, random_descriptors(4, 0), k=2)
    assert np.isnan(result.value) and np.isnan(result.interval).all()
    assert result.neighbours.shape == (4, 2)
    assert not (result.neighbours == everything[:, None]).any()


# --- Intervals and differences


def test_the_interval_holds_the_value_and_narrows_with_more_queries():
    few, many = (retrieve(made_up([3] * n), random_descriptors(3 * n, 3)) for n in (10, 160))
    for result in (few, many):
        assert result.interval[0] < result.value < result.interval[1]
    assert np.diff(many.interval) < np.diff(few.interval)


@pytest.mark.parametrize("measure", ["mAP", "micro-AP"])
def test_a_kind_of_descriptor_does_not_differ_from_itself(measure):
    each = replace(made_up([3] * 8), measure=measure)
    result = retrieve(each, random_descriptors(24, 0))
    same = difference(result, result)
    assert (same.value, same.low, same.high, same.better) == (0, 0, 0, None)


@pytest.mark.parametrize("measure", ["mAP", "micro-AP"])
def test_a_clear_gain_is_better(measure):
    each = replace(made_up([3] * 20), measure=measure)
    noise, right = random_descriptors(60, 0, 40), one_hot(np.repeat(np.arange(20), 3).tolist())
    before, after = retrieve(each, noise), retrieve(each, right)
    gain = difference(before, after)
    assert gain.better is True and gain.low < gain.value <= gain.high
    assert difference(after, before).better is False


def right(*runs):
    """An array of 0 and 1 from (value, times) pairs."""
    return np.repeat([value for value, _ in runs], [times for _, times in runs]).astype(float)


@pytest.mark.parametrize(("gained", "lost", "better"), [(40, 10, True), (10, 40, False), (33, 30, None)])
def test_accuracies_are_compared_on_the_same_images(gained, lost, better):
    """Images that both classifiers get right, or both wrong, widen nothing."""
    before = right((1, 700), (0, gained), (1, lost), (0, 300 - gained - lost))
    after = right((1, 700), (1, gained), (0, lost), (0, 300 - gained - lost))
    found = accuracy_difference(before, after)
    assert found.value == pytest.approx((gained - lost) / 1000) and found.better is better
    deviation = np.sqrt(gained + lost - (gained - lost) ** 2 / 1000) / 1000  # of a mean of -1, 0 and 1
    for bound, sign in ((found.low, -1), (found.high, 1)):
        assert bound == pytest.approx(found.value + sign * 1.96 * deviation, abs=0.35 * deviation)


def test_a_few_images_more_decide_nothing():
    before, equal, more = (right((1, 700 + gained), (0, 300 - gained)) for gained in (0, 0, 3))
    assert accuracy_difference(before, equal) == Difference(0.0, 0.0, 0.0)
    assert accuracy_difference(before, more).better is None


def test_images_that_were_not_read_are_not_compared():
    before, after = right((1, 5), (0, 5)), right((1, 8), (0, 2))
    unread = np.full(7, np.nan)
    found = accuracy_difference(np.append(before, unread), np.append(after, unread))
    assert found == accuracy_difference(before, after) and found.value == pytest.approx(0.3)


def test_results_of_two_sets_are_not_compared():
    with one_line_error(ValueError, "made up", "copies"):
        difference(
            retrieve(made_up([2, 2]), random_descriptors(4, 0)),
            retrieve(copies(2, 0, [0, 1]), random_descriptors(4, 0)),
        )


# --- Descriptors that do not fit


def test_an_unreadable_image_leaves_the_protocol_consistent():
    each, descriptors = made_up([3, 3, 2]), random_descriptors(8, 4)
    kept = np.array([True, True, False, True, True, True, True, False])
    result: RetrievalResult = retrieve(each.only(kept), descriptors[kept])
    assert len(result.per_query) == 2  # the last group lost its only answer
    smaller = replace(made_up([2, 3]), images=images(6), database=np.arange(6))
    expected = retrieve(smaller, descriptors[kept])
    assert result.per_query == pytest.approx(expected.per_query)


def test_descriptors_that_do_not_fit_are_refused():
    each = made_up([2, 2])
    with one_line_error(ValueError, "3 descriptors", "4 images", "made up"):
        retrieve(each, random_descriptors(3, 0))
    descriptors = random_descriptors(4, 0)
    descriptors[1] = np.nan
    with one_line_error(ValueError, "not finite"):
        retrieve(each, descriptors)


# --- As text


def result_of(per_query, measure="mAP"):
    """A result of which only the measure counts."""
    per_query, empty = np.array(per_query), np.array([])
    return RetrievalResult(
        "r", measure, per_query.mean(), (per_query.min(), per_query.max()), per_query, {}, "", empty, empty,
        None, empty, empty, empty,
    )  # fmt: skip


def strangers(answered, unanswered, *, apart=2):
    """Pairs of alike images that answer each other, and queries of `apart` views of what nothing shows."""
    count = 2 * answered + unanswered
    queries = np.array([*range(0, 2 * answered, 2), *range(2 * answered, count)])
    positives = tuple(np.array([q + 1] if q < 2 * answered else [], dtype=np.int64) for q in queries)
    groups = np.array([*range(answered), *(answered + k // apart for k in range(unanswered))])
    return RetrievalSet(
        "strangers", images(count), queries, np.arange(2 * answered), positives, query_groups=groups
    )


def test_queries_without_answer_are_rejected():
    each = strangers(20, 40)
    rows = random_descriptors(80, 0, 64)
    rows[1:40:2] = unit(rows[0:40:2] + 0.05 * rows[1:40:2])
    found = retrieve(each, rows, false_rate=0.05).rejection
    assert found.area == 1.0 and found.right_rate == 1.0
    assert found.accepted[:20].all() and found.accepted[20:].sum() == 1  # 2 of 41 with a further one
    assert found.answered.tolist() == [True] * 20 + [False] * 40
    slow = [max(slow_similarity(rows[q], rows[i]) for i in range(40) if i != q) for q in each.queries]
    np.testing.assert_allclose(found.best, slow)


def test_the_images_of_a_query_with_answer_do_not_reject_it():
    """Its own image, in the database, is not its first answer."""
    each = strangers(6, 4)
    found = retrieve(each, random_descriptors(16, 0, 64)).rejection
    assert (found.best < 0.9).all() and not found.right[6:].any()


def test_without_a_query_to_reject_nothing_is_rejected():
    each = strangers(6, 4)
    rows = random_descriptors(16, 0)
    assert retrieve(replace(each, query_groups=None), rows).rejection is None
    assert retrieve(strangers(6, 0), rows[:12]).rejection is None


def test_values_are_shown_in_the_unit_of_their_measure():
    assert shown(result_of([0.5, 1.0])) == "75.0 %"
    assert shown(result_of([0.5], "micro-AP")) == "50.0 %"
    assert shown(result_of([3.5], "score")) == "3.50 of 4"
    assert shown(result_of([np.nan], "none")) == "not measured: no ground truth"
    assert shown_interval("mAP", 0.5, 0.625) == "50.0 … 62.5"
    assert shown_interval("score", 3.5, 3.75) == "3.50 … 3.75"
    assert shown_difference("mAP", Difference(0.01, -0.02, 0.031)) == "+1.0 (-2.0 … +3.1)"
