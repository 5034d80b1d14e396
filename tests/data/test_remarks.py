"""What was left out is counted by kind, and what looks like something else is said in a line."""

import os
import shutil

import pytest
from support import one_line_error, write_empty, write_picture, write_tree

from mgkit.data import folders
from mgkit.data.folders import image_index
from mgkit.data.layouts import class_folders, labelled_images, plain_images, validation_images
from mgkit.photos.folder import find_photos


def said(capsys):
    return capsys.readouterr().out


def classes(*names, count=3):
    return [f"{name}/{number}.jpg" for name in names for number in range(count)]


@pytest.fixture
def phone(tmp_path):
    others = ["cat/1.jxl", "cat/2.JXL", "dog/deep/3.mov", "dog/notes.txt", "Thumbs.db", "cat/.x.jxl"]
    return write_empty(tmp_path / "phone", *classes("cat", "dog"), *others)


def test_every_suffix_of_a_format_that_is_read_is_found(tmp_path):
    suffixes = sorted(folders.IMAGE_SUFFIXES)
    assert {".jfif", ".jpe", ".avif", ".jp2", ".pnm", ".mpo"} <= set(suffixes)
    write_empty(tmp_path, *(f"a/1{suffix.upper()}" for suffix in suffixes))
    assert len(class_folders(tmp_path)) == len(suffixes)
    assert not folders.IMAGE_SUFFIXES & folders.UNREAD_SUFFIXES


@pytest.mark.parametrize("read", [class_folders, plain_images, labelled_images])
def test_pictures_that_are_not_read_are_counted_in_one_line_said_once(phone, capsys, read):
    read(phone)
    out = said(capsys)
    assert out.count("\n") == 1 and str(phone) in out
    assert "3 files of other kinds (.jxl 2, .mov 1) were left out" in out
    read(phone)
    assert not said(capsys)
    words = find_photos([phone], side=16).describe()
    assert "5 files of other kinds (.jxl 2, " in words


def test_a_kept_index_remembers_what_was_left_out(phone, monkeypatch, tmp_path):
    monkeypatch.setattr(folders, "project_root", lambda: tmp_path / "project")
    monkeypatch.setattr(folders, "WORTH_KEEPING", 1)
    monkeypatch.setattr(folders, "SETTLED_NS", -(10**12))
    os.mkfifo(phone / "cat" / "pipe.jpg")
    first = image_index(phone)
    monkeypatch.setattr(folders, "scan", None)
    assert image_index(phone).left_out == first.left_out == {".jxl": 2, ".mov": 1, folders.NO_FILE: 1}


def test_a_class_or_folder_of_other_files_only_says_which_there_are(tmp_path):
    write_empty(tmp_path, *classes("cat"), "dog/1.jxl", "dog/in/2.jxl", "dog/x.txt")
    with one_line_error(ValueError, tmp_path / "dog", "3 files of other kinds (.jxl 2, .txt 1)"):
        class_folders(tmp_path)
    with one_line_error(ValueError, tmp_path / "dog", "3 files of other kinds (.jxl 2, .txt 1)"):
        plain_images(tmp_path / "dog")


def test_folders_of_systems_are_no_classes(tmp_path, capsys):
    write_empty(tmp_path, *classes("cat", "dog"), "__MACOSX/1.jpg", "@eaDir/1.jpg", "cat/@eaDir/1.jpg")
    found = class_folders(tmp_path)
    assert found.classes == ("cat", "dog") and len(found) == 6 and not said(capsys)


def test_names_that_are_not_utf_8_are_said_too(tmp_path, capsys):
    root = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        write_empty(root, *classes("cat", "dog"), "cat/1.jxl")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    class_folders(root)
    assert said(capsys).encode().count(b"caf\\xe9") == 1


