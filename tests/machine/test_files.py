"""Files: the project's root from anywhere in it, paths as given, and a file is there whole or not at all."""

import multiprocessing
import os
import signal
import time
from functools import partial

import pytest
from support import alive_in_another_process

from mgkit.machine.files import atomic_write, exclusive, find_path, project_root, write_text

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
        write_text(path, "\udcff")  # a part of a file's name that is no text
    assert path.read_text(encoding="utf-8") == "é✓\n" and list(path.parent.iterdir()) == [path]


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
