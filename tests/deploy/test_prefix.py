"""Below a path of somebody else's nginx: pages, API, command line, event streams, a mirror."""

import json
import re
import threading
from urllib.parse import urljoin, urlsplit

import pytest
import requests

from beacon_ota.client import Client
from beacon_ota.errors import BeaconOtaError
from tests.dashboard.web import Signed
from tests.deploy.proxies import DEPLOY, proxy
from tests.deploy.test_proxies import run
from tests.orchestrator.world import COMMAND, Server, beacons, until, upload

pytestmark = pytest.mark.timeout(300)

PREFIX = "/ota"
ADDRESS = re.compile(r'\s(?:href|src|action|data-[a-z]+)="([^"#]*)"')
# As the page has it; and as a proxy does that takes the path away, and says so.
KEEPS = (DEPLOY / "nginx-path.conf").read_text()
STRIPS = KEEPS.replace("127.0.0.1:8080;", "127.0.0.1:8080/;").replace(
    "proxy_http_version", f"proxy_set_header X-Forwarded-Prefix {PREFIX}; proxy_http_version"
)


@pytest.fixture(scope="module", params=["the path is kept", "the path is taken away"])
def below(request, tmp_path_factory):
    """A server, and nginx in front of it; URL of the orchestrator below the path."""
    folder = tmp_path_factory.mktemp("below")
    kept = request.param == "the path is kept"
    options = [f"--path-prefix={PREFIX}"] if kept else []
    with Server(folder / "data", "--forwarded-allow-ips=127.0.0.1", *options) as server:
        location = (KEEPS if kept else STRIPS).replace(
            "127.0.0.1:8080", f"127.0.0.1:{urlsplit(server.url).port}"
        )
        with proxy("nginx", folder / "proxy", 0, location) as found:
            object.__setattr__(found, "url", found.url + PREFIX)
            yield server, found
        assert "Traceback" not in server.log()


def browser(below) -> Signed:
    server, proxy = below
    signed = Signed(proxy.url)
    signed.http.verify, signed.http.trust_env = str(proxy.ca), False
    answer = signed.login(server.token)
    assert answer.status_code == 303 and answer.headers["location"] == PREFIX + "/"
    return signed


def test_without_a_session_the_login_is_below_the_path(below):
    _, proxy = below
    for path, to in (("/", "/login"), ("/beacons?site=x", "/login?next=/beacons%3Fsite%3Dx")):
        answer = requests.get(
            proxy.url + path, verify=str(proxy.ca), allow_redirects=False, timeout=60
        )
        assert (answer.status_code, answer.headers["location"]) == (303, PREFIX + to)


def test_every_address_of_every_page_is_below_the_path(below, tmp_path):
    server, proxy = below
    signed, admin = browser(below), server.admin()
    name = f"b{urlsplit(proxy.url).port}"
    if not any(one["version"] == "1.1.0" for one in admin.list_firmwares()):
        upload(admin, "1.1.0", tmp_path, channel="stable")
    (one,) = beacons(server, 1, name)
    one.poll()
    admin.create_rollout(admin.find_firmware("1.1.0")["firmware_id"], {"preset": "all-at-once"})
    seen, todo = set(), ["/"]
    while todo:
        path = todo.pop()
        answer = signed.http.get(proxy.url + path, timeout=60)
        assert answer.status_code == 200, path
        for found in (
            ADDRESS.findall(answer.text) if "html" in answer.headers["content-type"] else ()
        ):
            if not found.startswith("/") or found == PREFIX:  # of others; what scripts read
                continue
            assert found.startswith(PREFIX + "/"), (path, found)
            there = urlsplit(urljoin(proxy.url + path, found)).path.removeprefix(PREFIX)
            if there not in seen and not there.startswith(("/api/", "/logout")):
                seen.add(there)
                todo.append(there)
    kinds = {path.split("/")[1] for path in seen}
    assert {"beacons", "rollouts", "releases", "static", "audit", "webhooks", "docs"} <= kinds
    assert f"/beacons/{one.id}" in seen


def test_the_session_is_of_the_path_alone(below):
    signed = browser(below)
    cookie = next(one for one in signed.http.cookies if "beacon_ota" in one.name)
    assert (cookie.name, cookie.path, cookie.secure) == ("__Secure-beacon_ota", PREFIX, True)
    page = signed.http.get(signed.url + "/", timeout=60).text
    [csrf] = re.findall(r'name="csrf" content="(\w+)"', page)
    changed = signed.http.post(
        signed.url + "/api/sites",
        json={"path": f"site-{urlsplit(signed.url).port}"},
        headers={"X-CSRF-Token": csrf, "Origin": signed.url.removesuffix(PREFIX)},
        timeout=60,
    )
    assert changed.status_code == 201, changed.text
    left = signed.http.post(
        signed.url + "/logout", data={"csrf": csrf}, allow_redirects=False, timeout=60
    )
    assert (left.status_code, left.headers["location"]) == (303, PREFIX + "/login")
    assert not [one for one in signed.http.cookies if "beacon_ota" in one.name]


def test_event_streams(below):
    server, proxy = below
    signed = browser(below)
    for path in ("/live", "/api/events"):
        heard: list[bytes] = []
        with signed.http.get(proxy.url + path, stream=True, timeout=60) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")

            def read(stream=stream, heard=heard) -> None:
                try:
                    for line in stream.iter_lines(chunk_size=1):
                        heard.append(line)
                except (requests.RequestException, AttributeError, ValueError):
                    pass

            threading.Thread(target=read, daemon=True).start()
            name = f"live-{path.strip('/').replace('/', '-')}-{urlsplit(proxy.url).port}"
            server.admin().create_beacon(name, "esp32c3")
            until(lambda name=name, heard=heard: name.encode() in b"".join(heard), what=path)


def test_the_command_line(below, tmp_path):
    server, proxy = below
    for args in (["beacon", "list", "--json"], ["events", "--latest", "3", "--json"]):
        done = run([COMMAND, *args], proxy, server, tmp_path)
        assert done.returncode == 0, done.stderr
    beside = Client(proxy.url.removesuffix(PREFIX), server.token, proxy.ca)
    with pytest.raises(BeaconOtaError) as caught:
        beside.list_sites()
    assert caught.value.code == "proxy_refused" and "path" in caught.value.message


def test_http_to_the_proxys_port_for_tls(below):
    server, proxy = below
    with pytest.raises(BeaconOtaError) as caught:
        Client(proxy.url.replace("https://", "http://"), server.token).list_sites()
    assert caught.value.code == "not_an_orchestrator" and "https://" in caught.value.message


def test_a_mirror_of_a_primary_below_a_path(below, tmp_path):
    server, proxy = below
    name = f"m{urlsplit(proxy.url).port}"
    made = server.admin().create_mirror(name, "")
    (tmp_path / "token").write_text(made["token"])
    options = (
        f"--upstream={proxy.url}",
        f"--upstream-token-file={tmp_path / 'token'}",
        f"--upstream-ca={proxy.ca}",
    )
    with Server(tmp_path / "mirror", *options) as mirror:
        health = mirror.url + "/health"
        until(
            lambda: requests.get(health, timeout=60).json()["mirror"]["in_step"],
            what="in step with its primary",
        )


def test_beacons_are_served_at_the_root_only(below):
    """They sign the path that they send, and their address has none."""
    server, _ = below
    (one,) = beacons(server, 1, f"root{urlsplit(server.url).port}")
    assert one.poll().status in (200, 204)
    assert json.loads(requests.get(server.url + "/health", timeout=60).text)["status"] == "ok"