# --- Splits and trees


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("Train", "Val"),
        ("TRAIN", "VALID"),
        ("training", "validation"),
        ("train", "valid"),
        ("Training", "val"),
    ]
    + [("train", "test"), ("Train", "Testing")],
)
def test_splits_in_other_spellings(tmp_path, capsys, train, val):
    write_empty(tmp_path, *classes(f"{train}/cat", f"{train}/dog"), *classes(f"{val}/dog", count=1))
    found, held_out = labelled_images(tmp_path)
    assert found.classes == held_out.classes == ("cat", "dog")
    assert (len(found), len(held_out), len(validation_images(tmp_path))) == (6, 1, 1)
    assert ("is taken for validation" in said(capsys)) == val.lower().startswith("test")


def test_a_test_folder_beside_val_or_without_classes_is_not_the_validation_set(tmp_path):
    write_empty(tmp_path, *classes("train/cat", "train/dog", "val/dog"), "test/1.jpg", "test/2.jpg")
    assert len(labelled_images(tmp_path)[1]) == 3
    shutil.rmtree(tmp_path / "val")
    with one_line_error(ValueError, tmp_path, "no val "):
        labelled_images(tmp_path)


@pytest.mark.parametrize("two", [("train", "training"), ("val", "Validation")])
def test_two_spellings_side_by_side_are_refused(tmp_path, two):
    write_empty(tmp_path, *classes("train/cat", "train/dog", "val/cat", *(f"{name}/cat" for name in two)))
    with one_line_error(ValueError, tmp_path, *two, "expected one of them"):
        labelled_images(tmp_path)


@pytest.mark.parametrize("around", ["a", "a/b"])
@pytest.mark.parametrize("splits", [True, False])
def test_a_folder_around_the_tree_is_passed_through_with_a_line(tmp_path, capsys, around, splits):
    parts = [f"{around}/{part}" for part in (("train/", "val/") if splits else ("",))]
    write_empty(tmp_path, *classes(*(f"{part}{name}" for part in parts for name in ("cat", "dog"))))
    train, val = labelled_images(tmp_path)
    assert train.classes == val.classes == ("cat", "dog")
    assert f"holds nothing but {tmp_path / around}" in said(capsys)


def test_train_may_be_a_vehicle(tmp_path):
    write_empty(tmp_path, *classes("bus", "car", "train"))
    train, _ = labelled_images(tmp_path)
    assert train.classes == ("bus", "car", "train")


def test_one_class_is_refused(tmp_path):
    write_empty(tmp_path / "a", *classes("cat"))
    write_empty(tmp_path / "b", *classes("train/cat", "val/cat"))
    for name in "ab":
        with one_line_error(ValueError, tmp_path / name, "one class only (cat)"):
            labelled_images(tmp_path / name)


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (classes("Cat", "cat"), "the classes Cat and cat"),
        (classes("a/train", "a/val", "b/train", "b/val"), "hold the same folders (train, val)"),
        (classes("images", "masks"), "looks like images with annotations"),
        ([*classes("cat", "dog"), "1.jpg", "2.jpg"], "2 images outside the sub-folders are ignored"),
        (classes("cat/in", "dog"), ""),
        (classes("a/x", "b/x"), ""),
    ],
)
def test_what_does_not_look_like_classes_is_said(tmp_path, capsys, names, line):
    write_empty(tmp_path, *names)
    if len(os.listdir(tmp_path)) < 2:
        pytest.skip("this file system does not tell upper from lower case")
    class_folders(tmp_path)
    out = said(capsys)
    assert line in out and out.count("\n") == bool(line)


def test_images_in_both_splits_are_said(tmp_path, capsys):
    write_tree(tmp_path, "train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "val/dog/4.png")
    labelled_images(tmp_path)
    assert not said(capsys)
    shutil.copy(write_picture(tmp_path / "train" / "dog" / "same.png", seed=9), tmp_path / "val" / "dog")
    labelled_images(tmp_path)
    assert "hold the same image" in (out := said(capsys)) and os.path.join("dog", "same.png") in out
