"""Lists of images: subsets, hashes, shapes from file headers."""

import hashlib
import os
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
from support import broken_file, made_up_list, names, rotated_file, write_empty, write_picture, write_tree

from mgkit.data.decoding import View, load_image
from mgkit.data.images import ImageList, evenly, files_hash, fingerprints, image_shapes, list_hash
from mgkit.data.layouts import class_folders, plain_images


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


@pytest.mark.parametrize("kind", [list, np.array, iter])
@pytest.mark.parametrize("chosen", [[3, 0, 3], []])
def test_a_subset_is_in_the_order_asked(chosen, kind):
    images = made_up_list()
    found = images.subset(kind(chosen))
    assert found.paths == tuple(images.paths[i] for i in chosen)
    assert found.labels.tolist() == [images.labels[i] for i in chosen]


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


def test_a_copied_tree_gives_the_same_list(images, tmp_path):
    shutil.copytree(images.root, tmp_path / "copy")
    assert names(class_folders(tmp_path / "copy")) == names(images)


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


def test_the_hash_of_a_long_list_takes_little_time_and_no_file(tmp_path):
    paths = tuple(f"{tmp_path}/n{i // 1300:08d}/n{i // 1300:08d}_{i}.JPEG" for i in range(200_000))
    images = ImageList(tmp_path, paths, np.arange(len(paths)) // 1300, ("a",) * 154)
    started = time.process_time()
    list_hash(images)
    assert time.process_time() - started < 10  # seconds; for each image anew it would be minutes


def test_the_hash_of_several_lists_is_that_of_each(tmp_path):
    images = class_folders(write_empty(tmp_path, "a/1.jpg", "a/2.jpg", "b/1.jpg"))
    first, second = images.subset([0, 2]), images.subset([1])
    assert list_hash(first, second) == f"{list_hash(first)}-{list_hash(second)}"


# --- The state of files


def test_a_copy_of_a_folder_with_its_times_has_the_same_files(tmp_path):
    images = class_folders(write_empty(tmp_path / "one", "a/1.jpg", "b/2.jpg"))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    copied = class_folders(tmp_path / "two")
    assert files_hash(images) == files_hash(copied) == files_hash(replace(copied, labels=copied.labels[::-1]))
    assert not np.isin(fingerprints(images), fingerprints(copied)).any()  # those are of absolute paths


def written_to(images, path):
    path.write_bytes(b"x")
    return images


def touched(images, path):
    os.utime(path, ns=(0, 10**18 + 1))
    return images


def removed(images, path):
    path.unlink()
    return images


STATES = {
    "size": written_to,
    "time": touched,
    "removed": removed,
    "exif": lambda images, _: replace(images, exif=not images.exif),
    "views": lambda images, _: replace(images, views={1: View(90)}),
    "order": lambda images, _: images.subset([1, 0, 2]),
}


@pytest.mark.parametrize("state", STATES)
def test_what_changes_a_pixel_changes_the_state_of_files(tmp_path, state):
    images = class_folders(write_empty(tmp_path, "a/1.jpg", "a/2.jpg", "b/1.jpg"))
    before, each = files_hash(images), fingerprints(images)
    found = STATES[state](images, tmp_path / "a/2.jpg")
    assert files_hash(found) != before
    same = {"exif": [False] * 3, "views": [False] * 3, "order": [True] * 3}.get(state, [True, False, True])
    assert np.isin(fingerprints(found), each).tolist() == same


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [
        (10, 3, [0, 4, 9]), (5, 5, [0, 1, 2, 3, 4]), (3, 7, [0, 1, 2]), (4, 1, [0]), (1, 3, [0]), (0, 3, []),
        (4, 0, []),
    ],
)  # fmt: skip
def test_indices_are_spread_evenly(total, count, expected):
    assert evenly(total, count).tolist() == expected
