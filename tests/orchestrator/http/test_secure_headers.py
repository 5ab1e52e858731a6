"""What every answer to people and programs carries: no frames, no sniffing, no copies."""

import base64
import hashlib
import re

import pytest
import requests

PATHS = ("/health", "/docs", "/api/openapi.json", "/metrics", "/nowhere", "/login", "/api/beacons")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_no_frame_and_no_sniffing(server, path, method):
    answer = requests.request(
        method,
        server.url + path,
        headers={"Authorization": f"Bearer {server.token}"},
        timeout=60,
    )
    policy = answer.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy and "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"


def test_answers_with_a_secret_are_kept_nowhere(server):
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {server.token}"

    def post(path: str, **fields: str) -> requests.Response:
        return session.post(server.url + path, json=fields, timeout=60)

    hook = post("/api/webhooks", name="h", url="https://example.org/h")
    answers = [
        post("/api/tokens", name="kept nowhere", role="viewer"),
        post("/api/beacons", beacon_id="kept-nowhere", device_type="esp32c3"),
        post("/api/mirrors", name="kept-nowhere", site=""),
        hook,
        post(f"/api/webhooks/{hook.json()['webhook_id']}/rotate"),
    ]
    for answer in answers:
        assert answer.ok, answer.text
        assert set(answer.json()) & {"token", "key", "secret"}
        assert answer.headers["cache-control"] == "no-store"


def test_the_docs_page_runs_its_own_script_and_no_other(server):
    answer = requests.get(server.url + "/docs", timeout=60)
    policy = answer.headers["content-security-policy"]
    for tag in ("script", "style"):
        (inline,) = re.findall(f"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not re.search(r"\son[a-z]+=|\sstyle=", answer.text)
