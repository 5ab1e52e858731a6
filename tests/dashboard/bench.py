"""What open dashboards cost the beacons: ``python -m tests.dashboard.bench``.

One server process, 1,000 beacons; polls over 16 connections while 20 reports a second come in, so
that every open page has something new to show each second. Runs without and with pages take
turns; each number is the best of its runs.
"""

import asyncio
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from beacon_ota.orchestrator.db.connection import connect, sqlite_url
from tests.bench.orchestrator_subject import OrchestratorSubject
from tests.bench.subject import MeasuredProcess
from tests.dashboard.conftest import ARGUMENTS, CHROMIUM, sign_in
from tests.dashboard.test_thousand import COUNT, KEY, fill
from tests.dashboard.web import DEADLINE_S, Signed
from tests.orchestrator.world import Server, TestBeacon, template

SECONDS = 3.0
ROUNDS = 3
CONNECTIONS = 16
REPORTS_PER_S = 20


def read(url: str, token: str, pages: "multiprocessing.Queue[float]") -> None:
    """Be an open page without a browser: follow, and read again as the script does."""
    browser = Signed(url, token)
    with browser.http.get(url + "/live", stream=True, timeout=DEADLINE_S) as stream:
        looked = 0.0
        for line in stream.iter_lines(chunk_size=1):
            if line.startswith(b"data: {") and time.monotonic() - looked > 1.0:
                began = time.monotonic()
                browser.get("/", **{"X-Refresh": "1"})
                looked = time.monotonic()
                pages.put(looked - began)


def report(url: str) -> None:
    """Be beacons of which some download all the time."""
    fleet = [TestBeacon(url, f"t{number:05}", KEY) for number in range(40)]
    for number in itertools.count():
        fleet[number % len(fleet)].report("idle", insecure=number % 3 == 0)
        time.sleep(1 / REPORTS_PER_S)


def polls(server: Server, fleet: list[TestBeacon]) -> dict[str, Any]:
    subject = OrchestratorSubject(MeasuredProcess(server.url, server.process), server.token, fleet)
    return asyncio.run(subject.polls(CONNECTIONS, SECONDS))


def measure(server: Server, fleet: list[TestBeacon], pages: int) -> dict[str, Any]:
    read_: multiprocessing.Queue[float] = multiprocessing.Queue()
    readers = [
        multiprocessing.Process(target=read, args=(server.url, server.token, read_), daemon=True)
        for _ in range(pages)
    ]
    for reader in readers:
        reader.start()
    for _ in readers:
        read_.get(timeout=DEADLINE_S)
    found = polls(server, fleet)
    took = []
    while not read_.empty():
        took.append(read_.get())
    if took:
        found["pages"], found["page_ms"] = len(took), round(min(took) * 1000)
    for reader in readers:
        reader.kill()
        reader.join()
    return found


def in_a_browser(server: Server, fleet: list[TestBeacon]) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page()
        sign_in(page, server.url, server.token)
        page.wait_for_selector(".pulse[data-state=on]")
        done: list[dict[str, Any]] = []
        thread = threading.Thread(target=lambda: done.append(polls(server, fleet)))
        thread.start()
        while thread.is_alive():
            page.wait_for_timeout(100)
        browser.close()
    return done[0]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        (data / "beacon-ota.db").write_bytes(template())
        engine = connect(sqlite_url(data))
        with engine.begin() as conn:
            fill(conn)
        engine.dispose()
        with Server(data) as server:
            fleet = [TestBeacon(server.url, f"t{number:05}", KEY) for number in range(COUNT)]
            reports = multiprocessing.Process(target=report, args=(server.url,), daemon=True)
            reports.start()
            runs: dict[str, list[dict[str, Any]]] = {}
            for _ in range(ROUNDS):
                for pages in (0, 1, 5):
                    runs.setdefault(f"{pages} pages", []).append(measure(server, fleet, pages))
                if CHROMIUM:
                    runs.setdefault("a browser", []).append(in_a_browser(server, fleet))
            reports.kill()
            best = {
                name: max(some, key=lambda one: one["requests_per_s"])
                for name, some in runs.items()
            }
            print(json.dumps({"load": os.getloadavg()[0], **best}, indent=1))


if __name__ == "__main__":
    sys.exit(main())
