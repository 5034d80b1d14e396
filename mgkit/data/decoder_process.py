"""Decode pictures in a process of their own: a decoder that crashes or hangs ends that, not the run.

Every process has at most one such child, started with its first picture. It is asked in JSON, and answers
with numbers, text and pixels, so that nothing in a picture makes the parent run code.
"""

import json
import math
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
from typing import NamedTuple

from PIL import AvifImagePlugin, Image

from mgkit.data.decoding import WHOLE, UnreadableImageError, image_shape, load_image, without_warnings
from mgkit.data.headers import Header, header_of
from mgkit.machine.printable import shown_name

SECONDS = 60  # for a picture
MOST_MEMORY = 4 * 2**30  # bytes of the child's address space; 128 megapixels of JPEG 2000 take 2.4 GiB
MOST_PIXELS = 128_000_000  # of a picture that is read
PIPE_BYTES = 2**20  # more than a thumbnail; the most that Linux gives to anyone
COMMAND = (sys.executable, "-m", "mgkit.data.decoder_process")
ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    **dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(2**25)),  # glibc keeps memory
    "PYTHONSAFEPATH": "1",  # modules are not looked for in the working directory
}


def load_apart(
    source: str | bytes,
    *,
    name: str | None = None,
    exif: bool = True,
    least: int | None = None,
    most_pixels: int = MOST_PIXELS,
    srgb: bool = True,
    size: tuple[int, int] | None = None,
) -> Image.Image:
    """`load_image` of a whole image, in the child.

    name: what errors call the image; needed for the content of a file.
    size: (width, height) to resize to; None leaves the size as it is.

    Raises UnreadableImageError, also for a picture whose decoder crashes, takes longer than a minute or wants
    more memory than the child may have.
    """
    options = {"exif": exif, "least": least, "most_pixels": most_pixels, "srgb": srgb, "size": size}
    answer = ask("load", source, name or source, **options)
    return Image.frombytes("RGB", answer.size, answer.content)


def shape_apart(path: str, exif: bool) -> tuple[int, int]:
    """`image_shape` of a whole image, in the child; (1, 1) also where the child crashes."""
    try:
        return ask("shape", path, path, exif=exif).size
    except UnreadableImageError:
        return 1, 1


def header_apart(path: str, exif: bool) -> Header:
    """`header_of`, in the child; that of an unreadable picture also where the child crashes."""
    try:
        answer = ask("header", path, path, exif=exif)
    except UnreadableImageError:
        return Header()
    taken, camera, turned = FACTS.unpack(answer.content[: FACTS.size])
    remark = answer.content[FACTS.size :].decode(errors="replace")
    return Header(answer.size, None if math.isnan(taken) else taken, camera, turned, remark)


def ask(what: str, source: str | bytes, name: str, **options) -> "Answer":
    """The child's answer on a picture; UnreadableImageError if it has none."""
    content = source if isinstance(source, bytes) else None
    question = {"what": what, "path": source if content is None else None, "name": name, **options}
    try:
        answer = child_of(os.getpid()).ask(question, content)
    except ChildProcessError as error:
        raise UnreadableImageError(shown_name(f"cannot read the image {name}: {error}")) from None
    if answer.kind == ERROR:
        raise UnreadableImageError(answer.content.decode(errors="replace"))
    return answer


@cache
def child_of(process: int) -> "Child":
    """The child of a process: one that is forked from another has its own."""
    return Child()


# --- Messages

QUESTION = struct.Struct(">II")  # bytes of JSON, bytes of a file that follow
ANSWER = struct.Struct(">cIII")  # kind, width, height, bytes that follow
PICTURE, HEADER, ERROR = b"P", b"H", b"E"  # followed by pixels, by nothing or facts and a remark, by a text
FACTS = struct.Struct(">d??")  # of a header: taken (NaN: not known), camera, turned
LONGEST_TEXT = 2**20  # bytes


