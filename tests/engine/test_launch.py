"""The launcher: command, environment and exit of worker processes; real restarts, kills and signals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import free_port, in_processes, one_line_error, starting

from mgkit.checkpoints import load_checkpoint
from mgkit.config import RetrievalConfig, TrainConfig, from_yaml, make
from mgkit.engine import launch as module
from mgkit.engine.launch import (
    FOLDER,
    LAUNCHER,
    StoppedError,
    WorkerError,
    first_traceback,
    on_all_devices,
    processes_on_this_machine,
    raise_ending,
    read_ending,
    sigterm_passed_on,
    torchrun_command,
    worker_environment,
    write_ending,
)
from mgkit.engine.run import read_metrics
from mgkit.machine.progress import FOR_RELAY
from mgkit.stages.train import run_training, train

SECONDS_TO_END = 120  # until nothing is left of a run whose parent was told to stop


def config_of(**values):
    return make(TrainConfig, {"experiment": "t", **values})


def test_processes_are_one_a_gpu_and_on_cpus_as_many_as_asked(monkeypatch):
    for available, auto in [(0, 1), (1, 1), (4, 4)]:
        monkeypatch.setattr(torch.cuda, "device_count", lambda available=available: available)
        assert processes_on_this_machine(config_of()) == auto
        assert processes_on_this_machine(config_of(gpus=1)) == 1
    with one_line_error(ValueError, "gpus", 5, 4):
        processes_on_this_machine(config_of(gpus=5))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert processes_on_this_machine(config_of(gpus=5)) == 5


@pytest.mark.parametrize(("gpu", "collectives", "processes"), [
    (torch.xpu, True, 4), (torch.xpu, False, 1), (torch.backends.mps, False, 1),
])  # fmt: skip
def test_gpus_without_collectives_have_one_process(monkeypatch, gpu, collectives, processes):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 4)
    monkeypatch.setattr(gpu, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "is_backend_available", lambda name: collectives)
    assert processes_on_this_machine(config_of()) == processes
    with one_line_error(ValueError, "gpus", 5, processes):
        processes_on_this_machine(config_of(gpus=5))


def test_the_command_starts_the_workers_of_this_machine_alone(tmp_path):
    command = torchrun_command(config_of(max_restarts=7), tmp_path / "config.yaml", 3)
    assert command[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert command[-4:] == ["-m", "mgkit", "train", str(tmp_path / "config.yaml")]
    assert {"--nproc-per-node=3", "--max-restarts=7", "--nnodes=1", "--rdzv-endpoint=localhost:0"} <= {
        *command
    }


MACHINES = {"experiment": "t", "nnodes": 2, "rdzv_endpoint": "first:29400"}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("stage", [TrainConfig, RetrievalConfig])
def test_the_commands_of_many_machines_meet_at_the_first(tmp_path, rank, stage):
    config = make(stage, MACHINES | {"node_rank": rank})
    command = {*torchrun_command(config, tmp_path / "config.yaml", 8)}
    assert {"--nnodes=2", "--rdzv-endpoint=first:29400", f"--rdzv-id=t-{stage.stage}"} <= command
    assert f"--rdzv-conf=is_host={int(rank == 0)},join_timeout=600,read_timeout=600" in command


def test_only_trainings_that_are_no_dry_runs_are_restarted(tmp_path):
    def restarts(config):
        return [word for word in torchrun_command(config, tmp_path / "c", 2) if "restarts" in word]

    assert restarts(config_of(max_restarts=7)) == ["--max-restarts=7"]
    assert restarts(config_of(max_restarts=7, dry_run=True)) == ["--max-restarts=0"]
    assert restarts(make(RetrievalConfig, {"experiment": "t"})) == ["--max-restarts=0"]


def test_a_process_that_does_not_end_when_told_is_killed(monkeypatch):
    monkeypatch.setattr(module, "SECONDS_TO_STOP", 0.5)
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", deaf], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        with sigterm_passed_on(process) as asked:
            os.kill(os.getpid(), signal.SIGTERM)
            assert process.wait(60) == -signal.SIGKILL and asked == [signal.SIGTERM]


def test_one_process_is_launched_where_other_machines_have_more(monkeypatch):
    launched, here = [], []
    monkeypatch.setattr(module, "launch", launched.append)
    for values in ({}, {"nnodes": 1}, MACHINES):
        on_all_devices(make(RetrievalConfig, {"gpus": 1} | values), here.append)
    assert [config.nnodes for config in launched] == [2] and len(here) == 2


def test_workers_share_the_cores_and_know_whom_to_tell(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("JPY_SESSION_NAME", "a notebook")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    environment = worker_environment("folder", 2)
    assert environment["OMP_NUM_THREADS"] == str(max(1, cores // 2))
    assert environment[FOLDER] == "folder" and environment[LAUNCHER] == str(os.getpid())
    assert environment["PYTHONIOENCODING"].startswith("utf-8") and "PYTHONUTF8" not in environment
    assert environment[FOR_RELAY] and "JPY_SESSION_NAME" not in environment
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert worker_environment("folder", 2)["OMP_NUM_THREADS"] == "5"


@pytest.mark.parametrize("gpu", [False, True])
def test_workers_on_cpus_keep_freed_memory(monkeypatch, gpu):
    for name in ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert (worker_environment("folder", 1).get("MALLOC_MMAP_MAX_") == "0") == (not gpu)
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "5")
    assert worker_environment("folder", 1)["MALLOC_MMAP_MAX_"] == "5"


def test_a_good_end_raises_nothing(tmp_path):
    raise_ending(tmp_path, 0)


def test_the_first_ending_counts_and_is_raised_whatever_the_exit_code(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    write_ending("failed", "SnapshotError: disk full")
    write_ending("stopped", "saved")
    for code in (0, 1):
        with one_line_error(WorkerError, "SnapshotError: disk full"):
            raise_ending(tmp_path, code)
    (tmp_path / "ending.json").unlink()
    write_ending("stopped", "saved at step 3")
    with one_line_error(StoppedError, "saved at step 3"):
        raise_ending(tmp_path, 1)


def test_a_launcher_that_is_gone_is_told_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path / "gone"))
    write_ending("stopped", "saved")
    assert not (tmp_path / "gone").exists() and read_ending(tmp_path) is None


def test_an_end_without_a_word_says_so_and_what_to_do(tmp_path):
    with one_line_error(WorkerError, "exit code 9", "memory", "run the same command again"):
        raise_ending(tmp_path, 9)
    with one_line_error(StoppedError, "run the same command again"):
        raise_ending(tmp_path, 9, asked_to_stop=True)
    with one_line_error(
        WorkerError, "exit code 9", "another of the 3 machines", "10 minutes", "rdzv_endpoint"
    ):
        raise_ending(tmp_path, 9, machines=3)


def test_the_traceback_is_that_of_the_first_to_fail_in_the_last_attempt(tmp_path):
    for moment, (attempt, rank) in enumerate([(0, 1), (10, 2), (10, 0), (9, 0)]):
        path = tmp_path / "log" / "id" / f"attempt_{attempt}" / str(rank) / "error.json"
        path.parent.mkdir(parents=True)
        told = {"message": "short", "extraInfo": {"py_callstack": f"of {attempt}, {rank}"}}
        path.write_text(json.dumps({"message": told}))
        os.utime(path, (moment, moment))
    assert first_traceback(tmp_path.glob("log/**/error.json")) == "of 10, 2"
    with pytest.raises(WorkerError, match="of 10, 2"):
        raise_ending(tmp_path, 1)
    path = tmp_path / "log" / "id" / "attempt_10" / "2" / "error.json"
    path.write_text(json.dumps({"message": {"extraInfo": {"py_callstack": "Connection closed by peer"}}}))
    os.utime(path, (1, 1))
    with pytest.raises(WorkerError, match="lack of memory.*\\n.*closed by peer"):
        raise_ending(tmp_path, 1)
    with one_line_error(WorkerError, "one of the 2 machines", "go on"):
        raise_ending(tmp_path, 1, machines=2)


# --- Real processes, some ten seconds each

FAILING = """
import os
import signal
from mgkit import __main__ as worker
from mgkit.machine.distributed import rank
from mgkit.engine.loop import Training

