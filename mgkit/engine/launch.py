"""Run a stage in processes of its own: start them, show their output, restart them, raise their errors.

Several are started by `torch.distributed.run`; one is started directly, which takes less time.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mgkit.config import AnyConfig, StageConfig, TrainConfig, to_yaml
from mgkit.machine.device import kept_memory
from mgkit.machine.distributed import gpu_count, is_initialized
from mgkit.machine.files import write_text
from mgkit.machine.progress import FOR_RELAY, print_anything, show_relayed
from mgkit.machine.shared_memory import limits_named
from mgkit.machine.timing import timed

# Environment variables of the workers
FOLDER = "MGKIT_LAUNCH_FOLDER"  # where they write how the run ended
LAUNCHER = "MGKIT_LAUNCHER_PID"  # the launching process; workers end when it has ended
AGENT = "agent.pid"  # file in FOLDER with the process of torch.distributed.run; workers end when it has ended
# What torch.distributed.run would tell a single worker; a cluster may have set other numbers for this process
ONE_WORKER = dict.fromkeys(("RANK", "LOCAL_RANK"), "0")
ONE_WORKER |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"), "1")
SECONDS_TO_STOP = 60  # for the current step, and for saving
SECONDS_TO_MEET = 600  # from the first of several machines that is ready to the last


class WorkerError(RuntimeError):
    """A worker process failed, and restarting did not help; the message ends with its traceback."""


class StoppedError(RuntimeError):
    """The run was asked to stop; it saved a snapshot, and the same command resumes it."""


def processes_on_this_machine(config: StageConfig) -> int:
    """The number of processes for `config.gpus`: one per GPU; `auto` is one process without GPUs.

    Without GPUs, any number of processes share the CPU. Raises ValueError for more processes than GPUs.
    """
    available = gpu_count()
    if config.gpus == "auto":
        return max(1, available)
    if available and config.gpus > available:
        raise ValueError(f"gpus: {config.gpus} are asked for, this machine has {available}")
    return config.gpus


def on_all_devices(config: AnyConfig, run: Callable[[AnyConfig], object]) -> None:
    """Run a stage on all devices of all machines: by `run` if that is one process, else by `launch`."""
    print_anything()
    if is_initialized() or (config.nnodes == 1 and processes_on_this_machine(config) == 1):
        run(config)
    else:
        launch(config)


@timed("workers")
def launch(config: StageConfig) -> None:
    """Run a stage in worker processes, `python -m mgkit`, wait for them and show their output.

    If a worker dies, all are restarted, at most `max_restarts` times, unless its error is that of the last
    attempt, at the same step (`is_repeated`). Raises StoppedError if the run was
    asked to stop and saved, WorkerError with the worker's message or traceback if it failed.
    """
    processes = processes_on_this_machine(config)
    with tempfile.TemporaryDirectory(prefix="mgkit-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        config_file = folder / "config.yaml"
        write_text(config_file, to_yaml(config))
        environment = worker_environment(name, processes)
        if processes == config.nnodes == 1:
            code, asked_to_stop = run_one_worker(config, config_file, environment)
        else:
            agent = started(torchrun_command(config, config_file, processes), environment)
            (folder / AGENT).write_text(str(agent.pid), encoding="utf-8")
            code, asked_to_stop = shown_to_the_end(agent, folder)
        raise_ending(folder, code, asked_to_stop=asked_to_stop, machines=config.nnodes)


def run_one_worker(config: StageConfig, config_file: Path, environment: dict[str, str]) -> tuple[int, bool]:
    """Run a stage in one process and restart it as torch.distributed.run does.

    Returns its last exit code, and whether it was asked to stop.
    """
    folder = config_file.parent
    for attempt in range(restarts(config) + 1):
        error_file = folder / "log" / f"attempt_{attempt}" / "0" / "error.json"
        error_file.parent.mkdir(parents=True)
        told = {"TORCHELASTIC_RESTART_COUNT": str(attempt), "TORCHELASTIC_ERROR_FILE": str(error_file)}
        worker = started(worker_command(config, config_file), environment | ONE_WORKER | told)
        code, asked_to_stop = shown_to_the_end(worker, folder)
        if code == 0 or asked_to_stop or read_ending(folder):
            break
    return code, asked_to_stop


def started(command: list[str], environment: dict[str, str]) -> subprocess.Popen:
    with limits_named():
        return subprocess.Popen(
            command, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace",
            start_new_session=True,  # a notebook's interrupt reaches this process alone; see `stop`
        )  # fmt: skip


def shown_to_the_end(process: subprocess.Popen, folder: Path) -> tuple[int, bool]:
    """Show a process's output until it ends: its exit code, and whether it was asked to stop."""
    try:
        with sigterm_passed_on(process) as asked_to_stop:
            show_relayed(process.stdout)
            return process.wait(), bool(asked_to_stop)
    except BaseException:
        stop(process, folder)
        raise


@contextmanager
def sigterm_passed_on(process: subprocess.Popen) -> Iterator[list]:
    """Pass SIGTERM on to the workers, which save and end, or are killed after SECONDS_TO_STOP.

    Yields the list of signals received.
    """
    asked = []
    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield asked
        return

    def pass_on(number: int, _) -> None:
        asked.append(number)
        process.terminate()
        killer = threading.Timer(SECONDS_TO_STOP, process.kill)
        killer.daemon = True
        killer.start()

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def torchrun_command(config: StageConfig, config_file: Path, processes: int) -> list[str]:
    """The command that starts the workers of this machine."""
    command = [
        sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}",
        "--rdzv-backend=c10d", f"--log-dir={config_file.parent / 'log'}",
        f"--max-restarts={restarts(config)}",
    ]  # fmt: skip
    if config.nnodes > 1:
        patience = f"join_timeout={SECONDS_TO_MEET},read_timeout={SECONDS_TO_MEET}"
        command += [
            f"--nnodes={config.nnodes}", f"--rdzv-id={config.experiment}-{config.stage}",
            f"--rdzv-endpoint={config.rdzv_endpoint}",
            f"--rdzv-conf=is_host={int(config.node_rank == 0)},{patience}",
        ]  # fmt: skip
    else:
        command += [
            "--nnodes=1",
            f"--rdzv-id={uuid.uuid4()}",
            "--rdzv-endpoint=localhost:0",
            "--local-addr=localhost",
        ]
    return [*command, *stage_of(config, config_file)]


