"""Snapshots survive: a kill at any moment of a write, a full disk, damage; the last few are kept."""

import multiprocessing
import os
import resource
import shutil
import time
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import pytest
import torch
from support import alive_in_another_process, left_lines, one_line_error, training_config
from two_runs import side_by_side

from mgkit.checkpoints import load_checkpoint
from mgkit.engine import snapshots as module
from mgkit.engine.launch import StoppedError
from mgkit.engine.run import Run, opened_folder
from mgkit.engine.snapshots import SnapshotError, Snapshots, check_content, is_finished, open_run
from mgkit.machine.files import atomic_write
from mgkit.stages.train import run_training, train, training_data

pytestmark = pytest.mark.usefixtures("here")


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


def save_where_files_are_small(folder, said):
    """In a process of its own: save 4 MB where a file may have 70 kB; what was said of it."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, resource.RLIM_INFINITY))
    try:
        Snapshots(folder).save(3, {"model_state": {"w": torch.zeros(1_000_000)}})
    except OSError as error:
        said.put(f"{type(error).__name__}: {error}")
    else:
        said.put("saved")


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs a limit of a file's size")
def test_a_disk_that_is_full_leaves_the_older_ones_and_says_why(snapshots):
    context = multiprocessing.get_context("fork")
    said = context.SimpleQueue()
    process = context.Process(target=save_where_files_are_small, args=(snapshots.folder, said))
    process.start()
    process.join()
    assert process.exitcode == 0
    line = said.get()
    assert (
        "\n" not in line
        and line.startswith("SnapshotError: ")
        and "File too large" in line
        and "is kept" in line
        and "work on another disk" in line
    )
    assert names(snapshots) == ["step-000000001.pth", "step-000000002.pth"]
    assert load_checkpoint(snapshots.files()[0])["position"]["step"] == 2


SPEED = ("images_per_second", "data_wait")
FOLDER = Path("outputs/t/train")
CHECKPOINT = FOLDER / "checkpoint.pth"


@pytest.fixture
def config(mini_root):
    """A function that makes a config of two epochs of three batches, but for the values given."""
    return partial(training_config, mini_root, epochs=2, len_factor=0.5, log_every=2)


def stopped_after(steps):
    """asked_to_stop of a run that is to make so many steps."""
    asked = iter(range(steps))
    return lambda _: next(asked, None) is None


def stop_at(config, steps):
    with one_line_error(StoppedError, "run the same command again"):
        run_training(config, asked_to_stop=stopped_after(steps))


def left():
    """What a run left: weights, β, the optimizer's state, the lines without the speed."""
    content = load_checkpoint(CHECKPOINT)
    steps = [{k: v for k, v in line.items() if k not in SPEED} for line in left_lines("steps.jsonl")]
    state = [*content["model_state"].values(), content["extra"]["beta"]]
    momenta = [entry["momentum_buffer"] for entry in content["optimizer"]["state"].values()]
    return [x.clone() for x in state + momenta], left_lines("metrics.jsonl"), steps


def assert_same(ours, theirs):
    assert len(ours[0]) == len(theirs[0]) and all(map(torch.equal, ours[0], theirs[0]))
    assert ours[1:] == theirs[1:]


@pytest.mark.parametrize(
    "values",
    [
        {"augmentation": "AA"},
        {"checkpoint_minutes": 1e-9},
        {"workers": 1, "accumulate": 2, "gradient_share_every": 2},
    ],
)
def test_a_stopped_run_goes_on_mid_epoch_bit_for_bit(config, capsys, values):
    run_training(config(**values))
    whole = left()
    shutil.rmtree("outputs")
    for steps in (1, 1, 3):  # stopped after steps 1, 2 and 5; lines are due after 2, 4 and 6
        stop_at(config(**values), steps)
    run_training(config(**values))
    assert capsys.readouterr().out.count("resuming from") == 3
    assert_same(left(), whole)
    assert not is_finished(config(seed=1), training_data(config()))
    assert is_finished(config(**values | {"checkpoint_minutes": 5.0}), training_data(config()))


def test_a_kill_between_two_snapshots_repeats_what_was_lost_and_no_line_twice(config, monkeypatch):
    run_training(config(log_every=1))
    whole = left()
    shutil.rmtree("outputs")
    stop_at(config(log_every=1), 2)
    snapshot = FOLDER / "snapshots" / "step-000000002.pth"
    kept = snapshot.read_bytes()
    stop_at(config(log_every=1), 3)  # to step 5, past the end of the first epoch
    for later in snapshot.parent.glob("step-*.pth"):
        later.unlink()
    snapshot.write_bytes(kept)
    run_training(config(log_every=1))
    assert_same(left(), whole)


