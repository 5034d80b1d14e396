"""Snapshots survive: a kill at any moment of a write, a full disk, damage; the last few are kept."""

import os
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from support import one_line_error

from mgkit.checkpoints import load_checkpoint
from mgkit.engine.snapshots import SnapshotError, Snapshots


class Killed(BaseException):
    """Stands for the end of the process: nothing that handles errors handles it."""


def content(step):
    return {"model_state": {"w": torch.full((100,), float(step))}, "position": {"step": step}}


def step_of(found):
    path, loaded = found
    step = loaded["position"]["step"]
    assert path.name == f"step-{step:09d}.pth" and torch.equal(
        loaded["model_state"]["w"], torch.full((100,), float(step))
    )
    return step


@pytest.fixture
def snapshots(tmp_path):
    """A folder with snapshots of steps 1 and 2."""
    snapshots = Snapshots(tmp_path / "snapshots", keep=2)
    for step in (1, 2):
        snapshots.save(step, content(step))
    return snapshots


def names(snapshots):
    return sorted(path.name for path in snapshots.folder.iterdir())


def test_the_last_few_are_kept(snapshots):
    assert snapshots.save(3, content(3)) == snapshots.files()[0]
    assert names(snapshots) == ["step-000000002.pth", "step-000000003.pth"]
    assert step_of(snapshots.newest()) == 3


def test_there_may_be_none(tmp_path):
    assert Snapshots(tmp_path / "nowhere").newest() is None and Snapshots(tmp_path / "nowhere").files() == []


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("call", ["fsync", "replace", "unlink"])
@pytest.mark.parametrize("done", [False, True])
def test_a_kill_at_any_call_of_a_write_leaves_a_good_snapshot(tmp_path, monkeypatch, keep, call, done):
    for number in range(10):  # the call that is the last, done or not
        snapshots, real, made = Snapshots(tmp_path / str(number), keep=keep), getattr(os, call), []
        for step in (1, 2):
            snapshots.save(step, content(step))

        def deadly(*arguments, made=made, number=number, real=real):
            made.append(arguments)
            if len(made) <= number or (done and len(made) == number + 1):
                real(*arguments)
            if len(made) > number:
                raise Killed  # also what would tidy up: the dead do not

        with monkeypatch.context() as patch, suppress(Killed):
            patch.setattr(os, call, deadly)
            patch.setattr(Path, "unlink", lambda path, missing_ok=False: path.exists() and os.unlink(path))
            snapshots.save(3, content(3))
        if len(made) <= number:
            assert number > 0
            return
        assert step_of(snapshots.newest()) in (2, 3)
        assert not list(snapshots.folder.glob(".*"))  # what was half-written is removed by the next start
        assert snapshots.save(4, content(4)).is_file()
    pytest.fail("the write never ended")


@pytest.mark.parametrize("size", [0, 1, 100, 0.5, 0.99])
def test_a_damaged_one_is_named_and_kept_aside_and_the_one_before_it_taken(snapshots, capsys, size):
    newest = snapshots.files()[0]
    whole = newest.read_bytes()
    newest.write_bytes(whole[: int(size * len(whole)) if isinstance(size, float) else size])
    assert step_of(snapshots.newest()) == 1
    [line] = capsys.readouterr().out.splitlines()
    assert str(newest) in line and "step-000000002.pth.damaged" in line
    assert names(snapshots) == ["step-000000001.pth", "step-000000002.pth.damaged"]


def test_a_damaged_one_is_not_counted_among_those_that_are_kept(tmp_path):
    Snapshots(tmp_path).save(3, content(3))
    Snapshots(tmp_path).save(5, content(5)).write_bytes(b"PK half")
    snapshots = Snapshots(tmp_path, keep=1)
    assert step_of(snapshots.newest()) == 3
    assert snapshots.save(4, content(4)).is_file()


def test_what_was_half_written_is_removed_at_the_next_start(snapshots):
    (snapshots.folder / ".step-000000003.pth.77.partial").write_bytes(b"half")
    assert step_of(snapshots.newest()) == 2
    assert names(snapshots) == ["step-000000001.pth", "step-000000002.pth"]


def test_a_file_in_place_of_the_folder_is_a_line_that_says_what_to_do(tmp_path):
    (tmp_path / "snapshots").write_text("")
    with one_line_error(
        SnapshotError, tmp_path / "snapshots", "no checkpoint yet", "run the same command again"
    ):
        Snapshots(tmp_path / "snapshots").save(1, content(1))


FULL = """
import resource, sys, torch
from mgkit.snapshots import Snapshots
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    Snapshots(sys.argv[1]).save(3, {"model_state": {"w": torch.zeros(1_000_000)}})
except OSError as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs a limit of a file's size")
def test_a_disk_that_is_full_leaves_the_older_ones_and_says_why(snapshots):
    command = [sys.executable, "-c", FULL, str(snapshots.folder), "70000"]
    [line] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert (
        line.startswith("SnapshotError: ")
        and "File too large" in line
        and "is kept" in line
        and "make room" in line
    )
    assert names(snapshots) == ["step-000000001.pth", "step-000000002.pth"]
    assert load_checkpoint(snapshots.files()[0])["position"]["step"] == 2
