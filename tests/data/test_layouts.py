"""The devkit of ImageNet: which class has which number, and what is wrong with a damaged one."""

import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat, savemat
from support import (
    flat_name,
    list_backwards,
    made_up_list,
    names,
    one_line_error,
    write_devkit,
    write_empty,
    write_picture,
    write_tree,
)

from mgkit.data.decoding import load_image
from mgkit.data.layouts import (
    class_folders,
    devkit_wnids,
    ground_truth,
    hold_out,
    labelled_images,
    plain_images,
    validation_images,
    validation_labels,
    validation_number,
)

IDS = {1: "n03000000", 2: "n01000000", 3: "n02000000"}
SMALL_TRUTH = [3, 1, 1, 2]


def test_only_synsets_without_children_are_classes(tmp_path):
    data = write_devkit(tmp_path, IDS, SMALL_TRUTH)
    assert devkit_wnids(tmp_path) == IDS
    synsets = loadmat(data / "meta.mat")["synsets"]  # nested as in the original
    assert synsets.shape == (4, 1) and synsets[3, 0]["num_children"].tolist() == [[3]]


def test_a_single_class(tmp_path):
    write_devkit(tmp_path, {1: "n03000000"}, [1])
    assert devkit_wnids(tmp_path) == {1: "n03000000"}


def test_a_thousand_classes_and_fifty_thousand_lines(tmp_path):
    rng = np.random.default_rng(0)
    ids = {k + 1: f"n{w:08d}" for k, w in enumerate(rng.permutation(1000) * 7919)}
    truth = rng.integers(1, 1001, 50_000).tolist()
    write_devkit(tmp_path, ids, truth)
    numbers = rng.permutation(50_000)[:2000] + 1
    classes, labels = validation_labels([flat_name(n) for n in numbers], tmp_path)
    assert classes == tuple(sorted(ids.values()))
    assert [classes[k] for k in labels] == [ids[truth[n - 1]] for n in numbers]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("ILSVRC2012_val_00000001.JPEG", 1),
        ("ILSVRC2012_val_00050000.jpeg", 50000),
        ("ILSVRC2012_val_00000010.jpg", 10),
        ("ILSVRC2012_val_00000000.JPEG", None),
        ("ILSVRC2012_val_001.JPEG", None),
        ("ILSVRC2012_test_00000001.JPEG", None),
        ("ILSVRC2012_val_00000001.JPEG.png", None),
        ("copy of ILSVRC2012_val_00000001.JPEG", None),
    ],
)
def test_the_number_in_a_name(name, number):
    assert validation_number(name) == number


def test_an_image_of_another_name_is_named(tmp_path):
    write_devkit(tmp_path, IDS, SMALL_TRUTH)
    with one_line_error(ValueError, "holiday.jpg", "ILSVRC2012_val_"):
        validation_labels([flat_name(1), "holiday.jpg"], tmp_path)


@pytest.mark.parametrize("missing", ["meta.mat", "ILSVRC2012_validation_ground_truth.txt"])
def test_a_missing_file_of_the_devkit_is_named(tmp_path, missing):
    (write_devkit(tmp_path, IDS, SMALL_TRUTH) / missing).unlink()
    with one_line_error(FileNotFoundError, tmp_path / "ILSVRC2012_devkit_t12" / "data" / missing, "devkit"):
        validation_labels([flat_name(1)], tmp_path)


