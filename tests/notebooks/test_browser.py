"""The notebooks as a person sees them: in JupyterLab as `make lab` starts it, in a real browser, widgets moved by hand.

The notebooks are opened in order and share one experiment, so that each finds what those before it left. Pictures of the pages
go to outputs/screenshots/. Without a browser the tests are skipped; with MGKIT_BROWSER=required they fail.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import papermill
import psutil
import pytest
from test_notebooks import CONFIGS, NOTEBOOKS, PACKAGE, QUICK

ROOT = NOTEBOOKS.parent
SCREENSHOTS = ROOT / "outputs" / "screenshots"
TOKEN = "only-for-this-test"
SECONDS_TO_START, SECONDS_TO_RUN, SECONDS_TO_ANSWER = 60, 120, 20
SHOW_EVERY_CELL = {"@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"}}


def browser_program() -> str:
    """The path of a Chromium; skips the test where there is none, or nothing to drive it."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    missing = [] if program else ["chromium is not installed"]
    if not find_spec("playwright"):
        missing.append("playwright is not installed (pip install -e '.[dev]')")
    if missing:
        give_up = pytest.fail if os.environ.get("MGKIT_BROWSER") == "required" else pytest.skip
        give_up("no browser to look with: " + ", ".join(missing))
    return program


# --- The server


@pytest.fixture(scope="module")
def project(tmp_path_factory, mini_root):
    """A project of its own whose notebooks have quick parameters; all are of one experiment."""
    root = tmp_path_factory.mktemp("project")
    (root / "notebooks").mkdir()
    (root / "mgkit").symlink_to(PACKAGE)
    (root / ".jupyter").symlink_to(ROOT / ".jupyter")
    for name in CONFIGS:
        papermill.execute_notebook(
            NOTEBOOKS / f"{name}.ipynb", root / "notebooks" / f"{name}.ipynb", prepare_only=True, progress_bar=False,
            parameters={"experiment": "t", "data": str(mini_root), "workers": 0} | QUICK.get(name, {}),
        )  # fmt: skip
    return root


@pytest.fixture(scope="module")
def lab(project, tmp_path_factory):
    """The address of JupyterLab, started by `make lab`; it and its kernels are gone afterwards."""
    browser_program()
    private = tmp_path_factory.mktemp("jupyter")
    overrides = private / "config" / "labconfig" / "default_setting_overrides.json"
    overrides.parent.mkdir(parents=True)
    overrides.write_text(json.dumps(SHOW_EVERY_CELL))
    address = f"http://localhost:{free_port()}"
    with open(private / "log.txt", "w+") as log:
        server = subprocess.Popen(
            lab_command(project, address.rpartition(":")[2]), stdout=log, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, env=os.environ | lab_environment(private),
        )  # fmt: skip
        try:
            wait_for_answer(address, server, Path(log.name))
            yield address
        finally:
            end(server)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def lab_command(project: Path, port: str) -> list[str]:
    """`make lab` with the environment that runs the tests, in the project."""
    options = f"--no-browser --port={port} --ServerApp.port_retries=0"
    if os.name == "posix" and os.geteuid() == 0:
        options += " --allow-root"
    binaries = Path(sys.executable).parent
    return [
        "make", "--file", str(ROOT / "Makefile"), "--directory", str(project), "--assume-old", ".venv/.installed",
        "lab", f"BIN={binaries}", f"LAB={options}",
    ]  # fmt: skip


def lab_environment(private: Path) -> dict[str, str]:
    """Nothing of the user's own Jupyter is read or written; cells are on the page wherever it is scrolled to."""
    folders = {f"JUPYTER_{kind.upper()}_DIR": str(private / kind) for kind in ("config", "data", "runtime")}
    return folders | {
        "JUPYTER_TOKEN": TOKEN,
        "IPYTHONDIR": str(private / "ipython"),
        "PYTHONPATH": str(PACKAGE.parent),
    }


def wait_for_answer(address: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if ask(address, "status")["kernels"] == 0:
                return
        except urllib.error.URLError:
            time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()}")


