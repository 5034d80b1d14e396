"""All stages on odd machines: locales, small shared memory, mounts without fsync, full or read-only disks."""

import builtins
import errno
import io
import json
import os
import shutil
import socket
import stat
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

import filelock
import pytest
from support import one_line_error, training_config

from mgkit.config import ClassifyConfig, FinetunePConfig, PhotosConfig, RetrievalConfig, WhitenConfig, make
from mgkit.engine.run import read_results
from mgkit.features import embed
from mgkit.machine import shared_memory
from mgkit.machine.files import RefusedError, write_text
from mgkit.model import get_multigrain
from mgkit.photos.search import embed_photos, search_photos
from mgkit.photos.task import photo_task
from mgkit.stages.evaluate_imagenet import evaluate_classification
from mgkit.stages.evaluate_retrieval import embed_sets, evaluate_retrieval
from mgkit.stages.finetune_p import find_p
from mgkit.stages.inputs import validation_data
from mgkit.stages.retrieval_task import retrieval_task
from mgkit.stages.train import run_training
from mgkit.stages.whiten import whiten_network


def retrieval(config):
    task = retrieval_task(config)
    embed_sets(task)
    evaluate_retrieval(task)


def photos(config):
    task = photo_task(config)
    embed_photos(task)
    search_photos(task)


STAGES = {
    FinetunePConfig: (find_p, {"sizes": [32], "ps": [1.0], "images_per_class": 1}),
    WhitenConfig: (whiten_network, {"size": 32, "images": 10}),
    ClassifyConfig: (evaluate_classification, {"sizes": [32], "crops": ["square"]}),
    RetrievalConfig: (retrieval, {"sets": ["ukbench"], "size": 32, "scales": [1.0], "resolutions": []}),
    PhotosConfig: (photos, {"size": 32}),
}
NAMES = ["train", *(stage.stage for stage in STAGES)]


def run(name, root, **values):
    """Run a stage in this process."""
    if name == "train":
        return run_training(training_config(root, epochs=1, len_factor=0.5, **values))
    [(stage, (work, own))] = [item for item in STAGES.items() if item[0].stage == name]
    return work(make(stage, {"experiment": "t", "data": str(root), "workers": 0} | own | values))


def without_fsync(descriptor):
    """The fsync of a mount that has none for folders."""
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def without_locks(lock, *arguments, **options):
    """The acquire of a lock on a mount that has none."""
    if "outputs" in str(lock.lock_file):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    return ACQUIRE(lock, *arguments, **options)


def without_links(source, target):
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


ACQUIRE = filelock.FileLock.acquire


@pytest.fixture(scope="module")
def odd(tiny_root, tmp_path_factory):
    """All stages, run where folders cannot be flushed, files not linked or locked, and output is ASCII."""
    folder = tmp_path_factory.mktemp("odd")
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(os, "fsync", without_fsync)
        patch.setattr(os, "link", without_links)
        patch.setattr(filelock.FileLock, "acquire", without_locks)
        patch.setattr(sys, "stdout", output)
        for name in NAMES:
            output.reconfigure(errors="strict")
            run(name, tiny_root)
            print("λ", end="")  # what is printed later, in a script
    return folder, output.buffer.getvalue().decode("ascii")