def test_a_damaged_meta_is_named(tmp_path):
    path = write_devkit(tmp_path, IDS, SMALL_TRUTH) / "meta.mat"
    content = path.read_bytes()
    damaged = [b"", b"MATLAB", b"\x00" * 500, content[: len(content) // 2], content[:130], content[::-1]]
    for bad in damaged:
        path.write_bytes(bad)
        with one_line_error(ValueError, path, "damaged"):
            devkit_wnids(tmp_path)


def synsets_of(rows):
    return np.array(
        [[row] for row in rows], dtype=[(name, object) for name in ("ILSVRC2012_ID", "WNID", "num_children")]
    )


@pytest.mark.parametrize(
    "content",
    [
        {"other": np.arange(3)},
        {"synsets": np.arange(3)},
        {"synsets": "n01000000"},
        {"synsets": synsets_of([(1.0, "n01000000", 2.0)])},  # no leaf
        {"synsets": synsets_of([(1.0, "n01000000", 0.0), (1.0, "n02000000", 0.0)])},  # a number twice
        {"synsets": synsets_of([(1.0, "n01000000", 0.0), (2.0, "n01000000", 0.0)])},  # an id twice
        {"synsets": synsets_of([(1.0, "cat", 0.0)])},
        {"synsets": synsets_of([(np.zeros((0, 0)), "n01000000", 0.0)])},
    ],
)
def test_a_mat_file_of_something_else_is_named(tmp_path, content):
    path = write_devkit(tmp_path, IDS, SMALL_TRUTH) / "meta.mat"
    savemat(path, content)
    with one_line_error(ValueError, path):
        devkit_wnids(tmp_path)


@pytest.mark.parametrize(
    ("text", "line", "culprit"),
    [
        ("1\nthree\n2\n", 2, "'three'"),
        ("1\n\n2\n", 2, "''"),
        ("4\n", 1, "'4'"),  # the parent's number
        ("1\n2\n0\n", 3, "'0'"),
        ("1\n-1\n", 2, "'-1'"),
        ("1\n2.0\n", 2, "'2.0'"),
        ("1\nçé\n", 2, ""),
        ("1\n" + "9" * 9999, 2, "999"),
    ],
)
def test_a_line_that_is_no_class_is_named(tmp_path, text, line, culprit):
    path = write_devkit(tmp_path, IDS, SMALL_TRUTH) / "ILSVRC2012_validation_ground_truth.txt"
    path.write_text(text, encoding="utf-8")
    with one_line_error(ValueError, path, f"line {line}:", culprit):
        ground_truth(tmp_path, IDS)


def test_spaces_and_windows_line_ends_do_not_matter(tmp_path):
    path = write_devkit(tmp_path, IDS, SMALL_TRUTH) / "ILSVRC2012_validation_ground_truth.txt"
    path.write_bytes(b"3\r\n 1\r\n1 \r\n2")
    assert ground_truth(tmp_path, IDS) == [IDS[k] for k in SMALL_TRUTH]


@pytest.mark.parametrize("lines", [0, 3])
def test_too_few_lines_are_counted_and_the_image_beyond_them_named(tmp_path, lines):
    data = write_devkit(tmp_path, IDS, SMALL_TRUTH[:lines])
    with one_line_error(ValueError, data, f"{lines} lines", flat_name(4)):
        validation_labels([flat_name(4), flat_name(1)], tmp_path)


WNIDS = ("n01440764", "n01443537")


# --- Layouts


@pytest.mark.parametrize(("train", "val"), [("train", "val"), ("ILSVRC2012_img_train", "ILSVRC2012_img_val")])
@pytest.mark.parametrize("below", ["", "imagenet/"])
def test_imagenet_s_layout_under_both_names(tmp_path, train, val, below):
    files = [f"{below}{split}/{w}/{w}_{n}.JPEG" for split in (train, val) for w in WNIDS for n in (1, 2)]
    write_tree(tmp_path, *files)
    training, validation = labelled_images(tmp_path)
    expected = [(f"{w}/{w}_{n}.JPEG", w) for w in WNIDS for n in (1, 2)]
    assert names(training) == names(validation) == expected
    assert {Path(p).parents[1].name for p in validation.paths} == {val}
    assert training.classes == WNIDS


def test_a_tree_without_split_holds_some_of_every_class_out(tmp_path):
    write_tree(tmp_path, *[f"{c}/{n}.png" for c in "abc" for n in range(10)], "d/0.png", "d/1.png")
    train, val = labelled_images(tmp_path, val_fraction=0.2)
    assert np.bincount(val.labels).tolist() == [2, 2, 2, 1]
    assert np.bincount(train.labels).tolist() == [8, 8, 8, 1]
    assert set(train.paths).isdisjoint(val.paths)
    assert train.classes == val.classes == ("a", "b", "c", "d")


def test_a_large_fraction_leaves_every_class_something_to_train_on(tmp_path):
    write_tree(tmp_path, *[f"{c}/{n}.png" for c in "ab" for n in range(3)])
    train, _ = labelled_images(tmp_path, val_fraction=0.99)
    assert np.bincount(train.labels).tolist() == [1, 1]


def test_what_is_held_out_depends_neither_on_the_place_nor_on_the_order(tmp_path, monkeypatch):
    files = [f"{c}/{n}.png" for c in "abc" for n in range(10)]
    here, there = write_tree(tmp_path / "here", *files), tmp_path / "deep" / "there"
    write_tree(there, *reversed(files))
    first = [names(part) for part in labelled_images(here, val_fraction=0.3)]

    list_backwards(monkeypatch)
    assert [names(part) for part in labelled_images(there, val_fraction=0.3)] == first
    monkeypatch.chdir(there.parent)
    assert [names(part) for part in labelled_images("there", val_fraction=0.3)] == first


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_an_impossible_fraction_is_refused(tmp_path, fraction):
    write_tree(tmp_path, "a/0.png", "a/1.png")
    with one_line_error(ValueError, "val_fraction", fraction):
        labelled_images(tmp_path, val_fraction=fraction)


def test_hidden_files_and_other_files_are_left_out(tmp_path):
    write_tree(tmp_path, "a/1.png", "a/.hidden.png", "a/.cache/2.png", ".git/3.png", "b/4.png")
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "a" / "Thumbs.db").write_bytes(b"")
    assert names(class_folders(tmp_path)) == [("a/1.png", "a"), ("b/4.png", "b")]


def test_images_of_nested_folders_belong_to_the_class_above(tmp_path):
    write_tree(tmp_path, "a/2019/may/1.png", "a/0.png", "b/2020/2.png")
    found = names(class_folders(tmp_path))
    assert found == [("a/0.png", "a"), ("a/2019/may/1.png", "a"), ("b/2020/2.png", "b")]


def test_suffixes_count_in_upper_case_too(tmp_path):
    write_tree(tmp_path, "a/1.JPG", "a/2.JPEG", "a/3.png", "a/4.bmp")
    assert len(class_folders(tmp_path)) == 4


def test_validation_classes_keep_the_labels_of_training(tmp_path):
    write_tree(tmp_path, "train/a/1.png", "train/b/1.png", "train/c/1.png", "val/c/1.png", "val/b/1.png")
    _, val = labelled_images(tmp_path)
    assert val.labels.tolist() == [1, 2]
    assert names(val) == [("b/1.png", "b"), ("c/1.png", "c")]


@pytest.mark.parametrize("name", ["two words", "l'été", 'say "hi"', "🐈 cats", "a#b", "100%"])
def test_names_with_spaces_quotes_and_emoji(tmp_path, name):
    write_tree(tmp_path, f"{name}/{name}.png", f"{name}/2.png", "other/1.png", "other/2.png")
    train, val = labelled_images(tmp_path)
    assert name in train.classes and len(train) + len(val) == 4
    listing = tmp_path / f"{name}.txt"
    listing.write_text(f"{name}/{name}.png\n", encoding="utf-8")
    assert load_image(plain_images(listing).paths[0]).size == (24, 16)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_list_from_another_system_may_hold_any_name(tmp_path, encoding):
    listed = ["sep\u2028arator.png", "next\x85line.png", "form\x0cfeed.png", "é.png"]
    write_tree(tmp_path, *listed)
    listing = tmp_path / "list.txt"
    for end in ("\r\n", "\r"):
        listing.write_bytes(end.join([*listed, "", ""]).encode(encoding))
        assert [Path(path).name for path in plain_images(listing).paths] == listed
    listing.write_bytes("a.png\nTür.png\n".encode("latin-1"))
    with one_line_error(ValueError, listing, "line 2", "UTF-8"):
        plain_images(listing)


def test_ground_truth_may_have_the_line_ends_of_another_system(tmp_path):
    path = write_devkit(tmp_path, IDS, SMALL_TRUTH) / "ILSVRC2012_validation_ground_truth.txt"
    right = ground_truth(tmp_path, IDS)
    path.write_bytes(("\ufeff" + "\r\n".join(map(str, SMALL_TRUTH)) + "\r\n\r\n").encode())
    assert ground_truth(tmp_path, IDS) == right


def test_a_list_has_comments_blank_lines_and_paths_relative_to_itself(tmp_path, monkeypatch):
    write_tree(tmp_path, "photos/1.png", "lists/2.png")
    absolute = write_picture(tmp_path / "elsewhere" / "3.png")
    listing = tmp_path / "lists" / "some.txt"
    listing.write_text(f"# chosen by hand\n\n../photos/1.png\n  2.png  \n{absolute}\n")
    monkeypatch.chdir(tmp_path / "photos")
    images = plain_images(listing)
    assert [Path(path).name for path in images.paths] == ["1.png", "2.png", "3.png"]
    assert all(Path(path).is_file() for path in images.paths)
    assert images.labels.tolist() == [-1, -1, -1]


def test_wordnet_classes_ignore_the_rotation_tag_and_others_apply_it(tmp_path):
    benchmark = class_folders(write_tree(tmp_path / "i", *[f"{w}/1.png" for w in WNIDS]))
    own = class_folders(write_tree(tmp_path / "o", "cats/1.png", f"{WNIDS[0]}/1.png"))
    assert (benchmark.exif, own.exif) == (False, True)
    assert benchmark.with_exif("apply").exif and not own.with_exif("ignore").exif
    assert own.with_exif("auto").exif and not benchmark.with_exif("auto").exif


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.5, 0.9])
def test_what_is_held_out_against_a_loop(fraction):
    images = made_up_list()
    held_out = set()
    for label in range(len(images.classes)):
        members = [i for i, other in enumerate(images.labels) if other == label]
        members.sort(key=lambda i: zlib.crc32(os.path.relpath(images.paths[i], images.root).encode()))
        held_out |= set(members[: min(max(1, round(fraction * len(members))), len(members) - 1)])
    train, val = hold_out(images, fraction)
    assert val.paths == tuple(images.paths[i] for i in sorted(held_out))
    assert train.paths == tuple(path for i, path in enumerate(images.paths) if i not in held_out)


