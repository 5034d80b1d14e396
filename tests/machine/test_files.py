"""Files: the project's root from anywhere in it, paths as given, and a file is there whole or not at all."""

import ast
import errno
import multiprocessing
import os
import signal
import stat
import time
from functools import partial
from pathlib import Path

import pytest
from support import alive_in_another_process, one_line_error

from mgkit.machine import files as module
from mgkit.machine.files import (
    RefusedError,
    atomic_write,
    check_writable,
    exclusive,
    find_path,
    link_or_copy,
    project_root,
    read_lines,
    read_text,
    write_text,
    writing,
)

pytestmark = pytest.mark.usefixtures("here")


def test_outside_a_project_the_root_is_the_working_directory(here):
    assert project_root() == here


def test_within_a_project_the_root_is_its_folder(bare_project):
    assert project_root() == bare_project


def test_a_path_is_found_from_the_working_directory_then_from_the_root(bare_project):
    (bare_project / "photos").mkdir()
    assert find_path("photos") == bare_project / "photos"
    (bare_project / "notebooks" / "photos").mkdir()
    assert find_path("photos").resolve() == bare_project / "notebooks" / "photos"
    assert str(find_path("nowhere")) == "nowhere"
    assert find_path(str(bare_project / "photos")) == bare_project / "photos"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="interrupted"), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("interrupted")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_text_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "page.html"
    write_text(path, "é✓\n")
    assert path.read_bytes() == "é✓\n".encode()
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")  # no text, and no part of a file's name
    assert path.read_text(encoding="utf-8") == "é✓\n" and list(path.parent.iterdir()) == [path]


def test_a_file_s_name_that_is_no_text_is_written_as_its_bytes(tmp_path):
    write_text(tmp_path / "names", "caf\udce9\n")
    assert (tmp_path / "names").read_bytes() == b"caf\xe9\n"


def test_a_write_that_ends_well_replaces_the_file(tmp_path):
    path = tmp_path / "deep" / "results.json"
    for text in ("old", "new"):
        with atomic_write(path) as temporary:
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def hold(path, started, end):
    with exclusive(path, purpose="training"):
        started.set()
        end.wait(60)


def test_a_lock_is_waited_for_once_said_and_refused_past_ones_patience(tmp_path, capsys):
    path = tmp_path / "run" / "lock"
    with alive_in_another_process(partial(hold, path)):
        with pytest.raises(TimeoutError), exclusive(path, purpose="training", patience=0.5):
            pytest.fail("another process has it")
        assert capsys.readouterr().out == "waiting for another process, which is training\n"
    with exclusive(path, purpose="training"):
        assert not capsys.readouterr().out


def hold_and_fork(path):
    """Die by SIGKILL while holding the lock, a forked child (as a loader's worker) living on for a while."""
    with exclusive(path, purpose="training"):
        if os.fork() == 0:
            time.sleep(2)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_lock_ends_with_its_process_however_that_dies(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=hold_and_fork, args=(tmp_path / "lock",))
    process.start()
    process.join()  # with a timeout it would wait for the child too
    assert process.exitcode == -signal.SIGKILL
    with exclusive(tmp_path / "lock", purpose="training", patience=10):
        pass


# --- Text of other systems

NAMES = ["a b.jpg", "sep\u2028arator.jpg", "next\x85line.jpg", "form\x0cfeed.jpg", "", "é✓.jpg"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_lines_are_those_of_any_system_and_encoding(tmp_path, end, encoding):
    path = tmp_path / "list.txt"
    for after in ("", end, end + end):
        path.write_bytes((end.join(NAMES) + after).encode(encoding))
        assert read_lines(path) == NAMES
        assert read_text(path) == end.join(NAMES) + after


def test_a_mark_of_either_byte_order_is_known(tmp_path):
    for encoding in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
        (tmp_path / "list.txt").write_bytes("\ufeffé\n".encode(encoding))
        assert read_text(tmp_path / "list.txt") == "é\n"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("a\r\nT\u00fcr\n".encode("latin-1"), 2), ("\u00fc".encode("cp1252"), 1),
        (b"a\rb\rc\n\xff", 4), ("\ufeffab".encode("utf-16-le")[:-1], 1),
        ("ab".encode("utf-16-le"), 1), (b"a\n\0", 2),
    ],
)  # fmt: skip
def test_text_of_an_unknown_encoding_is_named_with_its_line(tmp_path, content, line):
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    with one_line_error(ValueError, path, f"line {line}:", "UTF-8"):
        read_text(path)


