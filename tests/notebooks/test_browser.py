"""The notebooks in a real browser, in JupyterLab as `make lab` starts it, with widgets moved by hand.

The notebooks are opened in order and share one experiment, so each finds the results of those before it. 04
and 07, which have no widgets, are left to test_notebooks.py.
Screenshots go to outputs/screenshots/.
Without a browser the tests are skipped; with MGKIT_BROWSER=required they fail.
"""

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import papermill
import psutil
import pytest
from browsers import browser_program, chromium
from notebook_support import NOTEBOOKS, PACKAGE, QUICK, cells_of
from support import free_port

ROOT = NOTEBOOKS.parent
SCREENSHOTS = ROOT / "outputs" / "screenshots"
TOKEN = "only-for-this-test"
SECONDS_TO_START, SECONDS_TO_RUN, SECONDS_TO_ANSWER = 180, 300, 60
SHOW_EVERY_CELL = {"@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"}}


# --- The server


@pytest.fixture(scope="module")
def project(tmp_path_factory, mini_root):
    """A project of its own whose notebooks have quick parameters; all are of one experiment."""
    root = tmp_path_factory.mktemp("project")
    (root / "notebooks").mkdir()
    (root / "mgkit").symlink_to(PACKAGE)
    (root / ".jupyter").symlink_to(ROOT / ".jupyter")
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        papermill.execute_notebook(
            path, root / "notebooks" / path.name, prepare_only=True, progress_bar=False,
            parameters={"experiment": "t", "data": str(mini_root), "workers": 0} | QUICK.get(path.stem, {}),
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
    with open(private / "log.txt", "w+", encoding="utf-8") as log:
        server = subprocess.Popen(
            lab_command(project, address.rpartition(":")[2]), stdout=log, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, env=os.environ | lab_environment(private),
        )  # fmt: skip
        try:
            wait_for_answer(address, server, Path(log.name))
            yield address
        finally:
            end(server)


def lab_command(project: Path, port: str) -> list[str]:
    """`make lab` with the environment that runs the tests, in the project."""
    options = f"--no-browser --port={port} --ServerApp.port_retries=0"
    if os.name == "posix" and os.geteuid() == 0:
        options += " --allow-root"
    binaries = Path(sys.executable).parent
    return [
        "make", "--file", str(ROOT / "Makefile"), "--directory", str(project),
        "--assume-old", ".venv/.installed",
        "lab", f"BIN={binaries}", f"LAB={options}",
    ]  # fmt: skip


def lab_environment(private: Path) -> dict[str, str]:
    """Ignore the user's own Jupyter settings; keep cells on the page wherever it is scrolled to."""
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
    pytest.fail(f"JupyterLab did not start:\n{log.read_text(encoding='utf-8')}")


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
    with chromium() as running:
        yield running


class Notebook:
    """A notebook that is open in JupyterLab."""

    def __init__(self, page, name: str):
        self.page, self.name = page, name

    def run_all(self) -> None:
        """Run > Run All Cells; waits until each has run, or one failed, which fails the test."""
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        try:
            self.page.wait_for_function(ALL_RAN_OR_ONE_FAILED, timeout=1000 * SECONDS_TO_RUN, polling=500)
        finally:
            self.screenshot()
        wrong = self.page.locator(f"{ERROR}, .jupyter-widgets-error, [data-mime-type$='.stderr']")
        assert not wrong.all_inner_texts()
        assert not self.page.locator(".jp-Dialog, .Toastify__toast").all_inner_texts()  # nothing in the way

    def printed(self) -> str:
        return "\n".join(self.page.locator("[data-mime-type$='.stdout']").all_inner_texts())

    def figures(self) -> int:
        """How many pictures of outputs are there and loaded."""
        return self.page.locator(".jp-RenderedImage img").evaluate_all(HOW_MANY_LOADED)

    def bars(self) -> list[str]:
        """What the progress bars say."""
        texts = self.page.locator(".jupyter-widgets:has(> .widget-hprogress)").all_inner_texts()
        return [" ".join(text.split()) for text in texts]

    def headings(self) -> list[str]:
        """The table of contents, opened at the left."""
        self.page.locator("[data-id='table-of-contents']").click()
        entries = self.page.locator(".jp-TableOfContents .jp-tocItem-content")
        entries.first.wait_for()
        return entries.all_inner_texts()

    def explorer(self, control: str) -> "Explorer":
        """The explorer that has a control of this class."""
        return Explorer(self, self.page.locator(f".mgkit-explorer:has(.{control})").first)

    def screenshot(self, what: str = "") -> None:
        """The whole notebook, on a screen as tall as it is."""
        height = self.page.evaluate(f"{SCROLLED}.scrollHeight")
        self.page.set_viewport_size({"width": WIDTH, "height": min(height + 150, TALLEST)})
        self.page.evaluate(f"{SCROLLED}.scrollTop = 0")
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{self.name}{what}.png", animations="disabled")
        self.page.set_viewport_size({"width": WIDTH, "height": 900})


class Explorer:
    """Controls, a line of text and tiles of pictures on a page."""

    def __init__(self, notebook: Notebook, root):
        self.notebook, self.root = notebook, root

    def line(self) -> str:
        return self.root.locator(".mgkit-line").inner_text()

    def tiles(self) -> list[str]:
        """Mark and score under each picture; all pictures are loaded."""
        tiles, pictures = self.root.locator(".mgkit-tile"), self.root.locator(".mgkit-tile img")
        assert pictures.evaluate_all(HOW_MANY_LOADED) == tiles.count() > 1
        return [" ".join(text.split()) for text in tiles.all_inner_texts()]

    def after(self, act) -> str:
        """The line once it has changed, after `act()`."""
        before = self.line()
        act()
        # The line is another element each time: looked up anew, within what stays.
        changed = "([root, before]) => root.querySelector('.mgkit-line').innerText !== before"
        root = self.root.element_handle()
        self.notebook.page.wait_for_function(changed, arg=[root, before], timeout=1000 * SECONDS_TO_ANSWER)
        return self.line()

    def queries(self) -> list[str]:
        """What can be chosen: number, name, measure."""
        texts = self.root.locator(".mgkit-query option").all_inner_texts()
        return [" ".join(text.split()) for text in texts]  # no-break spaces, too

    def choose(self, number: int) -> str:
        """Choose a query, counted from 0; the line then."""
        return self.after(lambda: self.root.locator(".mgkit-query select").select_option(index=number))

    def upload(self, path: Path) -> None:
        with self.notebook.page.expect_file_chooser() as asked:
            self.root.locator(".widget-upload").click()
        asked.value.set_files(path)

    def screenshot(self, what: str) -> None:
        self.root.screenshot(path=SCREENSHOTS / f"{self.notebook.name}_{what}.png")


WIDTH, TALLEST = 1400, 16000  # px
SCROLLED = "document.querySelector('.jp-NotebookPanel .jp-WindowedPanel-outer')"
ERROR = "[data-mime-type='application/vnd.jupyter.error']"
HOW_MANY_LOADED = "images => images.filter(image => image.complete && image.naturalWidth > 10).length"
ALL_RAN_OR_ONE_FAILED = f"""() => {{
    const cells = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')];
    const prompts = cells.map(cell => cell.innerText);
    return document.querySelector("{ERROR}") || prompts.every(prompt => /^\\[\\d+\\]:$/.test(prompt));
}}"""


@pytest.fixture
def open_notebook(lab, browser):
    """A function that opens and runs a notebook of the project; kernel and page close with the test."""
    context = browser.new_context(viewport={"width": WIDTH, "height": 900})
    context.set_default_timeout(1000 * SECONDS_TO_ANSWER)

    def go_to(name):
        page = context.new_page()
        page.goto(f"{lab}/lab/tree/{name}.ipynb?reset&token={TOKEN}", timeout=1000 * SECONDS_TO_START)
        # The kernel that the notebook names is the environment's: it starts without a question about it.
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=1000 * SECONDS_TO_START)
        return Notebook(page, name)

    yield go_to
    context.close()
    for session in ask(lab, "sessions"):
        ask(lab, f"sessions/{session['id']}", "DELETE")