def test_class_names_that_sort_around_the_separator(tmp_path):
    classes = ["a", "a b", "a!", "a-b", "a.b", "a0", "a_b", "aé", "é", "A"]
    files = [f"{c}/{name}" for c in classes for name in ("2.png", "1.png", "deep-er/3.png", "deep/4.png")]
    write_empty(tmp_path, *files, "loose.png")
    found = class_folders(tmp_path)
    expected = [(name, sorted(str(p) for p in (tmp_path / name).rglob("*.png"))) for name in sorted(classes)]
    assert found.classes == tuple(name for name, _ in expected)
    assert found.paths == tuple(path for _, paths in expected for path in paths)
    assert found.labels.tolist() == [k for k, (_, paths) in enumerate(expected) for _ in paths]


def test_names_that_are_not_utf_8_or_hold_a_line_break_are_held_out_too(tmp_path):
    for raw in (b"a/caf\xe9.png", b"a/two\nlines.png", b"b\xff/1.png", b"b\xff/2.png"):
        path = os.path.join(os.fsencode(tmp_path), raw)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, "wb").close()
    train, val = labelled_images(tmp_path)
    assert len(train) == len(val) == 2
    assert all(os.path.isfile(path) for path in train.paths + val.paths)


# --- ImageNet's flat validation images

