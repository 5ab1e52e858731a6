"""A browser, and an orchestrator process for it to look at."""

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.dashboard.web import Signed
from tests.orchestrator.world import Server

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WAIT_MS = 60_000.0


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    """An orchestrator in a process of its own that a module's tests share."""
    with Server(tmp_path_factory.mktemp("dashboard") / "data") as server:
        yield server
        log = server.log()
    assert "Traceback" not in log, log


@pytest.fixture
def signed(server) -> Signed:
    """Somebody who has signed in as an administrator."""
    return Signed(server.url, server.token)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Debian's browser, without a window."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, server) -> Iterator[Callable[..., Any]]:
    """Sign in and open a page: ``visit("/rollouts", token=…, color_scheme="dark")``.

    After the test: nothing was complained about on any console, and nobody else was asked for
    anything.
    """
    contexts: list[Any] = []
    complaints: list[str] = []
    pardoned: list[str] = []

    def go(path: str = "/", token: str = "", url: str = "", **options: Any) -> Any:
        url = url or server.url
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        watch(page, url, complaints)
        page.pardon = pardoned.append
        sign_in(page, url, token or server.token)
        if path != "/":
            page.goto(url + path)
        return page

    yield go
    for context in contexts:
        context.close()
    left = [one for one in complaints if not any(text in one for text in pardoned)]
    assert not left, left


def watch(page: Any, url: str, complaints: list[str]) -> None:
    """Note down what should not happen in a browser."""
    page.on(
        "console",
        lambda message: message.type in ("error", "warning") and complaints.append(message.text),
    )
    page.on(
        "response",
        lambda answer: answer.status >= 400 and complaints.append(f"{answer.status} {answer.url}"),
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda request: (
            request.url.startswith((url + "/", "data:"))
            or complaints.append(f"asked somebody else: {request.url}")
        ),
    )


def sign_in(page: Any, url: str, token: str) -> None:
    page.goto(url + "/login")
    page.fill("input[name=token]", token)
    page.keyboard.press("Enter")
    page.wait_for_url(url + "/")
