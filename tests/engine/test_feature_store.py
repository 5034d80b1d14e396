"""Features on disk are those in memory, made once; whatever happened to the run or the files in between."""

import errno
import json
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import die_at, in_processes, one_line_error, starting, write_picture, write_uneven
from torch import nn

from mgkit.backbones.backbone import Backbone
from mgkit.data.decoding import UnreadableImageError
from mgkit.data.images import ImageList, files_hash
from mgkit.data.layouts import class_folders
from mgkit.data.loader import UnreadableImages
from mgkit.engine import feature_store as store
from mgkit.engine.feature_store import identity_of_network, stored_features
from mgkit.features import Passes, pooled, pooled_batches, rows_of_batches
from mgkit.machine.files import RefusedError
from mgkit.model import MultiGrain
from mgkit.whitening import whiten

pytestmark = pytest.mark.usefixtures("small_shards")

PS = [1.0, 3.0, float("inf")]
OPTIONS = dict(size=32, precision="float32", batch_size=4, description=None)


@pytest.fixture
def images(tmp_path):
    """13 images of three shapes: three shards."""
    for seed in range(13):
        write_uneven(tmp_path / "images" / f"class{seed % 2}" / f"{seed:02d}.png", seed)
    return class_folders(tmp_path / "images")


@pytest.fixture
def keep(tiny_net, images, tmp_path):
    """`stored_features` of the images in one folder; arguments replace its own."""

    def call(**changes):
        options = dict(net=tiny_net, images=images, ps=[3.0], folder=tmp_path / "store", **OPTIONS) | changes
        return stored_features(options.pop("net"), options.pop("images"), **options)

    return call


@pytest.fixture
def expected(tiny_net, images):
    options = dict(OPTIONS)
    size = options.pop("size")
    batches = pooled_batches(tiny_net, images, size=size, ps=PS, passes=Passes(**options), window=5)
    return rows_of_batches(batches, (len(PS), len(images), tiny_net.width))


def forbid_images(monkeypatch):
    """From here on, opening any image is an error that no code expects."""

    def fail(*args, **kwargs):
        raise AssertionError("an image was opened")

    monkeypatch.setattr(Image, "open", fail)


def array_folders(root: Path) -> list[Path]:
    return sorted(root.iterdir()) if root.exists() else []


class Cut(BaseException):
    """What stands for a kill where the process is to live on."""


def cut_after(monkeypatch, shards: int):
    """The run is cut off once so many shards have been written."""
    write = store.StoredArray.write

    def counted(self, shard, rows, skipped):
        if counted.left == 0:
            raise Cut
        counted.left -= 1
        return write(self, shard, rows, skipped)

    counted.left = shards
    monkeypatch.setattr(store.StoredArray, "write", counted)
    return lambda: monkeypatch.setattr(store.StoredArray, "write", write)


# --- What is kept


def test_the_arrays_are_those_in_memory(keep, expected):
    arrays = keep(ps=PS)
    for array, rows in zip(arrays, expected, strict=True):
        assert isinstance(array, np.memmap) and not array.flags.writeable
        assert array.dtype == np.float32 and np.array_equal(array, rows)


def test_a_list_of_one_shard_is_what_memory_gives_without_windows(keep, tiny_net, images, monkeypatch):
    monkeypatch.setattr(store, "SHARD", 1024)
    assert np.array_equal(keep(ps=PS), pooled(tiny_net, images, ps=PS, **OPTIONS))


@pytest.mark.parametrize("crop", ["rect", "square"])
def test_workers_change_nothing(keep, tmp_path, crop):
    none, two = (keep(folder=tmp_path / str(workers), workers=workers, crop=crop)[0] for workers in (0, 2))
    assert np.array_equal(none, two)


def test_a_folder_holds_an_array_its_manifest_and_nothing_left_over(keep, images, tmp_path):
    keep()
    (folder,) = array_folders(tmp_path / "store")
    assert folder.name.startswith("32-rect-p3.0-")
    assert {path.name for path in folder.iterdir()} == {"features.npy", "manifest.json", "lock"}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["made_of"]["images"]["count"] == 13 and manifest["made_of"]["p"] == "3.0"
    assert manifest["images_from"] == str(images.root)
    assert manifest["provenance"]["packages"]["torch"]
    assert manifest["skipped"] == {}


