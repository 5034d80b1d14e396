"""Archives, valid and malicious: extraction is complete or leaves nothing, and never writes elsewhere."""

import errno
import io
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest
from support import one_line_error

from mgkit.benchmarks.archives import ArchiveError, extract, is_extracted, record_of, recorded_hashes

FILES = {f"jpg/{1000 + i}.jpg": random.Random(i).randbytes(3000 + 700 * i) for i in range(6)}
KINDS = ("a.tar", "a.tar.gz", "a.tgz", "a.tar.bz2", "a.tar.xz", "a.zip")


def add(tar, name, kind=tarfile.REGTYPE, content=b"", **fields):
    """Append a member of any kind to a tar archive."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(content))


def write_tar(path, files=FILES, *evil):
    """An archive of the files, then of what the functions add to it."""
    form = {".gz": "gz", ".tgz": "gz", ".bz2": "bz2", ".xz": "xz"}.get(path.suffix, "")
    with tarfile.open(path, f"w:{form}") as tar:
        add(tar, "jpg", tarfile.DIRTYPE)
        for name, content in files.items():
            add(tar, name, content=content, mode=0o4777)
        for each in evil:
            each(tar)
    return path


def write_zip(path, files=FILES, **evil):
    """An archive of the files, then of a member for each name -> mode."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("jpg/", b"")
        for name, content in files.items():
            file.writestr(name, content)
        for name, mode in evil.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            file.writestr(info, "/etc/passwd")
    return path


def write_archive(path, files=FILES):
    return write_zip(path, files) if path.suffix == ".zip" else write_tar(path, files)


def found(folder):
    """Path -> content of all that is in a folder, without the records."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(".contents.sha256")
    }


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


@pytest.fixture
def folder(tmp_path):
    """A folder in which somebody else's file is, one level below another one."""
    path = tmp_path / "data" / "set"
    path.mkdir(parents=True)
    (path / "mine.txt").write_text("mine")
    return path


def untouched(folder):
    """Whether there is nothing but that file, neither in the folder nor beside it."""
    return [*folder.parent.rglob("*")] == [folder, folder / "mine.txt"]


@pytest.mark.parametrize("name", KINDS)
def test_all_files_come_with_a_record_of_their_hashes(tmp_path, name):
    folder = tmp_path / "new" / "set"
    record = extract(write_archive(tmp_path / name), folder)
    assert found(folder) == FILES
    assert record == folder / f"{name}.contents.sha256"
    assert recorded_hashes(record) == {name: sha256(content).hexdigest() for name, content in FILES.items()}
    assert {path.name for path in folder.iterdir()} == {"jpg", record.name}
    assert not stat.S_IMODE((folder / "jpg/1000.jpg").stat().st_mode) & 0o7022


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="sha256sum is not installed")
def test_sha256sum_understands_the_record(tmp_path, folder):
    names = {"jpg/1.jpg": b"1", "a folder/é  ö.jpg": b"2", "#3.jpg": b"3"}
    record = extract(write_tar(tmp_path / "a.tar", names), folder)
    check = ["sha256sum", "--strict", "--warn", "-c", record.name]
    assert not subprocess.run(check, cwd=folder, capture_output=True).returncode
    (folder / "jpg/1.jpg").write_bytes(b"!")
    assert subprocess.run(check, cwd=folder, capture_output=True).returncode == 1


def test_a_second_call_touches_nothing(tmp_path, folder):
    archive = write_tar(tmp_path / "a.tar.gz")
    extract(archive, folder)
    before = stamps(folder)
    archive.write_bytes(b"x" * archive.stat().st_size)  # not even read
    os.utime(archive, ns=(0, int(recorded_time(record_of(archive, folder)))))
    assert extract(archive, folder) == record_of(archive, folder)
    assert stamps(folder) == before


def recorded_time(record):
    return record.read_text().split("last changed ")[1].split()[0]


def test_a_missing_file_is_restored_and_the_others_are_left_alone(tmp_path, folder):
    archive = write_tar(tmp_path / "a.tar.gz")
    extract(archive, folder)
    (folder / "jpg/1003.jpg").unlink()
    assert not is_extracted(archive, folder)
    before = stamps(folder / "jpg")
    extract(archive, folder)
    assert found(folder) == FILES | {"mine.txt": b"mine"}
    after = stamps(folder / "jpg")
    assert {path for path in after if after[path] != before.get(path)} == {
        folder / "jpg",
        folder / "jpg/1003.jpg",
    }