# --- What file systems refuse


@pytest.mark.parametrize("number", module.CANNOT_SYNC)
@pytest.mark.parametrize("refused", ["fsync of all", "fsync of folders", "open of folders"])
def test_a_file_is_written_where_nothing_can_be_flushed(tmp_path, monkeypatch, number, refused):
    fsync, open_file = os.fsync, os.open

    def odd_fsync(descriptor):
        if refused == "fsync of all" or stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        return fsync(descriptor)

    def odd_open(path, *arguments, **options):
        if os.path.isdir(path):
            raise OSError(number, os.strerror(number), str(path))
        return open_file(path, *arguments, **options)

    if refused.startswith("fsync"):
        monkeypatch.setattr(os, "fsync", odd_fsync)
    else:
        monkeypatch.setattr(os, "open", odd_open)
    write_text(tmp_path / "a.txt", "hello")
    link_or_copy(tmp_path / "a.txt", tmp_path / "b.txt")
    assert (tmp_path / "b.txt").read_text() == "hello" and len([*tmp_path.iterdir()]) == 2


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (errno.ENOSPC, "is full"), (errno.EDQUOT, "quota"), (errno.EROFS, "read-only"),
        (errno.EACCES, "permission"), (errno.EPERM, "not permitted"), (errno.EIO, os.strerror(errno.EIO)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("named", [True, False])
def test_a_refusal_names_the_file_and_the_cause(tmp_path, number, cause, named):
    path = tmp_path / "run" / "results.json"
    with one_line_error(RefusedError, path, "cannot be written", cause), atomic_write(path) as temporary:
        raise OSError(number, os.strerror(number), *([str(temporary)] if named else []))
    assert not [*path.parent.iterdir()]


def test_an_error_of_a_flush_that_loses_something_is_raised(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with one_line_error(RefusedError, tmp_path / "a.txt", "is full"):
        write_text(tmp_path / "a.txt", "hello")
    with one_line_error(RefusedError, tmp_path / "a.txt", "is full"):
        check_writable(tmp_path / "a.txt")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "error", [OSError("a sentence"), FileNotFoundError(errno.ENOENT, "none", "/other/file")]
)
def test_errors_of_other_things_are_kept(tmp_path, error):
    with pytest.raises(type(error)) as caught, writing(tmp_path / "results.json"):
        raise error
    assert caught.value is error


def test_a_writable_folder_is_made_and_left_empty(tmp_path):
    check_writable(tmp_path / "deep" / "run" / "config.yaml")
    assert [*tmp_path.rglob("*")] == [tmp_path / "deep", tmp_path / "deep" / "run"]


def test_without_locks_of_the_file_system_those_of_the_machine_are_used(tmp_path, monkeypatch, capsys):
    path = tmp_path / "run" / "lock"
    acquire = module.FileLock.acquire

    def odd(lock, *arguments, **options):
        if Path(lock.lock_file) == path:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        return acquire(lock, *arguments, **options)

    monkeypatch.setattr(module.FileLock, "acquire", odd)
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(tmp_path))
    with alive_in_another_process(partial(hold, path)):
        with pytest.raises(TimeoutError), exclusive(path, purpose="training", patience=0.3):
            pytest.fail("another process has it")
        assert "has no locks" in capsys.readouterr().out
    with exclusive(path, purpose="training"):
        pass


# --- No text depends on the locale

CODE = sorted(Path(module.__file__).parents[1].rglob("*.py"))
METHODS = {"read_text": 0, "write_text": 1}  # of paths: {name: place of the encoding}


@pytest.mark.parametrize("file", CODE, ids=lambda path: path.name)
def test_all_text_that_is_read_or_written_names_its_encoding(file):
    for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(call, ast.Call):
            continue
        keywords, values = {keyword.arg for keyword in call.keywords}, [*map(ast.unparse, call.args)]
        if isinstance(call.func, ast.Attribute) and call.func.attr in METHODS:
            given = len(values) > METHODS[call.func.attr]
            assert given or "encoding" in keywords, f"{file}, line {call.lineno}"
        if ast.unparse(call.func) == "open" and not (len(values) > 1 and "b" in values[1]):
            assert "encoding" in keywords, f"{file}, line {call.lineno}"
        assert not {"text", "universal_newlines"} & keywords, f"{file}, line {call.lineno}"
