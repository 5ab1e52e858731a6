"""Behind nginx and Caddy, as docs/install.md sets them up: people, programs and beacons."""

import http.client
import json
import re
import shutil
import socket
import subprocess
import threading
from contextlib import closing
from urllib.parse import urlsplit

import pytest
import requests

from beacon_ota.client import Client
from beacon_ota.errors import BeaconOtaError
from tests.dashboard.web import Signed
from tests.deploy.proxies import DEPLOY, KINDS, proxy
from tests.orchestrator.world import COMMAND, Server, TestBeacon, image, until, upload
from tests.system.conftest import key, put, released, trusted  # noqa: F401
from tests.system.scene import pair, roll_out

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module", params=KINDS)
def behind(request, tmp_path_factory, trusted):  # noqa: F811
    """A server, and a proxy in front of it."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "keys.json").write_bytes(trusted)
    options = (f"--keys={folder / 'keys.json'}", "--forwarded-allow-ips=127.0.0.1,::1", "--poll=5")
    with Server(folder / "data", *options) as server:
        port = urlsplit(server.url).port
        assert port
        with proxy(request.param, folder / "proxy", port) as found:
            yield server, found
        assert "Traceback" not in server.log()


def browser(proxy, server) -> Signed:
    signed = Signed(proxy.url)
    signed.http.verify, signed.http.trust_env = str(proxy.ca), False
    answer = signed.login(server.token)
    assert answer.status_code == 303, answer.text
    return signed


def test_a_person_signs_in_and_follows_live(behind):
    server, proxy = behind
    signed = browser(proxy, server)
    cookie = next(iter(signed.http.cookies))
    assert cookie.secure and cookie.name.startswith("__Host-")
    assert "Beacon OTA" in signed.get("/").text
    for path in ("/live", "/api/events"):
        heard = []
        with signed.http.get(proxy.url + path, stream=True, timeout=60) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")

            def read(stream=stream, heard=heard) -> None:
                with_errors = (requests.RequestException, AttributeError, ValueError)
                try:
                    for line in stream.iter_lines(chunk_size=1):
                        heard.append(line)
                except with_errors:
                    pass

            thread = threading.Thread(target=read, daemon=True)
            thread.start()
            name = f"live-{path.strip('/').replace('/', '-')}-{proxy.kind}"
            server.admin().create_beacon(name, "esp32c3")
            # It comes as it happens, while the stream stays open.
            until(lambda name=name, heard=heard: name.encode() in b"".join(heard), what=path)
    changed = signed.call("POST", "/api/sites", {"path": f"site-{proxy.kind}"})
    assert changed.status_code in (200, 201), changed.text
    refused = signed.call("POST", "/api/sites", {"path": "x"}, Origin="https://evil.example")
    assert refused.status_code == 403 and refused.json()["code"] == "csrf"


def test_a_release_is_uploaded_and_comes_back(behind, tmp_path):
    server, proxy = behind
    admin = Client(proxy.url, server.token, proxy.ca)
    made = upload(admin, "3.0.0", tmp_path)
    with (tmp_path / "back").open("wb") as file:
        admin.download_firmware(made, file)
    assert (tmp_path / "back").read_bytes() == image("3.0.0")
    too_large = tmp_path / "large"
    too_large.write_bytes(bytes(2_500_000))  # the orchestrator's word, not the proxy's
    with pytest.raises(BeaconOtaError) as caught:
        admin.upload_firmware(too_large, device_type="esp32c3", version="3.0.1")
    assert not caught.value.code.startswith("proxy"), caught.value


def test_what_is_too_large_is_named_by_whoever_refuses_it(behind, tmp_path):
    """nginx has a limit; Caddy has none, and the orchestrator's is met."""
    server, proxy = behind
    file = tmp_path / "large"
    file.write_bytes(bytes(4_000_000))
    command = [COMMAND, "release", "upload", file, "--type", "esp32c3", "--version", "3.0.2"]
    done = run(command, proxy, server, tmp_path)
    assert "Traceback" not in done.stderr and "internal" not in done.stderr
    with pytest.raises(BeaconOtaError) as caught:
        Client(proxy.url, server.token, proxy.ca).upload_firmware(
            file, device_type="x", version="1.0.0"
        )
    if caught.value.code != "unreachable":  # the connection may be closed before all is sent
        assert (caught.value.code == "proxy_refused") == (proxy.kind == "nginx"), caught.value
        assert "larg" in caught.value.message or "2097152" in caught.value.message
    small = requests.post(
        proxy.url + "/api/sites", data=b"x" * 3_500_000, verify=str(proxy.ca), timeout=60
    )
    assert small.status_code == 413