def test_another_archive_of_the_same_name_is_extracted_too(tmp_path, folder):
    extract(write_tar(tmp_path / "a.tar"), folder)
    archive = write_tar(tmp_path / "a.tar", FILES | {"jpg/new.jpg": b"new"})
    assert not is_extracted(archive, folder)
    extract(archive, folder)
    assert (folder / "jpg/new.jpg").read_bytes() == b"new"
    archive.unlink()
    assert is_extracted(archive, folder)  # it is no longer needed


def test_members_may_go_elsewhere_or_nowhere(tmp_path, folder):
    files = {"paris/defense/1.jpg": b"1", "paris/eiffel/2.jpg": b"2", "paris/readme.txt": b"3"}
    archive = write_tar(tmp_path / "a.tgz", files)
    extract(archive, folder, rename=lambda name: f"jpg/{Path(name).name}" if name.endswith(".jpg") else None)
    assert found(folder) == {"mine.txt": b"mine", "jpg/1.jpg": b"1", "jpg/2.jpg": b"2"}


def test_members_may_not_be_sent_out_of_the_folder(tmp_path, folder):
    with one_line_error(ArchiveError, tmp_path / "a.tar", "'../1.jpg'"):
        extract(write_tar(tmp_path / "a.tar", {"1.jpg": b"1"}), folder, rename=lambda path: "../1.jpg")
    assert untouched(folder)


def test_two_archives_share_a_folder(tmp_path, folder):
    names = sorted(FILES)
    for archive, part in (("jpg1.tar.gz", names[:4]), ("jpg2.tar.gz", names[2:])):
        extract(write_tar(tmp_path / archive, {name: FILES[name] for name in part}), folder)
    assert found(folder) == FILES | {"mine.txt": b"mine"}
    assert is_extracted("jpg1.tar.gz", folder) and is_extracted("jpg2.tar.gz", folder)


@pytest.mark.parametrize("there", ["file", "folder", "link"])
def test_nothing_is_overwritten(tmp_path, folder, there):
    target = folder / "jpg/1004.jpg"
    target.parent.mkdir()
    if there == "file":
        target.write_bytes(b"another one")
    elif there == "folder":
        target.mkdir()
    else:
        target.symlink_to(tmp_path / "nowhere")
    before = stamps(folder.parent) if there != "link" else None
    with one_line_error(FileExistsError, target, tmp_path / "a.tar", "other content"):
        extract(write_tar(tmp_path / "a.tar"), folder)
    assert before is None or stamps(folder.parent).keys() == before.keys()
    assert not (tmp_path / "nowhere").exists()


