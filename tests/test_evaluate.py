"""The evaluations from end to end, and the chain of stages that they start where none was run."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support import flat_name, one_line_error, write_devkit

from mgkit.config import ClassifyConfig, NetworkConfig, RetrievalConfig, make
from mgkit.datasets import labelled_images
from mgkit.download import file_hash
from mgkit.embed import embed
from mgkit.evaluate import (
    best_exponents,
    embedding_rate,
    evaluate_classification,
    evaluate_retrieval,
    index_table,
    resolution_curves,
    retrieval_task,
    shown,
    shown_difference,
    shown_interval,
    table,
)
from mgkit.experiment import read_results
from mgkit.mini import CROPS, QUALITIES
from mgkit.protocols import Difference, RetrievalResult, measured_value
from mgkit.whitening import whitened_network


def result_of(per_query, measure="mAP"):
    """A result of which only the measure counts."""
    per_query, empty = np.array(per_query), np.array([])
    return RetrievalResult(
        "r", measure, per_query.mean(), (per_query.min(), per_query.max()), per_query, {}, "", empty, empty, None,
        empty, empty, empty,
    )  # fmt: skip


def test_values_are_shown_in_the_unit_of_their_measure():
    assert shown(result_of([0.5, 1.0])) == "75.0 %"
    assert shown(result_of([0.5], "micro-AP")) == "50.0 %"
    assert shown(result_of([3.5], "score")) == "3.50 of 4"
    assert shown(result_of([np.nan], "none")) == "not measured: no ground truth"
    assert shown_interval("mAP", 0.5, 0.625) == "50.0 … 62.5"
    assert shown_interval("score", 3.5, 3.75) == "3.50 … 3.75"
    assert shown_difference("mAP", Difference(0.01, -0.02, 0.031)) == "+1.0 (-2.0 … +3.1)"


# --- The chain of stages


class Chain:
    """What whitened_network leaves when nothing was run before, and what it printed."""

    def __init__(self, folder, config, printed, net):
        self.folder, self.config, self.printed, self.net = folder, config, printed, net


@pytest.fixture(scope="module")
def chain(mini_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    config = make(NetworkConfig, {"experiment": "t", "data": str(mini_root), "workers": 0})
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("builtins.print", lambda *args, **_: printed.append(" ".join(map(str, args))))
        net, _ = whitened_network(config)
    return Chain(folder, config, printed, net)


@pytest.fixture
def after_chain(chain, monkeypatch):
    monkeypatch.chdir(chain.folder)
    return chain


def test_missing_stages_are_run_first_each_with_a_line(chain):
    text = "\n".join(chain.printed)
    stages = ["running 03_whiten first", "running 01_train first", "running 02_finetune_p first"]
    positions = [text.index(stage) for stage in stages]
    assert positions == sorted(positions)
    for stage in ("train", "finetune_p", "whiten"):
        assert (chain.folder / "outputs" / "t" / stage / "results.json").is_file()
    assert chain.net.whitening is not None


def test_what_is_there_is_not_run_again(after_chain, capsys):
    before = (after_chain.folder / "outputs/t/whiten/checkpoint.pth").stat().st_mtime_ns
    whitened_network(after_chain.config)
    assert "first" not in capsys.readouterr().out
    assert (after_chain.folder / "outputs/t/whiten/checkpoint.pth").stat().st_mtime_ns == before


KINDS = [
    "GeM, training p",
    "GeM, p*",
    "GeM, p*, whitened",
    "GeM, p*, whitened, 3 scales",
    "GeM, p*, whitened, 64 d",
]
SETS = ["holidays", "ukbench", "copydays + 6 distractors"]


@pytest.fixture(scope="module")
def retrieved(chain, mini_root):
    """The task of 05 on the reduced set, and what it found."""
    values = {"experiment": "t", "data": str(mini_root), "workers": 0, "size": 48, "resolutions": [32, 64]}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(chain.folder)
        task = retrieval_task(make(RetrievalConfig, values | {"indices": ["IVF4,Flat"]}))
        return task, evaluate_retrieval(task)


def test_retrieval_is_measured_on_every_set_with_every_kind_of_descriptor(after_chain, retrieved):
    found = retrieved[1]
    measured = [(r.result.name, r.descriptor) for r in found if r.retrieval_set.level is None]
    assert measured == [(name, kind) for name in SETS for kind in KINDS]
    assert all(0 <= r.result.value <= (4 if r.result.measure == "score" else 1) for r in found)
    levels = {r.retrieval_set.level for r in found} - {None}
    assert levels == {("crops", n) for n in CROPS} | {("jpegqual", n) for n in QUALITIES}
    rows = read_results("t", "evaluate_retrieval")["rows"]
    assert [row["value"] for row in rows] == [r.result.value for r in found]
    assert all(row["interval"][0] <= row["value"] <= row["interval"][1] for row in rows)


def test_the_values_are_those_of_descriptors_embedded_there_and_then(after_chain, retrieved):
    task, found = retrieved
    by_kind = {r.descriptor: r for r in found if r.result.name == "holidays"}
    images = task.sets[0].images
    plain, at_p = embed(task.net, images, size=48, ps=[task.training_p, task.p])  # both of a whitened network
    assert by_kind["GeM, p*, whitened"].result.value == measured_value(task.sets[0], at_p)
    sums = sum(
        embed(task.net, images, size=round(48 * scale), ps=[task.p])[0] for scale in task.config.scales
    )
    several = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    assert by_kind["GeM, p*, whitened, 3 scales"].result.value == pytest.approx(
        measured_value(task.sets[0], several)
    )


def test_each_kind_is_held_against_the_one_it_changes(retrieved):
    gains = {r.descriptor: (r.over, r.gain) for r in retrieved[1] if r.result.name == "ukbench"}
    assert [over for over, _ in gains.values()] == ["", KINDS[0], KINDS[1], KINDS[2], KINDS[2]]
    assert gains[KINDS[0]][1] is None
    values = {r.descriptor: r.result.value for r in retrieved[1] if r.result.name == "ukbench"}
    for kind in KINDS[1:]:
        over, gain = gains[kind]
        assert gain.value == pytest.approx(values[kind] - values[over])
        assert gain.low <= gain.value <= gain.high


def test_the_table_has_a_line_for_every_measurement(retrieved):
    text = table(retrieved[1])
    whole = [r for r in retrieved[1] if r.retrieval_set.level is None]
    for r in whole:
        assert any(r.descriptor in line and shown(r.result) in line for line in text.splitlines())
    assert text.count(" over ") == len([r for r in whole if r.gain])
    assert text.count("mP@10") == len(SETS)
    quality = text[text.index("JPEG quality") :].splitlines()
    assert quality[1].split() == [str(n) for n in QUALITIES]
    [first] = [
        r
        for r in retrieved[1]
        if r.retrieval_set.level == ("jpegqual", QUALITIES[0]) and r.descriptor == KINDS[0]
    ]
    assert quality[2].split()[-9] == f"{100 * first.result.value:.1f}"


def test_the_distractors_are_listed_with_their_hashes(after_chain, retrieved, mini_root):
    text = (after_chain.folder / "outputs/t/evaluate_retrieval/distractors.sha256").read_text()
    lines = [line.split("  ", 1) for line in text.splitlines()]
    assert len(lines) == 6
    for digest, name in lines:
        [path] = (mini_root / "unlabelled" / "distractors").rglob(Path(name).name)
        assert file_hash(path) == digest


def test_a_second_evaluation_reads_the_features_from_disk(after_chain, retrieved, monkeypatch):
    monkeypatch.setattr("mgkit.embed.image_shapes", lambda images: pytest.fail("an image was opened"))
    again = evaluate_retrieval(retrieved[0])
    assert [r.result.value for r in again] == [r.result.value for r in retrieved[1]]


def test_figure_4_from_one_pass_a_resolution(after_chain, retrieved):
    task = retrieved[0]
    curves = resolution_curves(task)
    assert list(curves.exponents)[0].startswith("training p")
    assert list(curves.values) == ["top-1", *SETS]
    assert all(values.shape == (2, len(curves.exponents)) for values in curves.values.values())
    assert all(np.isfinite(values).all() for values in curves.values.values())
    images = task.sets[0].images
    row = embed(replace_whitening(task.net), images, size=64, ps=[task.training_p])[0]
    assert curves.values["holidays"][1, 0] == pytest.approx(measured_value(task.sets[0], row))
    written = read_results("t", "evaluate_retrieval")["figure_4"]
    assert written["sizes"] == [32, 64] and written["values"]["top-1"] == curves.values["top-1"].tolist()
    assert best_exponents(curves).count("\n") == 3


def replace_whitening(net):
    """The network's plain embedding, for comparison."""
    plain = copy.deepcopy(net)
    plain.whitening = None
    plain.classifier = torch.nn.Linear(net.width, 2)
    return plain


