"""Downloads that resume, are checked against a SHA-256 and moved into place once complete."""

import hashlib
import json
import math
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from mgkit.machine.files import atomic_write, move_into_place, writing
from mgkit.machine.progress import progress

BLOCK = 1_000_000  # bytes: a block is one MB of the progress bar
TIMEOUT = 30.0  # seconds without a byte
WAITS = (1.0, 5.0, 15.0)  # seconds before each retry
WEB_PAGES = (".html", ".htm")
PASSING_STATUS = (408, 416, 425, 429, 500, 502, 503, 504)  # HTTP errors that are retried


class DownloadError(OSError):
    """A failure of the network or the server; the message says how to get the file by hand."""


class Interrupted(Exception):  # noqa: N818 - handled by `complete`
    """A failure that is retried."""


def fetch(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    timeout: float = TIMEOUT,
    waits: Sequence[float] = WAITS,
) -> Path:
    """Download `url` to `path` unless it exists, check its SHA-256 and return the path.

    url: http, https, or ftp; ftp does not resume.
    sha256: the expected hash (hexadecimal). None: that in `<name>.sha256` (the format of `sha256sum -c`)
        beside the file; if there is none, it is written.
    timeout: longest time without a byte (seconds).
    waits: delay before each retry (seconds); a retry that receives data starts over with the first.

    The next call resumes an incomplete download (`<name>.partial`). Raises DownloadError (an OSError) for
    failures of the network or the server, ValueError for a wrong hash: a download is removed, a file that
    existed is kept.
    """
    path = Path(path)
    if sha256 and not is_hash(sha256):
        raise ValueError(f"sha256 must be 64 hexadecimal digits, got {sha256!r}")
    recorded = recorded_hash(path)
    if path.exists():
        found = check_present(path, sha256, recorded)
    else:
        found = download(path, url, sha256 or recorded, timeout=timeout, waits=waits)
    record(path, found)
    return path


def check_present(path: Path, given: str | None, recorded: str | None) -> str:
    """The SHA-256 of a file. Raises ValueError if it differs from the given or the recorded one."""
    found = file_hash(path)
    remedy = f"remove {path.name} to download it again"
    for expected, advice in (
        (given, remedy),
        (recorded, f"{remedy}, or {record_of(path)} if the change is intended"),
    ):
        if expected and found != expected.lower():
            raise ValueError(f"{path} has SHA-256 {found}, expected {expected}: {advice}")
    return found


def download(path: Path, url: str, expected: str | None, *, timeout: float, waits: Sequence[float]) -> str:
    """Download to a free path and return the SHA-256. Raises as `fetch` does."""
    if not url.lower().startswith(("http://", "https://", "ftp://")):
        raise ValueError(f"cannot download {path}: {url!r} is not an http, https or ftp address")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Partial(path, url)
        complete(partial, timeout=timeout, waits=waits)
        found = check_content(partial, expected)
        move_into_place(partial.data, path)
        partial.discard()
    return found


def record_of(path: Path) -> Path:
    """Path of the recorded hash of a file."""
    return path.with_name(path.name + ".sha256")


def recorded_hash(path: Path) -> str | None:
    """The recorded hash of a file, None without a record. Raises ValueError for a damaged record."""
    where = record_of(path)
    if not where.exists():
        return None
    words = where.read_text(encoding="utf-8-sig", errors="replace").split()
    if not words or not is_hash(words[0]):
        raise ValueError(f"{where} should hold a SHA-256 and a file name: remove it to write it again")
    return words[0]


def is_hash(text: str) -> bool:
    """Whether a text is a SHA-256 in hexadecimal."""
    return re.fullmatch("[0-9a-fA-F]{64}", text) is not None


def record(path: Path, found: str) -> None:
    """Record the hash as sha256sum does; where the folder is read-only, print that it is not recorded."""
    line = f"{found}  {path.name}\n"
    where = record_of(path)
    if where.exists() and where.read_text(encoding="utf-8", errors="replace") == line:
        return
    try:
        with atomic_write(where) as temporary:
            temporary.write_text(line, encoding="utf-8", newline="\n")
    except OSError as error:
        print(f"the SHA-256 of {path} is not recorded: {error}")


