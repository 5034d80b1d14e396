"""The index of a folder against os.walk: scanned, remembered, and scanned anew once anything changed."""

import errno
import os
import pickle
import random
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from support import one_line_error, write_empty

from mgkit.data import folders as module
from mgkit.data.folders import image_files, image_index, list_folder
from mgkit.data.layouts import class_folders, labelled_images, plain_images

SETTLED = 0.03  # seconds: more than a tick of the kernel's clock, by which folders are stamped
WHOLE_SECONDS = 2.1  # instead, where the file system counts in seconds


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """A project to keep indices in, where every tree is worth it and has settled soon."""
    for name in ("notebooks", "mgkit"):
        (tmp_path / "project" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setattr(module, "WORTH_KEEPING", 0)
    counts_in_seconds = all(path.stat().st_mtime_ns % 10**9 == 0 for path in (tmp_path / "project").iterdir())
    monkeypatch.setattr(module, "SETTLED_NS", int((WHOLE_SECONDS if counts_in_seconds else SETTLED) * 1e9))
    return tmp_path / "project"


@pytest.fixture
def kept(project):
    """What lies in data/.index now."""

    def files():
        return sorted((project / "data" / ".index").glob("*")) if (project / "data").exists() else []

    return files


@pytest.fixture
def scans(monkeypatch):
    """The folders that were listed."""
    listed = []
    monkeypatch.setattr(module, "list_folder", lambda path: listed.append(path) or list_folder(path))
    return listed


def settle():
    time.sleep(1.5e-9 * module.SETTLED_NS)


@pytest.fixture
def tree(tmp_path):
    root = write_empty(tmp_path / "tree", "a/1.png", "a/2.jpg", "a/deep/er/3.png", "b/4.png", "b/notes.txt")
    (root / "empty").mkdir()
    settle()
    return root


def oracle(root):
    """Every image below root, by os.walk."""
    found = []
    for parent, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in module.IMAGE_SUFFIXES:
                found.append(os.path.join(parent, name))
    return sorted(found)


# --- Scanning

NAMES = [
    b"1.png", b"2.JPG", b"3.jpeg", b"a.b.webp", b".hidden.png", b"notes.txt", b"png", b"no.pn", b"x.png.txt",
    b"caf\xe9.png", b"two\nlines.png", "é🐈.gif".encode(), b" .png", b"-.bmp", b"trailing.", b"..tif",
    b"a..ppm",
]  # fmt: skip
FOLDERS = [b"a", b"b.png", b"a-b", b"a b", b".cache", b"\xff", b"new\nline", "ü".encode()]


@pytest.mark.parametrize("seed", range(8))
def test_scanned_and_remembered_as_walked(tmp_path, seed, scans):
    draw = random.Random(seed)
    folders = [os.fsencode(tmp_path / "tree")]
    for _ in range(12):
        folders.append(os.path.join(draw.choice(folders), draw.choice(FOLDERS)))
    for folder in folders:
        os.makedirs(folder, exist_ok=True)
        for name in draw.sample(NAMES, draw.randint(0, len(NAMES))):
            if not os.path.isdir(os.path.join(folder, name)):
                open(os.path.join(folder, name), "wb").close()
    settle()
    expected = oracle(tmp_path / "tree")
    assert image_files(tmp_path / "tree") == expected
    assert scans
    scans.clear()
    assert image_files(tmp_path / "tree") == expected
    assert not scans


def test_sub_folders_and_what_lies_below_them(tmp_path):
    root = write_empty(
        tmp_path / "t", "a/1.png", "a-b/2.png", "a0/3.png", "a/deep/4.png", "5.png", ".h/6.png"
    )
    found = image_index(root)
    assert found.sub_folders() == ["a", "a-b", "a0"]
    below = {name: list(found.images[found.below(name)]) for name in found.folders if name}
    assert below == {
        "a": ["a/1.png", "a/deep/4.png"],
        "a-b": ["a-b/2.png"],
        "a0": ["a0/3.png"],
        "a/deep": ["a/deep/4.png"],
    }


def test_an_empty_folder(tmp_path):
    (tmp_path / "none").mkdir()
    assert image_files(tmp_path / "none") == []


def test_links_to_folders_and_images_are_followed(tmp_path, tree):
    write_empty(tmp_path / "elsewhere", "5.png", "deep/6.png")
    (tree / "linked").symlink_to(tmp_path / "elsewhere")
    (tree / "a" / "7.png").symlink_to(tmp_path / "elsewhere" / "5.png")
    (tree / "twin").symlink_to(tree / "b")
    found = image_files(tree)
    assert found == oracle(tree)
    assert {str(tree / "linked" / "deep" / "6.png"), str(tree / "twin" / "4.png")} < set(found)


def test_links_in_a_circle_end(tmp_path, tree):
    expected = image_files(tree)
    (tree / "self").symlink_to(tree)
    (tree / "a" / "up").symlink_to("..")
    (tree / "a" / "deep" / "er" / "here").symlink_to(".")
    (tree / "itself").symlink_to("itself")
    assert image_files(tree) == expected


def test_links_to_each_other_end(tmp_path):
    write_empty(tmp_path / "t", "a/1.png", "b/2.png", "c/3.png")
    for here in "abc":
        for there in "abc":
            (tmp_path / "t" / here / there).symlink_to(tmp_path / "t" / there)
    found = image_files(tmp_path / "t")
    assert len(found) == len(set(found)) == 3 * 5  # 1.png as a/, b/a/, c/a/, b/c/a/, c/b/a/
    assert all(os.path.isfile(path) for path in found)


def test_a_root_that_is_a_link_is_resolved(tmp_path, tree, scans):
    (tmp_path / "link").symlink_to(tree)
    assert image_files(tree) == image_files(tmp_path / "link") == oracle(tree)
    assert scans.count(str(tree / "a")) == 1


def test_a_folder_that_cannot_be_read_stops_the_scan(tree, monkeypatch, kept):
    def refuse(path):
        if path.endswith("deep"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return list_folder(path)

    monkeypatch.setattr(module, "list_folder", refuse)
    with one_line_error(PermissionError, tree / "a" / "deep"):
        image_files(tree)
    assert not kept()


def test_a_short_scan_prints_nothing(tree, capsys):
    image_files(tree)
    image_files(tree)
    assert capsys.readouterr() == ("", "")


def test_a_long_scan_says_where_it_stands(tree, capsys, monkeypatch):
    monkeypatch.setattr("mgkit.machine.progress.SECONDS_BETWEEN_LINES", 0.05)
    monkeypatch.setattr(module, "list_folder", lambda path: time.sleep(0.03) or list_folder(path))
    image_files(tree)
    assert capsys.readouterr().out.splitlines()[-1].startswith("looking for images: 6 folders, ")


# --- Remembering


def forbid(path):
    raise AssertionError(f"{path} was scanned again")


def test_the_second_time_nothing_is_listed(tree, monkeypatch, kept):
    first = class_folders(tree / "a"), plain_images(tree)
    assert len(kept()) == 2 and all(path.suffix == ".npz" for path in kept())
    monkeypatch.setattr(module, "list_folder", forbid)
    second = class_folders(tree / "a"), plain_images(tree)
    for one, other in zip(first, second, strict=True):
        assert (one.paths, one.classes, one.exif) == (other.paths, other.classes, other.exif)
        assert one.labels.tolist() == other.labels.tolist()


def test_both_splits_of_a_tree_are_remembered(tmp_path, monkeypatch, kept):
    write_empty(tmp_path / "t", *[f"{s}/{c}/{n}.png" for s in ("train", "val") for c in "ab" for n in "12"])
    settle()
    first = labelled_images(tmp_path / "t")
    assert len(kept()) == 2
    monkeypatch.setattr(module, "list_folder", forbid)
    assert [each.paths for each in labelled_images(tmp_path / "t")] == [each.paths for each in first]


def test_relative_and_absolute_paths_share_an_index(tree, monkeypatch, kept):
    image_files(tree)
    monkeypatch.chdir(tree.parent / "project" / "notebooks")
    monkeypatch.setattr(module, "list_folder", forbid)
    assert image_files("../../tree") == oracle(tree)
    assert len(kept()) == 1


def swap(tree):
    (tree / "a").rename(tree / "c")
    (tree / "b").rename(tree / "a")
    (tree / "c").rename(tree / "b")


def put_back(tree):
    """Another file, and a folder that looks as if it had not been touched, as archivers leave it."""
    before = (tree / "b").stat()
    (tree / "b" / "5.png").touch()
    os.utime(tree / "b", ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = {
    "a file is added": lambda tree: (tree / "b" / "5.png").touch(),
    "a file is added to the root": lambda tree: (tree / "5.png").touch(),
    "a file is added deep below": lambda tree: (tree / "a" / "deep" / "er" / "5.png").touch(),
    "a file is added to an empty folder": lambda tree: (tree / "empty" / "5.png").touch(),
    "a file is removed": lambda tree: (tree / "a" / "1.png").unlink(),
    "a file is removed deep below": lambda tree: (tree / "a" / "deep" / "er" / "3.png").unlink(),
    "a file is renamed": lambda tree: (tree / "a" / "1.png").rename(tree / "a" / "0.png"),
    "a file is moved": lambda tree: (tree / "a" / "1.png").rename(tree / "b" / "1.png"),
    "a file gets another suffix": lambda tree: (tree / "b" / "notes.txt").rename(tree / "b" / "notes.png"),
    "a folder is added": lambda tree: write_empty(tree, "a/deep/new/5.png"),
    "a folder is removed": lambda tree: shutil.rmtree(tree / "a" / "deep"),
    "an empty folder is removed": lambda tree: (tree / "empty").rmdir(),
    "a folder is renamed": lambda tree: (tree / "a" / "deep").rename(tree / "a" / "deeper"),
    "a folder is hidden": lambda tree: (tree / "b").rename(tree / ".b"),
    "two folders are swapped": swap,
    "a file is added and the time put back": put_back,
    "a linked folder is changed": lambda tree: (tree.parent / "elsewhere" / "6.png").touch(),
    "a link is turned elsewhere": lambda tree: (
        (tree / "linked").unlink(),
        (tree / "linked").symlink_to(tree / "b"),
    ),
    "a link breaks": lambda tree: (tree.parent / "elsewhere").rename(tree.parent / "gone"),
    "the whole is replaced": lambda tree: (shutil.rmtree(tree), write_empty(tree, "a/1.png")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_noticed(tmp_path, tree, scans, change):
    write_empty(tmp_path / "elsewhere", "5.png")
    (tree / "linked").symlink_to(tmp_path / "elsewhere")
    settle()
    before = image_index(tree)
    scans.clear()
    CHANGES[change](tree)
    after = image_index(tree)
    assert scans
    assert after.paths() == oracle(tree)
    assert (after.images, after.folders) != (before.images, before.folders)
    settle()
    assert image_index(tree).paths() == oracle(tree)
    scans.clear()
    assert image_index(tree).paths() == oracle(tree)
    assert scans == [] or change == "a link breaks"


def test_an_image_overwritten_in_place_changes_nothing(tree, scans):
    image_files(tree)
    scans.clear()
    (tree / "a" / "1.png").write_bytes(b"another picture")
    image_files(tree)
    assert not scans


def test_a_folder_that_changed_just_now_is_not_trusted(tree, monkeypatch, kept, scans):
    monkeypatch.setattr(module, "SETTLED_NS", 2_000_000_000)
    image_files(tree)
    assert not kept()
    later = time.time_ns() + 3_000_000_000
    monkeypatch.setattr(module.time, "time_ns", lambda: later)
    image_files(tree)
    assert len(kept()) == 1
    scans.clear()
    assert image_files(tree) == oracle(tree)
    assert not scans


def test_a_file_system_that_counts_in_seconds_hides_no_change(tree, monkeypatch):
    """Two changes within a second: the stamps are equal, so no index may be kept between them."""
    monkeypatch.setattr(module, "SETTLED_NS", 2_000_000_000)
    now = time.time_ns() // 10**9
    monkeypatch.setattr(module, "stamp", lambda status: (now * 10**9, now * 10**9))
    monkeypatch.setattr(module.time, "time_ns", lambda: now * 10**9 + 100)
    image_files(tree)
    (tree / "b" / "5.png").touch()
    assert image_files(tree) == oracle(tree)


def test_a_link_that_leads_nowhere_yet_is_watched(tmp_path, tree, kept):
    (tree / "later").symlink_to(tmp_path / "disk")
    settle()
    image_files(tree)
    assert not kept()
    write_empty(tmp_path / "disk", "5.png")
    assert str(tree / "later" / "5.png") in image_files(tree)


def test_a_small_folder_leaves_no_index(tree, monkeypatch, kept, project):
    monkeypatch.setattr(module, "WORTH_KEEPING", 11)  # 4 images, 6 folders
    image_files(tree)
    assert not (project / "data").exists()
    monkeypatch.setattr(module, "WORTH_KEEPING", 10)
    image_files(tree)
    assert len(kept()) == 1


def test_nothing_is_written_among_the_images(project, kept):
    write_empty(project, "a/1.png", "b/2.png")
    settle()
    image_files(project)
    assert not (project / "data").exists()
    (project / "data").mkdir()
    settle()
    image_files(project)
    assert not kept()


@pytest.fixture
def special(tmp_path, project, monkeypatch):
    # A file, a link to it and one to nothing; and what never ends or never begins, and a link to it.
    folder = write_empty(tmp_path / "special", "a/1.png")
    folder = folder / "a"
    os.mkfifo(folder / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(folder)  # the name of a socket is short
        listening.bind("socket.jpg")
        monkeypatch.chdir(project)
    for name, target in [
        ("link.png", "1.png"),
        ("gone.png", "2.png"),
        ("device.jpg", "/dev/zero"),
        ("to pipe.jpg", "pipe.jpg"),
    ]:
        (folder / name).symlink_to(target)
    return folder


def test_a_pipe_a_socket_and_a_device_are_no_images(special):
    assert sorted(list_folder(str(special)).images) == ["1.png", "gone.png", "link.png"]
    assert sorted(list_folder(str(special)).special) == [
        "device.jpg",
        "pipe.jpg",
        "socket.jpg",
        "to pipe.jpg",
    ]
    assert [Path(path).name for path in class_folders(special.parent).paths] == [
        "1.png",
        "gone.png",
        "link.png",
    ]


def test_another_format_or_other_suffixes_are_scanned_anew(tree, monkeypatch, scans):
    for name, value in [("FORMAT", 4), ("IMAGE_SUFFIXES", frozenset({".jpg"}))]:
        image_files(tree)
        scans.clear()
        monkeypatch.setattr(module, name, value)
        assert image_files(tree) == oracle(tree)
        assert scans


def test_an_index_of_another_folder_is_not_taken(tree, kept):
    write_empty(tree.parent / "other", "1.png")
    settle()
    image_files(tree.parent / "other")
    [other] = kept()
    other.rename(module.place(str(tree)))
    assert image_files(tree) == oracle(tree)


# --- Where an index cannot be kept, or is damaged


def test_without_a_place_to_keep_it_work_goes_on(tree, project, capsys):
    (project / "data").mkdir()
    (project / "data" / ".index").write_text("a file where a folder should be")
    assert image_files(tree) == image_files(tree) == oracle(tree)
    assert capsys.readouterr() == ("", "")


def test_in_a_read_only_project_work_goes_on(tree, project, monkeypatch):
    def refuse(path, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)  # root may write anywhere, so modes would not do
    assert image_files(tree) == image_files(tree) == oracle(tree)


@pytest.mark.parametrize("at", ["np.savez", "os.fsync", "os.replace"])
def test_a_full_disk_leaves_nothing_half_written(tree, kept, monkeypatch, at):
    def fail(file, *_, **__):
        if hasattr(file, "write"):
            file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    library, name = at.split(".")
    monkeypatch.setattr(np if library == "np" else os, name, fail)
    assert image_files(tree) == oracle(tree)
    assert not kept()


class Trap:
    def __reduce__(self):
        return (Path.touch, (Path("trapped"),))


def damages(content):
    """Ways to spoil the bytes of an index."""
    yield from (
        b"",
        b"PK",
        b"\x00" * len(content),
        content[: len(content) // 2],
        content[:-1],
        content + b"x",
    )
    yield pickle.dumps(Trap())
    for position in range(0, len(content), 7):
        yield content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :]


def test_a_damaged_index_is_ignored_and_rewritten(tree, kept):
    expected = image_files(tree)
    [path] = kept()
    content, rewritten = path.read_bytes(), 0
    for damaged in damages(content):
        path.write_bytes(damaged)
        assert image_files(tree) == expected
        rewritten += path.read_bytes() == content
        assert not Path("trapped").exists()
    assert rewritten > 0.7 * sum(
        1 for _ in damages(content)
    )  # the rest: times and the like, which nobody reads


def test_objects_in_an_index_are_not_unpickled(tree, kept):
    expected = image_files(tree)
    [path] = kept()
    with open(path, "wb") as file:
        np.savez(file, key=np.array([Trap()], dtype=object))
    assert image_files(tree) == expected
    assert not Path("trapped").exists()
    assert "images" in np.load(path, allow_pickle=False)
