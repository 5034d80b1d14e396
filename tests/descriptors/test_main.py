"""`python -m mgkit.descriptors`: its options are the parameters, errors are one line."""

import dataclasses
import shlex
import sys

import numpy as np
import pytest
from support import in_processes, write_picture

from mgkit.checkpoints import save_checkpoint
from mgkit.config import DescribeConfig, make
from mgkit.descriptors import __main__ as module
from mgkit.descriptors.out import run_describing
from mgkit.engine.feature_store import features_folder
from mgkit.engine.run import papermill_command
from mgkit.model import get_multigrain


@pytest.fixture
def run(here, monkeypatch):
    """A function that runs the command with these words."""

    def of(*words):
        monkeypatch.setattr(sys, "argv", ["descriptors", *words])
        module.main()

    return of


@pytest.fixture
def pictures(here):
    for seed in range(3):
        write_picture(here / "my pictures" / f"{seed}.png", seed=seed, size=(40, 30))
    save_checkpoint(here / "net.pth", get_multigrain("resnet8", num_classes=2))
    return here / "my pictures"


def test_every_parameter_is_an_option_of_its_kind():
    words = shlex.split(
        "--images 2019 --sets '[holidays, ukbench]' --p inf --size 64 --gpus 2 --pretrained_backbone True "
        "--backbone resnet18 --tokens patches --dtype float16 --index 'IVF16,Flat' --val_fraction 0.2"
    )
    config = make(DescribeConfig, module.parameters(words))
    assert (config.images, config.sets, config.p) == ("2019", ["holidays", "ukbench"], float("inf"))
    assert (config.size, config.gpus, config.pretrained_backbone) == (64, 2, True)
    assert (config.dtype, config.index, config.val_fraction) == ("float16", "IVF16,Flat", 0.2)
    assert make(DescribeConfig, module.parameters([])) == DescribeConfig()


def test_the_command_of_a_run_gives_its_parameters_back():
    values = {
        "images": "a b",
        "sets": ["holidays"],
        "p": 2.5,
        "index": "",
        "on_unreadable": "skip",
        "exif": "apply",
    }
    config = make(DescribeConfig, values)
    python, option, name, *words = shlex.split(papermill_command(config))
    assert (python, option, name) == ("python", "-m", "mgkit.descriptors")
    assert make(DescribeConfig, module.parameters(words)) == config


def test_a_folder_is_described(run, pictures, here, capsys):
    run("--images", str(pictures), "--checkpoint", "net.pth", "--size", "32", "--workers", "0")
    rows = np.load(here / "outputs/mini/descriptors/my_pictures/descriptors.npy")
    assert rows.shape[0] == 3 and "my_pictures: 3 rows of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--size", "big"], "ValueError: size: .*'big'"),
        (["--size", "[1"], "ValueError: size: "),
        (
            ["--index", "Foo", "--images", "my pictures", "--checkpoint", "net.pth"],
            "ValueError: index.*'Foo'",
        ),
        (["--images", "gone", "--checkpoint", "net.pth"], "FileNotFoundError: .*gone"),
        (["--checkpoint", "gone.pth"], "FileNotFoundError: .*gone.pth"),
    ],
)
def test_an_error_is_one_line(run, pictures, words, said):
    with pytest.raises(SystemExit, match=f"^{said}[^\n]*$"):
        run(*words)


def test_help_names_every_parameter(run, capsys):
    with pytest.raises(SystemExit):
        run("--help")
    said = capsys.readouterr().out
    assert all(f"--{field.name}" in said for field in dataclasses.fields(DescribeConfig))


def test_two_processes_share_the_images(run, pictures, here, opened):
    """As with two GPUs; the command then reads the features."""
    words = ["--images", str(pictures), "--checkpoint", "net.pth", "--size", "32", "--workers", "0"]
    in_processes(2, run_describing, make(DescribeConfig, module.parameters(words)))
    assert list(features_folder("mini").iterdir())
    run(*words)
    assert not opened and (here / "outputs/mini/descriptors/my_pictures/index.faiss").is_file()
