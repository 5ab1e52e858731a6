"""The administrators' side against a server process: access, listings, sites, events, metrics."""

import json
import secrets
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest
import requests

from beacon_ota.client import Client
from beacon_ota.errors import BeaconOtaError, DeniedError, InputError, ReachError, UsageError
from tests.orchestrator.world import Server, beacons, until


def code(call, *args, **fields) -> str:
    with pytest.raises(BeaconOtaError) as caught:
        call(*args, **fields)
    return caught.value.code


# ---- access ----


def test_roles(server, admin):
    made = {role: admin.create_token(role, role) for role in ("viewer", "operator", "admin")}
    viewer, operator = (Client(server.url, made[r]["token"]) for r in ("viewer", "operator"))
    assert viewer.call("GET", "/api/tokens/me")["role"] == "viewer"
    assert list(viewer.list_beacons(limit=1)) is not None
    for call in (
        lambda: viewer.create_beacon("x1", "esp32c3"),
        lambda: viewer.create_site("x1"),
        lambda: viewer.create_rollout("0" * 24),
        lambda: viewer.call("POST", "/api/firmwares/upload"),
        lambda: operator.list_tokens(),
        lambda: operator.list_audit_entries(),
        lambda: operator.remove_beacon("x1"),
        lambda: operator.post_beacon_action("x1", "rekey"),
    ):
        with pytest.raises(DeniedError) as caught:
            call()
        assert caught.value.code == "role_too_low"
    operator.create_beacon("by-operator", "esp32c3")
    assert any(
        e["actor"] == "operator"
        for e in admin.list_audit_entries(newest=True, action="beacon.created")
    )


def test_no_token_and_wrong_ones(server):
    for path in ("/api/beacons", "/api/firmwares", "/api/rollouts", "/api/audit", "/metrics"):
        answer = requests.get(server.url + path, timeout=60)
        assert answer.status_code == 401 and answer.json()["code"] == "token_missing", path
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["www-authenticate"] == "Bearer"
    assert code(Client(server.url, "bota_no").get_beacon, "x") == "token_wrong"
    assert requests.get(server.url + "/health", timeout=60).json()["status"] == "ok"


def refused(call) -> str:
    """Return the code of the error that a call ends in, "" when it does not."""
    try:
        call()
    except BeaconOtaError as error:
        return error.code
    return ""


def test_tokens_expire_and_are_revoked(server, admin):
    short = admin.create_token("short", "viewer", days=1 / 86400)
    gone = admin.create_token("gone", "viewer")
    client = Client(server.url, gone["token"])
    assert client.call("GET", "/api/tokens/me")["name"] == "gone"
    admin.revoke_token(gone["id"])
    assert code(client.list_rollouts) == "token_wrong"
    until(lambda: refused(Client(server.url, short["token"]).list_rollouts) == "token_wrong")
    listed = {one["id"]: one for one in admin.list_tokens()}
    assert listed[gone["id"]]["revoked_at"] and not any("token" in one for one in listed.values())
    assert gone["token"] not in json.dumps(admin.list_audit_entries(limit=1000))


def test_the_last_admin_token_stays(tmp_path):
    with Server(tmp_path / "data") as server:
        admin = server.admin()
        (first,) = admin.list_tokens()
        assert code(admin.revoke_token, first["id"]) == "last_admin"
        second = admin.create_token("second", "admin")
        admin.revoke_token(first["id"])
        assert Client(server.url, second["token"]).list_tokens()
        assert (server.token_file.stat().st_mode & 0o777) == 0o600
        assert (server.data.stat().st_mode & 0o077) in (0, 0o055)


