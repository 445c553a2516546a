"""A Chromium that is there, driven by Playwright; tests that want one are skipped without."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

VARIABLE = "STEPWISER_TEST_BROWSER"
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")


@contextmanager
def chromium() -> Iterator[Any]:
    """Playwright's `Browser`; skips the test where Playwright or a Chromium is missing."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="needs Playwright: pip install -e '.[browser]'"
    )
    path = os.environ.get(VARIABLE) or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"needs Chromium on the PATH (Debian: chromium), or its path in {VARIABLE}")
    with playwright.sync_playwright() as driver:
        # Root, as in containers, may not use the sandbox.
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()
