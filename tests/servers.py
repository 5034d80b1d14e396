"""A local HTTP server that misbehaves in the ways that a test asks for."""

import contextlib
import http.server
import threading


@contextlib.contextmanager
def running(server):
    """The server, answering in a thread of its own while the block lasts."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` under any name, or those `files` (name -> bytes) and no others.

    The n-th request goes to the n-th of `answers` (functions of the handler), later ones to `whole`.
    """

    daemon_threads = True

    def __init__(self, content=b"", files=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.files = content, files
        self.etag, self.kind = '"one"', "application/octet-stream"
        self.answers, self.requests, self.asked, self.released = [], [], [], threading.Event()

    def url(self, name="file.pth"):
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def ranges(self):
        """The Range header of every request so far."""
        return [headers.get("Range") for headers in self.requests]

    def handle_error(self, request, client_address):
        """A client that hung up is no news."""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(dict(self.headers))
        self.server.asked.append(self.path.lstrip("/"))
        number = len(self.server.requests) - 1
        answer = self.server.answers[number] if number < len(self.server.answers) else whole
        with contextlib.suppress(ConnectionError):
            answer(self)

    def content(self):
        files, name = self.server.files, self.path.lstrip("/")
        return self.server.content if files is None else files.get(name)

    def log_message(self, format, *args):
        """Nothing on the terminal."""

    def begin(self, status, length, **headers):
        self.send_response(status)
        self.send_header("Content-Type", self.server.kind)
        if length is not None:
            self.send_header("Content-Length", str(length))
        if self.server.etag:
            self.send_header("ETag", self.server.etag)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()


def whole(handler):
    """As a good server does: a part where a part of this version was asked for, else everything."""
    content, asked = handler.content(), handler.headers.get("Range")
    if content is None:
        handler.send_error(404)
    elif asked and handler.headers.get("If-Range") == handler.server.etag:
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        handler.begin(
            206, len(content) - start, Content_Range=f"bytes {start}-{len(content) - 1}/{len(content)}"
        )
        handler.wfile.write(content[start:])
    else:
        ignoring_range(handler)


def ignoring_range(handler):
    handler.begin(200, len(handler.content()))
    handler.wfile.write(handler.content())


def breaking_off(handler, sent=None):
    """Sends so many bytes, half of them unless told."""
    content = handler.content()
    handler.begin(200, len(content))
    handler.wfile.write(content[: len(content) // 2 if sent is None else sent])


def announcing(length):
    def answer(handler):
        handler.begin(200, length)
        handler.wfile.write(handler.content())

    return answer


def status(code):
    return lambda handler: handler.send_error(code)