class Answer(NamedTuple):
    """What the child says: size is (width, height)."""

    kind: bytes
    size: tuple[int, int] = (1, 1)
    content: bytes = b""

    @classmethod
    def read(cls, pipe: RawIOBase) -> "Answer":
        """The next answer; EOFError if the child has ended, ValueError for one that makes no sense."""
        kind, width, height, length = ANSWER.unpack(read(pipe, ANSWER.size))
        pixels = width * height
        fits = length == 3 * pixels <= 3 * MOST_PIXELS if kind == PICTURE else length <= LONGEST_TEXT
        if kind not in (PICTURE, HEADER, ERROR) or not pixels or not fits:
            raise ValueError(f"the decoder answers {kind!r}, {width} x {height}, {length} bytes")
        return cls(kind, (width, height), bytes(read(pipe, length)))

    def write(self, pipe: RawIOBase) -> None:
        write(pipe, ANSWER.pack(self.kind, *self.size, len(self.content)) + self.content)


def write(pipe: RawIOBase, content: bytes) -> None:
    waiting = memoryview(content)
    while waiting:
        waiting = waiting[pipe.write(waiting) :]


def read(pipe: RawIOBase, count: int) -> bytearray:
    """The next `count` bytes; EOFError if the other process has ended."""
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

    def ask(self, question: dict, content: bytes | None = None) -> Answer:
        """The answer to a question; ChildProcessError, with a reason, if the process dies of it."""
        # Names that are no UTF-8 are kept, as JSON escapes them.
        text, content = json.dumps(question).encode("ascii"), content or b""
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                self.start()
            try:
                write(self.process.stdin, QUESTION.pack(len(text), len(content)) + text + content)
                return Answer.read(self.process.stdout)
            except (EOFError, BrokenPipeError, ConnectionResetError):
                raise ChildProcessError(why(self.process.wait())) from None
            except BaseException as error:  # such as Ctrl-C: the next question must not get this answer
                self.process.kill()
                self.process.wait()
                if isinstance(error, ValueError):
                    raise ChildProcessError("its decoder gave an answer that makes no sense") from None
                raise

    def start(self) -> None:
        """Start the process; RuntimeError if it ends at once, having printed why."""
        root = str(Path(__file__).parents[2])
        paths = [root, os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else [root]
        self.process = subprocess.Popen(
            COMMAND, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=os.environ | ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,  # Ctrl-C and a scheduler's signals are for the parent, with which it ends
        )  # fmt: skip
        widen(self.process.stdout)
        try:
            Answer.read(self.process.stdout)
        except EOFError:
            status = self.process.wait()
            raise RuntimeError(f"the process that decodes pictures did not start: {why(status)}") from None


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
        Answer(HEADER).write(answers)  # ready
        while True:
            text, content = QUESTION.unpack(read(questions, QUESTION.size))
            question, content = json.loads(read(questions, text)), bytes(read(questions, content))
            with limited_time():
                answer = answer_to(question, content)
            answer.write(answers)


def answer_to(question: dict, content: bytes | None) -> Answer:
    """The answer, or the reason why there is none."""
    path = question["path"]
    try:
        if question["what"] == "shape":
            return Answer(HEADER, image_shape(path, question["exif"], WHOLE))
        if question["what"] == "header":
            size, taken, camera, turned, remark = header_of(path, question["exif"])
            facts = FACTS.pack(math.nan if taken is None else taken, camera, turned)
            return Answer(HEADER, size, facts + remark.encode())
        return loaded_picture(content if path is None else path, question)
    except UnreadableImageError as error:
        reason = str(error)
    except MemoryError:
        wanted = f"its decoder wanted more than {MOST_MEMORY / 2**30:.0f} GB of memory"
        reason = shown_name(f"cannot read the image {question['name']}: {wanted}")
    return Answer(ERROR, content=reason.encode(errors="replace"))


def loaded_picture(source: str | bytes, question: dict) -> Answer:
    """A picture's size and pixels."""
    options = {key: question[key] for key in ("name", "exif", "least", "most_pixels", "srgb")}
    picture = load_image(source, **options)
    if question["size"]:
        picture = picture.resize(question["size"], Image.Resampling.BILINEAR)
    return Answer(PICTURE, picture.size, picture.tobytes())


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
