"""The sets of `make real` are found by their layout, linked, and known by a hash."""

import json

import pytest
from support import one_line_error, write_empty, write_picture, write_tree

from mgkit.benchmarks.find import find_sets
from mgkit.data.layouts import META, labelled_images
from mgkit.demo.real_data import (
    RealSets,
    describe_sets,
    find_real_sets,
    link_sets,
    names_and_sizes,
    other_sets,
    read_description,
)

CLASSES = ("n01440764", "n01443537", "n01484850")  # of ImageNet
HOLIDAYS = ("jpg/100000.jpg", "jpg/100001.jpg", "jpg/100100.jpg", "jpg/100101.jpg")
UKBENCH = tuple(f"full/ukbench{k:05d}.jpg" for k in range(8))


def tree(*folders, classes=CLASSES, images=("a.jpg",)):
    return [f"{folder}/{name}/{image}" for folder in folders for name in classes for image in images]


def links(root):
    """The links found in a folder, relative to it."""
    return {name: str(folder.relative_to(root)) for name, folder in find_real_sets(str(root)).links.items()}


@pytest.fixture
def everything(tmp_path):
    """A folder with all sets, under other names than the kit's."""
    root = tmp_path / "photos"
    names = [*tree("sample/val"), *(f"scenes/{n}" for n in HOLIDAYS), *(f"objects/{n}" for n in UKBENCH)]
    write_tree(root, *names)
    return root


def test_all_sets_are_found_by_their_layout(everything):
    sets = find_real_sets(str(everything))
    assert links(everything) == {
        "imagenet/train": "sample/val", "imagenet/val": "sample/val", "holidays": "scenes",
        "ukbench": "objects",
    }  # fmt: skip
    assert sets.classes == 3
    assert sets.describe() == f"found in {everything}: sample/val, scenes, objects; missing: nothing"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (tree("train", "val"), {"imagenet/train": "train", "imagenet/val": "val"}),
        (tree("."), {"imagenet/train": ".", "imagenet/val": "."}),
        (tree("few/val", classes=CLASSES[:2]) + tree("many/val"),
         {"imagenet/train": "many/val", "imagenet/val": "many/val"}),
        (HOLIDAYS, {"holidays": "."}),
        (UKBENCH, {"ukbench": "."}),
        ([*HOLIDAYS, "unlabelled/whiten/a.jpg"], {"holidays": ".", "unlabelled/whiten": "unlabelled/whiten"}),
        ([*tree("in/train"), f"in/{META}", "in/val/ILSVRC2012_val_00000001.JPEG"],
         {"imagenet/train": "in/train", "imagenet/val": "in/val",
          f"imagenet/{META.parts[0]}": f"in/{META.parts[0]}"}),
    ],
)  # fmt: skip
def test_parts_and_other_layouts(tmp_path, names, expected):
    assert links(write_empty(tmp_path, *names)) == expected


@pytest.mark.parametrize(
    "names",
    [
        tree("val", classes=("cats", "dogs")),
        tree("val", classes=("n01440764", "n99999999")),  # not of the 1000 classes
        tree("val", classes=CLASSES[:1]),
        ["jpg/holiday.jpg", "full/a.jpg"],
        ["a.jpg"],
    ],
)
def test_other_folders_are_refused_with_what_is_wanted(tmp_path, names):
    write_empty(tmp_path, *names)
    with one_line_error(ValueError, tmp_path, "make real DATA=/folder"):
        find_real_sets(str(tmp_path))


def test_missing_data_is_one_line(tmp_path):
    with one_line_error(ValueError, "make real DATA=/folder"):
        find_real_sets("")
    with one_line_error(FileNotFoundError, "DATA", tmp_path / "nowhere"):
        find_real_sets(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("links", "missing"),
    [
        ({"holidays": "h"}, "classes, unlabelled images, ukbench"),
        ({"holidays": "h", "unlabelled/whiten": "w"}, "classes, ukbench"),
        ({"imagenet/val": "v", "ukbench": "u"}, "holidays"),
    ],
)
def test_what_is_missing_is_said_in_one_line(tmp_path, links, missing):
    sets = RealSets(tmp_path, {name: tmp_path / folder for name, folder in links.items()}, 3)
    assert sets.describe().endswith(f"; missing: {missing}") and "\n" not in sets.describe()