step = Training.step

def failing(training, batch, parts):
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    last = rank() == int(os.environ["WORLD_SIZE"]) - 1
    if training.position.step == 4 and last and (first or os.environ["FAILS"] == "always"):
        if os.environ["HOW"] == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise KeyError("injected")
    step(training, batch, parts)

Training.step = failing
worker.main()
"""

VALUES = {
    "experiment": "t",
    "size": 32,
    "batch_size": 12,
    "workers": 1,
    "epochs": 2,
    "len_factor": 0.5,
    "gpus": 2,
}


@pytest.fixture(scope="module")
def undisturbed(mini_root, tmp_path_factory):
    """The config of a training in two processes, and the weights that it leaves."""
    config = make(TrainConfig, VALUES | {"data": str(mini_root), "max_restarts": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("undisturbed"))
        in_processes(2, run_training, replace(config, workers=0))  # these may have no processes of their own
        return config, load_checkpoint("outputs/t/train/checkpoint.pth")["model_state"]


@pytest.fixture
def failing(tmp_path, monkeypatch):
    """Has the last worker of the test fail at step 4: once or always, by an error unless it "is killed"."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "failing_worker.py").write_text(FAILING)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    stage_of = module.stage_of
    monkeypatch.setattr(
        module,
        "stage_of",
        lambda *given: ["failing_worker" if word == "mgkit" else word for word in stage_of(*given)],
    )

    def fail(times, how="raises"):
        monkeypatch.setenv("FAILS", times)
        monkeypatch.setenv("HOW", how)

    return fail


