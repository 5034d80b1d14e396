"""What the script of the page knows: a bounded number of names, those of groups first, safe in HTML."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mgkit.photos.report import listing as module
from mgkit.photos.report.listing import Listing, listed, script_data

NAMES = [f"{i:02}.jpg" for i in range(20)]


def test_names_and_groups_are_those_that_were_found(found, tmp_path):
    result = found(NAMES, groups=[(3, 7), (4, 5)])
    data = Listing.of(result, tmp_path).names()
    assert data == {"names": NAMES, "groups": [[3, 7], [4, 5]]}


@pytest.mark.parametrize("bound, most", [("MOST_LISTED", 8), ("MOST_NAME_BYTES", 8 * len('"00.jpg"'))])
def test_of_too_many_names_those_of_groups_stay(found, monkeypatch, bound, most):
    monkeypatch.setattr(module, bound, most)
    chosen = listed(found(NAMES, groups=[(11, 17), (4, 15)]), first=[0, 19])
    assert chosen == sorted(chosen) and len(chosen) == 8 and {0, 4, 11, 15, 17, 19} <= set(chosen)


def test_unreadable_pictures_are_neither_listed_nor_placed(found, tmp_path):
    result = found(NAMES)
    descriptors = result.descriptors.copy()
    descriptors[2] = np.nan
    each = Listing.of(replace(result, descriptors=descriptors), tmp_path)
    assert each.pictures.tolist() == [i for i in range(20) if i != 2]
    assert len(each.places.positions) == 19


def test_classes_are_named_with_their_probabilities(found, tmp_path):
    result = found(NAMES, labels=np.arange(20) % 3)
    labels, percents, names = Listing.of(result, tmp_path).classes()
    assert [names[of[0]] for of in labels[:4]] == ["class <0>", "class <1>", "class <2>", "class <0>"]
    assert percents[0] == [20] and percents[-1] == [90]


def test_nothing_in_the_data_ends_the_script_and_it_reads_back_the_same():
    data = {"names": ["</script><script>alert(1)</script>", "<!--", "a & b", "\u2028", "naïve 🏖️"]}
    text = str(script_data(data))
    assert "<" not in text and ">" not in text and "&" not in text and json.loads(text) == data
