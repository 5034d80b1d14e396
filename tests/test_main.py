"""The worker: stages run, endings told."""

import subprocess
import sys
import time
from pathlib import Path
from typing import get_type_hints

import pytest
from support import GONE

from mgkit import __main__ as module
from mgkit.config import StageConfig
from mgkit.engine.launch import LAUNCHER, write_ending

pytestmark = pytest.mark.usefixtures("signals", "watch")


def test_a_restart_after_the_end_does_nothing(launch_folder, monkeypatch):
    write_ending("failed", "SnapshotError: disk full")
    monkeypatch.setattr(sys, "argv", ["mgkit", "train", "config.yaml"])
    monkeypatch.setattr(module, "run_stage", lambda *_: pytest.fail("it is to do nothing"))
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    module.main()
    assert launch_folder.is_dir()


def test_a_worker_whose_launcher_is_gone_begins_nothing(launch_folder, monkeypatch):
    monkeypatch.setenv(LAUNCHER, str(GONE))
    monkeypatch.setattr(sys, "argv", ["mgkit", "train", "config.yaml"])
    monkeypatch.setattr(module, "run_stage", lambda *_: pytest.fail("it is to do nothing"))
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    module.main()
    assert not launch_folder.exists()


def every_stage(cls=StageConfig):
    """The config classes that have a notebook or a command."""
    return ([cls] if "notebook" in vars(cls) else []) + [
        c for sub in cls.__subclasses__() for c in every_stage(sub)
    ]


def test_every_stage_can_be_run_by_workers():
    notebooks = Path(__file__).parents[1] / "notebooks"
    stages = {stage.stage: stage for stage in every_stage()}
    assert stages == module.STAGES and len(stages) == 8
    for stage in stages.values():
        parameters = get_type_hints(module.work_of(stage))
        assert stage in parameters.values()
        assert stage.command or (notebooks / f"{stage.notebook}.ipynb").is_file()


@pytest.mark.parametrize(
    ("rank", "local_rank", "said"), [("0", "0", "heard"), ("2", "0", "rank 0, host-a"), ("1", "1", "")]
)
def test_the_main_process_prints_for_all(monkeypatch, capsys, rank, local_rank, said):
    for name, value in {"RANK": rank, "LOCAL_RANK": local_rank, "MASTER_ADDR": "host-a"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    module.leave_printing_to_main()
    print("heard")
    monkeypatch.undo()
    printed = capsys.readouterr().out
    assert said in printed and ("heard" in printed) == (rank == "0")


READING = """
import time
from torch.utils.data import DataLoader
from mgkit.engine.stopping import end_readers

class Slow(list):
    def __getitem__(self, index):
        time.sleep(600)

loader = DataLoader(Slow([0]), num_workers=1)
batches = iter(loader)
end_readers()
time.sleep(0.5)
print("no error")
"""


def test_readers_are_ended_without_an_error_about_it():
    begun = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", READING], capture_output=True, text=True)
    assert ended.stdout == "no error\n" and time.monotonic() - begun < 300