def test_figure_4_has_no_top1_where_data_holds_retrieval_sets_only(
    after_chain, retrieved, mini_root, tmp_path
):
    (tmp_path / "holidays").symlink_to(mini_root / "holidays")
    values = {"experiment": "t", "data": str(tmp_path), "workers": 0, "size": 48, "resolutions": [32]}
    task = retrieval_task(
        make(
            RetrievalConfig,
            values | {"checkpoint": str(after_chain.folder / "outputs/t/whiten/checkpoint.pth")},
        )
    )
    evaluate_retrieval(task)
    assert list(resolution_curves(task).values) == ["holidays"]


def test_indices_are_compared_on_the_descriptors_of_all_sets(after_chain, retrieved, monkeypatch):
    assert index_table(retrieved[0]).count("\n") == 0  # so few images need none
    monkeypatch.setattr("mgkit.evaluate.FEWEST_INDEXED", 50)
    lines = index_table(retrieved[0], queries=20).splitlines()
    assert [line.split()[0] for line in lines] == ["index", "exact", "IVF4,Flat"]
    assert lines[2].split()[1:3] == ["1.000", "1.000"]  # all four lists are looked into


def test_the_rate_of_embedding_is_measured(retrieved):
    assert embedding_rate(retrieved[0], images=4) > 0


