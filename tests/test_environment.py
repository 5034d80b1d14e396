"""environment.yml, as conda, mamba, micromamba and repo2docker (Binder) read it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture
def environment():
    return yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))


@pytest.fixture
def pip_lines(environment):
    """What pip is given: the one mapping among the dependencies, which must come last."""
    return environment["dependencies"][-1]["pip"]


def test_it_has_only_keys_that_all_of_them_know(environment):
    assert list(environment) == ["name", "channels", "dependencies"]
    assert environment["name"] == "mgkit" and environment["channels"] == ["conda-forge"]
    plain, last = environment["dependencies"][:-1], environment["dependencies"][-1]
    assert all(isinstance(each, str) for each in plain) and list(last) == ["pip"]
    assert "pip" in plain  # conda warns where pip lines come without it


def test_its_python_is_one_that_the_constraints_speak_of(environment):
    [version] = [each.removeprefix("python=") for each in environment["dependencies"][:-1] if each != "pip"]
    conditions = re.findall(r"python_version >= '3\.(\d+)'", (ROOT / "constraints.txt").read_text())
    assert re.fullmatch(r"3\.\d+", version)  # the form from which repo2docker picks its base
    assert int(version.partition(".")[2]) >= max(map(int, conditions))


def test_pip_finds_what_the_lines_name(pip_lines, tmp_path):
    """Run pip from beside environment.yml, as conda, mamba, micromamba and repo2docker do."""
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "mgkit").mkdir()
    (tmp_path / "requirements.txt").write_text("\n".join(pip_lines))
    offline = ["--dry-run", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "install", *offline, "-r", "requirements.txt"]
    result = subprocess.run(pip, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "Would install mgkit-" in result.stdout and "does not provide the extra" not in result.stderr


def test_the_project_comes_with_what_its_tests_need(pip_lines):
    assert "-e .[dev]" in pip_lines and "-c constraints.txt" in pip_lines


def test_binder_reads_this_file_and_no_other():
    """Check that there is no binder/ or .binder/, which repo2docker would read instead of other files."""
    assert not any((ROOT / folder).exists() for folder in ("binder", ".binder"))
