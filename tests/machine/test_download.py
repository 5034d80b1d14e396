"""Downloads from a faulty server: the right file arrives, or one clear line and no partial file."""

import contextlib
import errno
import hashlib
import os
import shutil
import socket
import socketserver
import subprocess
import time

import pytest
from servers import Server, announcing, breaking_off, ignoring_range, running, status
from support import one_line_error

from mgkit.machine import download as module
from mgkit.machine.download import DownloadError, fetch, recorded_hash

CONTENT = bytes(range(256)) * 40  # 10,240 bytes
HALF = len(CONTENT) // 2


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def hanging(handler):
    handler.begin(200, len(handler.server.content))
    handler.server.released.wait(60)


def silent(handler):
    handler.server.released.wait(60)


@pytest.fixture
def server():
    with running(Server(CONTENT)) as http:
        yield http
        http.released.set()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data" / "file.pth"


def get(server, path, **options):
    return fetch(server.url(path.name), path, **{"timeout": 60.0, "waits": (0.0, 0.0, 0.0)} | options)


def left(path):
    """The names of what is in the folder, besides the file and its record."""
    return {p.name for p in path.parent.iterdir()} - {path.name, path.name + ".sha256"}


def arrived(path, content=CONTENT):
    return path.read_bytes() == content and recorded_hash(path) == sha256(content) and not left(path)


def test_a_file_comes_whole_with_its_hash_recorded(server, path):
    assert get(server, path) == path
    assert arrived(path)
    assert server.ranges() == [None]


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="sha256sum is not installed")
def test_sha256sum_understands_the_record(server, path):
    get(server, path)
    check = ["sha256sum", "-c", path.name + ".sha256"]
    assert subprocess.run(check, cwd=path.parent, capture_output=True).returncode == 0
    path.write_bytes(b"tampered")
    assert subprocess.run(check, cwd=path.parent, capture_output=True).returncode == 1


def test_a_second_call_asks_nobody(server, path):
    for _ in range(2):
        get(server, path, sha256=sha256(CONTENT).upper())
    assert len(server.requests) == 1


def test_an_empty_file_comes_too(server, path):
    server.content = b""
    assert arrived(get(server, path), b"")


def test_a_file_of_unannounced_length_comes_too(server, path):
    def without_length(handler):
        handler.begin(200, None)
        handler.wfile.write(CONTENT)

    server.answers = [without_length]
    assert arrived(get(server, path))


@pytest.mark.parametrize("sent", [1, HALF, len(CONTENT) - 1])
def test_a_connection_that_breaks_off_is_continued(server, path, sent):
    server.answers = [lambda handler: breaking_off(handler, sent)]
    assert arrived(get(server, path, sha256=sha256(CONTENT)))
    assert server.ranges() == [None, f"bytes={sent}-"]
    assert server.requests[1]["If-Range"] == '"one"'


