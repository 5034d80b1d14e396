"""A retrieval set without some of its images, and its description, by file name."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from support import answers, file_name, ranked, write_tree
from test_benchmark_sets import COPYDAYS, HOLIDAYS, HOLIDAYS_ANSWERS, STRONG, holidays_tree, revisited_tree

from mgkit.benchmark_sets import copydays, holidays, revisited
from mgkit.data.layouts import plain_images


def without(retrieval_set, *names):
    kept = [Path(path).name not in names for path in retrieval_set.images.paths]
    return retrieval_set.only(np.array(kept))


def test_nothing_changes_where_all_images_are_kept(tmp_path):
    found = holidays(holidays_tree(tmp_path))
    assert without(found) is found


def test_an_unreadable_positive_is_neither_ranked_nor_missed(tmp_path):
    kept = without(holidays(holidays_tree(tmp_path)), "149902.jpg")
    assert answers(kept) == HOLIDAYS_ANSWERS | {"149900.jpg": ["149901.jpg", "149903.jpg"]}
    assert ranked(kept) == [f"{number}.jpg" for number in HOLIDAYS if number != "149902"]


def test_an_unreadable_query_asks_nothing(tmp_path):
    kept = without(holidays(holidays_tree(tmp_path)), "100000.jpg")
    assert answers(kept) == {query: HOLIDAYS_ANSWERS[query] for query in ("100100.jpg", "149900.jpg")}
    assert len(kept.images) == len(kept.database) == 8


def test_a_query_whose_every_answer_is_unreadable_asks_nothing(tmp_path):
    kept = without(holidays(holidays_tree(tmp_path)), "100101.jpg")
    assert answers(kept) == {query: HOLIDAYS_ANSWERS[query] for query in ("100000.jpg", "149900.jpg")}
    assert "100100.jpg" in ranked(kept)


def test_an_unreadable_original_and_distractor_leave_copydays_consistent(tmp_path):
    write_tree(tmp_path / "set", *COPYDAYS, *STRONG)
    extra = plain_images(write_tree(tmp_path / "extra", "x.jpg", "y.jpg"))
    kept = without(copydays(tmp_path / "set", distractors=extra), "200000.jpg", "x.jpg")
    assert answers(kept) == {"215601.jpg": ["215600.jpg"]}
    assert ranked(kept) == ["200100.jpg", "215600.jpg", "y.jpg"]


def test_boxes_and_junk_stay_with_their_images_when_others_go(tmp_path):
    found = revisited(revisited_tree(tmp_path), "roxford5k")[2]
    kept = without(found, "all_souls_000001.jpg", "christ_church_000003.jpg", "keble_000055.jpg")
    assert answers(kept) == {"all_souls_000013.jpg": ["magdalen_000002.jpg"], "radcliffe_000777.jpg": []}
    assert [[file_name(kept, i) for i in each] for each in kept.junk] == [
        ["ashmolean_000004.jpg", "keble_000005.jpg"],
        [],
    ]
    assert [kept.images.load(q).size for q in kept.queries] == [(9, 13), (10, 8)]


def test_distractors_stay_known(tmp_path):
    write_tree(tmp_path / "set", *COPYDAYS, *STRONG)
    extra = plain_images(write_tree(tmp_path / "extra", "x.jpg", "y.jpg"))
    kept = without(copydays(tmp_path / "set", distractors=extra), "200000.jpg", "x.jpg")
    assert [file_name(kept, i) for i in kept.distractors] == ["y.jpg"]


def test_what_is_right_what_is_wrong_and_what_is_neither(searched_set):
    query, junk = searched_set.queries[5], searched_set.junk[5]
    assert searched_set.right(5, searched_set.positives[5][0]) is True
    assert searched_set.right(5, 0) is False and searched_set.right(5, query) is False
    assert searched_set.right(5, junk[0]) is None
    assert replace(searched_set, measure="none").right(5, 0) is None
