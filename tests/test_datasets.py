"""Image lists of every layout, odd image files, and samples that depend on nothing but their index and seed."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import noise, one_line_error, write_picture, write_tree

from mgkit import datasets
from mgkit.datasets import (
    ImageDataset,
    SeededBatches,
    UnreadableImageError,
    UnreadableImages,
    batch_loader,
    class_folders,
    image_shapes,
    labelled_images,
    load_image,
    plain_images,
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
    walk = datasets.os.walk
    first = [names(part) for part in labelled_images(here, val_fraction=0.3)]

    def backwards(*args, **options):
        for parent, folders, found in walk(*args, **options):
            yield parent, folders, found[::-1]

    monkeypatch.setattr(datasets.os, "walk", backwards)
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


@pytest.mark.parametrize("exif", ["apply", "ignore"])
@pytest.mark.parametrize("orientation", range(10))  # 0 and 9 are no orientations but occur
def test_shapes_from_the_headers_are_those_of_the_loaded_images(tmp_path, orientation, exif):
    rotated_file(tmp_path / "turned.jpg", orientation)
    images = plain_images(tmp_path).with_exif(exif)
    assert image_shapes(images) == [load_image(images.paths[0], exif=images.exif).size]


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
