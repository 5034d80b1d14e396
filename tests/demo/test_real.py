"""`make real`: which steps are run with which parameters, what is written, and its errors."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from real_support import RESULTS
from support import write_tree

from mgkit.config import make
from mgkit.demo import real
from mgkit.demo.real_data import RealSets, read_description
from mgkit.demo.real_results import CLASSIFY, PSTAR, RETRIEVE, WHITEN

RECIPES = Path(real.__file__).parents[2] / "notebooks" / "recipes"
CLASSES = ("n01440764", "n01443537")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project with the recipes, in which notebooks are only noted: {name: parameters}."""
    shutil.copytree(RECIPES, tmp_path / "notebooks" / "recipes")
    (tmp_path / "mgkit").mkdir()
    monkeypatch.chdir(tmp_path)
    executed = {}
    monkeypatch.setattr(real, "execute", lambda name, folder, parameters: executed.update({name: parameters}))
    monkeypatch.setattr(
        real,
        "read_results",
        lambda config: next(RESULTS[n] for n, s in real.STEPS.items() if isinstance(config, s[0])),
    )
    return tmp_path, executed


def photographs(root):
    classes = [f"sample/val/{name}/a.jpg" for name in CLASSES]
    return write_tree(root, *classes, *(f"objects/full/ukbench{k:05d}.jpg" for k in range(4)))


def sets(*names, classes=0):
    return RealSets(Path("/data"), {name: Path("/data") / name for name in names}, classes)


EVERYTHING = ("imagenet/train", "imagenet/val", "holidays", "ukbench")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (EVERYTHING, [PSTAR, WHITEN, CLASSIFY, RETRIEVE]),
        (EVERYTHING[:2], [PSTAR, WHITEN, CLASSIFY]),
        (("holidays", "unlabelled/whiten"), [WHITEN, RETRIEVE]),
        (("ukbench",), [RETRIEVE]),
    ],
)
def test_the_sets_decide_on_the_steps(project, found, expected):
    wanted = real.steps(sets(*found, classes=1000 * ("imagenet/val" in found)), "outputs/real/data", "real")
    assert list(wanted) == expected
    for name, parameters in wanted.items():
        config = make(real.STEPS[name][0], parameters)
        assert (config.experiment, config.data) == ("real", "outputs/real/data")
        # 05 has the network of 03, or without it the published one
        assert config.pretrained_backbone == (name != RETRIEVE or WHITEN not in expected)


@pytest.mark.parametrize(("classes", "each"), [(1000, 1), (10, 100), (3, 333), (1, 1000)])
def test_p_star_is_learned_on_a_thousand_images(project, classes, each):
    wanted = real.steps(sets(*EVERYTHING, classes=classes), "d", "real")
    assert wanted[PSTAR]["images_per_class"] == each


def test_a_run_prints_and_writes_its_results(project, capsys):
    root, executed = project
    real.run(str(photographs(root / "photos")), "real", write_reference=False)
    printed = capsys.readouterr().out
    assert list(executed) == [PSTAR, WHITEN, CLASSIFY, RETRIEVE]
    results = root / "outputs" / "real"
    table = (results / "table.txt").read_text()
    assert table in printed and "missing: holidays" in printed and "is missing: nothing to compare" in printed
    assert str(results) in printed.splitlines()[-1]
    assert json.loads((results / "curves.json").read_text())["spectrum"]
    assert set(read_description(results / "data.json")) == {"imagenet/train", "imagenet/val", "ukbench"}


def test_a_part_is_no_reference(project):
    root, _ = project
    write_tree(root / "photos", *(f"full/ukbench{k:05d}.jpg" for k in range(4)))
    with pytest.raises(ValueError, match="--write-reference needs all sets"):
        real.run(str(root / "photos"), "real", write_reference=True)


@pytest.mark.parametrize("options", [[], ["--data", ""], ["--data", "/nowhere at all"]])
def test_missing_data_end_with_one_line(project, options, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["real", *options])
    with pytest.raises(SystemExit) as ended:
        real.main()
    assert "\n" not in ended.value.code and "DATA" in ended.value.code


def make_real(folder, *arguments):
    """Run `make real` as in a shell of its own, not below the make that runs the tests."""
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *arguments, "real"], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_make_real_without_data_is_one_line_and_installs_nothing(tmp_path):
    shutil.copy(RECIPES.parents[1] / "Makefile", tmp_path)
    done = make_real(tmp_path)
    [line] = done.stderr.splitlines()
    assert "make real DATA=/folder" in line and done.returncode
    assert [path.name for path in tmp_path.iterdir()] == ["Makefile"]


def test_make_real_passes_a_folder_with_a_space(tmp_path):
    shutil.copy(RECIPES.parents[1] / "Makefile", tmp_path)
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    python.chmod(0o755)
    ready = [f"VENV={tmp_path}", "READY="]
    done = make_real(tmp_path, *ready, "DATA=/my photos", "REAL=--write-reference")
    assert done.stdout == "-m|mgkit.demo.real|--data|/my photos|--write-reference|"
