"""Image lists of every layout, odd image files, and samples that depend on nothing but their index and seed."""

import hashlib
import os
import shutil
import signal
import time
import zlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import (
    flat_name,
    list_backwards,
    noise,
    one_line_error,
    write_devkit,
    write_empty,
    write_picture,
    write_tree,
)

from mgkit import datasets
from mgkit.datasets import (
    ImageDataset,
    ImageList,
    SeededBatches,
    UnreadableImageError,
    UnreadableImages,
    View,
    batch_loader,
    class_folders,
    end_workers,
    evenly,
    hold_out,
    image_shapes,
    labelled_images,
    list_hash,
    load_image,
    plain_images,
    validation_images,
)
from mgkit.transforms import eval_transform, train_transform

WNIDS = ("n01440764", "n01443537")


def names(images):
    """Paths relative to the list's root, with class names."""
    root = Path(images.root).resolve()
    return [
        (str(Path(path).relative_to(root)), images.classes[label])
        for path, label in zip(images.paths, images.labels, strict=True)
    ]


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


def test_the_first_images_of_every_class(tmp_path):
    write_tree(tmp_path, "a/1.png", "a/2.png", "a/3.png", "b/1.png")
    assert names(class_folders(tmp_path).first_per_class(2)) == [
        ("a/1.png", "a"),
        ("a/2.png", "a"),
        ("b/1.png", "b"),
    ]


@pytest.mark.parametrize("count", [0, 1, 3, 100])
def test_the_first_of_every_class_against_a_loop(count):
    images = made_up_list()
    taken = []
    for index, label in enumerate(images.labels):
        if sum(images.labels[i] == label for i in taken) < count:
            taken.append(index)
    found = images.first_per_class(count)
    assert found.paths == tuple(images.paths[i] for i in taken)
    assert found.labels.tolist() == images.labels[taken].tolist()


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


def made_up_list():
    """200 images of five classes, mixed, of unequal numbers; some have equal hashes."""
    labels = np.random.default_rng(0).choice(5, size=200, p=[0.4, 0.3, 0.2, 0.05, 0.05])
    paths = tuple(f"/photos/{i // 2 if i > 150 else i}é.png" for i in range(200))
    return ImageList(Path("/photos"), paths, labels, tuple("abcde"))


@pytest.mark.parametrize("kind", [list, np.array, iter])
@pytest.mark.parametrize("chosen", [[3, 0, 3], []])
def test_a_subset_is_in_the_order_asked(chosen, kind):
    images = made_up_list()
    found = images.subset(kind(chosen))
    assert found.paths == tuple(images.paths[i] for i in chosen)
    assert found.labels.tolist() == [images.labels[i] for i in chosen]


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


# --- Odd image files

WHITE, RED = (255, 255, 255), (255, 0, 0)


def palette(colours, **info):
    image = Image.new("P", (24, 16), 0)
    image.putpalette([value for colour in colours for value in colour])
    image.info.update(info)
    return image


