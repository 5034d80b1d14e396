"""Classification from end to end, and the chain of stages that an evaluation starts where none was run."""

import json

from support import flat_name, write_devkit

from mgkit.config import ClassifyConfig, make
from mgkit.datasets import labelled_images
from mgkit.evaluate import evaluate_classification
from mgkit.whitening import whitened_network


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