@pytest.fixture
def after_running(open_notebook):
    """A function that opens a notebook and runs all of it."""

    def run(name):
        notebook = open_notebook(name)
        notebook.run_all()
        return notebook

    return run


# --- What the pages show


def test_00_has_a_table_of_contents_and_pictures(after_running):
    notebook = after_running("00_start_here")
    text = "\n".join(cell.source for cell in cells_of("00_start_here", "markdown"))
    assert notebook.headings() == re.findall(r"^#+ (.+)$", text, re.M)
    assert "72 training and 36 validation images of 12 classes" in notebook.printed()
    assert notebook.figures() >= 5


def test_01_shows_its_progress_as_bars_that_reach_the_end(after_running):
    notebook = after_running("01_train")
    epochs = [bar for bar in notebook.bars() if bar.startswith("epoch 1/1: 100%")]
    assert "12/12" in epochs[0]  # batches of the training; others may follow
    assert notebook.page.locator(".widget-hprogress .progress-bar-success").count() >= 2
    assert "epoch 1: loss" in notebook.printed() and notebook.figures() >= 2


def test_02_pools_anew_as_the_slider_is_moved(after_running):
    notebook = after_running("02_finetune_p")
    assert notebook.figures() >= 3
    explorer = notebook.explorer("mgkit-p")
    size = max(QUICK["02_finetune_p"]["sizes"])
    [top1] = re.findall(rf"^ *{size} px:.* top-1 ([\d.]+) % with p = 3", notebook.printed(), re.M)
    assert explorer.line().startswith(f"p = 3.00: top-1 {top1} % on 36 images; ")
    tiles = explorer.tiles()
    handle = explorer.root.locator(".mgkit-p .noUi-handle")
    line = explorer.after(lambda: handle.press("ArrowRight"))
    shown = explorer.root.locator(".mgkit-p .widget-readout").inner_text()
    assert shown != "p = 3.00" and line.startswith(f"{shown}: top-1 ")
    explorer.after(lambda: handle.press("End"))
    explorer.screenshot("largest_p")
    assert explorer.tiles() != tiles