def test_a_kill_before_the_results_are_written_ends_the_same(config):
    run_training(config())
    whole = left()
    (FOLDER / "results.json").unlink()
    run_training(config())
    assert_same(left(), whole)
    CHECKPOINT.unlink()
    assert not is_finished(config(), training_data(config()))
    run_training(config())
    assert_same(left(), whole)


def test_a_finished_run_is_left_as_it_is_and_needs_no_processes(config, capsys, monkeypatch):
    run_training(config())
    monkeypatch.setattr("mgkit.stages.train.launch", lambda *_: pytest.fail("nothing is to be run"))
    before = CHECKPOINT.stat().st_mtime_ns
    assert train(config()).samefile(CHECKPOINT) and CHECKPOINT.stat().st_mtime_ns == before
    assert "resume=False" in capsys.readouterr().out


def test_resume_off_trains_anew_and_keeps_an_unfinished_run(config, here, capsys):
    stop_at(config(), 2)
    snapshot = next(FOLDER.glob("snapshots/*")).read_bytes()
    run_training(config(resume=False))
    assert "resuming from" not in capsys.readouterr().out
    [kept] = here.glob("outputs/t/train.1/snapshots/*")
    assert kept.read_bytes() == snapshot and [line["epoch"] for line in left_lines("metrics.jsonl")] == [1, 2]
    run_training(config(resume=False))
    assert Path("outputs/t/train.2/results.json").exists() and Path("outputs/t/train/results.json").exists()


def test_a_finished_run_is_kept_where_its_images_have_changed(config, mini_root, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(mini_root / "imagenet", data)
    run_training(config(data=str(data)))
    before = CHECKPOINT.read_bytes()
    one = next((data / "train").glob("*/*"))
    shutil.copy(one, one.with_name(f"more_{one.name}"))
    run_training(config(data=str(data)))
    assert Path("outputs/t/train.1/checkpoint.pth").read_bytes() == before
    assert Path("outputs/t/train.1/results.json").exists() and CHECKPOINT.read_bytes() != before


def test_a_kill_while_a_finished_run_is_replaced_leaves_one_that_can_go_on(config, monkeypatch):
    run_training(config(epochs=1))
    whole = left()
    for last in range(1, 7):  # of what is removed or written before the first step
        made, unlink, write = [], Path.unlink, module.Run.write

        def deadly(real, made=made, last=last):
            def call(*arguments, **options):
                made.append(arguments)
                if len(made) >= last:
                    raise Killed
                return real(*arguments, **options)

            return call

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Path, "unlink", deadly(unlink))
            patch.setattr(module.Run, "write", deadly(write))
            run_training(config(epochs=1, resume=False))
        run_training(config(epochs=1))
        assert_same(left(), whole)


def test_a_start_leaves_alone_what_a_notebook_is_saving(config, here):
    images = training_data(config())
    Run(config())

    def save():
        with opened_folder(config()) as folder, atomic_write(folder / "figure.png") as temporary:
            temporary.write_text("half")
            time.sleep(1)
            temporary.write_text("whole")

    def start():
        with ExitStack() as stack:
            open_run(config(seed=1), images, stack)

    side_by_side(here, [(0, save), (0.2, start)])
    assert (here / "outputs/t/train.1/figure.png").read_text() == "whole"


def test_an_unfinished_run_of_other_parameters_is_set_aside_not_lost(config, here):
    stop_at(config(), 2)
    snapshot = next(FOLDER.glob("snapshots/*")).read_bytes()
    run_training(config(lr=0.01))
    [kept] = here.glob("outputs/t/train.1/snapshots/*")
    assert kept.read_bytes() == snapshot
    assert not (here / "outputs/t/train.1/checkpoint.pth").exists() and CHECKPOINT.is_file()


def test_a_snapshot_of_other_parameters_is_refused(config):
    stop_at(config(), 2)
    shutil.copytree(FOLDER / "snapshots", "other")
    stop_at(config(seed=1), 2)
    shutil.rmtree(FOLDER / "snapshots")
    Path("other").rename(FOLDER / "snapshots")
    with one_line_error(ValueError, "step-000000002.pth", "seed", "init_from"):
        run_training(config(seed=1))