def test_classification_is_measured_for_every_crop_size_and_exponent(after_chain, mini_root):
    values = {"sizes": [32, 64], "data": str(mini_root), "experiment": "t", "workers": 0}
    rows = evaluate_classification(make(ClassifyConfig, values))
    assert [(row.crop, row.size, row.exponent) for row in rows] == [
        (crop, size, exponent)
        for crop in ("square", "rect")
        for size in (32, 64)
        for exponent in ("trained", "p*")
    ]
    assert all(0 <= row.top1 <= row.top5 <= 1 for row in rows)
    written = json.loads((after_chain.folder / "outputs/t/evaluate_imagenet/results.json").read_text())
    assert written["images"] == 36 and len(written["rows"]) == 8


def test_flat_validation_images_alone_give_the_same_accuracy(after_chain, mini_root, tmp_path):
    val = labelled_images(mini_root)[1]
    truth = [int(label) + 1 for label in val.labels]
    write_devkit(tmp_path, dict(enumerate(val.classes, start=1)), truth)
    (tmp_path / "val").mkdir()
    for number, path in enumerate(val.paths, start=1):
        (tmp_path / "val" / flat_name(number)).symlink_to(path)
    checkpoint = str(after_chain.folder / "outputs/t/train/checkpoint.pth")
    rows = []
    for experiment, data in [("sorted", mini_root / "imagenet"), ("flat", tmp_path)]:
        values = {
            "sizes": [64],
            "data": str(data),
            "experiment": experiment,
            "workers": 0,
            "checkpoint": checkpoint,
        }
        rows.append(evaluate_classification(make(ClassifyConfig, values)))
    assert rows[0] == rows[1]


def test_on_data_of_one_s_own_a_missing_whitening_names_the_command(mini_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = make(RetrievalConfig, {"experiment": "t", "data": str(mini_root / "imagenet")})
    with one_line_error(FileNotFoundError, "papermill", "03_whiten.ipynb", mini_root / "imagenet"):
        retrieval_task(config)
    assert not (tmp_path / "outputs").exists()
