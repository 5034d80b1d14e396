"""The cell of 00 that installs the kit in a kernel without it, as on Colab, and does nothing elsewhere."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from notebook_support import NOTEBOOKS, PACKAGE, cells_of

ROOT = NOTEBOOKS.parent


@pytest.fixture
def cell():
    [found] = [cell.source for cell in cells_of("00_start_here") if "repository = " in cell.source]
    return found


def in_fresh_kernel(source: str, *, path: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run a source in a Python that finds only the standard library and what lies below `path`."""
    program = f"import sys; sys.path.insert(0, {str(path)!r})\n{source}\n"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, timeout=300, cwd=path,
        env=os.environ | environment,
    )  # fmt: skip


@pytest.fixture
def repository(tmp_path):
    """A git repository of the kit."""
    root = tmp_path / "repository"
    shutil.copytree(PACKAGE, root / "mgkit", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root)
    who = ["-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "--quiet"], ["add", "."], [*who, "commit", "--quiet", "-m", "all"]):
        subprocess.run(["git", *arguments], cwd=root, check=True)
    return root


def test_it_comes_before_anything_of_the_kit_is_imported(cell):
    sources = [each.source for each in cells_of("00_start_here")]
    assert not any("mgkit import" in source for source in sources[: sources.index(cell)])


def test_it_installs_the_kit_from_its_repository(cell, repository, tmp_path):
    """Really, from a repository on this machine; only the packages that the kit needs are left out."""
    target = tmp_path / "site"
    target.mkdir()
    named = cell.replace('repository = ""', f'repository = "{repository.as_uri()}"')
    assert named != cell
    after = f"{named}\nimport json; print(json.dumps(find_spec('mgkit').origin))"
    quick = {"PIP_TARGET": str(target), "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0"}
    result = in_fresh_kernel(after, path=target, PYTHONDONTWRITEBYTECODE="1", **quick)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == str(target / "mgkit" / "__init__.py")
    assert {path.name for path in PACKAGE.glob("*.yaml")} <= {p.name for p in (target / "mgkit").iterdir()}


def test_without_an_address_it_says_in_one_line_what_is_missing(cell, tmp_path):
    result = in_fresh_kernel(cell, path=tmp_path)
    last = result.stderr.splitlines()[-1]
    assert result.returncode == 1 and last.startswith("ModuleNotFoundError: mgkit is not installed here")
    assert "repository" in last and "make lab" in last


def test_where_the_kit_is_it_does_nothing(cell, tmp_path):
    (tmp_path / "mgkit").mkdir()
    (tmp_path / "mgkit" / "__init__.py").touch()
    forbidden = (
        "import subprocess\ndef run(*arguments, **_): raise AssertionError(arguments)\nsubprocess.run = run\n"
    )
    named = cell.replace('repository = ""', 'repository = "file:///nowhere"')
    result = in_fresh_kernel(forbidden + named, path=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