def file_hash(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


class Partial:
    """An incomplete download, and beside it a note on the version of the file that it belongs to."""

    def __init__(self, path: Path, url: str):
        self.path, self.url = path, url
        self.data = path.with_name(path.name + ".partial")
        self.note = path.with_name(path.name + ".partial.json")
        self.by_hand = f"fetch {url} by hand and put it at {path}"

    def size(self) -> int:
        """Bytes received so far."""
        return self.data.stat().st_size if self.data.exists() else 0

    def noted(self) -> tuple[str | None, int | None]:
        """(version, size of the whole file in bytes); None each if there is nothing to resume."""
        try:
            url, version, total = json.loads(self.note.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError):
            return None, None
        return (version, total) if url == self.url and self.size() else (None, None)

    def begin(self, version: str | None, total: int | None) -> None:
        """Start from zero bytes, and note what a later request needs to resume."""
        self.discard()
        if version and total is not None:
            self.note.write_text(json.dumps([self.url, version, total]), encoding="utf-8")

    def discard(self) -> None:
        """Remove the data and the note."""
        self.data.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def complete(partial: Partial, *, timeout: float, waits: Sequence[float]) -> None:
    """Complete the partial file; tries that receive data do not count as retries. Raises DownloadError."""
    tries, left = 0, list(waits)
    while True:
        before, tries = partial.size(), tries + 1
        try:
            return receive(partial, timeout=timeout)
        except Interrupted as trouble:
            if partial.size() > before:
                left = list(waits)
            if not left:
                again = f"run again to resume from {partial.size()} bytes, or " if partial.noted()[0] else ""
                many = f"{tries} tries" if tries > 1 else "one try"
                raise DownloadError(
                    f"{partial.url} failed after {many} ({trouble}): {again}{partial.by_hand}"
                ) from None
            print(f"{partial.path.name}: {trouble}; retry in {left[0]:g} s", flush=True)
            time.sleep(left.pop(0))


def receive(partial: Partial, *, timeout: float) -> None:
    """Request the missing bytes once and append them. Raises Interrupted, or DownloadError for a refusal."""
    (version, total), size = partial.noted(), partial.size()
    if size == total:
        return  # stopped between the last byte and the move into place
    headers = {"User-Agent": "mgkit", "Accept-Encoding": "identity"}
    if version:  # If-Range: the server sends the rest if the version is the same, else the whole file
        headers |= {"Range": f"bytes={size}-", "If-Range": version}
    with answer(urllib.request.Request(partial.url, headers=headers), partial, timeout) as response:
        if response.status == 206:
            check_continuation(response, partial)
        else:
            total = begin_anew(response, partial)
        missing = math.ceil((total - partial.size()) / BLOCK) if total is not None else None
        blocks = progress(blocks_of(response), f"downloading {partial.path.name}", total=missing, unit="MB")
        with open(partial.data, "ab") as file:
            for block in blocks:
                file.write(block)
    size = partial.size()
    if total is not None and size != total:
        if size > total:
            partial.discard()
        raise Interrupted(f"the server sent {size} of {total} bytes")


def answer(request: urllib.request.Request, partial: Partial, timeout: float) -> HTTPResponse:
    """The server's response. Raises Interrupted, or DownloadError for one that a retry would not change."""
    try:
        return urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        status = f"{error.code} {error.reason}"
        if error.code not in PASSING_STATUS:
            raise DownloadError(f"{partial.url} answers {status}: {partial.by_hand}") from None
        if error.code == 416:  # range not satisfiable: the partial file belongs to another version
            partial.discard()
        raise Interrupted(f"the server answers {status}") from None
    except (OSError, HTTPException) as error:
        raise Interrupted(reason_of(error)) from None


def check_continuation(response: HTTPResponse, partial: Partial) -> None:
    """Check that a 206 response holds the missing bytes of the noted version. Raises Interrupted."""
    version, total = partial.noted()
    span = response.headers.get("Content-Range", "").strip()
    fits = re.fullmatch(rf"bytes {partial.size()}-\d+/{total}", span)
    if not fits or version_of(response) not in (None, version):
        partial.discard()
        raise Interrupted("the server sent another range or version of the file than requested")


def begin_anew(response: HTTPResponse, partial: Partial) -> int | None:
    """Empty the partial file for a whole one; returns the announced size (bytes), None without one."""
    by_ftp = response.status is None
    if not by_ftp and response.status != 200:
        raise Interrupted(f"the server answers {response.status} {response.reason}")
    refuse_web_page(partial, response.headers.get_content_type() == "text/html")
    length = response.headers.get("Content-Length", "").strip()
    total = int(length) if length.isdigit() else None
    if by_ftp and total is None:  # a broken connection would look like the end of the file
        raise DownloadError(f"{partial.url} answers without the size of the file: {partial.by_hand}")
    partial.begin(version_of(response), total)
    return total


def version_of(response: HTTPResponse) -> str | None:
    """The version of the file: its strong ETag, else its date."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified")


def blocks_of(stream: HTTPResponse) -> Iterator[bytes]:
    """Yield the response in blocks of BLOCK bytes. Raises Interrupted for errors of the network."""
    block, trouble = b"", None
    try:
        while part := stream.read1(BLOCK - len(block)):
            block += part
            if len(block) == BLOCK:
                yield block
                block = b""
    except (OSError, HTTPException) as error:
        trouble = Interrupted(reason_of(error))
    if block:
        yield block  # also what came before an error
    if trouble:
        raise trouble


def reason_of(error: Exception) -> str:
    """The error's message in one line."""
    while hasattr(error, "reason"):  # a URLError may hold another error
        error = error.reason
    return " ".join(str(error).split()) or type(error).__name__


def refuse_web_page(partial: Partial, is_page: bool) -> None:
    """Raise ValueError for a web page, such as a login, in place of another kind of file."""
    if is_page and partial.path.suffix.lower() not in WEB_PAGES:
        partial.discard()
        raise ValueError(
            f"{partial.url} returned a web page instead of {partial.path.name}: open it in a browser,"
            f" download the file and put it at {partial.path}"
        )


def is_web_page(head: bytes) -> bool:
    """Whether a file that begins with these bytes is HTML."""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html"))


def check_content(partial: Partial, expected: str | None) -> str:
    """The SHA-256 of a complete partial file. Raises ValueError if it is wrong, and removes the file."""
    with open(partial.data, "rb") as file:
        refuse_web_page(partial, is_web_page(file.read(512)))
    size, found = partial.size(), file_hash(partial.data)
    if expected and found != expected.lower():
        partial.discard()
        raise ValueError(
            f"{partial.url}: {size} bytes with SHA-256 {found}, expected {expected}; removed: try again, or"
            f" {partial.by_hand}"
        )
    return found