def test_the_file_is_a_plain_npy(keep, expected, tmp_path):
    keep(ps=[1])
    (folder,) = array_folders(tmp_path / "store")
    assert np.array_equal(np.load(folder / "features.npy"), expected[0])


def test_exponents_come_in_the_order_asked_for_once_each_on_disk(keep, expected, tmp_path):
    arrays = keep(ps=[3, 1.0, 3.0])
    assert [np.array_equal(a, expected[k]) for a, k in zip(arrays, (1, 0, 1), strict=True)] == [True] * 3
    assert len(array_folders(tmp_path / "store")) == 2
    assert keep(ps=[]) == []


# --- Reuse


def test_reuse_opens_no_image_and_writes_nothing(keep, expected, tmp_path, monkeypatch):
    keep(ps=PS)
    forbid_images(monkeypatch)
    monkeypatch.setattr(store.StoredArray, "locked", None)
    assert np.array_equal(keep(ps=PS, batch_size=2, workers=1), expected)


def test_the_root_may_move_and_labels_may_change(keep, images, tmp_path, monkeypatch):
    (rows,) = keep()
    (tmp_path / "images").rename(tmp_path / "moved")
    moved = class_folders(tmp_path / "moved")
    forbid_images(monkeypatch)
    (again,) = keep(images=replace(moved, labels=moved.labels[::-1], classes=("b", "a")))
    assert np.array_equal(again, rows)


def test_a_listed_image_is_known_by_its_path_from_the_list(images, tmp_path):
    here, there = (replace(images, root=tmp_path / name) for name in ("list.txt", "other.txt"))
    here.root.touch()
    there.root.touch()
    assert files_hash(here) == files_hash(there) != files_hash(images)


def test_whitening_classifier_and_own_p_do_not_count(tiny_net):
    identity = identity_of_network(tiny_net)
    whitened = whiten(tiny_net, torch.zeros(9), torch.eye(9))
    whitened.pool.p.data.fill_(5.0)
    nn.init.zeros_(whitened.classifier.weight)
    assert identity_of_network(whitened) == identity


def test_the_classifier_that_nasnets_hold_twice_does_not_count():
    features = nn.Sequential(nn.Conv2d(3, 4, 1))
    features[0].last_linear = nn.Linear(4, 2)
    net = MultiGrain(Backbone("twin", features, 4, twin="0"), num_classes=2)
    identity = identity_of_network(net)
    nn.init.zeros_(net.classifier.weight)
    assert identity_of_network(net) == identity
    nn.init.zeros_(net.features[0].weight)
    assert identity_of_network(net) != identity


def test_memory_layout_does_not_count(tiny_net):
    identity = identity_of_network(tiny_net)
    assert identity_of_network(tiny_net.to(memory_format=torch.channels_last)) == identity


@dataclass(frozen=True)
class ViewedList(ImageList):
    """A list of images with one more field that changes what is read."""

    parts: dict = field(default_factory=dict)


def change_file(images):
    path = Path(images.paths[4])
    before = path.stat()
    write_picture(path, seed=99, size=(30, 30))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # the size alone
    return {}


def change_time(images):
    os.utime(images.paths[4], ns=(0, 10**18 + 1))
    return {}


def change_weight(images, net):
    with torch.no_grad():
        net.features[3].bias[0] += 1e-6
    return {}


def change_statistics(images, net):
    net.features[1].running_mean[0] += 1e-3
    return {}


