"""HEAD answers wherever GET does, with the same head, and ends even where GET never would."""

import re

import requests

from tests.orchestrator.raw import Raw
from tests.orchestrator.world import upload

FILL = {"beacon_id": "headed", "path": "headed", "name": "app.css"}


def test_every_get_has_its_head(server, admin, tmp_path):
    admin.create_beacon("headed", "esp32c3")
    FILL["firmware_id"] = upload(admin, "7.7.7", tmp_path)["firmware_id"]
    paths = requests.get(server.url + "/api/openapi.json", timeout=60).json()["paths"]
    pages = ["/", "/beacons", "/metrics", "/docs", "/live", "/static/app.css", "/nowhere"]
    for path in [*(p for p, methods in paths.items() if "get" in methods), *pages]:
        filled = re.sub(r"\{(\w+)\}", lambda found: FILL.get(found[1], "0" * 24), path)
        with Raw(server) as raw:
            head = f"HEAD {filled} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.token}\r\n"
            raw.send(f"{head}\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            first, second = raw.read(2)
            assert second == 200, filled
            assert raw.heard.index(b"\r\n\r\n") + 4 == raw.heard.rindex(b"HTTP/1.1 "), filled
        if path in ("/live", "/api/events"):
            assert first == 200
            continue
        got = requests.get(
            server.url + filled, headers={"Authorization": f"Bearer {server.token}"}, timeout=60
        )
        assert got.status_code == first, filled


def test_a_monitor_may_ask_for_the_head(server):
    answer = requests.head(server.url + "/health", timeout=60)
    assert answer.status_code == 200 and not answer.content
    length = requests.get(server.url + "/health", timeout=60).headers["content-length"]
    assert answer.headers["content-length"] == length
    answer = requests.put(server.url + "/health", timeout=60)
    assert answer.status_code == 405 and "GET" in answer.headers["allow"]