EVIL_TARS = {
    "up": ("../evil.jpg", {}),
    "up, hidden": ("jpg/../../evil.jpg", {}),
    "line break": ("jpg/evil\n.jpg", {}),
    "symbolic link": ("jpg/evil.jpg", {"kind": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
    "harmless link": ("jpg/evil.jpg", {"kind": tarfile.SYMTYPE, "linkname": "1000.jpg"}),
    "hard link": ("jpg/evil.jpg", {"kind": tarfile.LNKTYPE, "linkname": "jpg/1000.jpg"}),
    "device": ("jpg/evil.jpg", {"kind": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}),
    "pipe": ("jpg/evil.jpg", {"kind": tarfile.FIFOTYPE}),
    "twice": ("jpg/1000.jpg", {"content": b"other"}),
    "twice, spelled otherwise": ("./jpg//1000.jpg", {"content": b"other"}),
}


@pytest.mark.parametrize("evil", EVIL_TARS)
@pytest.mark.parametrize("form", ["tar", "tar.gz"])
def test_an_evil_tar_leaves_nothing(tmp_path, folder, evil, form):
    name, fields = EVIL_TARS[evil]
    archive = write_tar(tmp_path / f"a.{form}", FILES, lambda tar: add(tar, name, **fields))
    with one_line_error(ArchiveError, archive, repr(name)):
        extract(archive, folder)
    assert untouched(folder) and not (tmp_path / "evil.jpg").exists()


@pytest.mark.parametrize("name", ["jpg/1000.jpg/evil.jpg", "jpg"])
def test_a_tar_with_a_file_in_place_of_a_folder_leaves_nothing(tmp_path, folder, name):
    archive = write_tar(tmp_path / "a.tar", FILES, lambda tar: add(tar, name))
    with one_line_error(OSError, archive, folder):
        extract(archive, folder)
    assert untouched(folder)


def test_a_file_written_through_a_link_of_the_archive_goes_nowhere(tmp_path, folder):
    (tmp_path / "outside").mkdir()

    def link(tar):
        add(tar, "out", tarfile.SYMTYPE, linkname=str(tmp_path / "outside"))

    archive = write_tar(tmp_path / "a.tar", {}, link, lambda tar: add(tar, "out/evil.jpg", content=b"evil"))
    with one_line_error(ArchiveError, archive, "'out'", "a link"):
        extract(archive, folder)
    assert untouched(folder) and not list((tmp_path / "outside").iterdir())


def test_absolute_paths_of_a_tar_are_taken_below_the_folder(tmp_path, folder):
    extract(write_tar(tmp_path / "a.tar", {f"{tmp_path}/evil.jpg": b"1"}), folder)
    assert found(folder) == {"mine.txt": b"mine", f"{tmp_path}/evil.jpg"[1:]: b"1"}
    assert not (tmp_path / "evil.jpg").exists()


@pytest.mark.parametrize("name", ["/evil.jpg", "../evil.jpg", "jpg/../../evil.jpg"])
def test_paths_of_a_zip_are_taken_below_the_folder(tmp_path, folder, name):
    extract(write_zip(tmp_path / "a.zip", {}, **{name: 0}), folder)
    [path] = found(folder).keys() - {"mine.txt"}
    assert path in ("evil.jpg", "jpg/evil.jpg")
    assert {each.name for each in folder.parent.iterdir()} == {"set"}


def test_a_link_in_a_zip_is_a_plain_file(tmp_path, folder):
    extract(write_zip(tmp_path / "a.zip", {}, **{"evil.jpg": stat.S_IFLNK | 0o777}), folder)
    assert (folder / "evil.jpg").read_text() == "/etc/passwd" and not (folder / "evil.jpg").is_symlink()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_with_a_path_twice_leaves_nothing(tmp_path, folder):
    archive = write_zip(tmp_path / "a.zip", FILES, **{"jpg/1000.jpg": 0})
    with one_line_error(ArchiveError, archive, "'jpg/1000.jpg'"):
        extract(archive, folder)
    assert untouched(folder)


def test_an_encrypted_zip_is_refused(tmp_path, folder):
    archive = write_zip(tmp_path / "a.zip", {"1.jpg": b"1"})
    content = bytearray(archive.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    with one_line_error(ArchiveError, archive, "encrypted"):
        extract(archive, folder)
    assert untouched(folder)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 1.0])
def test_an_archive_that_was_cut_off_leaves_nothing(tmp_path, folder, name, share):
    archive = write_archive(tmp_path / name)
    content = archive.read_bytes()
    # tar files end in 10 kB of zeros: so far they may be cut without a loss
    length = len(content.rstrip(b"\0")) - 1 if name == "a.tar" else len(content) - 1
    archive.write_bytes(content[: int(share * length)])
    with one_line_error(ArchiveError, archive, "remove it"):
        extract(archive, folder)
    assert untouched(folder)


def test_a_tar_cut_off_between_two_members_leaves_nothing(tmp_path, folder):
    archive = write_tar(tmp_path / "a.tar", {"1.jpg": bytes(range(256)) * 2, "2.jpg": b"2"})
    archive.write_bytes(archive.read_bytes()[: 512 * 3])  # a folder's header, a file's, its content
    with one_line_error(ArchiveError, archive, "remove it"):
        extract(archive, folder)
    assert untouched(folder)


@pytest.mark.parametrize("name", KINDS)
def test_flipped_bytes_give_the_right_files_or_an_error(tmp_path, folder, name):
    """Plain tar files have checksums for their headers only: what they hold may change unseen."""
    archive = write_archive(tmp_path / name, {path: FILES[path] for path in sorted(FILES)[:2]})
    content, right = archive.read_bytes(), None
    for seed in range(40):
        flipped, random_ = bytearray(content), random.Random(seed)
        flipped[random_.randrange(len(content.rstrip(b"\0")))] ^= 1 << random_.randrange(8)
        archive.write_bytes(flipped)
        try:
            extract(archive, folder / str(seed))
        except ArchiveError as error:
            assert "\n" not in str(error) and str(archive) in str(error)
            assert not (folder / str(seed)).exists()
        else:
            right = found(folder / str(seed))
            assert name == "a.tar" or {*right.values()} == {FILES[path] for path in sorted(FILES)[:2]}


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"<html>not found</html>" * 99, b"PK\x03\x04" * 99, bytes(9999)]
)
def test_what_is_no_archive_is_named(tmp_path, folder, content):
    (tmp_path / "a.tar.gz").write_bytes(content)
    with one_line_error(ArchiveError, tmp_path / "a.tar.gz"):
        extract(tmp_path / "a.tar.gz", folder)
    assert untouched(folder)


