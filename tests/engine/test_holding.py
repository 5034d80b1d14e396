"""Processes that run one stage of one experiment at once: who computes, who waits, who takes results."""

import json
import os
import random
import time
from dataclasses import asdict, replace
from functools import partial

import pytest
import yaml
from support import one_line_error, train_config
from two_runs import Name, side_by_side

from mgkit.config import TrainConfig, WhitenConfig, make
from mgkit.engine import holding as module
from mgkit.engine.holding import holding, read_holder
from mgkit.engine.run import Run, add_results, opened_folder, read_metrics, read_results, save_figure

pytestmark = pytest.mark.usefixtures("here")
BRIEFLY = 0.4  # seconds


def stand_in(config, moments, *, fails=False):
    """A stage that takes its time, and a notebook that reads and draws; returns what it read."""
    with holding(config) as joined:
        if not joined:
            run = Run(config)
            time.sleep(next(moments))
            run.write("metrics.jsonl", json.dumps({"seed": config.seed}) + "\n")
            if fails:
                raise ArithmeticError
            run.results({"seed": config.seed, "pid": os.getpid()})
        results = read_results(config)
    time.sleep(next(moments))
    add_results(config, {"added": config.seed})
    save_figure(Name(config.seed), config, "figure.png")
    return results, read_metrics(config), read_results(config), os.getpid()


def moments(seed):
    draw = random.Random(seed)
    while True:
        yield draw.uniform(0, 0.1)


def seen_of(folder):
    """The seed of the config, the results, their addition, the metrics and the figure in a folder."""
    results = json.loads((folder / "results.json").read_text())
    metrics = json.loads((folder / "metrics.jsonl").read_text())
    config = yaml.safe_load((folder / "config.yaml").read_text())
    figure = json.loads((folder / "figure.png").read_text())
    return {config["seed"], results["seed"], results["added"], metrics["seed"], figure}


def race(here, number, seeds, **options):
    """Runs with these seeds at random moments: what each saw, and the folders of the runs."""
    experiment = f"t{number}"
    works = [
        (
            next(moments(f"{number} {k}")) * 2 * (k > 0),
            partial(stand_in, config, moments(f"{number}+{k}"), **options),
        )
        for k, config in enumerate(train_config(experiment=experiment, seed=seed) for seed in seeds)
    ]
    answers = side_by_side(here, works)
    return answers, sorted((here / "outputs" / experiment).glob("train*"))


@pytest.mark.parametrize("number", range(20))
def test_whatever_lies_in_a_folder_is_of_its_config(here, number):
    """What is read later may also be missing, while a third run repeats the first."""
    thrice = number % 4 == 0
    answers, folders = race(here, number, [1, 2, 1] if thrice else [1, 2])
    assert [len(seen_of(folder)) for folder in folders] == [1] * len(folders)
    assert len(folders) >= 2
    for seed, ((results, metrics, later, _), _) in zip([1, 2, 1], answers, strict=False):
        assert results["seed"] == seed
        repeated = thrice and seed == 1
        assert later["seed"] == seed if later else repeated
        assert metrics == [{"seed": seed}] if metrics else repeated


@pytest.mark.parametrize("number", range(20, 26))
def test_of_runs_with_the_same_config_one_computes(here, number):
    answers, folders = race(here, number, [1, 1])
    assert [folder.name for folder in folders] == ["train"] and len(seen_of(folders[0])) == 1
    computed = {results["pid"] for (results, *_), _ in answers}
    joined = [text for _, text in answers if "taking the results of process" in text]
    assert len(computed) == 2 - len(joined)


def hold(config, seconds, *, error=None):
    with holding(config):
        Run(config).results({})
        time.sleep(seconds)
        if error:
            raise error


def hold_and_fail(config):
    with pytest.raises(ValueError):
        hold(config, BRIEFLY, error=ValueError("bad data"))


def join(config):
    with holding(config) as joined:
        return joined