def test_a_continuation_that_breaks_off_is_continued_as_well(server, path):
    def a_little_more(handler):
        start = int(handler.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        handler.begin(
            206, len(CONTENT) - start, Content_Range=f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
        )
        handler.wfile.write(CONTENT[start : start + 100])

    server.answers = [breaking_off] + [a_little_more] * 9  # more tries than waits: each gets further
    assert arrived(get(server, path))
    assert server.ranges()[1:] == [f"bytes={HALF + 100 * i}-" for i in range(10)]


def test_a_chunked_answer_that_breaks_off_is_not_taken_for_whole(server, path):
    def chunk(handler):
        handler.protocol_version = "HTTP/1.1"
        handler.begin(200, None, Transfer_Encoding="chunked")
        handler.wfile.write(b"a\r\n0123456789\r\n")

    server.answers = [chunk]
    assert arrived(get(server, path))


def test_a_later_call_continues_what_an_earlier_one_left(server, path):
    server.answers = [breaking_off]
    with one_line_error(DownloadError, server.url(), path, f"{HALF} bytes", "by hand"):
        get(server, path, waits=())
    assert left(path) == {"file.pth.partial", "file.pth.partial.json"} and not path.exists()
    assert arrived(get(server, path))
    assert server.ranges() == [None, f"bytes={HALF}-"]


def test_a_download_stopped_after_its_last_byte_is_only_moved(server, path):
    server.answers = [lambda handler: breaking_off(handler, len(CONTENT) - 1)]
    with pytest.raises(DownloadError):
        get(server, path, waits=())
    with open(path.with_name("file.pth.partial"), "ab") as file:
        file.write(CONTENT[-1:])
    assert arrived(get(server, path))
    assert len(server.requests) == 1


def test_a_server_that_ignores_ranges_starts_anew(server, path):
    server.answers = [breaking_off, ignoring_range]
    assert arrived(get(server, path))
    assert server.ranges()[1] == f"bytes={HALF}-"


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_name_for_the_version_nothing_is_continued(server, path, etag):
    server.etag, server.answers = etag, [breaking_off]
    assert arrived(get(server, path))
    assert server.ranges() == [None, None]


def test_a_date_names_the_version_where_there_is_no_etag(server, path):
    server.etag, date = None, "Tue, 02 Apr 2019 10:00:00 GMT"

    def dated(handler):
        handler.begin(200, len(CONTENT), Last_Modified=date)
        handler.wfile.write(CONTENT[:HALF])

    server.answers = [dated]
    assert arrived(get(server, path))
    assert server.requests[1]["If-Range"] == date


def test_two_versions_of_a_file_never_mix(server, path):
    server.answers = [breaking_off]
    with pytest.raises(DownloadError):
        get(server, path, waits=())
    server.content, server.etag = CONTENT[::-1], '"two"'
    assert arrived(get(server, path), CONTENT[::-1])
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("etag", "span"),
    [
        ('"two"', f"bytes {HALF}-{len(CONTENT) - 1}/{len(CONTENT)}"),
        ('"one"', f"bytes {HALF - 1}-{len(CONTENT) - 1}/{len(CONTENT)}"),
        ('"one"', f"bytes {HALF}-{len(CONTENT) - 1}/{len(CONTENT) + 1}"),
        ('"one"', f"bytes {HALF}-{len(CONTENT) - 1}/*"),
        ('"one"', "nonsense"),
    ],
)
def test_a_part_that_does_not_fit_is_not_appended(server, path, etag, span):
    """Also from servers that send a part of another version, although If-Range forbids it."""

    def wrong_part(handler):
        server.etag = etag
        handler.begin(206, HALF, Content_Range=span)
        handler.wfile.write(b"x" * HALF)

    server.answers = [breaking_off, wrong_part]
    assert arrived(get(server, path))
    assert server.ranges() == [None, f"bytes={HALF}-", None]


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"url": 1, "validator": null, "total": 3}', "\xff\x00"])
def test_a_partial_file_of_unknown_origin_is_not_continued(server, path, note):
    path.parent.mkdir()
    path.with_name("file.pth.partial").write_bytes(b"who knows")
    path.with_name("file.pth.partial.json").write_text(note)
    assert arrived(get(server, path))
    assert server.ranges() == [None]


def test_a_partial_file_of_another_address_is_not_continued(server, path):
    server.answers = [breaking_off]
    with pytest.raises(DownloadError):
        get(server, path, waits=())
    fetch(server.url("elsewhere.pth"), path, waits=())
    assert arrived(path)
    assert server.ranges() == [None, None]


def test_a_server_without_the_rest_starts_anew(server, path):
    server.answers = [breaking_off, status(416)]
    assert arrived(get(server, path))
    assert server.ranges() == [None, f"bytes={HALF}-", None]


def test_too_great_a_length_is_an_error_in_the_end(server, path):
    server.answers = [announcing(len(CONTENT) + 5)] * 9
    with one_line_error(DownloadError, server.url(), path, f"{len(CONTENT)} of {len(CONTENT) + 5} bytes"):
        get(server, path)
    assert not path.exists()


def test_too_small_a_length_is_an_error_where_the_hash_is_known(server, path):
    server.answers = [announcing(len(CONTENT) - 5)]
    with one_line_error(ValueError, server.url(), path, sha256(CONTENT), f"{len(CONTENT) - 5} bytes"):
        get(server, path, sha256=sha256(CONTENT))
    assert not path.exists() and not left(path)


def test_wrong_bytes_leave_nothing_behind(server, path):
    server.content = b"wrong"
    with one_line_error(ValueError, server.url(), path, sha256(b"wrong"), sha256(CONTENT)):
        get(server, path, sha256=sha256(CONTENT))
    assert not path.exists() and not left(path) and recorded_hash(path) is None
    server.content = CONTENT
    assert arrived(get(server, path, sha256=sha256(CONTENT)))