def test_an_archive_without_anything_wanted_is_named(tmp_path, folder):
    with one_line_error(ArchiveError, tmp_path / "a.zip", "no file to extract"):
        extract(write_zip(tmp_path / "a.zip"), folder, rename=lambda name: None)
    assert untouched(folder)


def test_a_missing_archive_is_named(tmp_path, folder):
    with one_line_error(FileNotFoundError, tmp_path / "a.zip"):
        extract(tmp_path / "a.zip", folder)
    assert untouched(folder)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip"])
def test_a_full_disk_leaves_nothing(tmp_path, folder, name, monkeypatch):
    def full(source, target, *args):
        target.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    archive = write_archive(tmp_path / name)
    monkeypatch.setattr(tarfile, "copyfileobj", full)
    monkeypatch.setattr(shutil, "copyfileobj", full)  # by which zipfile writes
    with one_line_error(OSError, archive, folder, os.strerror(errno.ENOSPC)):
        extract(archive, folder)
    assert untouched(folder)


@pytest.mark.parametrize("moment", [0, 1, 3, 5, 6])
def test_what_stops_while_files_move_is_undone(tmp_path, folder, moment, monkeypatch):
    """The sixth replacement is that of the record."""
    archive, replaced, replace = write_tar(tmp_path / "a.tar"), [], os.replace

    def stop(source, target):
        if len(replaced) == moment:
            raise KeyboardInterrupt
        replaced.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        extract(archive, folder)
    assert found(folder) == {"mine.txt": b"mine"}


def test_a_killed_extraction_is_repeated(tmp_path, folder):
    """SIGKILL at several moments: never a record, never a wrong file, and the next call completes it."""
    files = {f"jpg/{i}.jpg": random.Random(i).randbytes(20_000) for i in range(300)}
    archive = write_tar(tmp_path / "a.tar.gz", files)
    call = f"extract({str(archive)!r}, {str(folder)!r})"
    code = f"from mgkit.benchmarks.archives import extract; print(flush=True); {call}"
    for wait in (0.01, 0.05, 0.15):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            time.sleep(wait)
            process.send_signal(signal.SIGKILL)
        if not record_of(archive, folder).exists():
            assert not is_extracted(archive, folder)
        for path in (folder / "jpg").glob("*.jpg"):
            assert path.read_bytes() == files[f"jpg/{path.name}"]
    if not record_of(archive, folder).exists():  # or killed while it wrote the record
        (folder / ".a.tar.gz.contents.sha256.1.partial").write_bytes(b"half")
    extract(archive, folder)
    assert found(folder) == files | {"mine.txt": b"mine"}
    assert {path.name for path in folder.iterdir()} == {"jpg", "mine.txt", "a.tar.gz.contents.sha256"}


def test_what_a_kill_left_beside_a_complete_record_is_removed(tmp_path, folder):
    """Killed after the record was written, before the temporary folder was removed."""
    archive = write_archive(tmp_path / "a.tar.gz")
    extract(archive, folder)
    whole = found(folder)
    (folder / ".a.tar.gz.partial").mkdir()
    (folder / ".a.tar.gz.partial" / "1.jpg").write_bytes(b"half")
    extract(archive, folder)
    assert found(folder) == whole and not (folder / ".a.tar.gz.partial").exists()


def test_a_bomb_is_not_unpacked(tmp_path, folder):
    bombs = tmp_path / "bomb.zip", tmp_path / "bomb.tar.gz"
    with zipfile.ZipFile(bombs[0], "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", bytes(10**7))
    with tarfile.open(bombs[1], "w:gz") as archive:
        member = tarfile.TarInfo("a.jpg")
        member.size = 10**7
        archive.addfile(member, io.BytesIO(bytes(10**7)))
    for bomb in bombs:
        with one_line_error(ArchiveError, bomb, "100 times"):
            extract(bomb, folder)
        assert not [*folder.rglob("a.jpg")]


def test_a_damaged_record_is_named(tmp_path, folder):
    archive = write_tar(tmp_path / "a.tar")
    record = extract(archive, folder)
    record.write_text(record.read_text() + "hello\n")
    with one_line_error(ValueError, record, "remove it"):
        extract(archive, folder)