IDS = {1: "n03000000", 2: "n01000000", 3: "n02000000"}  # by number, not in the order of the classes
TRUTH = [3, 1, 1, 2, 3, 2]
LABELS = [1, 2, 2, 0, 1, 0]  # of TRUTH, among the sorted ids
CLASSES = ("n01000000", "n02000000", "n03000000")


def imagenet_tree(root, *, val="val", numbers=range(1, 7), train=CLASSES):
    write_devkit(root, IDS, TRUTH)
    write_empty(root / val, *[flat_name(n) for n in numbers])
    write_empty(root / "train", *[f"{w}/{w}_{n}.JPEG" for w in train for n in (1, 2)])
    return root


@pytest.mark.parametrize("val", ["val", "ILSVRC2012_img_val"])
@pytest.mark.parametrize("below", ["", "imagenet"])
def test_flat_validation_images_get_their_classes_from_the_devkit(tmp_path, val, below):
    root = imagenet_tree(tmp_path / below, val=val)
    train, found = labelled_images(tmp_path)
    assert found.paths == tuple(str(root / val / flat_name(n)) for n in range(1, 7))
    assert found.labels.tolist() == LABELS
    assert found.classes == train.classes == CLASSES
    assert not found.exif
    found = validation_images(tmp_path)
    assert found.labels.tolist() == LABELS


def test_of_a_partial_flat_folder_the_number_in_the_name_counts(tmp_path):
    _, val = labelled_images(imagenet_tree(tmp_path, numbers=[5, 2, 4]))
    assert [Path(path).name for path in val.paths] == [flat_name(n) for n in (2, 4, 5)]
    assert val.labels.tolist() == [LABELS[1], LABELS[3], LABELS[4]]


def test_both_layouts_agree(tmp_path):
    imagenet_tree(tmp_path / "flat")
    files = [f"val/{IDS[k]}/{flat_name(n)}" for n, k in enumerate(TRUTH, start=1)]
    folders = write_empty(imagenet_tree(tmp_path / "folders"), *files)
    for n in range(1, 7):
        (folders / "val" / flat_name(n)).unlink()
    flat, sorted_ = (validation_images(tmp_path / name) for name in ("flat", "folders"))
    as_pairs = [
        {(Path(p).name, each.classes[k]) for p, k in zip(each.paths, each.labels, strict=True)}
        for each in (flat, sorted_)
    ]
    assert as_pairs[0] == as_pairs[1] and flat.classes == sorted_.classes


