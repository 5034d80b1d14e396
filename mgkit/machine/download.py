"""Downloads that leave the right file or none: resumed, checked against a SHA-256, moved into place whole."""

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

from mgkit.machine.files import atomic_write, move_into_place
from mgkit.machine.progress import progress

BLOCK = 1_000_000  # bytes: a block is one MB of the progress bar
TIMEOUT = 30.0  # seconds without a byte
WAITS = (1.0, 5.0, 15.0)  # seconds before each further try
WEB_PAGES = (".html", ".htm")
PASSING_STATUS = (408, 416, 425, 429, 500, 502, 503, 504)  # worth another try


class DownloadError(OSError):
    """The network or the server failed; the message says what was tried and how to get the file by hand."""


class Interrupted(Exception):  # noqa: N818 - no error yet: another try may do
    """Trouble that another try may not meet."""


class Refused(Exception):  # noqa: N818 - as above: what to fetch by hand is not said yet
    """An answer of the server that will not change."""


def fetch(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    timeout: float = TIMEOUT,
    waits: Sequence[float] = WAITS,
) -> Path:
    """The file at `path`, downloaded from `url` unless it is there; returns the path.

    url: http, https, or ftp; only the former two are resumed.
    sha256: the hash that its content must have, in hexadecimal. Without one, the hash recorded beside it
        (`<name>.sha256`, for `sha256sum -c`) counts; without either, that of what is there is recorded.
    timeout: seconds without a byte.
    waits: seconds before each further try; a try that gets further starts them anew.

    What a broken download left (`<name>.partial`) is continued by the next call. Raises DownloadError (an
    OSError) for trouble with the network or the server, and ValueError for wrong content, of which nothing
    remains. A file that is there and has another hash is left alone, and a ValueError.
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
    """The SHA-256 of a file; ValueError unless it is the given and the recorded one, where they are known."""
    found = file_hash(path)
    remedy = f"remove {path.name} to download it anew"
    for expected, way_out in (
        (given, remedy),
        (recorded, f"{remedy}, or, if it has rightly changed, {record_of(path)}"),
    ):
        if expected and found != expected.lower():
            raise ValueError(f"{path} has SHA-256 {found}, expected {expected}: {way_out}")
    return found


def download(path: Path, url: str, expected: str | None, *, timeout: float, waits: Sequence[float]) -> str:
    """Download to a path that is free; returns the SHA-256 of what is there now. Raises as `fetch` does."""
    if not url.lower().startswith(("http://", "https://", "ftp://")):
        raise ValueError(f"{url!r} is no http or ftp address: {path} cannot be downloaded")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Partial(path, url)
    complete(partial, timeout=timeout, waits=waits)
    found = check_content(partial, expected)
    move_into_place(partial.data, path)
    partial.discard()
    return found


def record_of(path: Path) -> Path:
    """Where the hash of a file is recorded."""
    return path.with_name(path.name + ".sha256")


def recorded_hash(path: Path) -> str | None:
    """The hash in the record of a file, None without a record; ValueError for a damaged one."""
    where = record_of(path)
    if not where.exists():
        return None
    words = where.read_text(encoding="utf-8", errors="replace").split()
    if not words or not is_hash(words[0]):
        raise ValueError(
            f"{where} should hold a SHA-256 and the name of a file: remove it to have it made anew"
        )
    return words[0]


def is_hash(text: str) -> bool:
    """Whether a text is a SHA-256 in hexadecimal."""
    return re.fullmatch("[0-9a-fA-F]{64}", text) is not None


def record(path: Path, found: str) -> None:
    """Write the record, as sha256sum does, unless it is there; a read-only folder goes without."""
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
    """What has come of a file so far, and a note beside it on which version of it that is."""

    def __init__(self, path: Path, url: str):
        self.path, self.url = path, url
        self.data = path.with_name(path.name + ".partial")
        self.note = path.with_name(path.name + ".partial.json")
        self.by_hand = f"fetch {url} by hand and put it at {path}"

    def size(self) -> int:
        """Bytes that are there."""
        return self.data.stat().st_size if self.data.exists() else 0

    def noted(self) -> dict:
        """url, validator (what names the version) and total (bytes), or {} where nothing can be continued."""
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            known = isinstance(note["validator"], str) and isinstance(note["total"], int)
            return note if known and note["url"] == self.url and self.size() else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def begin(self, validator: str | None, total: int | None) -> None:
        """Start from nothing, on the version that the server has now."""
        self.discard()
        note = {"url": self.url, "validator": validator, "total": total}
        self.note.write_text(json.dumps(note), encoding="utf-8")

    def discard(self) -> None:
        """Remove everything, so that no later call continues it."""
        self.data.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def complete(partial: Partial, *, timeout: float, waits: Sequence[float]) -> None:
    """Complete the partial file, in as many tries as it takes while they get further; or DownloadError."""
    tries, left = 0, list(waits)
    while True:
        before, tries = partial.size(), tries + 1
        try:
            return receive(partial, timeout=timeout)
        except Refused as answer:
            raise DownloadError(f"{partial.url} answers {answer}: {partial.by_hand}") from None
        except Interrupted as trouble:
            if partial.size() > before:
                left = list(waits)
            if not left:
                again = f"run again to go on from {partial.size()} bytes, or " if partial.noted() else ""
                many = f"{tries} tries" if tries > 1 else "one try"
                raise DownloadError(
                    f"{partial.url} did not come in {many} ({trouble}): {again}{partial.by_hand}"
                ) from None
            print(f"{partial.path.name}: {trouble}; another try in {left[0]:g} s", flush=True)
            time.sleep(left.pop(0))


def receive(partial: Partial, *, timeout: float) -> None:
    """One try: ask for what is missing and append it. Raises Interrupted, or Refused."""
    note = partial.noted()
    if note and note["total"] == partial.size():
        return  # stopped between the last byte and the move into place
    headers = {"User-Agent": "mgkit", "Accept-Encoding": "identity"}
    if note:  # the server sends the rest only of this very version, else everything
        headers |= {"Range": f"bytes={partial.size()}-", "If-Range": note["validator"]}
    request = urllib.request.Request(partial.url, headers=headers)
    with answer(request, partial, timeout) as response:
        total = begin_or_continue(response, partial, note)
        missing = math.ceil((total - partial.size()) / BLOCK) if total is not None else None
        blocks = progress(blocks_of(response), f"downloading {partial.path.name}", total=missing, unit="MB")
        with open(partial.data, "ab") as file:
            for block in blocks:
                file.write(block)
    size = partial.size()
    if total is not None and size < total:
        raise Interrupted(f"the connection ended after {size} of {total} bytes")
    if total is not None and size > total:
        partial.discard()
        raise Interrupted(f"{size} bytes came where {total} were announced")


def begin_or_continue(response: HTTPResponse, partial: Partial, note: dict) -> int | None:
    """Make the partial file ready for what comes; returns the bytes of the whole file, None if unknown."""
    if response.status == 206:
        check_continuation(response, partial, note)
        return note["total"]
    by_ftp = response.status is None
    if not by_ftp and response.status != 200:
        raise Interrupted(f"the server answers {response.status} {response.reason}")
    refuse_web_page(partial, response.headers.get_content_type() == "text/html")
    total = length_of(response)
    if by_ftp and total is None:  # the end of the file could not be told from that of the connection
        raise Refused("without the size of the file")
    partial.begin(validator_of(response), total)
    return total


def answer(request: urllib.request.Request, partial: Partial, timeout: float) -> HTTPResponse:
    """The server's answer to a request. Raises Interrupted, or Refused."""
    try:
        return urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code not in PASSING_STATUS:
            raise Refused(f"{error.code} {error.reason}") from None
        if error.code == 416:  # there is nothing after what we have: it cannot be of this file
            partial.discard()
        raise Interrupted(f"the server answers {error.code} {error.reason}") from None
    except (OSError, HTTPException) as error:
        raise Interrupted(reason_of(error)) from None


