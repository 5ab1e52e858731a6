"""What a proxy says instead of the orchestrator is named as the proxy's, not as a failure here."""

import http.server
import os
import subprocess
import threading

import pytest

from beacon_ota.client import Client
from beacon_ota.errors import BeaconOtaError
from beacon_ota.provision.registry import OrchestratorRegistry
from tests.orchestrator.world import COMMAND, DEADLINE_S

PAGE = b"<html><head><title>%d</title></head><body><center>nginx \x1b[31m</center></body></html>"


@pytest.fixture(scope="module")
def stub():
    """A server that answers every request with the status in its path, as a proxy would."""

    class Handler(http.server.BaseHTTPRequestHandler):
        server_version, sys_version = "nginx/1.22.1", ""

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            status = int(self.path.split("/")[1])
            self.send_response(status)
            body = PAGE % status if status != 204 else b""
            self.send_header("content-type", "text/html")
            self.send_header("content-length", str(len(body)))
            if status in (301, 302, 307, 308):
                self.send_header("location", "https://ota.example.org" + self.path)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PUT = do_DELETE = do_PATCH = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


ANSWERS = {
    200: ("not_an_orchestrator", 3),
    301: ("redirected", 3),
    308: ("redirected", 3),
    400: ("not_an_orchestrator", 3),
    401: ("proxy_refused", 4),
    403: ("proxy_refused", 4),
    404: ("proxy_refused", 3),
    405: ("not_an_orchestrator", 3),
    413: ("proxy_refused", 3),
    418: ("not_an_orchestrator", 3),
    429: ("proxy_refused", 4),
    500: ("not_an_orchestrator", 3),
    502: ("proxy_unavailable", 3),
    503: ("proxy_unavailable", 3),
    504: ("proxy_unavailable", 3),
}


@pytest.mark.parametrize("status", ANSWERS)
def test_a_page_in_place_of_an_answer(stub, status, tmp_path):
    code, exit_code = ANSWERS[status]
    client = Client(f"{stub}/{status}", "token")
    file = tmp_path / "image"
    file.write_bytes(b"x" * 1000)
    calls = {
        "read": client.list_sites,
        "change": lambda: client.create_beacon("b", "esp32c3"),
        "upload": lambda: client.upload_firmware(file, version="1.0.0", device_type="x"),
    }
    for name, call in calls.items():
        with pytest.raises(BeaconOtaError) as caught:
            call()
        assert (caught.value.code, caught.value.exit_code) == (code, exit_code), name
        assert "<" not in caught.value.message and "\x1b" not in caught.value.message
    if code.startswith("proxy"):
        assert "nginx/1.22.1" in caught.value.message


@pytest.mark.parametrize("status", [200, 301, 403, 413, 502])
def test_a_command_and_provisioning_name_it(stub, status):
    env = {
        **os.environ,
        "BEACON_OTA_URL": f"{stub}/{status}",
        "BEACON_OTA_TOKEN": "token",
        "COLUMNS": "300",
    }
    commands = (["beacon", "list"], ["rollout", "list"], ["events"], ["site", "add", "x"])
    for words in commands:
        done = subprocess.run(
            [str(COMMAND), *words],
            env=env,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        code, exit_code = ANSWERS[status]
        if words == ["events"] and status == 200:
            continue  # below
        assert done.returncode == exit_code and code in done.stderr, (words, done.stderr)
        assert "Traceback" not in done.stderr and "internal" not in done.stderr
    with pytest.raises(BeaconOtaError) as caught:
        OrchestratorRegistry(Client(f"{stub}/{status}", "token")).check_access("hq")
    assert caught.value.exit_code == ANSWERS[status][1]
    assert "operator's token" not in caught.value.message


def test_a_stream_that_is_none(stub):
    env = {**os.environ, "BEACON_OTA_URL": f"{stub}/200", "BEACON_OTA_TOKEN": "t", "COLUMNS": "300"}
    done = subprocess.run(
        [str(COMMAND), "events"],
        env=env,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 3 and "not_an_orchestrator" in done.stderr, done
    assert "Traceback" not in done.stderr