def test_labels_are_those_of_training_even_if_it_has_other_classes_besides(tmp_path):
    root = imagenet_tree(tmp_path, train=("n00000001", "n01000000", "n02000000", "n02500000", "n03000000"))
    train, val = labelled_images(root)
    assert val.classes == train.classes
    assert [val.classes[k] for k in val.labels] == [IDS[k] for k in TRUTH]


def test_a_training_folder_may_lack_what_no_validation_image_shows(tmp_path):
    root = imagenet_tree(tmp_path, numbers=[1, 2, 3], train=("n02000000", "n03000000"))
    assert labelled_images(root)[1].labels.tolist() == [0, 1, 1]


def test_a_devkit_class_that_training_lacks_is_named(tmp_path):
    root = imagenet_tree(tmp_path, train=("n02000000", "n03000000"))
    with one_line_error(ValueError, "n01000000", tmp_path / "val", tmp_path / "train"):
        labelled_images(root)


def test_class_folders_and_flat_images_side_by_side_are_refused(tmp_path):
    write_empty(imagenet_tree(tmp_path), "val/n01000000/1.JPEG")
    with one_line_error(ValueError, tmp_path / "val", "n01000000", flat_name(1)):
        labelled_images(tmp_path)


def test_without_the_devkit_its_place_is_named(tmp_path):
    shutil.rmtree(imagenet_tree(tmp_path) / "ILSVRC2012_devkit_t12")
    with one_line_error(FileNotFoundError, tmp_path / "ILSVRC2012_devkit_t12" / "data" / "meta.mat"):
        labelled_images(tmp_path)


def test_flat_images_of_other_names_are_no_validation_images(tmp_path):
    write_empty(tmp_path, "train/a/1.png", "val/cat.png")
    with one_line_error(ValueError, "cat.png", "ILSVRC2012_val_", "class folder"):
        labelled_images(tmp_path)


@pytest.mark.parametrize("flat", [True, False])
def test_validation_images_alone_will_do_with_the_devkit(tmp_path, flat):
    write_devkit(tmp_path, IDS, TRUTH)
    write_empty(tmp_path / "val", *([flat_name(2)] if flat else ["n03000000/1.JPEG"]))
    val = validation_images(tmp_path)
    assert val.classes == CLASSES and val.labels.tolist() == [2]
    with one_line_error(ValueError, tmp_path, "no train "):
        labelled_images(tmp_path)


def test_validation_images_alone_without_the_devkit_are_refused(tmp_path):
    write_empty(tmp_path, "val/n03000000/1.JPEG")
    with one_line_error(FileNotFoundError, tmp_path / "ILSVRC2012_devkit_t12", "without train/"):
        validation_images(tmp_path)


def test_a_class_folder_that_the_devkit_lacks_is_named(tmp_path):
    write_devkit(tmp_path, IDS, TRUTH)
    write_empty(tmp_path, "val/stranger/1.JPEG")
    with one_line_error(ValueError, "stranger", tmp_path / "val", "devkit"):
        validation_images(tmp_path)


def test_validation_images_of_other_trees_are_those_of_labelled_images(tmp_path):
    write_empty(tmp_path / "whole", *[f"{c}/{n}.png" for c in "ab" for n in range(10)])
    write_empty(tmp_path / "split", "train/a/1.png", "train/b/1.png", "val/b/1.png")
    for root, options in [(tmp_path / "whole", {"val_fraction": 0.3}), (tmp_path / "split", {})]:
        expected, found = labelled_images(root, **options)[1], validation_images(root, **options)
        assert (found.paths, found.classes) == (expected.paths, expected.classes)
        assert found.labels.tolist() == expected.labels.tolist()


# --- What is wrong with a folder or a list


def test_a_missing_folder_is_named(tmp_path):
    for read in (labelled_images, class_folders, plain_images):
        with one_line_error(FileNotFoundError, tmp_path / "none"):
            read(tmp_path / "none")


def test_a_file_in_place_of_a_folder_is_named(tmp_path):
    with one_line_error(NotADirectoryError, tmp_path / "1.png"):
        labelled_images(write_picture(tmp_path / "1.png"))


def test_an_empty_folder_is_named(tmp_path):
    for read in (labelled_images, class_folders, plain_images):
        with one_line_error(ValueError, tmp_path):
            read(tmp_path)


