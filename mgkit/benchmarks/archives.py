"""Archives extracted whole or not at all, with nothing outside the folder and nothing overwritten."""

import errno
import hashlib
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from mgkit.machine.download import BLOCK, file_hash, is_hash
from mgkit.machine.files import atomic_write
from mgkit.machine.progress import progress

ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")  # the latter: of an empty one
DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    ValueError,
    NotImplementedError,  # a way of compression that this Python does not know
)
OF_THE_CONTENT = (None, errno.EINVAL)  # numbers of errors of decompression, and of positions that cannot be
FILE, FOLDER = "a file", "a folder"


class ArchiveError(ValueError):
    """An archive that is none, is damaged, or holds what must not be extracted."""


class Member(NamedTuple):
    """What an archive holds under a name. kind: FILE, FOLDER or, in words, something else; open: gives a file's content."""

    name: str
    kind: str
    open: Callable[[], IO[bytes]]


def extract(
    archive: str | Path, folder: str | Path, *, rename: Callable[[str], str | None] | None = None
) -> Path:
    """Extract a tar (plain, gz, bz2, xz) or zip archive to a folder; returns the record of what it put there.

    rename: a file's path in the archive -> its path below the folder, or None to leave it out. Only files are taken over, with
    the folders that they are in, without owners, permissions and dates. The record, `<archive>.contents.sha256` in the folder, has
    a line for each, which `sha256sum -c` verifies. While record and files are there, for this very archive, nothing is done.

    Raises ArchiveError (a ValueError) for an archive that is none or damaged, has a link, a device, a path out of the folder or
    one path twice, or has nothing wanted; FileExistsError for a file in the folder that has other content (the same content is
    fine); another OSError for a full disk and the like. Of an archive that is not whole in the folder, nothing is.
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise FileNotFoundError(f"{archive} does not exist: there should be an archive")
    if is_extracted(archive, folder):
        return record_of(archive, folder)
    present, temporary = folder.exists(), folder / f".{archive.name}.partial"
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
        temporary.mkdir(parents=True)
        hashes = unpack(archive, temporary, rename or str)
        check_free(archive, folder, hashes)
        put_in_place(archive, temporary, folder, hashes)
    except OSError as error:
        if error.errno is None:
            raise  # ours, complete
        reason = error.strerror or type(error).__name__
        raise OSError(error.errno, f"{archive} cannot be extracted to {folder}: {reason}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if not present:
            with suppress(OSError):  # where it holds what was wanted
                folder.rmdir()
    return record_of(archive, folder)


def is_extracted(archive: str | Path, folder: str | Path) -> bool:
    """Whether all files of the record of an archive are in the folder. The archive itself may be gone; another one does not count."""
    archive, folder = Path(archive), Path(folder)
    record = record_of(archive, folder)
    if not record.exists() or (archive.exists() and identity(archive) not in read_lines(record)):
        return False
    return all((folder / path).is_file() for path in recorded_hashes(record))


def record_of(archive: str | Path, folder: str | Path) -> Path:
    """Where the hashes of the files that came from an archive are recorded."""
    return Path(folder) / f"{Path(archive).name}.contents.sha256"


def recorded_hashes(record: Path) -> dict[str, str]:
    """Path -> SHA-256 from a file in the format of sha256sum; ValueError for a damaged one."""
    hashes = {}
    for line in read_lines(record):
        if not line or line.startswith("#"):
            continue
        found, _, path = line.partition("  ")
        if not is_hash(found) or not path:
            raise ValueError(f"{record} should hold a SHA-256 and a file's name in each line: remove it")
        hashes[path] = found.lower()
    return hashes


def read_lines(record: Path) -> list[str]:
    return record.read_text(encoding="utf-8", errors="surrogateescape").split("\n")


def identity(archive: Path) -> str:
    """A comment that names an archive without reading it."""
    found = archive.stat()
    return f"# {archive.name}, {found.st_size} bytes, last changed {found.st_mtime_ns} ns after 1970"


def unpack(archive: Path, folder: Path, rename: Callable[[str], str | None]) -> dict[str, str]:
    """Write the files of an archive to an empty folder; returns path -> SHA-256. Raises ArchiveError."""
    hashes = {}
    try:
        for member in progress(members_of(archive), f"extracting {archive.name}", unit="file"):
            path = safe_path(archive, member.name)
            if member.kind not in (FILE, FOLDER):
                raise ArchiveError(f"{archive}: {member.name!r} is {member.kind}, which is not extracted")
            wanted = rename(str(path)) if member.kind == FILE else None
            if wanted is not None:
                path = safe_path(archive, wanted)
                hashes[str(path)] = write_new(archive, member, folder / path)
    except ArchiveError:
        raise
    except OSError as error:
        if error.errno not in OF_THE_CONTENT:
            raise
        raise damaged(archive, error) from None
    except DAMAGE as error:
        raise damaged(archive, error) from None
    if not hashes:
        raise ArchiveError(f"{archive} holds no file that is wanted: is it the right archive?")
    return hashes


def damaged(archive: Path, error: Exception) -> ArchiveError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ArchiveError(
        f"{archive} is no tar or zip archive, or is damaged ({reason}): remove it, and its .sha256, to have it fetched anew"
    )


def safe_path(archive: Path, name: str) -> PurePosixPath:
    """The path of a member below the folder; ArchiveError for one that leads elsewhere, on any system, or breaks lines."""
    elsewhere = name.startswith("/") or ".." in name.split("/") or "\\" in name or re.match("[a-zA-Z]:", name)
    if elsewhere or re.search(r"[\x00-\x1f\x7f]", name) or not name:
        raise ArchiveError(f"{archive}: {name!r} is no plain path below a folder, so it is not extracted")
    return PurePosixPath(name)


def write_new(archive: Path, member: Member, path: Path) -> str:
    """Write a member to a path that is free; returns the SHA-256."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(exist_ok=False)
    except (FileExistsError, NotADirectoryError):
        raise ArchiveError(
            f"{archive}: {member.name!r} gets a path that is taken by another file or folder of it"
        ) from None
    digest = hashlib.sha256()
    with open(path, "wb") as file, member.open() as content:
        while block := content.read(BLOCK):
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def members_of(archive: Path) -> Iterator[Member]:
    """The members in their order, to be read one after the other."""
    with open(archive, "rb") as file:
        is_zip = file.read(4) in ZIP_STARTS
    return zip_members(archive) if is_zip else tar_members(archive)