def run(command, proxy, server, folder) -> subprocess.CompletedProcess:
    env = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "BEACON_OTA_URL": proxy.url,
        "BEACON_OTA_TOKEN": server.token,
        "BEACON_OTA_CA": str(proxy.ca),
        "COLUMNS": "300",
        "PYTHONPATH": str(DEPLOY.parents[1] / "host"),
    }
    return subprocess.run(
        [str(word) for word in command], env=env, capture_output=True, text=True, check=False
    )


def test_the_command_line(behind, tmp_path):
    server, proxy = behind
    done = run([COMMAND, "beacon", "list", "--json"], proxy, server, tmp_path)
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout), list)


def test_only_beacons_are_served_without_tls(behind):
    server, proxy = behind
    for path in ("/", "/login", "/api/beacons", "/metrics"):
        answer = requests.get(proxy.plain + path, allow_redirects=False, timeout=60)
        assert answer.status_code == 308, path
        assert answer.headers["location"].startswith("https://")
    with pytest.raises(BeaconOtaError) as caught:
        Client(proxy.plain, server.token).list_beacons().__next__()
    assert caught.value.code == "redirected" and "https://" in str(caught.value.expected)
    with pytest.raises(BeaconOtaError) as caught:  # not made into a GET
        Client(proxy.plain, server.token).create_beacon("redirected", "esp32c3")
    assert caught.value.code == "redirected"


def test_addresses_are_those_that_the_proxy_tells(behind):
    """What a stranger writes into the header itself is not."""
    server, proxy = behind
    beacon = TestBeacon(proxy.plain, f"who-{proxy.kind}", b"k" * 32)
    port = urlsplit(proxy.plain).port
    stranger = "127.0.0.2"  # no proxy's address
    beacon._connection = http.client.HTTPConnection(
        "127.0.0.1", port, timeout=60, source_address=(stranger, 0)
    )
    server.admin().create_beacon(beacon.id, "esp32c3", key=(b"o" * 32).hex())
    target = f"/firmwares/latest/esp32c3?version=1.0.0&image={'0' * 64}&state=valid"
    for lie in (None, "203.0.113.9", "203.0.113.9, 127.0.0.1"):
        headers = {} if lie is None else {"X-Forwarded-For": lie}
        answer = beacon.call("GET", target, headers=headers, check=False)
        assert answer.status == 401 and answer.json["code"] == "bad_mac"
        shown = server.admin().get_beacon(beacon.id)["unproven"]
        assert shown["address"] == stranger, shown


def test_a_beacon_polls_downloads_and_reports(behind, released, tmp_path):  # noqa: F811
    """Its own code, through the proxy; compression and ETags of the proxy's do no harm."""
    server, proxy = behind
    firmware = put(server, released("2.0.0"), tmp_path)["firmware_id"]
    port = urlsplit(proxy.plain).port
    with pair(server, f"through-{proxy.kind}", released("1.0.0").image, port=port) as one:
        one.runs("1.0.0")
        rollout = roll_out(server, firmware, one.name)
        one.runs("2.0.0")
        one.until(
            lambda: server.admin().get_rollout(rollout)["results"] == {"success": 1}, "the success"
        )
        assert not one.shown["refusals"] and not one.shown["unproven"]


def test_a_proxy_without_an_orchestrator(tmp_path):
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    for kind in KINDS:
        if shutil.which(kind) is None and shutil.which(kind, path="/usr/sbin") is None:
            continue
        with proxy(kind, tmp_path / kind, port) as found:
            for client in (Client(found.url, "token", found.ca),):
                with pytest.raises(BeaconOtaError) as caught:
                    client.list_sites()
                assert caught.value.code == "proxy_unavailable" and caught.value.exit_code == 3
                assert kind in caught.value.message.lower() or "proxy" in caught.value.message


def test_the_configurations_say_the_same_paths():
    texts = [(DEPLOY / name).read_text() for name in ("nginx.conf", "Caddyfile")]
    paths = [re.search(r"\^/\(firmwares.*?\)\$", text) for text in texts]
    assert paths[0] and paths[1] and paths[0][0] == paths[1][0]
