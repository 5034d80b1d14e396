"""The benchmarks of growth and contention see what they are for, and nothing where nothing is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import bench_contention
import bench_growth
import pytest

# In a separate process: a pass that keeps some bytes per image, a training that keeps some per step.
MEASURED = """
import json, sys
import bench_growth as growth
from mgkit.engine.loop import Training

an_image, a_step = map(int, sys.argv[1:])
held, step = [], Training.step

def kept(count):
    held.append(b"x" * count)  # written, hence resident

def keeping(training, *args):
    kept(a_step)
    step(training, *args)

Training.step = keeping
net = growth.get_multigrain("resnet8", num_classes=1000).eval()
parts = {k: range(growth.IMAGES * k) for k in growth.TIMES}
rows = growth.flat_row("pass", lambda images: [kept(an_image) for _ in images], parts, net)
rows += growth.training_row(epochs=4, steps=10)
print(json.dumps([row.met for row in rows]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says what a process has")
@pytest.mark.parametrize(
    ("an_image", "a_step", "met"), [(0, 0, [True, True]), (20_000, 400_000, [False, False])]
)
def test_what_is_held_too_long_is_seen(tmp_path, an_image, a_step, met):
    path = os.pathsep.join([str(Path(bench_growth.__file__).parent), *filter(None, sys.path)])
    found = subprocess.run(
        [sys.executable, "-c", MEASURED, str(an_image), str(a_step)], cwd=tmp_path, text=True, check=True,
        env=os.environ | bench_growth.HEAP | {"PYTHONPATH": path}, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert json.loads(found.stdout.splitlines()[-1]) == met


# In place of passes: they take 1, 2, 3, … seconds.
COUNTED = """
import os, sys
assert "OMP_WAIT_POLICY" not in os.environ
print("ready", flush=True)
for number, _ in enumerate(sys.stdin, 1):
    print(number, flush=True)
"""


def test_passes_beside_other_work_are_compared_with_one_alone(monkeypatch):
    monkeypatch.setattr(bench_contention, "PASSES", COUNTED)
    monkeypatch.setattr(bench_contention, "photo_folder", Path)  # draws nothing
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    rows = bench_contention.rows(rounds=1)
    assert [row.value for row in rows] == [2, 3, 4] and not any(row.met for row in rows[1:])


def test_a_busy_process_ends_with_its_block():
    with bench_contention.python(bench_contention.BUSY) as process:
        assert process.poll() is None
    assert process.poll() is not None