class WholeTarInfo(tarfile.TarInfo):
    """A header of a tar archive. tarfile takes one that cannot be read for the archive's end; here only the end mark is that."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None


def tar_members(archive: Path) -> Iterator[Member]:
    with tarfile.open(archive, tarinfo=WholeTarInfo) as tar:
        for info in tar:
            yield Member(info.name, kind_in_tar(info), partial(tar.extractfile, info))
        while tar.fileobj.read(BLOCK):  # to the end, where the checksum of a compressed file stands
            pass


def kind_in_tar(info: tarfile.TarInfo) -> str:
    if info.isreg():
        return FILE
    if info.isdir():
        return FOLDER
    if info.islnk() or info.issym():
        return "a hard link" if info.islnk() else "a symbolic link"
    return "a device, pipe or other special file"


def zip_members(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            yield Member(info.orig_filename, kind_in_zip(info), partial(file.open, info))


def kind_in_zip(info: zipfile.ZipInfo) -> str:
    kind = stat.S_IFMT(info.external_attr >> 16)  # as Unix programs store it; else 0
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a symbolic link" if kind == stat.S_IFLNK else "a device, pipe or other special file"
    if info.flag_bits & 1:
        return "an encrypted file"
    return FOLDER if info.is_dir() else FILE


def check_free(archive: Path, folder: Path, hashes: dict[str, str]) -> None:
    """FileExistsError for a path in the folder where there is something else than what the archive has for it."""
    for path, wanted in hashes.items():
        target = folder / path
        if os.path.lexists(target) and not (target.is_file() and file_hash(target) == wanted):
            raise FileExistsError(
                f"{target} is there with other content than {archive} has for it: move it away"
            )


def put_in_place(archive: Path, temporary: Path, folder: Path, hashes: dict[str, str]) -> None:
    """Move the unpacked files to the folder and record them there; what goes wrong undoes it."""
    moved = []
    try:
        for path in hashes:
            target = folder / path
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                moved.append(target)
                os.replace(temporary / path, target)
        lines = [identity(archive), *(f"{found}  {path}" for path, found in hashes.items())]
        with atomic_write(record_of(archive, folder)) as record:
            record.write_text("\n".join(lines) + "\n", "utf-8", "surrogateescape", "\n")
    except BaseException:
        for target in moved:
            target.unlink(missing_ok=True)
        parents = {parent for target in moved for parent in target.parents if folder in parent.parents}
        for parent in sorted(parents, key=lambda parent: len(parent.parts), reverse=True):
            with suppress(OSError):  # others' files are in it
                parent.rmdir()
        raise