def ask(address: str, what: str, method: str = "GET"):
    """An answer of the server's REST interface."""
    request = urllib.request.Request(
        f"{address}/api/{what}", method=method, headers={"Authorization": f"token {TOKEN}"}
    )
    with urllib.request.urlopen(request, timeout=SECONDS_TO_ANSWER) as answer:
        return json.loads(answer.read() or "null")


def end(server: subprocess.Popen) -> None:
    """The server, its kernels and what those started; first asked, then made to."""
    family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    for process in family[::-1]:
        if process.is_running():
            process.terminate()
    _, left = psutil.wait_procs(family, timeout=10)
    for process in left:
        process.kill()
    server.wait(10)


# --- The browser


@pytest.fixture(scope="module")
def browser():
    program = browser_program()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Page:
    """A notebook that is open in JupyterLab."""

    def __init__(self, page, name: str):
        self.page, self.name = page, name
        self.cells = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell")

    def run_all(self) -> None:
        """Run > Run All Cells, then wait until each has run, or one failed."""
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        self.page.wait_for_function(ALL_RAN_OR_ONE_FAILED, timeout=1000 * SECONDS_TO_RUN, polling=500)

    def errors(self) -> list[str]:
        """Tracebacks, and widgets that could not be drawn."""
        wrong = self.page.locator("[data-mime-type='application/vnd.jupyter.error'], .jupyter-widgets-error")
        return wrong.all_inner_texts()

    def printed(self) -> str:
        return "\n".join(
            self.page.locator("[data-mime-type='application/vnd.jupyter.stdout']").all_inner_texts()
        )

    def figures(self) -> int:
        """How many pictures of outputs are there and loaded."""
        return self.page.evaluate(
            "[...document.querySelectorAll('.jp-RenderedImage img')].filter(image => image.naturalWidth > 100).length"
        )

    def bars(self) -> list[str]:
        """What the progress bars say."""
        return self.page.locator(".jupyter-widgets:has(> .widget-hprogress)").all_inner_texts()

    def screenshot(self, what: str = "") -> None:
        """The whole notebook, on a screen as tall as it is."""
        height = self.page.evaluate(f"{SCROLLED}.scrollHeight")
        self.page.set_viewport_size({"width": WIDTH, "height": min(height + 150, TALLEST)})
        self.page.evaluate(f"{SCROLLED}.scrollTop = 0")
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{self.name}{what}.png", animations="disabled")
        self.page.set_viewport_size({"width": WIDTH, "height": 900})


WIDTH, TALLEST = 1400, 16000  # px
SCROLLED = "document.querySelector('.jp-NotebookPanel .jp-WindowedPanel-outer')"
ALL_RAN_OR_ONE_FAILED = """() => {
    const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(prompt => prompt.innerText);
    const failed = document.querySelector("[data-mime-type='application/vnd.jupyter.error']");
    return failed || prompts.length && prompts.every(prompt => /^\\[\\d+\\]:$/.test(prompt));
}"""


@pytest.fixture
def open_notebook(lab, browser):
    """A function that opens a notebook of the project and runs it; kernel and page are closed with the test."""
    context = browser.new_context(viewport={"width": WIDTH, "height": 900})
    context.set_default_timeout(1000 * SECONDS_TO_ANSWER)

    def go_to(name):
        page = context.new_page()
        page.goto(f"{lab}/lab/tree/{name}.ipynb?reset&token={TOKEN}", timeout=1000 * SECONDS_TO_START)
        # The kernel that the notebook names is the environment's: it starts without a question about it.
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=1000 * SECONDS_TO_START)
        return Page(page, name)

    yield go_to
    context.close()
    for session in ask(lab, "sessions"):
        ask(lab, f"sessions/{session['id']}", "DELETE")


# --- What the pages show


@pytest.mark.parametrize("name", CONFIGS)
def test_a_notebook_runs_in_the_browser(open_notebook, name):
    notebook = open_notebook(name)
    try:
        notebook.run_all()
    finally:
        notebook.screenshot()
    assert not notebook.errors()
    assert notebook.figures() >= 1
