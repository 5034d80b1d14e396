"""A real browser for tests.

Without one the tests that look with it are skipped; with MGKIT_BROWSER=required they fail.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import pytest


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


@contextmanager
def chromium() -> Iterator:
    """A running Chromium, as playwright gives it."""
    program = browser_program()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
