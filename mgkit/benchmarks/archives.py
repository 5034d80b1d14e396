"""Tar and zip archives, extracted completely or not at all, with recorded hashes."""

import errno
import os
import re
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from lzma import LZMAError
from pathlib import Path, PurePosixPath

from mgkit.machine.download import BLOCK, file_hash, is_hash
from mgkit.machine.files import atomic_write
from mgkit.machine.progress import progress

ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")  # the latter: of an empty one
DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    LZMAError,
    struct.error,
    EOFError,
    ValueError,
    RuntimeError,  # an encrypted zip archive, or an unknown compression
)
OF_THE_CONTENT = (None, errno.EINVAL)  # OSError numbers of failed decompression and of impossible positions


class ArchiveError(ValueError):
    """An archive that is none, is damaged, or holds what must not be extracted."""


def extract(
    archive: str | Path, folder: str | Path, *, rename: Callable[[str], str | None] | None = None
) -> Path:
    """Extract a tar (plain, gz, bz2, xz) or zip archive to a folder; returns the record of its files.

    rename: a file's path in the archive -> its path below the folder, or None to leave it out.

    Only files are extracted, with the folders that contain them. The record is `<archive>.contents.sha256` in
    the folder, a line per file, as `sha256sum -c` reads it. Nothing is done while the record and its files
    are there, for this very archive. Files are unpacked to a temporary folder inside `folder`, then moved; a
    call that was killed in between is completed by the next one.

    Raises ArchiveError (a ValueError) for an archive that is damaged, has a link or a device (tar), a path
    out of the folder, or one path twice, or holds nothing wanted; FileExistsError for a file in the folder
    with other content (the same content is fine); another OSError for a full disk and the like.
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise FileNotFoundError(f"{archive} does not exist: there should be an archive")
    if is_extracted(archive, folder):
        return record_of(archive, folder)
    temporary = folder / f".{archive.name}.partial"
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
        with suppress(OSError):  # the folder is not empty: it holds what was wanted
            folder.rmdir()
    return record_of(archive, folder)


def is_extracted(archive: str | Path, folder: str | Path) -> bool:
    """Whether all files in the record of an archive are in the folder. The archive may be gone by then."""
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
    """Extract the files of an archive to an empty folder; returns path -> SHA-256. Raises ArchiveError."""
    taken = set()

    def place(name: str) -> str | None:
        """Where a file goes below the folder."""
        path = rename(str(PurePosixPath(name)))
        if path is None:
            return None
        if path in taken or re.search(r"[\x00-\x1f\x7f]", path):  # line breaks would break the record's lines
            raise ArchiveError(f"{archive}: {name!r} has the path of another file, or is no plain name")
        taken.add(path)
        return path

    with open(archive, "rb") as file:
        unpack_all = unpack_zip if file.read(4) in ZIP_STARTS else unpack_tar
    try:
        unpack_all(archive, folder, place)
    except ArchiveError:
        raise
    except DAMAGE as error:
        raise damaged(archive, error) from None
    except OSError as error:
        if error.errno not in OF_THE_CONTENT:
            raise
        raise damaged(archive, error) from None
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise ArchiveError(f"{archive} holds no file that is wanted: is it the right archive?")
    return {path.relative_to(folder).as_posix(): file_hash(path) for path in files}


def unpack_tar(archive: Path, folder: Path, place: Callable[[str], str | None]) -> None:
    """Extract the files of a tar archive as `place` says."""
    if not hasattr(tarfile, "data_filter"):
        raise ArchiveError(f"{archive}: to extract it safely takes Python 3.10.12, 3.11.4 or a newer one")

    def only_files(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        if member.isdir():
            return None
        if not member.isreg():
            raise ArchiveError(f"{archive}: {member.name!r} is a link or a device, which is not extracted")
        name = place(member.name)
        return None if name is None else tarfile.data_filter(member.replace(name=name), path)

    with tarfile.open(archive) as tar:
        tar.extractall(folder, progress(tar, f"extracting {archive.name}", unit="file"), filter=only_files)
        tar.fileobj.seek(tar.offset)  # tarfile takes a damaged or missing header for the end
        if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("its end mark is missing")
        while tar.fileobj.read(BLOCK):  # to the checksum at the end of a compressed file
            pass


def unpack_zip(archive: Path, folder: Path, place: Callable[[str], str | None]) -> None:
    """Extract the files of a zip archive as `place` says; zipfile itself keeps names below the folder."""
    with zipfile.ZipFile(archive) as file:
        members = [member for member in file.infolist() if not member.is_dir()]
        for member in progress(members, f"extracting {archive.name}", unit="file"):
            name = place(member.filename)
            if name is not None:
                member.filename = name
                file.extract(member, folder)


def damaged(archive: Path, error: Exception) -> ArchiveError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ArchiveError(
        f"{archive} is no tar or zip archive, or is damaged ({reason}): "
        "remove it, and its .sha256, to have it fetched anew"
    )


def check_free(archive: Path, folder: Path, hashes: dict[str, str]) -> None:
    """FileExistsError for a path in the folder that has other content than the archive has for it."""
    for path, wanted in hashes.items():
        target = folder / path
        if os.path.lexists(target) and not (target.is_file() and file_hash(target) == wanted):
            raise FileExistsError(
                f"{target} is there with other content than {archive} has for it: move it away"
            )


def put_in_place(archive: Path, temporary: Path, folder: Path, hashes: dict[str, str]) -> None:
    """Move the unpacked files to the folder and record them there; they are removed if that fails."""
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
        raise
