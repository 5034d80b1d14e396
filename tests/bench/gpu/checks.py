"""The tests that need a GPU, one line each."""

import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from gpu.lines import FAILED, Line
from gpu.setting import Setting

TESTS = Path(__file__).resolve().parents[2]
MARK = "mark.gpu"


def lines(setting: Setting) -> list[Line]:
    """Run the tests marked `gpu`; without a CUDA device pytest skips them."""
    files = [path for path in sorted(TESTS.rglob("test_*.py")) if MARK in path.read_text(encoding="utf-8")]
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.xml"
        command = [
            sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider",
            f"--junitxml={found}", *files,
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=TESTS.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=max(60, 3 * setting.seconds),
        )  # fmt: skip
        if not found.exists():
            raise OSError(f"pytest wrote no results: {done.stdout[-500:]}")
        cases = list(ElementTree.parse(found).iter("testcase"))
    if any(line.bad for line in map(line_of, cases)):
        print(done.stdout)
    return [line_of(case) for case in cases] or [
        Line("tests marked gpu", text=FAILED, remark="none is found")
    ]


def line_of(case: ElementTree.Element) -> Line:
    """A test's outcome, and the first line of its reason."""
    name = f"test: {case.get('name').removeprefix('test_').replace('_', ' ')}"
    for kind, outcome in (("failure", FAILED), ("error", FAILED), ("skipped", "skipped")):
        reason = case.find(kind)
        if reason is not None:
            return Line(name, text=outcome, remark=(reason.get("message") or "").split("\n")[0][:100])
    return Line(name, text="passed", remark=f"{float(case.get('time', 0)):.1f} s")
