"""Safe extraction of tar and zip archives, completely or not at all, with recorded hashes."""

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
from mgkit.machine.files import RefusedError, atomic_write, why_refused
from mgkit.machine.progress import progress

ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")  # the latter for empty archives
DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    LZMAError,
    struct.error,
    EOFError,
    ValueError,
    RuntimeError,  # encryption or unknown compression
)
MOST_INFLATED = 100  # times the size of the archive, and a MiB; images hardly compress
CONTENT_ERRNOS = (None, errno.EINVAL)  # of OSErrors by failed decompression and invalid offsets


class ArchiveError(ValueError):
    """A file that is not an archive, is damaged, or has members that must not be extracted."""


def extract(
    archive: str | Path, folder: str | Path, *, rename: Callable[[str], str | None] | None = None
) -> Path:
    """Extract a tar (plain, gz, bz2, xz) or zip archive; return the record of its files.

    archive, folder: what to extract, and where to
    rename: maps a path in the archive to a path in the folder, None to skip the file
    Only regular files are extracted. The record `<archive>.contents.sha256` in the folder has a line per
    file, in the format of sha256sum; if it is complete and belongs to this archive, nothing is done. Files
    are unpacked to a temporary folder inside `folder` and then moved; an interrupted call is completed by the
    next one.

    Raises ArchiveError (a ValueError) for a damaged archive, a link or device (tar), a path outside the
    folder, a duplicate path, or no file to extract; FileExistsError for a file of other content in the
    folder; OSError for a full disk and the like.
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise FileNotFoundError(f"the archive {archive} does not exist")
    temporary = folder / f".{archive.name}.partial"
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
    if is_extracted(archive, folder):
        return record_of(archive, folder)
    try:
        for record in folder.glob(f".{record_of(archive, folder).name}.*.partial"):
            record.unlink()
        temporary.mkdir(parents=True)
        hashes = unpack(archive, temporary, rename or str)
        check_free(archive, folder, hashes)
        put_in_place(archive, temporary, folder, hashes)
    except OSError as error:
        if error.errno is None:
            raise  # raised here, with a complete message
        why = why_refused(error, folder / archive.name)
        raise RefusedError(f"{archive} cannot be extracted to {folder}: {why}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):  # not empty
            folder.rmdir()
    return record_of(archive, folder)


def is_extracted(archive: str | Path, folder: str | Path) -> bool:
    """Return whether all files in the record of an archive are in the folder, with or without the archive."""
    archive, folder = Path(archive), Path(folder)
    record = record_of(archive, folder)
    if not record.exists() or (archive.exists() and identity(archive) not in read_lines(record)):
        return False
    return all((folder / path).is_file() for path in recorded_hashes(record))


def record_of(archive: str | Path, folder: str | Path) -> Path:
    """Return the path of the record of an archive's files."""
    return Path(folder) / f"{Path(archive).name}.contents.sha256"


def recorded_hashes(record: Path) -> dict[str, str]:
    """Read {path: SHA-256} from a file in the format of sha256sum; ValueError for a damaged file."""
    hashes = {}
    for line in read_lines(record):
        line = line.removesuffix("\r")
        if not line or line.startswith("#"):
            continue
        found, _, path = line.partition("  ")
        if not is_hash(found) or not path:
            raise ValueError(f"{record} should hold a SHA-256 and a file name in each line: remove it")
        hashes[path] = found.lower()
    return hashes


def read_lines(record: Path) -> list[str]:
    return record.read_text(encoding="utf-8", errors="surrogateescape").split("\n")


def identity(archive: Path) -> str:
    """Return a comment line that identifies an archive without reading it."""
    found = archive.stat()
    return f"# {archive.name}, {found.st_size} bytes, last changed {found.st_mtime_ns} ns after 1970"


def unpack(archive: Path, folder: Path, rename: Callable[[str], str | None]) -> dict[str, str]:
    """Extract the files of an archive to an empty folder; return {path: SHA-256}."""
    taken = set()

    def place(name: str) -> str | None:
        path = rename(str(PurePosixPath(name)))
        if path is None:
            return None
        if path in taken or re.search(r"[\x00-\x1f\x7f]", path):  # the record has one line per file
            raise ArchiveError(f"{archive}: {name!r} is a duplicate, or has control characters in its name")
        taken.add(path)
        return path

    with open(archive, "rb") as file:
        unpack_all = unpack_zip if file.read(4) in ZIP_STARTS else unpack_tar
    try:
        unpack_all(archive, folder, place)
    except ArchiveError:
        raise
    except (*DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno not in CONTENT_ERRNOS:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ArchiveError(
            f"{archive} is not a tar or zip archive, or is damaged ({reason}): "
            "remove it and its .sha256 to fetch it again"
        ) from None
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise ArchiveError(f"{archive} holds no file to extract: is it the right archive?")
    return {path.relative_to(folder).as_posix(): file_hash(path) for path in files}


def check_inflated(archive: Path, total: int) -> None:
    """Raise ArchiveError for more bytes of files than an archive of images can hold."""
    if total > MOST_INFLATED * archive.stat().st_size + 2**20:
        raise ArchiveError(
            f"{archive} would become more than {MOST_INFLATED} times its size: no set is like that"
        )


def unpack_tar(archive: Path, folder: Path, place: Callable[[str], str | None]) -> None:
    """Extract the files of a tar archive to the paths given by `place`."""
    if not hasattr(tarfile, "data_filter"):
        raise ArchiveError(f"{archive}: safe extraction needs Python 3.10.12, 3.11.4 or newer")

    total = 0

    def only_files(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        nonlocal total
        if member.isdir():
            return None
        total += member.size
        check_inflated(archive, total)
        if not member.isreg():
            raise ArchiveError(f"{archive}: {member.name!r} is a link or a device")
        name = place(member.name)
        return None if name is None else tarfile.data_filter(member.replace(name=name), path)

    with tarfile.open(archive) as tar:
        tar.extractall(folder, progress(tar, f"extracting {archive.name}", unit="file"), filter=only_files)
        tar.fileobj.seek(tar.offset)  # since tarfile stops at a damaged or missing header
        if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("its end mark is missing")
        while tar.fileobj.read(BLOCK):  # up to the checksum of a compressed file
            pass


def unpack_zip(archive: Path, folder: Path, place: Callable[[str], str | None]) -> None:
    """Extract the files of a zip archive to the paths given by `place`, within the folder by zipfile."""
    with zipfile.ZipFile(archive) as file:
        members = [member for member in file.infolist() if not member.is_dir()]
        check_inflated(archive, sum(member.file_size for member in members))
        for member in progress(members, f"extracting {archive.name}", unit="file"):
            name = place(member.filename)
            if name is not None:
                member.filename = name
                file.extract(member, folder)


def check_free(archive: Path, folder: Path, hashes: dict[str, str]) -> None:
    """Raise FileExistsError for a file in the folder whose content differs from the archive's."""
    for path, wanted in hashes.items():
        target = folder / path
        if os.path.lexists(target) and not (target.is_file() and file_hash(target) == wanted):
            raise FileExistsError(f"{target} exists with other content than in {archive}: move it away")


def put_in_place(archive: Path, temporary: Path, folder: Path, hashes: dict[str, str]) -> None:
    """Move the unpacked files to the folder and write the record; remove them if that fails."""
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