def linked(root, results):
    sets = find_real_sets(str(root))
    link_sets(sets, describe_sets(sets), results)
    return results / "data"


def test_the_notebooks_find_the_linked_sets(everything, tmp_path, capsys):
    data = linked(everything, tmp_path / "outputs" / "real")
    train, val = labelled_images(data)
    assert len(train) == len(val) == 3 and train.classes == CLASSES
    assert [each.name for each in find_sets(data)] == ["holidays", "ukbench"]
    assert "hold the same image" in capsys.readouterr().out  # one folder serves for both splits


def test_the_description_has_counts_sides_and_one_hash_wherever_the_data_lie(everything, tmp_path):
    write_picture(everything / "scenes" / "jpg" / "100102.jpg", size=(90, 40))
    found = describe_sets(find_real_sets(str(everything)))
    assert found["imagenet/train"] == found["imagenet/val"]
    assert found["holidays"]["images"] == 5 and found["ukbench"]["images"] == 8
    assert found["holidays"]["longest_side"] == {"least": 24, "median": 24, "most": 90}
    (everything / "scenes" / "jpg" / "100103.jpg").write_text("no picture")
    found = describe_sets(find_real_sets(str(everything)))
    assert found["holidays"]["longest_side"]["least"] == 24
    moved = everything.rename(tmp_path / "elsewhere")
    assert describe_sets(find_real_sets(str(moved))) == found


@pytest.mark.parametrize("change", ["content", "name", "number"])
def test_changed_data_have_another_hash(everything, change):
    before = describe_sets(find_real_sets(str(everything)))
    changed = everything / "objects" / "full" / "ukbench00007.jpg"
    if change == "content":
        write_picture(changed, size=(40, 30))
    elif change == "name":
        changed.rename(changed.with_name("ukbench00009.jpg"))
    else:
        changed.unlink()
    assert other_sets(before, describe_sets(find_real_sets(str(everything)))) == ["ukbench"]
    assert other_sets(before, before) == []


def test_missing_and_further_sets_are_other_data():
    ours, theirs = {"holidays": {"sha256": "a"}}, {"ukbench": {"sha256": "b"}}
    assert other_sets(ours, theirs) == ["ukbench", "holidays"]


def test_the_hash_tells_names_from_sizes(tmp_path):
    for name, content in (("a", "1"), ("b", "22")):
        (tmp_path / name).write_text(content)
    one = names_and_sizes([str(tmp_path / "a")], tmp_path)
    assert one != names_and_sizes([str(tmp_path / "b")], tmp_path)
    assert one != names_and_sizes([str(tmp_path / "a"), str(tmp_path / "b")], tmp_path)


def test_results_of_other_data_are_kept_aside(everything, tmp_path, capsys):
    results = tmp_path / "outputs" / "real"
    linked(everything, results)
    (results / "note").touch()
    linked(everything, results)  # the same data: the same folder
    assert (results / "note").is_file() and not capsys.readouterr().out
    (everything / "objects" / "full" / "ukbench00007.jpg").unlink()
    linked(everything, results)
    assert not (results / "note").exists() and (results.with_name("real.1") / "note").is_file()
    assert "results of other data" in capsys.readouterr().out
    assert (
        len(list((everything / "objects" / "full").iterdir())) == 7
    )  # links are removed, not what they lead to


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", json.dumps({"sets": {"a": 1}}), json.dumps({"sets": []})]
)
def test_a_damaged_description_is_named(tmp_path, content):
    path = tmp_path / "data.json"
    path.write_text(content)
    with one_line_error(ValueError, path, "damaged"):
        read_description(path)


def test_a_file_among_the_links_is_not_removed(everything, tmp_path):
    data = linked(everything, tmp_path / "outputs" / "real")
    write_picture(data / "imagenet" / "own.jpg")
    with pytest.raises(OSError, match=r"own\.jpg"):
        linked(everything, tmp_path / "outputs" / "real")
    assert (data / "imagenet" / "own.jpg").is_file()
