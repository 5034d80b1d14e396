"""The inputs of 05: queries and distractors by their parameters, with a network that is not trained."""

import hashlib

import pytest
from support import answers, write_tree

from mgkit import get_multigrain
from mgkit.config import RetrievalConfig, make
from mgkit.stages import retrieval_task as inputs
from mgkit.stages.evaluate_retrieval import record_distractors


@pytest.fixture
def task_of(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    net = get_multigrain("resnet8", p=3.0, num_classes=2).eval()
    monkeypatch.setattr(inputs, "whitened_network", lambda config: (net, {}))
    values = {"experiment": "t", "indices": [], "resolutions": []}
    return lambda **given: inputs.retrieval_task(make(RetrievalConfig, values | given))


def test_queries_and_distractors_are_found_from_the_working_directory(task_of, tmp_path):
    write_tree(
        tmp_path, "data/cat/1.png", "data/cat/2.png", "asked/cat/a.png", "asked/yak/b.png", "more/x.png"
    )
    [found] = task_of(data="data", queries="asked", distractors="more").sets
    assert answers(found) == {"a.png": ["1.png", "2.png"], "b.png": []}
    assert found.name == "data + 1 distractors"


def test_distractors_of_several_sets_are_recorded_once(task_of, tmp_path, capsys):
    write_tree(
        tmp_path, "data/holidays/jpg/100000.jpg", "data/holidays/jpg/100001.jpg", "more/x.png", "more/y.png"
    )
    write_tree(tmp_path, *[f"data/ukbench/full/ukbench{k:05d}.jpg" for k in range(4)])
    written = {}

    class Run:
        def write(self, name, text):
            written[name] = text
            return name

    task = task_of(data="data", distractors="more")
    assert [one.name for one in task.sets] == ["holidays + 2 distractors", "ukbench + 2 distractors"]
    record_distractors(task, Run())
    names = [line.split("  ") for line in written["distractors.sha256"].splitlines()]
    assert names == [
        [hashlib.sha256((tmp_path / "more" / n).read_bytes()).hexdigest(), n] for n in ("x.png", "y.png")
    ]
    assert "2 distractors, listed" in capsys.readouterr().out
