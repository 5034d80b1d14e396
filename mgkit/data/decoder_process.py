"""Decode pictures in a process of their own: a decoder that crashes or hangs ends that, not the run.

Every process has at most one such child, started with its first picture. The two talk through pipes in
messages of JSON and raw bytes, so that nothing in a picture makes the parent run code.
"""

import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from io import RawIOBase
from pathlib import Path

from PIL import AvifImagePlugin, Image

from mgkit.data.decoding import WHOLE, UnreadableImageError, image_shape, load_image, remark, without_warnings
from mgkit.machine.printable import shown_name

SECONDS = 60  # for a picture
MOST_MEMORY = 4 * 2**30  # bytes of the child's address space: 128 megapixels in any format take less
MOST_PIXELS = 128_000_000  # of a picture that the child sends
LENGTHS = struct.Struct(">II")  # of a message: bytes of JSON, bytes that follow
PIPE_BYTES = (
    2**20
)  # more than a thumbnail's, so that the child need not wait; the most that Linux gives anyone
COMMAND = (sys.executable, "-m", "mgkit.data.decoder_process")
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


def load_apart(
    source: str | bytes,
    *,
    name: str | None = None,
    exif: bool = True,
    least: int | None = None,
    most_pixels: float = MOST_PIXELS,
    srgb: bool = True,
    size: tuple[int, int] | None = None,
) -> Image.Image:
    """`load_image` of a whole image, in the child.

    size: (width, height) to resize to; None leaves the size as it is.

    Raises UnreadableImageError, also for a picture whose decoder crashes, takes longer than a minute or wants
    more memory than the child may have.
    """
    name = name or source
    most_pixels = min(most_pixels, MOST_PIXELS)
    options = {"exif": exif, "least": least, "most_pixels": most_pixels, "srgb": srgb, "size": size}
    answer, pixels = ask("load", source, name, **options)
    return Image.frombytes("RGB", answer["size"], pixels)


def shape_apart(path: str, exif: bool) -> tuple[int, int]:
    """`image_shape` of a whole image, in the child; (1, 1) also where the child crashes."""
    try:
        return tuple(ask("shape", path, path, exif=exif)[0]["size"])
    except UnreadableImageError:
        return 1, 1


def remark_apart(path: str) -> str:
    """`remark`, in the child; empty also where the child crashes."""
    try:
        return ask("remark", path, path)[0]["remark"]
    except UnreadableImageError:
        return ""


def ask(what: str, source: str | bytes, name: str, **options) -> tuple[dict, bytes]:
    """The child's answer on a picture; UnreadableImageError if it has none."""
    content = source if isinstance(source, bytes) else b""
    question = {"what": what, "path": None if isinstance(source, bytes) else source, "name": name, **options}
    try:
        answer, pixels = child_of(os.getpid()).ask(question, content)
    except ChildProcessError as error:
        raise UnreadableImageError(shown_name(f"cannot read the image {name}: {error}")) from None
    if "error" in answer:
        raise UnreadableImageError(answer["error"])
    return answer, pixels


@cache
def child_of(process: int) -> "Child":
    """The child of a process: one that is forked from another has its own."""
    return Child()


# --- Messages


def send(pipe: RawIOBase, header: dict, content: bytes = b"") -> None:
    """Write a message; names that are no UTF-8 are kept, as JSON escapes them."""
    text = json.dumps(header).encode("ascii")
    waiting = memoryview(LENGTHS.pack(len(text), len(content)) + text + content)
    while waiting:
        waiting = waiting[pipe.write(waiting) :]


def receive(pipe: RawIOBase, most: int = 2**32) -> tuple[dict, bytes]:
    """Read a message; EOFError if the other process has ended, ValueError for more than `most` bytes."""
    text, content = LENGTHS.unpack(read(pipe, LENGTHS.size))
    if content > most:
        raise ValueError(f"a message of {content} bytes")
    return json.loads(read(pipe, text)), read(pipe, content)


def read(pipe: RawIOBase, count: int) -> bytearray:
    """The next `count` bytes."""
    content = bytearray(count)
    missing = memoryview(content)
    while missing:
        got = pipe.readinto(missing)
        if not got:
            raise EOFError
        missing = missing[got:]
    return content