def test_wrong_bytes_by_the_record_leave_nothing_behind(server, path):
    get(server, path)
    path.unlink()
    server.content = b"wrong"
    with one_line_error(ValueError, path, sha256(b"wrong"), sha256(CONTENT)):
        get(server, path)
    assert not path.exists() and not left(path) and recorded_hash(path) == sha256(CONTENT)


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
@pytest.mark.parametrize("name", ["file.pth", "images.tar"])
def test_a_web_page_is_refused_and_leaves_nothing_behind(server, path, name, kind):
    server.content, server.kind = b"\n<!DOCTYPE html><html>please log in</html>", kind
    with one_line_error(ValueError, server.url(name), "web page", path.with_name(name)):
        get(server, path.with_name(name))
    assert not list(path.parent.iterdir())


def test_a_web_page_is_welcome_where_one_is_asked_for(server, path):
    server.content, server.kind = b"<html>", "text/html"
    assert get(server, path.with_name("page.html")).read_bytes() == b"<html>"


@pytest.mark.parametrize("code", [403, 404, 410, 501])
def test_a_status_that_will_not_change_is_an_error_at_once(server, path, code):
    server.answers = [status(code)]
    with one_line_error(DownloadError, server.url(), code, "by hand", path):
        get(server, path)
    assert len(server.requests) == 1 and not list(path.parent.iterdir())


def test_trouble_of_the_server_that_passes_is_waited_out(server, path, monkeypatch):
    slept = []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    server.answers = [status(503), status(503)]
    assert arrived(get(server, path, waits=(1.0, 5.0, 15.0)))
    assert slept == [1.0, 5.0]


def test_trouble_of_the_server_that_stays_is_an_error(server, path):
    server.answers = [status(503)] * 9
    with one_line_error(DownloadError, server.url(), "503", "4 tries", path):
        get(server, path)
    assert len(server.requests) == 4


@pytest.mark.parametrize("answer", [hanging, silent])
def test_a_server_that_hangs_is_given_up(server, path, answer):
    server.answers = [answer] * 9
    start = time.perf_counter()
    with one_line_error(DownloadError, server.url(), "timed out", path):
        get(server, path, timeout=0.1, waits=(0.0,))
    assert time.perf_counter() - start < 30


def test_an_answer_that_is_not_http_is_an_error(server, path):
    server.answers = [lambda handler: handler.wfile.write(b"220 mail\r\n\r\n")] * 9
    with one_line_error(DownloadError, server.url(), path):
        get(server, path)


