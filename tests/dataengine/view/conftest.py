"""A headless Chromium for the tests of pages; they skip where the machine has none."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field

import pytest


@pytest.fixture(scope="session")
def browser():
    """One headless Chromium with an empty profile."""
    api = pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("needs Chromium (Debian's package chromium, or CHROMIUM=/its/path)")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@dataclass
class Watched:
    """A page, and what it did that it should not have done. requests: every URL that it asked for."""

    page: object
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def watch(browser):
    """Opens pages: `watch(width=1280, height=900, scheme="light")`; errors and dialogs of a page fail the test."""
    opened: list[Watched] = []

    def make(width: int = 1280, height: int = 900, scheme: str = "light") -> Watched:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        watched = Watched(context.new_page())
        page = watched.page

        def refuse(dialog) -> None:
            watched.problems.append(f"dialog: {dialog.message}")
            dialog.dismiss()

        page.on("dialog", refuse)
        page.on("pageerror", lambda error: watched.problems.append(f"error: {error}"))
        page.on(
            "console", lambda line: watched.problems.append(f"console: {line.text}") if line.type == "error" else None
        )
        page.on("request", lambda request: watched.requests.append(request.url))
        opened.append(watched)
        return watched

    yield make
    for watched in opened:
        watched.page.context.close()
        assert not watched.problems