# --- The parent


class Child:
    """The process that decodes, as its parent sees it: started when it is needed, again after it died."""

    def __init__(self):
        self.process, self.lock = None, threading.Lock()

    def ask(self, question: dict, content: bytes) -> tuple[dict, bytes]:
        """The answer to a question; ChildProcessError, with a reason, if the process dies of it."""
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                self.start()
            try:
                send(self.process.stdin, question, content)
                answer, pixels = receive(self.process.stdout, most=3 * MOST_PIXELS)
                width, height = answer.get("size", (0, 0)) if pixels else (0, 0)
                if len(pixels) != 3 * width * height:
                    raise ValueError("not as many pixels as said")
                return answer, pixels
            except (EOFError, BrokenPipeError, ConnectionResetError):
                raise ChildProcessError(why(self.process.wait())) from None
            except BaseException:  # such as Ctrl-C: the next question must not get this answer
                self.process.kill()
                raise

    def start(self) -> None:
        """Start the process; RuntimeError if it ends at once, having printed why."""
        root = str(Path(__file__).parents[2])
        paths = [root, os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else [root]
        self.process = subprocess.Popen(
            COMMAND, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=os.environ | ONE_THREAD | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"},
            start_new_session=True,  # Ctrl-C and a scheduler's signals are for the parent, with which it ends
        )  # fmt: skip
        widen(self.process.stdout)
        try:
            receive(self.process.stdout, most=0)
        except EOFError:
            raise RuntimeError(
                f"the process that decodes pictures ended: {why(self.process.wait())}"
            ) from None


def widen(pipe: RawIOBase) -> None:
    """Have a pipe hold a whole picture, where the system can."""
    with suppress(ImportError, AttributeError, OSError):
        import fcntl  # not on Windows

        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def why(status: int) -> str:
    """Why the process ended, by its exit status."""
    if status >= 0:
        return f"its decoder ended with exit status {status}"
    name = signal.Signals(-status).name
    if name == "SIGALRM":
        return f"its decoder took longer than {SECONDS} s"
    if name == "SIGKILL":
        return "its decoder was killed (SIGKILL), which a system does that runs out of memory"
    return f"its decoder crashed ({name})"


# --- The child


def serve() -> None:
    """Answer questions until the parent ends; started by `Child.start`."""
    questions, answers = os.fdopen(0, "rb", buffering=0), os.fdopen(os.dup(1), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # libraries print there what they think of a file
        os.dup2(nowhere, stream)
    limit_memory()
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # each would reserve memory
    with suppress(EOFError, BrokenPipeError), without_warnings():
        send(answers, {})
        while True:
            question, content = receive(questions)
            with limited_time():
                answer = answer_to(question, content)
            send(answers, *answer)


def answer_to(question: dict, content: bytes) -> tuple[dict, bytes]:
    """The answer, or the reason why there is none."""
    path = question["path"]
    try:
        if question["what"] == "shape":
            return {"size": image_shape(path, question["exif"], WHOLE)}, b""
        if question["what"] == "remark":
            return {"remark": remark(path)}, b""
        return loaded_picture(path or bytes(content), question)
    except UnreadableImageError as error:
        return {"error": str(error)}, b""
    except MemoryError:
        reason = f"its decoder wanted more than {MOST_MEMORY / 2**30:.0f} GB of memory"
        return {"error": shown_name(f"cannot read the image {question['name']}: {reason}")}, b""


def loaded_picture(source: str | bytes, question: dict) -> tuple[dict, bytes]:
    """A picture's size and pixels."""
    options = {key: question[key] for key in ("name", "exif", "least", "most_pixels", "srgb")}
    picture = load_image(source, **options)
    if question["size"]:
        picture = picture.resize(question["size"], Image.Resampling.BILINEAR)
    return {"size": picture.size}, picture.tobytes()


def limit_memory() -> None:
    """Have the system refuse more than MOST_MEMORY, where it can."""
    with suppress(ImportError, ValueError, OSError):
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))


@contextmanager
def limited_time() -> Iterator[None]:
    """Have the system end this process if the block takes longer than SECONDS, where it can."""
    if not hasattr(signal, "setitimer"):
        yield
        return
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    serve()