def test_one_that_waits_for_the_same_config_says_so_and_joins(here):
    config = train_config()
    [_, (joined, printed)] = side_by_side(
        here, [(0, partial(hold, config, BRIEFLY)), (0.1, partial(join, config))]
    )
    waiting, taking = printed.splitlines()
    assert joined and str(here / "outputs/t/train") in waiting and "same" in waiting
    assert "waiting, as process" in waiting
    assert "taking the results of process" in taking


def test_a_run_that_failed_is_not_joined(here):
    config = train_config()
    [_, (joined, _)] = side_by_side(here, [(0, partial(hold_and_fail, config)), (0.1, partial(join, config))])
    assert not joined


def test_a_run_that_ended_before_is_not_joined():
    hold(train_config(), 0)
    assert not join(train_config()) and not join(train_config())


def refused(config, monkeypatch):
    monkeypatch.setattr(module, "SECONDS_TO_STOP", 0.3)
    began = time.monotonic()
    with one_line_error(TimeoutError, "outputs/t/train", "lr, seed", "process", "choose another experiment"):
        join(config)
    return time.monotonic() - began


def test_another_config_is_refused_after_a_while_by_name(here, monkeypatch):
    config, other = train_config(), train_config(lr=0.5, seed=1, workers=0)
    [_, (seconds, printed)] = side_by_side(
        here, [(0, partial(hold, config, 3.0)), (0.1, partial(refused, other, monkeypatch))]
    )
    assert 0.3 < seconds < 2.5 and "runs it with another lr, seed" in printed


def test_the_same_config_is_waited_for_without_limit(here, monkeypatch):
    monkeypatch.setattr(module, "SECONDS_TO_STOP", 0.1)
    config = train_config()
    [_, (joined, _)] = side_by_side(
        here, [(0, partial(hold, config, 1.0)), (0.1, partial(join, replace(config, workers=5)))]
    )
    assert joined


def killed(config):
    if not os.fork():
        with holding(config):
            Run(config)
            os._exit(9)
    os.wait()
    with holding(config) as joined:
        return joined


def test_a_killed_process_keeps_no_lock(here):
    assert side_by_side(here, [(0, partial(killed, train_config()))])[0][0] is False


def test_stages_and_experiments_do_not_wait_for_each_other():
    others = train_config(experiment="u"), make(WhitenConfig, {"experiment": "t"})
    with holding(train_config()), holding(others[0]) as one, holding(others[1]) as another:
        assert not one and not another


@pytest.mark.parametrize("stage", [TrainConfig, WhitenConfig])
def test_only_the_first_machine_of_several_holds_the_lock(stage):
    config = make(stage, {"experiment": "t", "nnodes": 2, "node_rank": 1, "rdzv_endpoint": "localhost:1"})
    with holding(config) as joined:
        assert not joined and read_holder(config) is None
    first = replace(config, node_rank=0)
    with holding(first):
        assert read_holder(first) is not None


def test_machines_that_wait_for_the_first_do_not_wait_in_vain(here):
    config = train_config()
    several = replace(config, nnodes=2, rdzv_endpoint="localhost:1")
    works = [(0, partial(hold, config, 1.0)), (0.1, partial(join, several)), (0.2, partial(join, config))]
    [_, (joined, _), (joined_alone, _)] = side_by_side(here, works)
    assert not joined and joined_alone


def test_who_holds_it_is_noted_with_its_config():
    config = train_config(p=float("inf"))
    with holding(config):
        holder = read_holder(config)
        assert str(os.getpid()) in holder.process and not holder.finished
        assert holder.config == asdict(config) and holder.differs(train_config()) == ["p"]
    assert read_holder(config).finished


def test_a_half_written_note_is_removed_by_the_next_holder(here):
    left = here / "outputs/t/..train.run.yaml.77.partial"
    left.parent.mkdir(parents=True)
    left.write_text("half")
    with holding(train_config()):
        assert (here / "outputs/t/.train.run.yaml").is_file() and not left.exists()


# --- The folder of a run


