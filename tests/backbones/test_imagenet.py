"""Names of ImageNet's classes."""

import re

from timm.data import ImageNetInfo

from mgkit.backbones.imagenet import imagenet_names

RENAMED = {"crane bird", "maillot tank suit"}  # names that timm's list has twice


def test_ids_are_sorted_and_names_are_distinct():
    names = imagenet_names()
    assert len(names) == len(set(names.values())) == 1000
    assert list(names) == sorted(names) and all(re.fullmatch(r"n\d{8}", wnid) for wnid in names)
    assert (names["n01440764"], names["n02510455"], names["n15075141"]) == (
        "tench", "giant panda", "toilet tissue",
    )  # fmt: skip


def test_every_name_is_one_of_the_synonyms_of_its_id():
    """The ids are from one package and the names from another: both must have one order."""
    synonyms = ImageNetInfo("imagenet-1k")
    wrong = {
        name
        for wnid, name in imagenet_names().items()
        if name not in synonyms.label_name_to_description(wnid).split(", ")
    }
    assert wrong <= RENAMED, wrong