@pytest.fixture
def after(odd, tmp_path, monkeypatch):
    """A copy of what the stages left, the working directory."""
    shutil.copytree(odd[0], tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def test_all_stages_end_well_without_fsync_links_locks_and_unicode(odd, monkeypatch):
    folder, printed = odd
    assert {path.parent.name for path in folder.glob("outputs/t/*/results.json")} == {*NAMES}
    assert (folder / "outputs/t/train/checkpoint.pth").is_file() and "has no locks" in printed
    assert printed.count("\\u03bb") == 6 and "\\u03b2" in printed
    assert not [*folder.rglob(".*.partial")]


# --- Full and read-only disks


class Disk:
    """Refuses to be written below outputs/: at once, or, if it is full, after `room` bytes."""

    def __init__(self, number, room=0):
        self.number, self.room = number, room

    def refuses(self, path):
        below = isinstance(path, str | os.PathLike) and "outputs" in Path(path).absolute().parts
        return below and not (self.number == errno.ENOSPC and self.room)

    def guard(self, patch, owner, name, writes=lambda *_, **__: True):
        """Have a function refuse its first argument, if it would write there."""
        work = getattr(owner, name)

        def guarded(path, *arguments, **options):
            if not writes(*arguments, **options):
                return work(path, *arguments, **options)
            if self.refuses(path):
                raise OSError(self.number, os.strerror(self.number), str(path))
            done = work(path, *arguments, **options)
            return Filling(done, self) if hasattr(done, "write") else done

        patch.setattr(owner, name, guarded)

    def insert(self, patch):
        def for_writing(mode="r", *_, **__):
            return bool({*mode} & {*"wax+"})

        self.guard(patch, builtins, "open", for_writing)
        self.guard(patch, Path, "open", for_writing)
        self.guard(patch, os, "open", lambda flags, *_, **__: flags & (os.O_WRONLY | os.O_RDWR))
        for name in ("mkdir", "rename", "touch"):
            self.guard(patch, Path, name)
        self.guard(patch, os, "replace")


class Filling:
    """A file on a disk that fills up; like the system's, its errors do not name it."""

    def __init__(self, file, disk):
        self.file, self.disk = file, disk

    def write(self, content):
        self.disk.room -= memoryview(content).nbytes if not isinstance(content, str) else len(content)
        if self.disk.room < 0:
            self.disk.room = 0
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(content)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)


def files_in(folder):
    """{path: content} but for locks."""
    return {
        str(path): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "lock" not in path.name
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("number", "cause"),
    [(errno.ENOSPC, "is full"), (errno.EROFS, "is read-only"), (errno.EACCES, "no permission")],
)
def test_a_disk_that_refuses_is_named_with_its_cause_and_all_files_stay(
    after, tiny_root, monkeypatch, name, number, cause
):
    before = files_in(after)
    with monkeypatch.context() as patch:
        Disk(number).insert(patch)
        with one_line_error(RefusedError, "outputs/t", cause):
            run(name, tiny_root, **({"resume": False} if name == "train" else {"batch_size": 7}))
    assert files_in(after) == before


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_that_is_full_later_leaves_nothing_half_written(after, tiny_root, monkeypatch, name):
    shutil.rmtree(after / "outputs/t/features")
    with monkeypatch.context() as patch:
        Disk(errno.ENOSPC, room=66_000).insert(patch)
        with one_line_error(RefusedError, "outputs/t", "is full"):
            run(name, tiny_root, **({"resume": False} if name == "train" else {}))
    assert not [*after.rglob(".*.partial")]
    for path in after.rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", ["a file", "a link to nothing"])
def test_outputs_that_is_no_folder_is_named(tiny_root, here, kind):
    if kind == "a file":
        Path("outputs").touch()
    else:
        Path("outputs").symlink_to("nowhere")
    with one_line_error(RefusedError, "outputs", "not a folder" if kind == "a file" else kind):
        run("train", tiny_root)


# --- Shared memory

State = namedtuple("State", ["f_bavail", "f_blocks", "f_frsize", "f_flag"])