def worker_command(config: StageConfig, config_file: Path) -> list[str]:
    """The command that starts the only worker."""
    return [sys.executable, "-u", *stage_of(config, config_file)]


def stage_of(config: StageConfig, config_file: Path) -> list[str]:
    return ["-m", "mgkit", config.stage, str(config_file)]


def restarts(config: StageConfig) -> int:
    """How often workers that fail are restarted."""
    return config.max_restarts if isinstance(config, TrainConfig) and not config.dry_run else 0


def worker_environment(folder: str, processes: int) -> dict[str, str]:
    """The environment of the workers: this process's, their share of the cores, and how they report."""
    environment = {key: value for key, value in os.environ.items() if key != "JPY_SESSION_NAME"}
    threads = max(1, len(os.sched_getaffinity(0)) // processes) if hasattr(os, "sched_getaffinity") else 1
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    environment = kept_memory() | environment
    # Hides a warning of DistributedDataParallel that is expected; see engine.loop.
    environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # A store that is shared by restarts makes new processes read where those of the first attempt listened.
    environment.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    patience = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SECONDS_TO_STOP - 10)}
    # What `launch` reads, in any locale. Not PYTHONUTF8: it would also change how paths are encoded.
    output = {"PYTHONIOENCODING": "utf-8:backslashreplace"}
    return environment | patience | output | {FOLDER: folder, LAUNCHER: str(os.getpid()), FOR_RELAY: "1"}


def stop(process: subprocess.Popen, folder: Path) -> None:
    """Ask the workers to save and end, print how they ended, and kill them after SECONDS_TO_STOP."""
    process.terminate()
    try:
        process.communicate(timeout=SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        process.kill()
    ending = read_ending(folder)
    if ending:
        print(ending["message"])


def raise_ending(folder: Path, code: int, *, asked_to_stop: bool = False, machines: int = 1) -> None:
    """Raise StoppedError or WorkerError, unless the workers of this machine ended without an error."""
    ending = read_ending(folder)
    if ending and ending["kind"] == "stopped":
        raise StoppedError(ending["message"])
    if ending:
        raise WorkerError(ending["message"])
    if code == 0:
        return
    if asked_to_stop:
        raise StoppedError("stopped as asked: run the same command again to resume from the last checkpoint")
    traceback = first_traceback(folder.glob("log/**/error.json"))
    lost = follows_another(traceback)
    if lost and machines > 1:
        raise WorkerError(
            f"a worker process on one of the {machines} machines has ended, and so have all others: the "
            "output there says why, unless it was killed; the same commands on all machines go on from what "
            "is done"
        )
    if traceback:
        hint = " (it lost another, which may have been killed for lack of memory)" if lost else ""
        raise WorkerError(f"a worker process failed{hint}, and restarting it did not help:\n{traceback}")
    apart = (
        f", or another of the {machines} machines has ended, or did not start the same command within "
        f"{SECONDS_TO_MEET // 60} minutes, or rdzv_endpoint cannot be reached"
    )
    raise WorkerError(
        f"the worker processes ended without an error message (exit code {code}): "
        "unless the output above says why, they were killed, perhaps for lack of memory"
        f"{apart if machines > 1 else ''}; run the same command again to resume from the last checkpoint"
    )


def write_ending(kind: str, message: str) -> None:
    """Write how the run ended, `stopped` or `failed`; of several workers, the first to write counts."""
    folder = os.environ.get(FOLDER)
    if folder and Path(folder).is_dir() and not read_ending(Path(folder)):
        write_text(Path(folder) / "ending.json", json.dumps({"kind": kind, "message": message}))


def read_ending(folder: Path) -> dict | None:
    path = folder / "ending.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def follows_another(error: str) -> bool:
    """Whether an error is about the connection to a worker that has ended."""
    return any(word in error for word in ("closed by peer", "reset by peer"))


def is_repeated(error: Exception, *, step: int) -> bool:
    """Whether this worker's last attempt ended with the same error at the same step; notes it for the next.

    Numbers in messages, as process ids, may differ. Errors that follow another worker's end do not count,
    and none count on several machines, as the others are not told.
    """
    several = os.environ.get("GROUP_WORLD_SIZE", "1") != "1"
    if FOLDER not in os.environ or several or follows_another(str(error)):
        return False
    path = Path(os.environ[FOLDER]) / f"error-{os.environ.get('RANK', 0)}.json"
    now = [type(error).__name__, re.sub(r"\d+", "0", str(error)), step]
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    write_text(path, json.dumps(now))
    return before == now


def first_traceback(files: Iterable[Path]) -> str:
    """The traceback of the worker that failed first in the last attempt; others fail because it is gone."""
    attempts = {}
    for file in files:  # log/<run>/attempt_<k>/<rank>/error.json
        attempt = int(file.parent.parent.name.removeprefix("attempt_"))
        attempts.setdefault(attempt, []).append(file)
    if not attempts:
        return ""
    first = min(attempts[max(attempts)], key=lambda file: file.stat().st_mtime_ns)
    return json.loads(first.read_text(encoding="utf-8"))["message"]["extraInfo"]["py_callstack"]