def test_images_that_changed_are_refused_and_nothing_is_lost(config, mini_root, here):
    shutil.copytree(mini_root / "imagenet", here / "images")
    stop_at(config(data="images"), 2)
    image = next((here / "images/train").rglob("*.JPEG"))
    image.rename(here / "moved.JPEG")
    with one_line_error(ValueError, "images", "step-000000002.pth", "put them back"):
        run_training(config(data="images"))
    (here / "moved.JPEG").rename(image)
    run_training(config(data="images"))
    assert len(left_lines("metrics.jsonl")) == 2


def test_damaged_snapshots_start_the_run_anew_and_are_kept(config, here, capsys):
    stop_at(config(), 2)
    next(FOLDER.glob("snapshots/*")).write_bytes(b"PK")
    run_training(config())
    printed = capsys.readouterr().out
    assert "step-000000002.pth" in printed and "resuming from" not in printed
    assert list(here.glob("outputs/**/step-000000002.pth.damaged"))


def test_another_number_of_processes_goes_on_and_says_so(config, capsys, monkeypatch):
    stop_at(config(), 2)
    monkeypatch.setattr(module, "world_size", lambda: 3)
    with ExitStack() as stack:
        assert open_run(config(), training_data(config()), stack).content["position"]["step"] == 2
    assert "of 1 processes, resuming with 3" in capsys.readouterr().out


def test_first_weights_need_not_be_there_any_more_once_a_run_goes_on(config, here):
    run_training(config(experiment="first"))
    first = Path("outputs/first/train/checkpoint.pth").rename("first.pth")
    stop_at(config(init_from="first.pth"), 2)
    first.unlink()
    run_training(config(init_from="first.pth"))
    assert len(left_lines("metrics.jsonl")) == 2
    with one_line_error(FileNotFoundError, "first.pth"):
        run_training(config(init_from="first.pth", seed=1))


def test_a_run_s_own_checkpoint_is_no_first_weights(config):
    run_training(config())
    with one_line_error(ValueError, "init_from", "resume"):
        run_training(config(init_from=str(CHECKPOINT), seed=1))


def hold_folder(started, end):
    with ExitStack() as stack:
        module.hold(FOLDER, stack)
        started.set()
        end.wait()


def test_two_processes_do_not_train_in_one_folder(config, monkeypatch, capsys):
    monkeypatch.setattr(module, "SECONDS_FOR_THE_LOCK", 0.3)
    with (
        alive_in_another_process(hold_folder),
        one_line_error(TimeoutError, FOLDER, "choose another experiment"),
    ):
        run_training(config())
    assert "waiting for another process" in capsys.readouterr().out
    run_training(config())


@pytest.mark.parametrize(
    "place", ["outputs", "outputs/t/train", "outputs/t/train/snapshots", "outputs/t/train/tensorboard"]
)
def test_a_file_in_place_of_a_folder_is_a_line_that_says_what_to_do(config, place):
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    Path(place).write_text("", encoding="utf-8")
    with one_line_error(SnapshotError, place, "run the same command again"):
        run_training(config())


SOUND = {
    "model_state": {"w": torch.ones(2)}, "extra": {"beta": torch.tensor(1.2)}, "config": {}, "processes": 1,
    "position": {"step": 1, "epoch": 0, "batch": 1, "sums": {"loss": 1.0}, "line": {}}, "images_hash": "x",
    "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"position": {"step": -1, "epoch": 0, "batch": 0, "sums": {}, "line": {}}}, "position.step"),
        ({"position": {"step": 1}}, "position.epoch is missing"),
        ({"position": None}, "position"),
        ({"config": []}, "config"),
        ({"processes": 0}, "processes"),
        ({"processes": "2"}, "processes"),
        ({"images_hash": None}, "images_hash"),
        ({"extra": {}}, "extra.beta is missing"),
        ({"extra": {"beta": torch.tensor(float("nan"))}}, "beta is not finite"),
        ({"optimizer": None}, "optimizer"),
        (
            {
                "optimizer": {
                    "state": {0: {"momentum_buffer": torch.full([2], float("inf"))}},
                    "param_groups": [],
                }
            },
            "momentum_buffer",
        ),
    ],
)
def test_a_snapshot_that_cannot_be_resumed_from_is_set_aside(tmp_path, capsys, changed, field):
    snapshots = Snapshots(tmp_path / "snapshots")
    snapshots.save(1, SOUND)
    broken = snapshots.save(2, SOUND | changed)
    assert snapshots.newest(check=check_content)[0].name == "step-000000001.pth"
    [line] = capsys.readouterr().out.splitlines()
    assert str(broken) in line and field in line and "step-000000002.pth.damaged" in line