ODD = {
    "grey.jpg": (Image.new("L", (24, 16), 100), (100, 100, 100)),
    "bilevel.png": (Image.new("1", (24, 16), 1), WHITE),
    "grey_alpha.png": (Image.new("LA", (24, 16), (100, 0)), WHITE),
    "grey_opaque.png": (Image.new("LA", (24, 16), (100, 255)), (100, 100, 100)),
    "cmyk.jpg": (Image.new("CMYK", (24, 16), (0, 255, 255, 0)), RED),
    "palette.gif": (palette([RED, WHITE]), RED),
    "palette_transparent.png": (palette([RED, RED], transparency=0), WHITE),
    "sixteen_bits.png": (Image.fromarray(np.full((16, 24), 128 * 257, np.uint16)), (128, 128, 128)),
    "transparent.png": (Image.new("RGBA", (24, 16), (0, 0, 0, 0)), WHITE),
    "half_transparent.png": (Image.new("RGBA", (24, 16), (0, 0, 0, 128)), (127, 127, 127)),
    "opaque.png": (Image.new("RGBA", (24, 16), (255, 0, 0, 255)), RED),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_modes_load_as_rgb_in_their_colours(tmp_path, name):
    image, colour = ODD[name]
    image.save(tmp_path / name)
    loaded = load_image(tmp_path / name)
    assert (loaded.mode, loaded.size) == ("RGB", (24, 16))
    assert np.abs(np.asarray(loaded).astype(int) - colour).max() <= 3


def rotated_file(path, orientation):
    """The left third is red, the rest blue, stored with a rotation tag."""
    image = Image.new("RGB", (24, 16), (0, 0, 255))
    image.paste(RED, (0, 0, 8, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, quality=95)
    return path


RED_SIDE = {1: "left", 2: "right", 3: "right", 4: "left", 5: "top", 6: "top", 7: "bottom", 8: "bottom"}


def red_side(image):
    width, height = image.size
    middles = {
        "left": (1, height // 2),
        "right": (width - 2, height // 2),
        "top": (width // 2, 1),
        "bottom": (width // 2, height - 2),
    }
    [side] = [side for side, at in middles.items() if image.getpixel(at)[0] > 128]
    return side


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_rotation_tag_is_applied_when_asked_and_only_then(tmp_path, orientation):
    path = rotated_file(tmp_path / "turned.jpg", orientation)
    assert load_image(path).size == (24, 16)
    assert red_side(load_image(path)) == "left"
    assert load_image(path, exif=True).size == ((24, 16) if orientation < 5 else (16, 24))
    assert red_side(load_image(path, exif=True)) == RED_SIDE[orientation]


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("exif", ["apply", "ignore"])
@pytest.mark.parametrize("orientation", range(10))  # 0 and 9 are no orientations but occur
def test_shapes_from_the_headers_are_those_of_the_loaded_images(tmp_path, orientation, exif, suffix):
    rotated_file(tmp_path / f"turned.{suffix}", orientation)
    images = plain_images(tmp_path).with_exif(exif)
    size = load_image(images.paths[0], exif=images.exif).size
    # A TIFF is turned in any case.
    turned = orientation in (5, 6, 7, 8) and (exif == "apply" or suffix == "tif")
    assert image_shapes(images) == [size] == [(16, 24) if turned else (24, 16)]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_once_whether_asked_or_not(tmp_path, orientation):
    path = rotated_file(tmp_path / "turned.tif", orientation)
    for exif in (True, False):
        assert red_side(load_image(path, exif=exif)) == RED_SIDE[orientation]


def broken_file(path, kind):
    """A file that looks like an image by its name alone."""
    write_picture(path, size=(64, 64))
    content = path.read_bytes()
    path.write_bytes(
        {"truncated": content[: len(content) // 2], "empty": b"", "text": b"<html>\n</html>\n"}[kind]
    )
    return path


BROKEN = [
    (suffix, kind) for suffix in ("jpg", "png", "gif", "bmp") for kind in ("truncated", "empty", "text")
]


@pytest.mark.parametrize(("suffix", "kind"), BROKEN)
def test_an_unreadable_image_is_named_in_one_line(tmp_path, suffix, kind):
    path = broken_file(tmp_path / f"broken.{suffix}", kind)
    with one_line_error(UnreadableImageError, path):
        load_image(path)
    assert len(image_shapes(plain_images(tmp_path))) == 1


def test_a_missing_image_is_named_in_one_line(tmp_path):
    with one_line_error(UnreadableImageError, tmp_path / "none.jpg"):
        load_image(tmp_path / "none.jpg")


@pytest.mark.parametrize("cut", range(0, 700, 23))
def test_a_jpeg_cut_anywhere_gives_an_image_or_that_error(tmp_path, cut):
    path = tmp_path / "cut.jpg"
    noise(1, (16, 16)).save(path)
    path.write_bytes(path.read_bytes()[:cut])
    with one_line_error(UnreadableImageError, path):
        load_image(path, exif=True)


# --- Views


@pytest.mark.parametrize(("turned", "side"), [(0, "left"), (90, "top"), (180, "right"), (270, "bottom")])
def test_a_view_turns_clockwise_and_loses_nothing(tmp_path, turned, side):
    path = write_picture(tmp_path / "noise.png", size=(25, 16))
    pixels = np.asarray(load_image(path))
    assert np.array_equal(load_image(path, view=View(turned)), np.rot90(pixels, -turned // 90))
    assert red_side(load_image(rotated_file(tmp_path / "red.jpg", 1), view=View(turned))) == side


def test_the_rotation_tag_comes_first_then_the_turn_then_the_box(tmp_path):
    path = rotated_file(tmp_path / "tagged.jpg", 6)  # red on top once the tag is applied
    turned = load_image(path, exif=True, view=View(90))
    assert (turned.size, red_side(turned)) == ((24, 16), "right")
    cropped = load_image(path, exif=True, view=View(90, box=(14, 2, 24, 10)))
    assert np.array_equal(cropped, np.asarray(turned)[2:10, 14:24])


def test_a_thumbnail_needs_no_whole_decoding(tmp_path):
    path = write_picture(tmp_path / "large.jpg", size=(800, 480))
    assert load_image(path).size == (800, 480)
    assert load_image(path, least=100).size == (
        200,
        120,
    )  # the smallest of 1/1, 1/2, 1/4, 1/8 with sides >= 100
    assert load_image(path, least=500).size == (800, 480)
    assert load_image(rotated_file(tmp_path / "red.jpg", 6), exif=True, least=1).size[0] > 0
    boxed = View(box=(100, 0, 500, 400))
    assert np.array_equal(load_image(path, view=boxed, least=50), load_image(path, view=boxed))
    png = write_picture(tmp_path / "large.png", size=(800, 480))
    assert load_image(png, least=50).size == (800, 480)


def test_a_box_is_rounded_and_black_outside_the_image(tmp_path):
    path = write_picture(tmp_path / "noise.png")
    pixels = np.asarray(load_image(path))  # [16,24,3]
    assert np.array_equal(load_image(path, view=View(box=(3.4, 0.6, 11.6, 9.5))), pixels[1:10, 3:12])
    beyond = np.asarray(load_image(path, view=View(box=(20.0, -2.0, 30.0, 4.0))))  # [6,10,3]
    assert (
        np.array_equal(beyond[2:, :4], pixels[:4, 20:]) and not beyond[:2].any() and not beyond[:, 4:].any()
    )


@pytest.mark.parametrize(
    "box", [(24, 0, 30, 10), (-9, 0, 0, 10), (0, 16, 5, 20), (5, 5, 5.4, 9), (9, 5, 2, 9), (0, 0, 6e4, 6e4)]
)
def test_a_box_that_shows_nothing_or_far_too_much_is_an_error_that_names_the_file(tmp_path, box):
    path = write_picture(tmp_path / "noise.png")
    with one_line_error(UnreadableImageError, path):
        load_image(path, view=View(box=box))
    assert len(image_shapes(replace(plain_images(tmp_path), views={0: View(box=box)}))) == 1


VIEWS = [
    View(turned, box)
    for turned in (0, 90, 180, 270)
    for box in (None, (1.5, 2.5, 13.2, 14.0), (10, 8, 99, 20))
]


@pytest.mark.parametrize("exif", ["apply", "ignore"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_shapes_of_views_are_those_of_the_loaded_images(tmp_path, orientation, exif):
    path = str(rotated_file(tmp_path / "turned.jpg", orientation))
    images = ImageList(
        tmp_path, (path,) * len(VIEWS), np.zeros(len(VIEWS), int), views=dict(enumerate(VIEWS))
    )
    images = images.with_exif(exif)
    assert image_shapes(images) == [images.load(i).size for i in range(len(VIEWS))]
    assert len(set(image_shapes(images))) == 4


def test_shapes_of_views_come_from_the_headers(tmp_path):
    path = broken_file(tmp_path / "broken.jpg", "truncated")  # 64 x 64, and cannot be decoded
    images = ImageList(tmp_path, (str(path),), np.zeros(1, int), views={0: View(90, (0, 0, 10, 20))})
    assert image_shapes(images) == [(10, 20)]


def test_views_stay_with_their_images(tmp_path):
    paths = tuple(str(write_picture(tmp_path / f"{n}.png", seed=n)) for n in range(4))
    views = {1: View(90), 3: View(box=(0, 0, 5, 6))}
    images = ImageList(tmp_path, paths, np.full(4, -1), views=views)
    assert images.subset([3, 0, 1, 1]).views == {0: views[3], 2: views[1], 3: views[1]}
    assert images.with_exif("apply").views == views
    assert plain_images(tmp_path).subset([0, 1]).views == {}


def test_samples_are_of_the_view_and_one_file_may_be_there_whole_and_cropped(tmp_path):
    path = str(write_picture(tmp_path / "noise.png"))
    images = ImageList(tmp_path, (path, path), np.zeros(2, int), views={1: View(box=(0, 0, 5, 6))})
    dataset = ImageDataset(images, np.asarray)
    [whole, *_], [part, *_] = dataset[0], dataset[1]
    assert whole.shape == (16, 24, 3) and np.array_equal(part, whole[:6, :5])
    for (sample, _, index), expected in zip(
        dataset.__getitems__([(0, 1), (1, 2)]), (whole, part), strict=True
    ):
        assert np.array_equal(sample, expected), index


# --- Samples

BATCHES = [[0, 0, 0, 1], [1, 1, 2, 2], [2, 3]]
OTHER_BATCHES = [[0, 0], [0, 1, 1, 1, 2, 2], [2], [3]]


@pytest.fixture
def images(tmp_path):
    return class_folders(write_tree(tmp_path / "four", "a/0.png", "a/1.png", "b/0.png", "b/1.png"))


def samples(images, batches, workers=0, seed=3):
    dataset = ImageDataset(images, train_transform(16, "full"))
    parts = list(batch_loader(dataset, SeededBatches(batches, seed), workers=workers))
    return tuple(torch.cat(column) for column in list(zip(*parts, strict=True))[:3])


@pytest.mark.parametrize("workers", [1, 2])
def test_samples_do_not_depend_on_the_number_of_workers(images, workers):
    for alone, parallel in zip(samples(images, BATCHES), samples(images, BATCHES, workers), strict=True):
        assert torch.equal(alone, parallel)


def test_samples_do_not_depend_on_the_batch_they_came_in(images):
    for one, other in zip(samples(images, BATCHES), samples(images, OTHER_BATCHES), strict=True):
        assert torch.equal(one, other)


def test_copies_of_an_image_differ_and_another_seed_gives_others(images):
    pictures, labels, instances = samples(images, BATCHES)
    assert not torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures, samples(images, BATCHES, seed=4)[0])
    assert instances.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    assert labels.tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1, 1]


def test_another_epoch_gives_other_augmentations(images):
    dataset, batches = ImageDataset(images, train_transform(16, "full")), SeededBatches(BATCHES)
    first = next(iter(batch_loader(dataset, batches))).image
    batches.epoch = 1
    assert not torch.equal(first, next(iter(batch_loader(dataset, batches))).image)


def test_drawing_samples_leaves_the_global_random_state_alone(images):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    ImageDataset(images, train_transform(16, "full")).__getitems__([(0, 1), (1, 2)])
    assert torch.equal(torch.get_rng_state(), state)


def test_copies_side_by_side_are_decoded_once(images, monkeypatch):
    decoded = []
    load = datasets.load_image
    monkeypatch.setattr(
        datasets, "load_image", lambda path, **options: decoded.append(path) or load(path, **options)
    )
    dataset = ImageDataset(images, train_transform(16))
    assert len(dataset.__getitems__([(i, seed) for i in (2, 0) for seed in range(3)])) == 6
    assert decoded == [images.paths[2], images.paths[0]]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_copy_is_what_its_seed_alone_draws_from_a_fresh_decoding(images, workers):
    transform, batches = train_transform(16, "full"), SeededBatches(BATCHES)
    pairs = [pair for batch in batches for pair in batch]
    loader = batch_loader(ImageDataset(images, transform), batches, workers=workers)
    for view, (index, seed) in zip(torch.cat([batch.image for batch in loader]), pairs, strict=True):
        torch.manual_seed(seed)
        assert torch.equal(view, transform(images.load(index)))


def test_an_item_is_image_label_and_instance(images):
    image, label, instance = ImageDataset(images, eval_transform(16))[3]
    assert (tuple(image.shape), label, instance) == ((3, 16, 16), 1, 3)


# --- Unreadable images


@pytest.fixture
def broken(images):
    """The list, whose image 1 is truncated."""
    broken_file(Path(images.paths[1]), "truncated")
    return images


def watched(images, batches, unreadable, workers=0):
    loader = batch_loader(ImageDataset(images, eval_transform(16)), SeededBatches(batches), workers=workers)
    return list(unreadable.watch(loader))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_stops_the_work_and_is_named(broken, workers):
    with one_line_error(UnreadableImageError, broken.paths[1], "skip"):
        watched(broken, BATCHES, UnreadableImages("raise"), workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_images_are_counted_and_listed_once(broken, workers, capsys):
    unreadable = UnreadableImages("skip")
    batches = watched(broken, BATCHES, unreadable, workers)
    assert [batch.instance.tolist() for batch in batches] == [[0, 0, 0], [2, 2], [2, 3]]
    assert all(len(batch.image) == len(batch.label) for batch in batches)
    unreadable.report()
    printed = capsys.readouterr().out
    assert list(unreadable.reasons) == [broken.paths[1]]
    assert "skipped 1 " in printed and printed.count(broken.paths[1]) == 1


def test_a_batch_without_a_readable_image_is_left_out(broken):
    batches = watched(broken, [[1, 1], [0, 2], [1]], UnreadableImages("skip"))
    assert [batch.instance.tolist() for batch in batches] == [[0, 2]]


def test_nothing_is_reported_where_all_was_readable(images, capsys):
    unreadable = UnreadableImages("skip")
    watched(images, BATCHES, unreadable)
    unreadable.report()
    assert capsys.readouterr().out == ""


def test_a_copied_tree_gives_the_same_list(images, tmp_path):
    shutil.copytree(images.root, tmp_path / "copy")
    assert names(class_folders(tmp_path / "copy")) == names(images)


def test_skipping_every_image_is_an_error_that_names_one(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_text("not a picture")
    dataset = ImageDataset(plain_images(tmp_path), eval_transform(16))
    loader = batch_loader(dataset, SeededBatches([[0, 1], [2]]))
    with pytest.raises(UnreadableImageError, match=r"none of 3 images is readable: .*0\.jpg"):
        list(UnreadableImages("skip").watch(loader))


# --- The hash of a list


def test_the_hash_of_a_list_is_of_names_below_root_and_labels(tmp_path):
    images = class_folders(write_empty(tmp_path / "here", "a/1.jpg", "a/2.jpg", "b/é.jpg"))
    names = "a/1.jpg\0a/2.jpg\0b/é.jpg\0".encode()
    labels = b"".join(label.to_bytes(8, "little") for label in (0, 0, 1))
    assert list_hash(images) == hashlib.sha256(names + labels).hexdigest()


def test_the_hash_of_a_list_does_not_tell_where_it_lies(tmp_path, monkeypatch):
    files = ("a/1.jpg", "a/2.jpg", "b/1.jpg")
    hashes = {list_hash(class_folders(write_empty(tmp_path / name, *files))) for name in ("one", "two")}
    (tmp_path / "link").symlink_to(tmp_path / "one")
    monkeypatch.chdir(tmp_path)
    hashes |= {list_hash(class_folders(root)) for root in ("one", "link")}
    assert len(hashes) == 1


def test_the_hash_of_a_list_tells_other_names_orders_and_labels_apart(tmp_path):
    images = class_folders(write_empty(tmp_path, "a/1.jpg", "a/2.jpg", "b/1.jpg"))
    others = [
        images.subset([0, 1]),
        images.subset([1, 0, 2]),
        replace(images, labels=np.array([0, 1, 1])),
        replace(images, paths=(*images.paths[:2], str(tmp_path / "b" / "2.jpg"))),
        replace(images, paths=(), labels=images.labels[:0]),
    ]
    assert len({list_hash(each) for each in [images, *others]}) == 6


def test_the_hash_of_a_text_file_s_list_is_of_names_beside_it(tmp_path):
    for name in ("one", "two"):
        write_empty(tmp_path / name, "a.jpg", "more/b.jpg")
        (tmp_path / name / "list.txt").write_text("a.jpg\nmore/b.jpg\n")
    hashes = {list_hash(plain_images(tmp_path / name / "list.txt")) for name in ("one", "two")}
    (tmp_path / "two" / "list.txt").write_text(
        "a.jpg\n../one/more/b.jpg\n"
    )  # elsewhere: its whole path counts
    assert len(hashes) == 1 and list_hash(plain_images(tmp_path / "two" / "list.txt")) not in hashes


def test_a_name_that_is_no_text_has_a_hash(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path.resolve()) + b"/\xff.jpg")
    assert list_hash(ImageList(tmp_path, (path,), np.array([0]), ("a",)))


def test_the_hash_of_imagenet_s_list_takes_no_time_and_no_file(tmp_path):
    paths = tuple(f"{tmp_path}/n{i // 1300:08d}/n{i // 1300:08d}_{i}.JPEG" for i in range(1_281_167))
    images = ImageList(tmp_path, paths, np.arange(len(paths)) // 1300, ("a",) * 986)
    started = time.process_time()
    list_hash(images)
    assert time.process_time() - started < 2


@pytest.mark.skipif(not hasattr(signal, "alarm"), reason="needs an alarm")
def test_a_loader_goes_on_after_sigterm_and_ends_in_the_end(uneven_images, monkeypatch):
    monkeypatch.setattr(datasets, "SECONDS_TO_SAVE", 2)
    dataset = ImageDataset(uneven_images, train_transform(16, "full"))
    loader = batch_loader(dataset, SeededBatches([[i] for i in range(24)]), workers=1)
    batches = iter(loader)
    next(batches)
    [worker] = loader._iterator._workers
    worker.terminate()
    assert len(list(batches)) == 23 and worker.is_alive()
    time.sleep(1)
    assert worker.is_alive()
    with suppress(RuntimeError):  # of torch's, which watches over loaders that are still needed
        worker.join(10)
    worker.join(10)
    assert worker.exitcode == -signal.SIGALRM


def test_the_processes_of_a_loader_can_be_ended_in_the_midst_of_its_work(uneven_images):
    dataset = ImageDataset(uneven_images, train_transform(16, "full"))
    loader = batch_loader(dataset, SeededBatches([[i] for i in range(24)]), workers=2)
    batches = iter(loader)
    next(batches)
    workers = loader._iterator._workers
    began = time.monotonic()
    end_workers(loader)
    assert time.monotonic() - began < 4 and not any(worker.is_alive() for worker in workers)
    end_workers(batch_loader(dataset, SeededBatches([[0]])))  # one that has none


def slowly(image):
    time.sleep(3)


def test_a_reading_process_that_hangs_is_an_error(uneven_images, monkeypatch):
    monkeypatch.setattr(datasets, "SECONDS_FOR_A_BATCH", 1)
    loader = batch_loader(ImageDataset(uneven_images, slowly), SeededBatches([[0]]), workers=1)
    with pytest.raises(RuntimeError, match="timed out"):
        next(iter(loader))


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [(10, 3, [0, 4, 9]), (5, 5, [0, 1, 2, 3, 4]), (3, 7, [0, 1, 2]), (4, 1, [0]), (1, 3, [0]), (0, 3, []), (4, 0, [])],
)  # fmt: skip
def test_indices_are_spread_evenly(total, count, expected):
    assert evenly(total, count).tolist() == expected
