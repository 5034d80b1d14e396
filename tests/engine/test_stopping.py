"""How a worker learns that it should stop, and ends."""

import errno
import os
import signal
import subprocess
import sys

import pytest
from support import GONE, one_line_error, train_config

from mgkit import __main__ as main
from mgkit.__main__ import run_stage
from mgkit.data.decoding import UnreadableImageError
from mgkit.engine import stopping as module
from mgkit.engine.launch import AGENT, FOLDER, LAUNCHER, StoppedError, read_ending
from mgkit.engine.loop import NonFiniteError
from mgkit.engine.snapshots import SnapshotError
from mgkit.engine.stopping import StopRequest, Unbreakable, is_alive
from mgkit.machine.files import RefusedError

pytestmark = pytest.mark.usefixtures("signals", "watch")


class Asked:
    """A StopRequest of a run that has begun to work, or not."""

    def __init__(self, step=None):
        self.work_has_begun, self.step = step is not None, step or 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_request_to_stop_and_nothing_else(launch_folder, number):
    stop = StopRequest()
    assert not stop(7) and stop.work_has_begun and stop.step == 7
    os.kill(os.getpid(), number)
    assert stop(0)


def test_work_for_nobody_is_stopped_and_then_ended_at_once_and_tidied_up(launch_folder, monkeypatch, watch):
    slept, codes = [], []
    stop = StopRequest()

    def sleep(seconds):
        slept.append((seconds, stop(0)))
        stop.launcher = GONE

    monkeypatch.setattr(module.time, "sleep", sleep)
    monkeypatch.setattr(os, "_exit", codes.append)
    watch(stop)
    assert [asked for _, asked in slept] == [False, True] and slept[-1][0] == module.SECONDS_AS_ORPHAN
    assert codes == [1] and not launch_folder.exists()


def test_a_worker_whose_agent_was_gone_before_it_began_is_an_orphan(launch_folder):
    assert not StopRequest().is_orphan()
    (launch_folder / AGENT).write_text(str(GONE))
    assert StopRequest().is_orphan()


def test_a_worker_that_was_started_by_hand_has_its_parent(monkeypatch):
    for name in (FOLDER, LAUNCHER):
        monkeypatch.delenv(name, raising=False)
    stop = StopRequest()
    assert not stop.is_orphan()
    stop.tidy_up()


def test_a_process_that_waits_to_be_collected_is_not_alive():
    assert is_alive(os.getpid()) and is_alive(os.getppid()) and is_alive(0) and not is_alive(GONE)
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is not collected
    assert not is_alive(process.pid)
    process.wait()


def test_what_is_written_for_nobody_is_lost_and_nothing_else():
    reader, writer = os.pipe()
    stream = Unbreakable(os.fdopen(writer, "w"))
    print("heard", file=stream, flush=True)
    assert os.read(reader, 100) == b"heard\n" and stream.fileno() == writer
    os.close(reader)
    print("lost", file=stream, flush=True)
    with pytest.raises(BrokenPipeError):
        stream.stream.close()


def stage_that_raises(monkeypatch, error):
    def work(config, asked_to_stop):
        raise error

    monkeypatch.setattr(main, "from_yaml", lambda *_: train_config())
    monkeypatch.setattr(main, "work_of", lambda _: work)


@pytest.mark.parametrize(
    ("error", "begun"),
    [
        (ValueError("lr: too large"), False), (FileNotFoundError("no data"), False),
        (TimeoutError("held"), False), (SnapshotError("disk full"), True),
        (RefusedError("/dev/shm is full"), True), (OSError(errno.ENOSPC, "No space left"), True),
        (UnreadableImageError("a.jpg"), True), (NonFiniteError("step 3"), True),
    ],
)  # fmt: skip
def test_what_no_restart_mends_is_told_and_ends_the_worker_with_1(launch_folder, monkeypatch, error, begun):
    stage_that_raises(monkeypatch, error)
    with pytest.raises(SystemExit) as ended:
        run_stage("train", "config.yaml", Asked(3 if begun else None))
    assert ended.value.code == 1
    assert read_ending(launch_folder) == {"kind": "failed", "message": f"{type(error).__name__}: {error}"}


@pytest.mark.parametrize(
    "error", [ValueError("of a tensor"), ConnectionRefusedError("of a loader"), RuntimeError("gloo")]
)
def test_what_a_restart_may_mend_is_raised(launch_folder, monkeypatch, error):
    stage_that_raises(monkeypatch, error)
    with pytest.raises(type(error)):
        run_stage("train", "config.yaml", Asked(3))
    assert read_ending(launch_folder) is None


def attempt(error, step):
    """Whether a worker that raises this error at this step would be restarted."""
    try:
        run_stage("train", "config.yaml", Asked(step))
    except SystemExit:
        return False
    except type(error):
        return True


def test_the_same_error_twice_at_the_same_step_ends_the_run(launch_folder, monkeypatch, here):
    error = RuntimeError("worker 123 is killed")
    stage_that_raises(monkeypatch, error)
    assert attempt(error, 3) and attempt(error, 4)  # it got farther
    stage_that_raises(monkeypatch, KeyError("worker 123 is killed"))
    assert attempt(KeyError(), 4)
    stage_that_raises(monkeypatch, RuntimeError("worker 4567 is killed"))
    assert attempt(error, 4) and read_ending(launch_folder) is None
    assert not attempt(error, 4)
    message = read_ending(launch_folder)["message"]
    assert "twice" in message and message.rstrip().endswith("RuntimeError: worker 4567 is killed")


@pytest.mark.parametrize(("error", "nodes"), [("Connection closed by peer", "1"), ("injected", "2")])
def test_errors_that_follow_others_or_that_machines_do_not_share_are_restarted(
    launch_folder, monkeypatch, here, error, nodes
):
    monkeypatch.setenv("GROUP_WORLD_SIZE", nodes)
    stage_that_raises(monkeypatch, RuntimeError(error))
    assert attempt(RuntimeError(), 3) and attempt(RuntimeError(), 3)


def test_a_worker_that_was_started_by_hand_raises_its_error(monkeypatch):
    monkeypatch.delenv(FOLDER, raising=False)
    stage_that_raises(monkeypatch, ValueError("lr: too large"))
    with one_line_error(ValueError, "lr: too large"):
        run_stage("train", "config.yaml", Asked())


def test_a_stopped_run_ends_well_and_is_told(launch_folder, monkeypatch):
    stage_that_raises(monkeypatch, StoppedError("saved"))
    run_stage("train", "config.yaml", Asked())
    assert read_ending(launch_folder) == {"kind": "stopped", "message": "saved"}


def test_a_stage_that_does_not_save_is_ended_at_once(launch_folder, monkeypatch):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    stop = StopRequest(saves=False)
    stop.request()
    assert codes == [1] and launch_folder.exists()  # the launcher is there to tidy up