def test_guessing_tokens_gets_slow_and_then_stops(tmp_path):
    with Server(tmp_path / "data") as server:
        wrong = {"Authorization": "Bearer bota_00000000_wrong"}
        session = requests.Session()

        def guess() -> int:
            return session.get(server.url + "/api/beacons", headers=wrong, timeout=60).status_code

        began = time.monotonic()
        assert [guess() for _ in range(4)] == [401] * 4
        assert time.monotonic() - began > 0.4
        threads = [threading.Thread(target=guess) for _ in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert guess() == 429


def test_unknown_paths_and_methods_are_problems(server):
    for method, path, status in (
        ("GET", "/nowhere", 404),
        ("PUT", "/api/beacons", 405),
        ("GET", "/api/beacons/b/ota_status", 404),
        ("GET", "/firmwares/", 404),
    ):
        answer = requests.request(method, server.url + path, timeout=60)
        assert answer.status_code == status and answer.json()["status"] == status, path


def test_bodies_are_bounded(server, admin):
    big = {"beacon_id": "b", "device_type": "esp32c3", "tags": ["x" * 300_000]}
    assert code(admin.call, "POST", "/api/beacons", json=big) == "body_too_large"
    parts = urlsplit(server.url)
    sock = socket.create_connection((parts.hostname, parts.port))
    sock.sendall(
        f"POST /api/beacons HTTP/1.1\r\nHost: o\r\nAuthorization: Bearer {server.token}\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    )
    for _ in range(5):
        sock.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
    sock.sendall(b"0\r\n\r\n")
    assert b" 413 " in sock.recv(4096)


# ---- beacons ----


def test_create_and_its_refusals(admin):
    made = admin.create_beacon("c1", "esp32c3", tags=["b", "a", "a"], channel="beta")
    assert len(made["key"]) == 64 and made["tags"] == ["a", "b"] and made["channel"] == "beta"
    assert "key" not in admin.get_beacon("c1")
    assert code(admin.create_beacon, "c1", "esp32c3") == "beacon_taken"
    for fields, expected in (
        ({"beacon_id": "a b", "device_type": "esp32c3"}, "request_invalid"),
        ({"beacon_id": "", "device_type": "esp32c3"}, "request_invalid"),
        ({"beacon_id": "c2", "device_type": "ESP 32"}, "request_invalid"),
        ({"beacon_id": "c2", "device_type": "esp32c3", "key": "abc"}, "request_invalid"),
        ({"beacon_id": "c2", "device_type": "esp32c3", "key": "A" * 64}, "request_invalid"),
        ({"beacon_id": "c2", "device_type": "esp32c3", "channel": "x"}, "request_invalid"),
        ({"beacon_id": "c2", "device_type": "esp32c3", "colour": "x"}, "request_invalid"),
        ({"beacon_id": "c2", "device_type": "esp32c3", "site": "nowhere"}, "site_unknown"),
    ):
        assert code(admin.call, "POST", "/api/beacons", json=fields) == expected, fields
    assert code(admin.get_beacon, "c2") == "beacon_unknown"
    assert code(admin.post_beacon_action, "c2", "quarantine", "x") == "beacon_unknown"


def test_a_refused_change_leaves_no_trace_in_the_log(admin):
    before = admin.verify_audit()
    assert code(admin.create_beacon, "zz", "esp32c3", site="nowhere") == "site_unknown"
    assert admin.verify_audit() == before


def test_pages_and_filters(server, admin):
    admin.create_site("pages")
    admin.create_site("pages/x")
    fleet = beacons(server, 25, prefix="page-", site="pages/x", tags=["lobby"])
    first = admin.call("GET", "/api/beacons", params={"search": "page-", "limit": 10})
    assert first["total"] == 25 and len(first["beacons"]) == 10
    ids = [one["beacon_id"] for one in admin.list_beacons(search="page-", limit=10)]
    assert ids == sorted(beacon.id for beacon in fleet)
    fleet[0].report("idle")
    fleet[1].report("idle", firmware_version="2.0.0")
    admin.change_beacon(fleet[2].id, channel="beta", tags=["roof", "1_0"])
    admin.post_beacon_action(fleet[3].id, "quarantine", "x")

    def found(**filters) -> list[str]:
        return [one["beacon_id"] for one in admin.list_beacons(search="page-", **filters)]

    assert found(version="2.0.0") == [fleet[1].id]
    assert found(channel="beta") == [fleet[2].id] == found(tag="roof") == found(tag="1_0")
    assert found(tag="roo") == [] and found(tag="1x0") == []
    assert found(quarantined=True) == [fleet[3].id] and len(found(quarantined=False)) == 24
    assert len(found(site="pages")) == 25 and found(site="page") == []
    assert len(found(silent_s=3600)) == 23
    assert found(device_type="other") == []


def test_a_beacon_moves(admin):
    admin.create_site("move")
    admin.create_beacon("mover", "esp32c3", site="move")
    assert admin.change_beacon("mover", site=None)["site"] is None
    assert code(admin.change_beacon, "mover", site="nowhere") == "site_unknown"
    assert code(admin.change_beacon, "mover", channel=None) == "request_invalid"
    assert admin.change_beacon("mover")["beacon_id"] == "mover"


# ---- sites ----


def test_the_site_tree(admin):
    admin.create_site("tree", tz="Europe/Berlin", window="22:00-04:00", name="The tree")
    admin.create_site("tree/a")
    admin.create_site("tree/a/2", window="00:00-24:00")
    sites = {one["path"]: one for one in admin.list_sites()}
    assert sites["tree/a"]["zone"] == "Europe/Berlin" and sites["tree/a"]["window"] is None
    assert sites["tree/a"]["building"] == "tree/a" == sites["tree/a/2"]["building"]
    assert sites["tree/a"]["opens_at"] and sites["tree/a/2"]["opens_at"] is None
    assert admin.change_site("tree/a", tz="Asia/Tokyo")["zone"] == "Asia/Tokyo"
    assert admin.change_site("tree/a", tz=None)["zone"] == "Europe/Berlin"
    for call, expected in (
        (lambda: admin.create_site("tree"), "site_taken"),
        (lambda: admin.create_site("no/parent"), "site_unknown"),
        (lambda: admin.create_site("tree/ b"), "site_path"),
        (lambda: admin.create_site("tree/c", tz="Mars/Olympus"), "time_zone_unknown"),
        (lambda: admin.create_site("tree/c", window="3-5"), "window_syntax"),
        (lambda: admin.create_site("tree/c", window="03:00-03:00"), "window_empty"),
        (lambda: admin.change_site("tree/z", name="x"), "site_unknown"),
        (lambda: admin.remove_site("tree/a"), "site_in_use"),
        (lambda: admin.remove_site("tree/z"), "site_unknown"),
    ):
        assert code(call) == expected
    admin.create_beacon("tree-b", "esp32c3", site="tree/a/2")
    assert code(admin.remove_site, "tree/a/2") == "site_in_use"
    admin.remove_beacon("tree-b")
    admin.remove_site("tree/a/2")
    admin.remove_site("tree/a")


# ---- events, audit, metrics, docs ----


def test_events_live_and_resumed(server, admin):
    name = f"e{secrets.token_hex(4)}"
    got: list[dict] = []
    ready = threading.Event()

    def follow() -> None:
        with server.admin().follow_events(kind="beacon.") as stream:
            ready.set()
            for event in stream:
                got.append(event)
                if len(got) == 3:
                    return

    thread = threading.Thread(target=follow)
    thread.start()
    assert ready.wait(60)
    for number in range(3):
        admin.create_beacon(f"{name}-{number}", "esp32c3")
    thread.join(60)
    assert [event["subject"] for event in got] == [f"{name}-{n}" for n in range(3)]
    assert got[0]["data"]["by"] == "first" and got[0]["kind"] == "beacon.created"
    with admin.follow_events(after=got[0]["id"], kind="beacon.") as stream:
        assert [next(stream)["id"] for _ in range(2)] == [got[1]["id"], got[2]["id"]]
    answer = requests.get(
        server.url + "/api/events",
        headers={"Authorization": f"Bearer {server.token}", "Last-Event-ID": str(got[1]["id"])},
        stream=True,
        timeout=60,
    )
    lines = answer.iter_lines(chunk_size=1)
    text = b"\n".join(next(lines) for _ in range(5)).decode()
    assert f"id: {got[2]['id']}" in text and "event: beacon.created" in text
    answer.close()
    assert admin.list_latest_events(1000)[-1]["id"] == got[2]["id"]


def test_followers_end_when_the_server_stops(tmp_path):
    with Server(tmp_path / "data") as server, server.admin().follow_events() as stream:
        assert server.stop() == 0
        with pytest.raises((StopIteration, ReachError)):
            next(stream)


def test_the_audit_log_tells_who_did_what(admin):
    admin.create_beacon("logged", "esp32c3")
    admin.post_beacon_action("logged", "quarantine", "it smells")
    entries = admin.list_audit_entries(target="logged")
    assert [e["action"] for e in entries] == ["beacon.created", "beacon.quarantined"]
    assert entries[1]["reason"] == "it smells" and entries[1]["actor"] == "first"
    head = admin.verify_audit()["head"]
    admin.post_beacon_action("logged", "unquarantine", "")
    assert admin.verify_audit(head)["head"] != head
    assert code(admin.verify_audit, "f" * 64) == "audit_truncated"


def test_metrics(server, admin):
    (beacon,) = beacons(server, 1, prefix="metric-")
    beacon.report("idle", insecure=True)
    until(lambda: admin.get_beacon(beacon.id)["version"] == "1.0.0")  # seen is written in batches
    text = admin.request("GET", "/metrics").text
    for name in (
        'beacon_ota_reports_total{status="idle"}',
        'beacon_ota_beacons{building="",device_type="esp32c3",state="valid",version="1.0.0"}',
        "beacon_ota_download_bytes_total",
        "beacon_ota_commits_total",
        "beacon_ota_insecure 1.0",
        'beacon_ota_insecure_beacons{device_type="esp32c3",version="1.0.0"}',
        "process_resident_memory_bytes",
    ):
        assert name in text


def test_the_docs_need_nothing_from_elsewhere(server):
    page = requests.get(server.url + "/docs", timeout=60)
    assert page.status_code == 200 and "text/html" in page.headers["content-type"]
    assert "http://" not in page.text.replace("http://www.w3.org", "")
    assert "https://" not in page.text and 'src="//' not in page.text
    found = requests.get(server.url + "/api/openapi.json", timeout=60).json()
    assert "/api/firmwares/upload" in found["paths"]
    form = found["paths"]["/api/firmwares/upload"]["post"]["requestBody"]["content"]
    assert "multipart/form-data" in form


# ---- the server itself ----


def test_a_port_that_is_taken(server, tmp_path):
    port = urlsplit(server.url).port
    with pytest.raises(AssertionError, match="did not start"):
        Server(tmp_path / "data", f"--port={port}")
    log = (tmp_path / "data.log").read_text()
    assert "address_in_use" in log and "another --port" in log and "Traceback" not in log


def test_no_keys_no_start(tmp_path):
    with pytest.raises(AssertionError, match="did not start"):
        Server(tmp_path / "data", insecure=False)
    assert "keys_missing" in (tmp_path / "data.log").read_text()


def test_the_client_names_what_it_cannot_reach(monkeypatch, tmp_path):
    monkeypatch.setenv("BEACON_OTA_CONFIG", str(tmp_path))
    monkeypatch.delenv("BEACON_OTA_URL", raising=False)
    assert code(Client("http://127.0.0.1:1", "t").list_beacons().__next__) == "unreachable"
    (tmp_path / "config.toml").write_text('url = "http://127.0.0.1:2"\ntoken = "abc"\n')
    client = Client()
    assert client.url == "http://127.0.0.1:2" and client.token == "abc"
    monkeypatch.setenv("BEACON_OTA_URL", "http://127.0.0.1:3/")
    assert Client().url == "http://127.0.0.1:3"
    (tmp_path / "config.toml").write_text("url = ")
    with pytest.raises(UsageError):
        Client()


def test_errors_by_fault(admin):
    with pytest.raises(InputError):
        admin.get_beacon("nobody-here")
    admin.create_site("dup")
    with pytest.raises(UsageError):
        admin.create_site("dup")


def test_a_client_that_talks_to_something_else(tmp_path):
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        peer, _ = listener.accept()
        peer.recv(4096)
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
        peer.close()

    thread = threading.Thread(target=answer)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    assert code(Client(url, "t").list_rollouts) == "not_an_orchestrator"
    thread.join()
    until(lambda: not thread.is_alive())
    listener.close()