def test_a_class_without_images_is_named(tmp_path):
    write_tree(tmp_path, "train/a/1.png", "val/a/1.png")
    (tmp_path / "train" / "empty").mkdir()
    with one_line_error(ValueError, tmp_path / "train" / "empty"):
        labelled_images(tmp_path)


@pytest.mark.parametrize(("there", "lacking"), [("train", "val"), ("val", "train")])
def test_a_split_without_the_other_is_named(tmp_path, there, lacking):
    write_tree(tmp_path, f"{there}/a/1.png", f"{there}/a/2.png")
    with one_line_error(ValueError, tmp_path, f"no {lacking} "):
        labelled_images(tmp_path)


def test_a_validation_class_that_training_lacks_is_named(tmp_path):
    write_tree(tmp_path, "train/a/1.png", "val/a/1.png", "val/stranger/1.png")
    with one_line_error(ValueError, "stranger", tmp_path / "val", tmp_path / "train"):
        labelled_images(tmp_path)


def test_a_class_of_one_image_cannot_be_split(tmp_path):
    write_tree(tmp_path, "a/1.png", "a/2.png", "lonely/1.png")
    with one_line_error(ValueError, "lonely", tmp_path):
        labelled_images(tmp_path)


def test_a_list_with_missing_files_names_the_first_and_counts_them(tmp_path):
    write_picture(tmp_path / "1.png")
    listing = tmp_path / "list.txt"
    listing.write_text("1.png\nlost.png\ngone.png\n")
    with one_line_error(FileNotFoundError, listing, tmp_path / "lost.png", "2 missing"):
        plain_images(listing)


def test_an_empty_list_is_named(tmp_path):
    listing = tmp_path / "list.txt"
    listing.write_text("# nothing yet\n\n")
    with one_line_error(ValueError, listing):
        plain_images(listing)


def test_an_image_in_place_of_a_list_is_named(tmp_path):
    with one_line_error(ValueError, tmp_path / "1.png"):
        plain_images(write_picture(tmp_path / "1.png"))


@pytest.mark.parametrize("name", ["a\nb", "a\u2028b", os.fsdecode(b"caf\xe9"), "\u202egpj", "\x1b[31m"])
def test_any_name_of_the_data_s_own_folder_is_printable_in_errors(tmp_path, name):
    root = tmp_path / name
    write_empty(root, "one/c/1.jpg", "one/c/2.jpg", "val only/val/c/1.jpg", "kinds/1.txt")
    write_empty(
        root, "mixed/train/a/1.jpg", "mixed/train/b/1.jpg", "mixed/val/a/1.jpg", f"mixed/val/{name}.jpg"
    )
    (root / "list").write_text("gone.jpg")
    assert len(plain_images(root / "one")) == 2
    for reader in (labelled_images, validation_images, plain_images, class_folders):
        for below in ("one", "val only", "kinds", "mixed", "gone", "list"):
            try:
                reader(root / below)
            except (ValueError, OSError) as error:
                assert str(error).isprintable(), str(error)


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("training_set", "test_set"),
        ("Train Images", "val-images"),
        ("trainset", "testset"),
        ("train ", "val "),
    ],
)
def test_words_may_stand_beside_the_name_of_a_split(tmp_path, train, val):
    write_empty(tmp_path, *(f"{split}/{name}/1.jpg" for split in (train, val) for name in "ab"))
    found = labelled_images(tmp_path)
    assert [images.root.name for images in found] == [train, val] and found[0].classes == ("a", "b")


def test_the_name_of_a_split_alone_goes_before_one_with_words(tmp_path):
    write_empty(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/b/1.jpg", "val_images/1.jpg")
    assert [images.root.name for images in labelled_images(tmp_path)] == ["train", "val"]


def test_a_line_counts_the_classes_without_validation_images(tmp_path, capsys):
    write_empty(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/b/2.jpg")
    assert labelled_images(tmp_path)[1].classes == ("a", "b")
    assert "val has no images of 1 of 2 classes (a)" in capsys.readouterr().out


def test_classes_that_are_called_like_splits_are_said(tmp_path, capsys):
    write_empty(
        tmp_path, *(f"seg_{split}/seg_{split}/a/{k}.jpg" for split in ("train", "test") for k in (1, 2))
    )
    assert labelled_images(tmp_path)[0].classes == ("seg_test", "seg_train")
    assert "seg_test, seg_train" in capsys.readouterr().out