def test_no_network_is_an_error_that_says_what_to_fetch_by_hand(path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/file.pth"
        with one_line_error(DownloadError, url, path, "by hand", "refused"):
            fetch(url, path, waits=(0.0,))
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftps://example.org/a", "somewhere", ""])
def test_only_http_and_ftp_are_downloaded(path, url):
    with one_line_error(ValueError, repr(url), path):
        fetch(url, path)


def test_a_file_put_there_by_hand_is_recorded(path):
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    assert arrived(fetch("http://127.0.0.1:1/file.pth", path))


def test_a_file_put_there_by_hand_with_another_hash_is_left_alone(path):
    path.parent.mkdir()
    path.write_bytes(b"other")
    with one_line_error(ValueError, path, sha256(b"other"), sha256(CONTENT), "remove"):
        fetch("http://127.0.0.1:1/file.pth", path, sha256=sha256(CONTENT))
    assert path.read_bytes() == b"other" and recorded_hash(path) is None


def test_a_tampered_file_is_named(server, path):
    get(server, path)
    path.write_bytes(CONTENT[:-1] + b"!")
    for known in (None, sha256(CONTENT)):
        with one_line_error(ValueError, path, sha256(CONTENT), "remove"):
            get(server, path, sha256=known)


def test_a_record_that_contradicts_the_given_hash_is_named(server, path):
    get(server, path)
    path.with_name("file.pth.sha256").write_text(f"{sha256(b'other')}  file.pth\n")
    with one_line_error(ValueError, path, sha256(b"other"), "file.pth.sha256"):
        get(server, path, sha256=sha256(CONTENT))


@pytest.mark.parametrize("text", ["", "hello file.pth\n", "\x00\xff"])
def test_a_damaged_record_is_named(server, path, text):
    get(server, path)
    path.with_name("file.pth.sha256").write_text(text)
    with one_line_error(ValueError, "file.pth.sha256"):
        get(server, path)


def test_a_hash_that_is_none_is_refused(path):
    with one_line_error(ValueError, "sha256", "'abc'"):
        fetch("http://127.0.0.1:1/file.pth", path, sha256="abc")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_full_or_read_only_disk_is_not_taken_for_trouble_with_the_network(
    server, path, monkeypatch, number
):
    def refuse(*args, **options):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(module.Partial, "begin", refuse)
    with one_line_error(OSError, os.strerror(number), path):
        get(server, path)
    assert len(server.requests) == 1


def test_a_file_that_cannot_be_recorded_is_used_all_the_same(path, monkeypatch, capsys):
    path.parent.mkdir()
    path.write_bytes(CONTENT)

    @contextlib.contextmanager
    def read_only(where):
        raise PermissionError(f"{where}: read-only")
        yield

    monkeypatch.setattr(module, "atomic_write", read_only)
    assert fetch("http://127.0.0.1:1/file.pth", path) == path
    assert "read-only" in capsys.readouterr().out


def test_progress_is_shown_in_megabytes(server, path, monkeypatch):
    shown = []

    def watched(blocks, description, **options):
        shown.append((description, options))
        return blocks

    monkeypatch.setattr(module, "progress", watched)
    server.content = bytes(2_500_000)
    get(server, path)
    assert shown == [("downloading file.pth", {"total": 3, "unit": "MB"})]


class FtpServer(socketserver.ThreadingTCPServer):
    """Serves CONTENT as file.pth; its n-th transfer sends `limits[n]` bytes, later ones all.

    sized: whether it announces the size.
    """

    daemon_threads, allow_reuse_address = True, True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), FtpHandler)
        self.limits, self.transfers, self.sized = [], 0, True

    def url(self, name="file.pth"):
        return f"ftp://127.0.0.1:{self.server_address[1]}/{name}"

    def handle_error(self, request, client_address):
        """A client that hung up is no news."""


class FtpHandler(socketserver.StreamRequestHandler):
    def say(self, line):
        self.wfile.write(line.encode() + b"\r\n")

    def handle(self):
        self.say("220 welcome")
        for line in self.rfile:
            command, _, argument = line.decode().strip().partition(" ")
            getattr(self, command.lower(), self.other)(argument)

    def other(self, argument):
        self.say("200 fine")

    def user(self, name):
        self.say("230 come in")

    def pwd(self, argument):
        self.say('257 "/"')

    def cwd(self, name):
        self.say("250 fine" if name in (".", "/") else f"550 {name}: no such folder")

    def pasv(self, argument):
        self.listening = socket.create_server(("127.0.0.1", 0))
        port = self.listening.getsockname()[1]
        self.say(f"227 go to (127,0,0,1,{port // 256},{port % 256})")

    def retr(self, name):
        with self.listening:
            if name != "file.pth":
                self.say(f"550 {name}: no such file")
                return
            server = self.server
            limit = server.limits[server.transfers] if server.transfers < len(server.limits) else None
            server.transfers += 1
            self.say("150 here it comes" + f" ({len(CONTENT)} bytes)" * server.sized)
            connection, _ = self.listening.accept()
            with connection, contextlib.suppress(ConnectionError):
                connection.sendall(CONTENT[:limit])
        self.say("226 done")


@pytest.fixture
def ftp_server():
    with running(FtpServer()) as ftp:
        yield ftp


def test_a_file_comes_by_ftp(ftp_server, path):
    assert arrived(get(ftp_server, path, sha256=sha256(CONTENT)))


def test_an_ftp_transfer_that_breaks_off_starts_anew(ftp_server, path):
    ftp_server.limits = [HALF, 100]
    assert arrived(get(ftp_server, path))
    assert ftp_server.transfers == 3


def test_an_ftp_server_that_tells_no_size_is_refused_at_once(ftp_server, path):
    ftp_server.sized = False
    with one_line_error(DownloadError, ftp_server.url(), "size", "by hand", path):
        get(ftp_server, path)
    assert ftp_server.transfers == 1 and not list(path.parent.iterdir())


def test_a_file_that_the_ftp_server_lacks_is_an_error(ftp_server, path):
    with one_line_error(DownloadError, "550", "no such", "by hand", path.with_name("other.pth")):
        fetch(ftp_server.url("other.pth"), path.with_name("other.pth"), waits=())
    assert not list(path.parent.iterdir())
