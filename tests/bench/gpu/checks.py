"""The tests that need a GPU, one line each."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from gpu.lines import FAILED, SKIPPED, Line
from gpu.setting import Setting

TESTS = Path(__file__).resolve().parents[2]
MARK = "mark.gpu"


def lines(setting: Setting) -> list[Line]:
    """Run the tests marked `gpu`, on a CUDA device."""
    files = [path for path in sorted(TESTS.rglob("test_*.py")) if MARK in path.read_text(encoding="utf-8")]
    if setting.device.type != "cuda":
        return [Line("tests marked gpu", text=SKIPPED, remark=f"{len(files)} files, for a CUDA device")]
    return outcomes(files, folder=TESTS.parent, seconds=max(60, 3 * setting.seconds))


def outcomes(files: Sequence[Path], *, folder: Path, seconds: float) -> list[Line]:
    """A line for each test of the files that is marked `gpu`; the report of pytest is printed if one fails.

    folder: the working directory.
    seconds: after which TimeoutExpired is raised.

    Raises OSError, with the end of what pytest said, if it cannot run.
    """
    with tempfile.TemporaryDirectory() as temporary:
        found = Path(temporary) / "found.xml"
        command = [
            sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider",
            f"--junitxml={found}", *files,
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds
        )
        cases = list(ElementTree.parse(found).iter("testcase")) if found.exists() else []
    if not cases:
        raise OSError(f"pytest ran no test: {done.stdout[-500:]}")
    each = [line_of(case) for case in cases]
    if any(line.bad for line in each):
        print(done.stdout)
    return each


def line_of(case: ElementTree.Element) -> Line:
    """A test's outcome, and the first line of its reason."""
    name = f"test: {case.get('name').removeprefix('test_').replace('_', ' ')}"
    for kind, outcome in (("failure", FAILED), ("error", FAILED), ("skipped", SKIPPED)):
        reason = case.find(kind)
        if reason is not None:
            return Line(name, text=outcome, remark=(reason.get("message") or "").split("\n")[0][:100])
    return Line(name, text="passed", remark=f"{float(case.get('time', 0)):.1f} s")
