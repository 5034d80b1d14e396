"""What `import mgkit` does: threads that wait sleep, in this process and those it starts."""

import ast
import os
import subprocess
import sys

import pytest
from notebook_support import CONFIGS, cells_of

THREADED = {"torch", "faiss", "sklearn", "torchvision", "timm"}  # libraries that load OpenMP
POLICY = "import os, mgkit; print(os.environ['OMP_WAIT_POLICY'])"


def run(code, **environment):
    """What a new interpreter prints that has only this of OpenMP's environment."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    return subprocess.run(
        [sys.executable, "-c", code], env=plain | environment, text=True, check=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ).stdout  # fmt: skip


def test_waiting_threads_sleep_unless_the_user_wants_otherwise():
    assert run(POLICY) == "passive\n"
    assert run(POLICY, OMP_WAIT_POLICY="active") == "active\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere another OpenMP comes with torch")
def test_openmp_reads_it_when_libraries_load_it():
    """Each of the three comes with an OpenMP of its own."""
    told = run("import mgkit, torch, faiss, sklearn.cluster", OMP_DISPLAY_ENV="verbose")
    assert told.count("OMP_WAIT_POLICY") == told.count("PASSIVE") >= 1


def imports(name):
    """The packages that the cells of a notebook import, in order."""
    for cell in cells_of(name):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.ImportFrom):
                yield node.module.partition(".")[0]
            elif isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)


@pytest.mark.parametrize("name", CONFIGS)
def test_notebooks_import_the_kit_before_what_loads_openmp(name):
    found = list(imports(name))
    assert not THREADED & set(found[: found.index("mgkit")])