def test_a_run_is_found_by_its_config_where_it_was_set_aside(here):
    configs = [train_config(seed=seed) for seed in (1, 2, 3)]
    opened = [Run(config) for config in configs]
    for config, run in zip(configs, opened, strict=True):
        run.results({"seed": config.seed})
    assert [run.folder.name for run in opened] == ["train.1", "train.2", "train"]
    assert [read_results(config)["seed"] for config in configs] == [1, 2, 3]
    assert read_results(train_config(seed=4)) is None and read_metrics(train_config(seed=4)) == []


def test_of_two_with_the_same_config_the_latest_is_meant(here):
    for number, seed in enumerate((1, 2, 1, 2)):
        run = Run(train_config(seed=seed))
        run.results({"number": number})
        os.utime(run.folder / "config.yaml", (number, number))
    folders = {path.name for path in (here / "outputs/t").glob("train*")}
    assert folders == {"train", "train.1", "train.2", "train.3"}
    assert [read_results(train_config(seed=seed))["number"] for seed in (1, 2)] == [2, 3]


def test_a_process_keeps_to_its_run_when_another_starts_one_with_the_same_config(here):
    config = train_config(seed=1)
    for number in (1, 2):  # the second as by resume=False
        with holding(config):
            Run(config, keep=True).results({"number": number})
        assert read_results(config)["number"] == number
    Run(config, keep=True)  # of another process, and unfinished
    assert read_results(config)["number"] == 2
    add_results(config, {"added": 2})
    save_figure(Name(2), config, "figure.png")
    assert {path.parent.name for path in (here / "outputs/t").glob("train*/figure.png")} == {"train.3"}
    assert json.loads((here / "outputs/t/train.3/results.json").read_text())["added"] == 2
    with holding(config):
        pass
    assert read_results(config) is None  # one that runs anew leaves it


def test_of_two_set_aside_within_one_tick_of_the_clock_the_latest_is_meant(here):
    for number, seed in enumerate((1, 1, 2)):
        run = Run(train_config(seed=seed), keep=True)
        run.results({"number": number})
        os.utime(run.folder / "config.yaml", (0, 0))
    assert read_results(train_config(seed=1))["number"] == 1


def test_nothing_is_written_where_there_is_no_run_of_the_config(here):
    Run(train_config(seed=1))
    before = sorted((here / "outputs/t").rglob("*"))
    with one_line_error(FileNotFoundError, "outputs/t/train", "run the stage again"):
        save_figure(Name(2), train_config(seed=2), "figure.png")
    assert sorted((here / "outputs/t").rglob("*")) == before


def test_nothing_is_added_to_the_results_of_a_run_that_is_being_repeated(here):
    config = train_config()
    Run(config).results({"top1": 0.5})
    run = Run(config)
    add_results(config, {"figure_4": []})
    assert read_results(config) is None
    run.results({"top1": 0.5})
    add_results(config, {"figure_4": []})
    assert read_results(config).keys() == {"top1", "seconds", "figure_4"}


def test_a_folder_is_not_renamed_while_it_is_opened(here):
    config = train_config()
    Run(config)

    def read():
        with opened_folder(config) as folder:
            time.sleep(BRIEFLY)
            return folder.name, (folder / "config.yaml").read_text()

    [((name, text), _), _] = side_by_side(here, [(0, read), (0.1, partial(Run, train_config(seed=5)))])
    assert name == "train" and yaml.safe_load(text)["seed"] == config.seed


@pytest.mark.parametrize("note", ["", "- 1", "process: 3", "{", "process: a\nconfig: 7\nfinished: x\n"])
def test_a_note_that_cannot_be_read_counts_as_another_config(here, monkeypatch, note):
    monkeypatch.setattr(module, "SECONDS_TO_STOP", 0.2)
    config = train_config()

    def held():
        with holding(config):
            (here / "outputs/t/.train.run.yaml").write_text(note)
            time.sleep(2)

    def waits():
        with one_line_error(TimeoutError, "outputs/t/train", "another process runs it"):
            join(config)

    side_by_side(here, [(0, held), (0.2, waits)])