def test_03_shows_its_figure(after_running):
    """As 04 does, which has no widgets either."""
    assert after_running("03_whiten").figures() >= 1


def test_05_shows_what_a_query_finds(after_running):
    notebook = after_running("05_evaluate_retrieval")
    assert notebook.figures() >= 5
    explorer = notebook.explorer("mgkit-query")
    names = explorer.queries()
    assert [name.split(".")[0] for name in names] == [str(number) for number in range(1, len(names) + 1)]
    measures = [float(name.split()[-2]) for name in names]
    assert measures == sorted(measures)  # failures first
    line = explorer.choose(1)
    explorer.screenshot("second_query")
    assert line.startswith(names[1].removeprefix("2. "))
    check_marks(line, explorer.tiles())


def check_marks(line: str, tiles: list[str]) -> None:
    """The query, then its neighbours, the nearest first; as many are marked right as the line says."""
    query, *found = tiles
    assert "query" in query
    scores = [float(tile.split()[-1]) for tile in found]
    assert scores == sorted(scores, reverse=True)
    [right, of_all] = re.search(r"(\d+) of the first (\d+) are right", line).groups()
    assert int(of_all) == len(found)
    assert int(right) == sum(tile.startswith("✓") for tile in found)
    assert all(tile[0] in "✓✗–" for tile in found)


def test_06_finds_what_is_like_a_picture_that_is_brought_along(after_running, mini_root, tmp_path):
    notebook = after_running("06_search_your_photos")
    assert notebook.figures() >= 2
    explorer = notebook.explorer("mgkit-query")
    assert explorer.choose(2) == explorer.queries()[2].removeprefix("3. ")
    scores = [float(tile.split()[-1]) for tile in explorer.tiles()[1:]]
    assert scores == sorted(scores, reverse=True) and max(scores) <= 1

    picture = next((mini_root / "copydays").rglob("*.jpg"))
    assert explorer.after(lambda: explorer.upload(picture)).startswith(f"{picture.name}, ")
    explorer.screenshot("uploaded")
    assert explorer.tiles()[1].endswith("1.00")  # it is among those searched, and finds itself
    broken = tmp_path / "<b>no picture<b>.jpg"
    broken.write_text("text")
    assert broken.name in explorer.after(lambda: explorer.upload(broken))