@pytest.fixture
def shm(tmp_path, monkeypatch):
    """A function that sets how many bytes /dev/shm has, and whether it is read-only."""
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")

    def of(size, flag=0):
        monkeypatch.setattr(os, "statvfs", lambda _: State(size // 1024, size // 1024, 1024, flag))

    return of


@pytest.mark.parametrize("name", NAMES)
def test_shared_memory_that_is_too_small_is_said_before_any_worker_is_started(after, tiny_root, shm, name):
    shutil.rmtree(after / "outputs/t/features")
    shm(20_480)
    with one_line_error(RefusedError, "20.5 kB free", "batches of", "workers=0", "--shm-size"):
        run(name, tiny_root, workers=2, **({"resume": False} if name == "train" else {}))
    assert name != "train" or read_results(training_config(tiny_root)) is None


def test_what_workers_need_is_counted_for_every_process(shm, monkeypatch):
    shm(100 * 2**20)
    check = shared_memory.check_shared_memory
    check(workers=2, batch=25 * 2**20)
    check(workers=0, batch=2**40)
    with one_line_error(RefusedError, "105 MB free", "workers=3 hold 2 batches of 26.2 MB", "157 MB"):
        check(workers=3, batch=25 * 2**20)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with one_line_error(RefusedError, "2 processes with workers=2"):
        check(workers=2, batch=25 * 2**20)
    shm(0)  # without a limit
    check(workers=9, batch=2**40)
    shm(2**40, os.ST_RDONLY)
    with one_line_error(RefusedError, "cannot be written", "workers=0"):
        check(workers=1, batch=1)


def test_a_folder_of_temporary_files_with_too_long_a_name_for_sockets_is_named(
    tiny_root, tmp_path, monkeypatch
):
    images = validation_data(ClassifyConfig(data=str(tiny_root)))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 90)))
    net = get_multigrain("resnet8", num_classes=12)
    with one_line_error(RefusedError, "TMPDIR", "x" * 90, "workers=0"):
        embed(net, images, size=32, workers=1)
    assert len(embed(net, images, size=32, workers=0)) == len(images)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have shorter addresses")
def test_the_longest_name_that_is_taken_is_that_of_a_socket_s_address():
    room = shared_memory.MOST_OF_TMPDIR + len("/pymp-12345678/listener-12345678")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        path = f"{folder}/".ljust(room, "x")
        for more, taken in (("", True), ("x", False)):
            with socket.socket(socket.AF_UNIX) as listener:
                if taken:
                    listener.bind(path + more)
                else:
                    with pytest.raises(OSError, match="too long"):
                        listener.bind(path + more)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left (28)"),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that …"),
        OSError(errno.EROFS, "Read-only file system"), OSError(errno.ENOSPC, "No space left on device"),
    ],
)  # fmt: skip
def test_shared_memory_that_fails_later_is_named(shm, error):
    shm(2**30)
    with (
        one_line_error(RefusedError, shared_memory.FOLDER, "too small", "workers=0"),
        shared_memory.shared_memory_named(),
    ):
        raise error


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (OSError(errno.ENFILE, "File table overflow"), "ulimit -n"),
        (RuntimeError("received 0 items of ancdata"), "ulimit -n"),
        (RuntimeError("unable to open shared memory object: Too many open files (24)"), "ulimit -n"),
        (OSError(errno.EAGAIN, "Resource temporarily unavailable"), "ulimit -u"),
    ],
)
def test_limits_of_open_files_and_processes_are_named(error, remedy):
    with one_line_error(RefusedError, remedy), shared_memory.limits_named():
        raise error


def test_other_errors_are_not_about_limits():
    with pytest.raises(FileNotFoundError), shared_memory.limits_named():
        Path("nothing").read_text()


@pytest.mark.parametrize(("number", "cause"), [(errno.EIO, "check it"), (errno.ESTALE, "mount it again")])
def test_a_disk_that_fails_is_not_passed_over(here, monkeypatch, number, cause):
    def failing(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", failing)
    with one_line_error(RefusedError, "a.txt", cause):
        write_text(here / "a.txt", "text")
    assert not [*here.iterdir()]


@pytest.mark.parametrize(
    "error", [RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), OSError("a.jpg")]
)
def test_other_errors_of_a_loader_are_not_about_shared_memory(error):
    with pytest.raises(type(error)) as caught, shared_memory.shared_memory_named():
        raise error
    assert caught.value is error


def full(tensors):
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left (28)")


def test_a_worker_s_error_about_shared_memory_reaches_the_stage(tiny_root, shm, monkeypatch):
    shm(2**30)
    monkeypatch.setattr("mgkit.data.loader.default_collate", full)
    net = get_multigrain("resnet8", p=3.0, num_classes=3)
    images = validation_data(make(ClassifyConfig, {"data": str(tiny_root)})).subset(range(4))
    with one_line_error(RefusedError, "too small", "workers=0"):
        embed(net, images, size=32, workers=1, description=None)