def same_bits(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_worker_that_fails_is_restarted_and_the_run_ends_the_same(undisturbed, failing, monkeypatch, capfd):
    config, weights = undisturbed
    failing("once")
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")  # which has no β; nothing of it reaches the workers
    assert same_bits(load_checkpoint(train(config))["model_state"], weights)
    assert [line["epoch"] for line in read_metrics(config)] == [1, 2]
    printed = capfd.readouterr().out
    assert "resuming from" in printed and ", β " in printed


def test_an_error_that_comes_again_ends_in_the_worker_s_own_traceback(undisturbed, failing, capfd):
    config, _ = undisturbed
    failing("always")
    with pytest.raises(WorkerError) as caught:
        train(make(TrainConfig, {**VALUES, "data": config.data, "max_restarts": 3}))
    assert str(caught.value).rstrip().endswith("KeyError: 'injected'") and "in failing" in str(caught.value)
    assert "twice at the same step" in str(caught.value) and capfd.readouterr().out.count("resuming") == 1


@pytest.fixture
def one_worker(undisturbed, monkeypatch):
    """The config of a training in one process, which has one thread, in a cluster's environment."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "3")
    return replace(undisturbed[0], gpus=1)


def test_one_worker_that_fails_is_restarted_and_the_run_ends_the_same(one_worker, failing, capfd):
    failing("once")
    weights = load_checkpoint(train(one_worker))["model_state"]
    assert capfd.readouterr().out.count("resuming from") == 1
    in_processes(1, run_training, replace(one_worker, experiment="undisturbed", workers=0))
    assert same_bits(weights, load_checkpoint("outputs/undisturbed/train/checkpoint.pth")["model_state"])


def test_one_worker_that_is_killed_is_restarted_as_often_as_asked(one_worker, failing, capfd):
    failing("always", "is killed")
    with one_line_error(WorkerError, "exit code -9", "memory"):
        train(one_worker)
    assert capfd.readouterr().out.count("resuming from") == one_worker.max_restarts == 1


def parent(config, folder):
    """A process that starts a training and prints to a file; MGKIT_TESTED marks what it starts."""
    os.chdir(folder)
    os.environ["MGKIT_TESTED"] = str(folder)
    log = os.open("log", os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(log, stream)
    train(config)


@pytest.fixture(params=[1, 2])
def started(request, undisturbed, tmp_path):
    """A training of many epochs in a process of its own, which has made its first snapshot."""
    config = make(TrainConfig, {**VALUES, "data": undisturbed[0].data, "epochs": 500, "gpus": request.param})
    process = starting(parent)(config, tmp_path)
    while not list(tmp_path.glob("outputs/t/train/snapshots/step-*.pth")):
        assert process.is_alive(), (tmp_path / "log").read_text(encoding="utf-8")
        time.sleep(0.05)
    yield process
    process.kill()


def left_alive(folder):
    """The processes that have the folder in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"MGKIT_TESTED={folder}".encode() in (path / "environ").read_bytes():
                found.append(path.name)
        except OSError:
            continue
    return found


def wait_until_all_ended(folder):
    began = time.monotonic()
    while left_alive(folder):
        assert time.monotonic() - began < SECONDS_TO_END
        time.sleep(0.1)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
def test_a_parent_that_is_told_to_stop_has_the_workers_save_and_says_so(started, tmp_path):
    gpus = from_yaml(TrainConfig, tmp_path / "outputs/t/train/config.yaml").gpus
    assert len(left_alive(tmp_path)) >= 2 * gpus  # workers, readers
    started.terminate()
    started.join(SECONDS_TO_END)
    assert started.exitcode == 1
    last = (tmp_path / "log").read_text(encoding="utf-8").splitlines()[-1]
    assert (
        last.startswith("mgkit.engine.launch.StoppedError: stopped as asked; saved at ") and "step-" in last
    )
    wait_until_all_ended(tmp_path)
    assert from_yaml(TrainConfig, tmp_path / "outputs/t/train/config.yaml").epochs == 500


def on_two_machines(config):
    """What train returns or raises on two machines with one process each, here two launchers on one."""
    endpoint = f"localhost:{free_port()}"
    machines = [replace(config, gpus=1, nnodes=2, node_rank=k, rdzv_endpoint=endpoint) for k in (0, 1)]
    with ThreadPoolExecutor() as threads:
        begun = [threads.submit(train, machine) for machine in machines]
        return [each.exception(300) or each.result() for each in begun]


def test_two_machines_train_as_two_processes_of_one(undisturbed, tmp_path, monkeypatch, capfd):
    config, weights = undisturbed
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as each of two processes has on two cores
    paths = on_two_machines(config)
    assert [same_bits(load_checkpoint(path)["model_state"], weights) for path in paths] == [True, True]
    printed = capfd.readouterr().out
    assert printed.count("epoch 2: loss") == 1 and "on the machine of rank 0" in printed


def test_what_fails_on_one_machine_ends_both_with_its_reason(
    undisturbed, mini_root, tmp_path, monkeypatch, capfd
):
    config, _ = undisturbed
    monkeypatch.chdir(tmp_path)
    shutil.copytree(mini_root / "imagenet", tmp_path / "data")
    broken = next((tmp_path / "data" / "val").glob("*/*"))
    broken.write_bytes(b"no image")
    for error in on_two_machines(replace(config, data=str(tmp_path / "data"), max_restarts=0)):
        assert isinstance(error, WorkerError) and str(broken) in str(error) and "\n" not in str(error)