def blocks_of(stream: HTTPResponse) -> Iterator[bytes]:
    """What comes, a block at a time; Interrupted for trouble of the network, not of our disk."""
    block = b""
    while True:
        try:
            part = stream.read1(BLOCK - len(block))
        except (OSError, HTTPException) as error:
            if block:
                yield block  # what came before the trouble need not come again
            raise Interrupted(reason_of(error)) from None
        block += part
        if block and (not part or len(block) == BLOCK):
            yield block
            block = b""
        if not part:
            return


def reason_of(error: Exception) -> str:
    """What went wrong, in one line."""
    while hasattr(error, "reason"):  # a URLError may hold another one
        error = error.reason
    return " ".join(str(error).split()) or type(error).__name__


def check_continuation(response: HTTPResponse, partial: Partial, note: dict) -> None:
    """Start over, through Interrupted, unless a 206 brings the rest of the version that the note names."""
    span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", response.headers.get("Content-Range", "").strip())
    fits = span and note and int(span[1]) == partial.size() and int(span[3]) == note["total"]
    if not fits or validator_of(response) not in (None, note["validator"]):
        partial.discard()
        raise Interrupted("the server sent another part or version of the file than the one that is missing")


def validator_of(response: HTTPResponse) -> str | None:
    """What names this version of the file: its ETag (a weak one does not tell bytes apart) or its date."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified")


def length_of(response: HTTPResponse) -> int | None:
    """The announced size of the whole file in bytes, None if the server does not say."""
    length = response.headers.get("Content-Length", "").strip()
    return int(length) if length.isdigit() else None


def refuse_web_page(partial: Partial, is_page: bool) -> None:
    """ValueError for a web page (a login, an error) under the name of another kind of file."""
    if is_page and partial.path.suffix.lower() not in WEB_PAGES:
        partial.discard()
        raise ValueError(
            f"{partial.url} gives a web page instead of {partial.path.name}: open the address in a browser,"
            f" and put the file itself at {partial.path}"
        )


def is_web_page(head: bytes) -> bool:
    """Whether a file that begins with these bytes is HTML."""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html"))


def check_content(partial: Partial, expected: str | None) -> str:
    """The SHA-256 of the completed partial file; ValueError, nothing left of it, if the content is wrong."""
    with open(partial.data, "rb") as file:
        refuse_web_page(partial, is_web_page(file.read(512)))
    size, found = partial.size(), file_hash(partial.data)
    if expected and found != expected.lower():
        partial.discard()
        raise ValueError(
            f"{partial.url} gave {size} bytes of SHA-256 {found}, expected {expected}; they were removed:"
            f" try again, or {partial.by_hand}"
        )
    return found