CHANGES = {
    "size of a file": change_file,
    "time of a file": change_time,
    "order": lambda images: {"images": images.subset([1, 0, *range(2, 13)])},
    "fewer": lambda images: {"images": images.subset(range(12))},
    "exif": lambda images: {"images": replace(images, exif=not images.exif)},
    "a view": lambda images: {"images": ViewedList(*vars(images).values(), parts={3: "turned"})},
    "size": lambda images: {"size": 33},
    "crop": lambda images: {"crop": "square"},
    "p": lambda images: {"ps": [3.0000001]},
    "precision": lambda images: {"precision": "bf16"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_a_row_gives_another_array(keep, images, tmp_path, change):
    keep()
    before = array_folders(tmp_path / "store")
    changes = CHANGES[change](images)
    keep(**changes)
    assert len(array_folders(tmp_path / "store")) == 2
    assert before[0] in array_folders(tmp_path / "store")


@pytest.mark.parametrize("change", [change_weight, change_statistics])
def test_other_weights_give_another_array(keep, images, tiny_net, tmp_path, change):
    keep()
    change(images, tiny_net)
    keep()
    assert len(array_folders(tmp_path / "store")) == 2


def test_another_normalisation_of_the_input_gives_another_array(keep, tiny_net, tmp_path):
    keep()
    tiny_net.mean = (0.5, 0.5, 0.5)
    keep()
    assert len(array_folders(tmp_path / "store")) == 2


def test_another_exponent_is_made_alone(keep, expected, tmp_path, opened):
    keep(ps=[3.0])
    (first,) = array_folders(tmp_path / "store")
    written = (first / "features.npy").stat().st_mtime_ns
    opened.clear()
    assert np.array_equal(keep(ps=PS), expected)
    assert len(opened) == 13  # both new ones from one pass
    assert (first / "features.npy").stat().st_mtime_ns == written


# --- Continuation


def test_a_run_that_was_cut_off_goes_on_where_it_was(keep, expected, tmp_path, opened, monkeypatch, capsys):
    restore = cut_after(monkeypatch, 2)
    with pytest.raises(Cut):
        keep()
    restore()
    (folder,) = array_folders(tmp_path / "store")
    assert not (folder / "features.npy").exists()
    opened.clear()
    assert np.array_equal(keep()[0], expected[1])
    assert len(opened) == 3  # those of the last shard
    assert "2 of 3 shards" in capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == {"features.npy", "manifest.json", "lock"}


def test_of_two_exponents_the_one_that_is_further_is_not_written_again(keep, expected, opened, monkeypatch):
    restore = cut_after(monkeypatch, 2)
    with pytest.raises(Cut):
        keep(ps=[1.0])
    restore()
    restore = cut_after(monkeypatch, 1)
    with pytest.raises(Cut):
        keep(ps=[3.0])
    restore()
    opened.clear()
    written, write = [], store.StoredArray.write
    monkeypatch.setattr(store.StoredArray, "write", lambda *args: written.append(args[1]) or write(*args))
    assert np.array_equal(keep(ps=[1.0, 3.0]), expected[:2])
    assert len(opened) == 8 and sorted(written) == [1, 2, 2]


def cut_off(keep, tmp_path, monkeypatch) -> Path:
    """The folder of a run that was cut off after two shards of three."""
    restore = cut_after(monkeypatch, 2)
    with pytest.raises(Cut):
        keep()
    restore()
    return array_folders(tmp_path / "store")[0]


def flip(path: Path, place: int) -> None:
    """Turn one byte of a file over; place: as an index, from the end if negative."""
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)


def in_shard(shard: int) -> int:
    """A byte of that shard, of rows of 8 channels."""
    return 128 + shard * 5 * 8 * 4 + 17


def test_half_a_line_of_the_journal_is_not_believed(keep, expected, tmp_path, opened, monkeypatch):
    folder = cut_off(keep, tmp_path, monkeypatch)
    journal = (folder / "journal.jsonl").read_bytes()
    (folder / "journal.jsonl").write_bytes(journal[:-10])
    opened.clear()
    restore = cut_after(monkeypatch, 1)  # the next line must not be glued to the half one
    with pytest.raises(Cut):
        keep()
    restore()
    assert (folder / "journal.jsonl").read_bytes() == journal
    assert np.array_equal(keep()[0], expected[1])


NONSENSE = [b"\xff\xfe\n", b"\0" * 20, b"[]\n", b"3\n", b'{"shard": 3, "skipped": {}}\n', b'{"shard": 2}\n']


@pytest.mark.parametrize("line", NONSENSE)
def test_nonsense_in_the_journal_is_not_believed(keep, expected, tmp_path, monkeypatch, line):
    folder = cut_off(keep, tmp_path, monkeypatch)
    with open(folder / "journal.jsonl", "ab") as file:
        file.write(line)
    assert np.array_equal(keep()[0], expected[1])


def test_a_partial_file_that_was_cut_short_or_is_gone_is_made_again(keep, expected, tmp_path, monkeypatch):
    folder = cut_off(keep, tmp_path, monkeypatch)
    os.truncate(folder / "features.partial", 200)
    assert np.array_equal(keep()[0], expected[1])
    (folder / "features.npy").unlink()
    assert np.array_equal(keep()[0], expected[1])


def test_the_rows_are_on_the_disk_before_their_line_is_in_the_journal(keep, tmp_path, monkeypatch):
    lines, sync = [], store.sync

    def counted(path):
        sync(path)
        lines.append(len((path.parent / "journal.jsonl").read_bytes().splitlines()))

    monkeypatch.setattr(store, "sync", counted)
    keep()
    assert lines == [0, 1, 2]


@pytest.mark.parametrize(
    ("found", "same"),
    [(5_123_456_789, True), (5_000_000_000, True), (6_000_000_000, True), (5_123_456_788, False)],
)
def test_a_file_system_of_whole_or_even_seconds_keeps_arrays(found, same):
    assert store.is_same_time(5_123_456_789, found) == same
    assert not store.is_same_time(5_123_456_789, 8_000_000_000)


@pytest.mark.parametrize("rest", [None, b"", b"short"])
def test_a_journal_without_its_partial_file_is_not_believed(keep, expected, tmp_path, monkeypatch, rest):
    folder = cut_off(keep, tmp_path, monkeypatch)
    (folder / "features.partial").unlink()
    if rest is not None:
        (folder / "features.partial").write_bytes(rest)
    restore = cut_after(monkeypatch, 0)
    with pytest.raises(Cut):
        keep()
    restore()
    assert not (folder / "journal.jsonl").read_bytes()
    assert np.array_equal(keep()[0], expected[1])


def test_a_run_with_shards_of_another_size_takes_none_of_the_earlier_ones(
    keep, expected, tmp_path, monkeypatch
):
    cut_off(keep, tmp_path, monkeypatch)
    monkeypatch.setattr(store, "SHARD", 4)
    np.testing.assert_allclose(keep()[0], expected[1], rtol=1e-5)


def test_the_last_steps_are_taken_without_an_image(keep, expected, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(store, "move_into_place", lambda *paths: (_ for _ in ()).throw(Cut))
        with pytest.raises(Cut):
            keep()
    forbid_images(monkeypatch)
    assert np.array_equal(keep()[0], expected[1])


# --- Damage to what was whole


DAMAGES = {
    "a row": lambda folder: flip(folder / "features.npy", in_shard(1)),
    "the header": lambda folder: flip(folder / "features.npy", 9),
    "too short": lambda folder: os.truncate(folder / "features.npy", 300),
    "too long": lambda folder: os.truncate(folder / "features.npy", 3000),
    "empty": lambda folder: os.truncate(folder / "features.npy", 0),
    "manifest cut": lambda folder: os.truncate(folder / "manifest.json", 100),
    "manifest gone": lambda folder: (folder / "manifest.json").unlink(),
    "manifest of a list": lambda folder: (folder / "manifest.json").write_text("[]"),
    "manifest bare": lambda folder: (folder / "manifest.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_array_is_made_again_and_named(keep, expected, tmp_path, monkeypatch, capsys, damage):
    keep()
    (folder,) = array_folders(tmp_path / "store")
    whole = (folder / "features.npy").read_bytes()
    DAMAGES[damage](folder)
    assert np.array_equal(keep()[0], expected[1])
    assert str(folder / "features.npy") in capsys.readouterr().out
    assert (folder / "features.npy").read_bytes() == whole
    forbid_images(monkeypatch)
    keep()


# --- Unreadable images


@pytest.fixture
def broken(images):
    """The images, of which the second, the third, and the whole last shard are none."""
    for place in (1, 2, 10, 11, 12):
        Path(images.paths[place]).write_bytes(b"no image")
    return [images.paths[place] for place in (1, 2, 10, 11, 12)]


def test_skipped_images_have_rows_of_nan_and_are_reported_at_every_use(keep, broken, monkeypatch):
    for _ in range(2):
        unreadable = UnreadableImages("skip")
        (rows,) = keep(unreadable=unreadable)
        assert np.flatnonzero(np.isnan(rows).all(axis=1)).tolist() == [1, 2, 10, 11, 12]
        assert np.isfinite(rows[[0, *range(3, 10)]]).all()
        assert sorted(unreadable.reasons) == sorted(broken)
        assert all("not an image" in reason for reason in unreadable.reasons.values())
        forbid_images(monkeypatch)
    with one_line_error(UnreadableImageError, broken[0], "on_unreadable"):
        keep()


@pytest.mark.parametrize("shards", [1, 2])
def test_skipping_goes_on_after_a_cut_even_if_all_the_rest_is_unreadable(keep, broken, monkeypatch, shards):
    restore = cut_after(monkeypatch, shards)
    with pytest.raises(Cut):
        keep(unreadable=UnreadableImages("skip"))
    restore()
    unreadable = UnreadableImages("skip")
    keep(unreadable=unreadable)
    assert sorted(unreadable.reasons) == sorted(broken)


def test_an_unreadable_image_is_an_error_that_leaves_what_was_done(keep, images, tmp_path, opened):
    good = Path(images.paths[12]).read_bytes()
    status = os.stat(images.paths[12])
    Path(images.paths[12]).write_bytes(b"x" * len(good))
    os.utime(images.paths[12], ns=(status.st_atime_ns, status.st_mtime_ns))
    with one_line_error(UnreadableImageError, images.paths[12]):
        keep()
    Path(images.paths[12]).write_bytes(good)
    os.utime(images.paths[12], ns=(status.st_atime_ns, status.st_mtime_ns))
    opened.clear()
    assert np.isfinite(keep()[0]).all()
    assert len(opened) == 3


def test_shards_with_skipped_images_are_an_error_before_the_work_where_none_may_be_skipped(
    keep, broken, monkeypatch, opened
):
    restore = cut_after(monkeypatch, 1)
    with pytest.raises(Cut):
        keep(unreadable=UnreadableImages("skip"))
    restore()
    opened.clear()
    with one_line_error(UnreadableImageError, broken[0]):
        keep()
    assert not opened


def test_if_no_image_is_readable_nothing_is_kept(keep, images, tmp_path):
    for path in images.paths:
        Path(path).write_bytes(b"no image")
    with one_line_error(UnreadableImageError, "none of 13"):
        keep(unreadable=UnreadableImages("skip"))
    assert not list((tmp_path / "store").glob("*/features.npy"))


def test_a_missing_image_is_unreadable_and_another_list_once_it_is_there(keep, images, tmp_path):
    content = Path(images.paths[0]).read_bytes()
    Path(images.paths[0]).unlink()
    unreadable = UnreadableImages("skip")
    assert np.isnan(keep(unreadable=unreadable)[0][0]).all()
    assert list(unreadable.reasons) == [images.paths[0]]
    Path(images.paths[0]).write_bytes(content)
    assert np.isfinite(keep()[0]).all()


# --- What cannot be


@pytest.mark.parametrize(
    "wrong, named",
    [
        ({"size": 0}, "size"),
        ({"crop": "round"}, "round"),
        ({"ps": [3.0, 0.0]}, "p must be"),
        ({"ps": [float("nan")]}, "p must be"),
        ({"precision": "int8"}, "int8"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(keep, tmp_path, wrong, named):
    with one_line_error(ValueError, named):
        keep(**wrong)
    assert not (tmp_path / "store").exists()


def test_no_images_are_an_error(keep, images):
    with one_line_error(ValueError, images.root):
        keep(images=images.subset([]))


def test_a_folder_that_is_a_file_is_named(keep, tmp_path):
    (tmp_path / "file").touch()
    with one_line_error(OSError, tmp_path / "file"):
        keep(folder=tmp_path / "file")


def test_a_folder_that_may_not_be_written_is_named(keep, tmp_path, monkeypatch):
    def refused(path, *args, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refused)  # as for anybody but root
    with one_line_error(RefusedError, tmp_path / "mine", "cannot be written", "permission"):
        keep(folder=tmp_path / "mine")


def test_a_full_disk_is_one_line_and_the_run_goes_on_from_there(
    keep, expected, tmp_path, opened, monkeypatch
):
    class FullAfter:
        """Opens files until `left` of them were opened for writing in place."""

        left = 3  # the header, two shards

        def __call__(self, path, mode="r", **options):
            file = open(path, mode, **options)  # noqa: SIM115 - the caller closes it
            if mode == "r+b":
                FullAfter.left -= 1
                if FullAfter.left < 0:
                    file.write(b"half of")
                    file.close()
                    raise OSError(errno.ENOSPC, "No space left on device")
            return file

    with monkeypatch.context() as patch:
        patch.setattr(store, "open", FullAfter(), raising=False)
        with one_line_error(RefusedError, "is full", "No space left", tmp_path / "store"):
            keep()
    opened.clear()
    assert np.array_equal(keep()[0], expected[1])
    assert len(opened) == 3


def test_images_that_change_meanwhile_are_an_error_and_nothing_of_them_is_used(
    keep, images, tmp_path, monkeypatch
):
    write = store.StoredArray.write

    def and_change(self, shard, rows, skipped):
        if shard == 1:
            write_picture(Path(images.paths[0]), seed=50, size=(30, 30))
        return write(self, shard, rows, skipped)

    with monkeypatch.context() as patch:
        patch.setattr(store.StoredArray, "write", and_change)
        with one_line_error(OSError, "changed"):
            keep()
    assert not list((tmp_path / "store").glob("*/features.*"))
    assert np.isfinite(keep()[0]).all()


# --- Killed, in processes of their own


def process_network() -> MultiGrain:
    """A small network, the same in every process."""
    torch.manual_seed(0)
    features = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=4, padding=2), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)
    )
    return MultiGrain(Backbone("tiny", features, 8), num_classes=3).eval()


def embed_in_process(
    root: str, folder: str, shard: int, *, lines: int | None = None, workers: int = 0
) -> None:
    """Embed the images below root. lines: die by SIGKILL at so manieth line of the store's own code."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method(
        "fork", force=True
    )  # a fork server's workers would outlive a kill for good
    store.SHARD = shard
    net, images = process_network(), class_folders(root)
    if lines is not None:
        die_at(lines, store, sys.modules["mgkit.machine.files"])
    stored_features(net, images, ps=[1.0, 3.0], folder=folder, workers=workers, **OPTIONS)


@pytest.fixture(scope="module")
def start():
    """A function that starts `embed_in_process`, with the first two arguments as texts."""
    begin = starting(embed_in_process)
    return lambda images, folder, *args, **options: begin(str(images), str(folder), *args, **options)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """600 images of three shapes."""
    root = tmp_path_factory.mktemp("many")
    for seed in range(600):
        size = [(24, 16), (16, 24), (20, 20)][seed % 3]
        write_picture(root / "images" / f"class{seed % 2}" / f"{seed:03d}.jpg", seed=seed, size=size)
    return root / "images"


@pytest.fixture(scope="module")
def undisturbed(start, many, tmp_path_factory):
    """The files of an uninterrupted run, {name of the array: bytes}, and its seconds."""
    folder = tmp_path_factory.mktemp("undisturbed")
    start(many, folder / "first", 1024).join()  # the first process waits for imports
    began = time.monotonic()
    process = start(many, folder, 16)
    process.join(300)
    assert process.exitcode == 0
    return contents(folder), time.monotonic() - began


def contents(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in folder.glob("*/features.npy")}


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_three_times_at_random_the_files_are_those_of_an_undisturbed_run(
    start, many, undisturbed, tmp_path, workers
):
    files, seconds = undisturbed
    assert len(files) == 2
    random = np.random.default_rng()
    for _ in range(3):
        process = start(many, tmp_path, 16, workers=workers)
        time.sleep(random.uniform(0, seconds / 2))
        process.kill()  # and on at once, although its workers live on for seconds
    process = start(many, tmp_path, 16)
    process.join(300)
    assert process.exitcode == 0
    assert contents(tmp_path) == files


def test_killed_at_any_line_the_files_are_those_of_an_undisturbed_run(start, images, tmp_path):
    """Every 251st line that the store runs for 13 images; each kill is followed by a run to the end."""
    root = images.root
    (whole := start(root, tmp_path / "whole", 5)).join(300)
    files = contents(tmp_path / "whole")
    assert whole.exitcode == 0 and len(files) == 2
    line, killed = 0, True
    while killed:
        folder = tmp_path / str(line)
        process = start(root, folder, 5, lines=line)
        process.join(300)
        killed = process.exitcode == -signal.SIGKILL
        assert killed or process.exitcode == 0
        assert all(files[name] == content for name, content in contents(folder).items())
        (again := start(root, folder, 5)).join(300)
        assert again.exitcode == 0 and contents(folder) == files, line
        assert not list(folder.glob("*/.*")) and not list(folder.glob("*/*.partial"))
        line += 251
    assert line > 500


def test_two_processes_at_once_make_one_array(start, many, undisturbed, tmp_path):
    files, _ = undisturbed
    processes = [start(many, tmp_path, 16) for _ in range(2)]
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    assert contents(tmp_path) == files


# --- Several processes that share the work


def shared_work(net, images, folder, on_unreadable):
    """Rows that this process of several reads in the end, and the paths of what it was told is unreadable."""
    store.SHARD = 5
    unreadable = UnreadableImages(on_unreadable)
    arrays = stored_features(net, images, ps=PS, folder=folder, unreadable=unreadable, **OPTIONS)
    return [np.array(array) for array in arrays], sorted(unreadable.reasons)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_together_write_the_bytes_of_one(tiny_net, images, keep, tmp_path, processes, broken):
    alone = keep(ps=PS, unreadable=UnreadableImages("skip"))
    folder = tmp_path / "shared"
    for rows, reasons in in_processes(processes, shared_work, tiny_net, images, folder, "skip"):
        np.testing.assert_array_equal(rows, alone)
        assert reasons == sorted(broken)
    for one, other in zip(array_folders(tmp_path / "store"), array_folders(folder), strict=True):
        assert (one / "features.npy").read_bytes() == (other / "features.npy").read_bytes()
        assert sorted(p.name for p in other.iterdir()) == ["features.npy", "lock", "manifest.json"]


def test_processes_go_on_with_what_one_began(tiny_net, images, keep, tmp_path, monkeypatch):
    restore = cut_after(monkeypatch, 2)
    with pytest.raises(Cut):
        keep(ps=PS)
    restore()
    found = in_processes(2, shared_work, tiny_net, images, tmp_path / "store", "raise")
    (tmp_path / "store").rename(tmp_path / "shared")
    for rows, _ in found:
        np.testing.assert_array_equal(rows, keep(ps=PS))


def names_unreadable(net, images, folder, path):
    with one_line_error(UnreadableImageError, path):
        shared_work(net, images, folder, "raise")


def test_an_image_that_one_process_cannot_read_is_named_by_all(tiny_net, images, tmp_path):
    Path(images.paths[7]).write_bytes(b"no image")
    in_processes(2, names_unreadable, tiny_net, images, tmp_path / "shared", images.paths[7])


def test_features_that_another_machine_wrote_elsewhere_are_missed_in_one_line(keep, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "write_missing", lambda *_, **__: None)
    with one_line_error(FileNotFoundError, tmp_path / "store", "one and the same folder"):
        keep()


def nothing_readable(net, images, folder):
    with pytest.raises(UnreadableImageError, match="none of 13 images is readable"):
        shared_work(net, images, folder, "skip")


def test_processes_that_can_read_nothing_keep_nothing(tiny_net, images, tmp_path):
    for path in images.paths:
        Path(path).write_bytes(b"no image")
    in_processes(2, nothing_readable, tiny_net, images, tmp_path / "shared")
    left = {path.name for folder in array_folders(tmp_path / "shared") for path in folder.iterdir()}
    assert left == {"lock"}
