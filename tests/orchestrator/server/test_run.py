"""The server as a process: TLS, the announcement, a clock that runs faster, a graceful end."""

import asyncio
import datetime
import ipaddress
import signal
import socket
import time

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from beacon_ota.client import Client
from beacon_ota.errors import ReachError, UsageError
from beacon_ota.orchestrator.clock import Clock
from beacon_ota.orchestrator.core.engine import Engine
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.server import run
from beacon_ota.orchestrator.server.listen import ListenOptions, bind_socket
from beacon_ota.orchestrator.server.mdns import SERVICE_TYPE, mdns_announcement, reachable_addresses
from beacon_ota.orchestrator.settings import Settings
from tests.orchestrator.world import DEADLINE_S, Server, beacons, until, upload


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1 and its key, as files."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "orchestrator")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "cert.pem", folder / "key.pem"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files


def test_tls(tmp_path, certificate, monkeypatch):
    cert, key = certificate
    with Server(tmp_path / "data", f"--tls-cert={cert}", f"--tls-key={key}") as server:
        assert server.url.startswith("https://")
        admin = Client(server.url, server.token, ca=cert)
        assert admin.call("GET", "/health")["status"] == "ok"
        firmware = upload(admin, "1.1.0", tmp_path)
        answer = admin.request("GET", f"/firmwares/{firmware['firmware_id']}/download")
        assert len(answer.content) == firmware["size"]
        with pytest.raises(ReachError, match="certificate"):
            Client(server.url, server.token).get_beacon("x")
        monkeypatch.setenv("BEACON_OTA_CA", str(cert))
        assert Client(server.url, server.token).list_tokens()
        monkeypatch.setenv("BEACON_OTA_CA", str(tmp_path / "none.pem"))
        with pytest.raises(UsageError) as caught:
            Client(server.url, server.token)
        assert caught.value.code == "ca_missing"
        with pytest.raises(requests.RequestException):
            requests.get(server.url.replace("https", "http"), timeout=5)


def test_a_rollout_in_fast_motion(tmp_path):
    """Five minutes of soaking in seconds: the engine's own loop, on a clock that runs faster.

    No faster than that: 300 s of the beacons' clocks, five of ours, may pass on the way.
    """
    with Server(tmp_path / "data", "--time-scale=60") as server:
        admin = server.admin()
        fleet = beacons(server, 4)
        fleet[0].clock = lambda: 0.0
        skew = fleet[0].call("GET", "/firmwares/latest/esp32c3?version=1.0.0", check=False)
        assert skew.json["code"] == "clock_skew"
        began, then = time.monotonic(), skew.json["server_time"]
        for beacon in fleet:
            beacon.clock = lambda: then + (time.monotonic() - began) * 60
        firmware = upload(admin, "1.1.0", tmp_path, channel="stable")["firmware_id"]
        plan = {
            "window": "00:00-24:00",
            "ladder": [{"share": 0.5, "soak": "5m"}, {"share": 1}],
            "gate": {"silence": "30d", "presence": "30d", "patience": "60d"},
            "offer": "30d",
        }
        rollout = admin.create_rollout(firmware, plan)["rollout_id"]

        def all_done() -> bool:
            for beacon in fleet:
                if offer := beacon.offer():
                    beacon.update(offer)
            return admin.get_rollout(rollout)["status"] == "completed"

        until(all_done, what="the rollout to complete")
        kinds = [one["kind"] for one in admin.get_rollout(rollout)["transitions"]]
        assert (
            kinds.count("stage_opened") == 2
            and admin.get_rollout(rollout)["results"]["success"] == 4
        )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_graceful_end(tmp_path, number):
    with Server(tmp_path / "data") as server:
        (beacon,) = beacons(server, 1)
        assert beacon.report("idle").status == 200
        server.process.send_signal(number)
        assert server._gone() == 0
        server.start()
        shown = server.admin().get_beacon(beacon.id)
        assert shown["version"] == "1.0.0" and shown["last_seen"]
        assert "Traceback" not in server.log()


def test_told_to_stop_while_it_starts(tmp_path, monkeypatch):
    """It ends as usual, and announces nothing: the socket is closed by then."""
    start = run._UvicornServer.startup
    shown = []

    async def stop_at_once(self, sockets=None):
        await start(self, sockets)
        self.stop()

    async def main() -> None:
        service = Service(Settings(data=tmp_path, insecure=True), Clock())
        listen = ListenOptions(
            host="127.0.0.1", port=0, on_ready=lambda url, token: shown.append(url)
        )
        await run.run_service(service, Engine(service), bind_socket(listen), listen)

    monkeypatch.setattr(run._UvicornServer, "startup", stop_at_once)
    asyncio.run(main())
    assert shown == []


def test_the_clock_runs_as_fast_as_it_should():
    wall, real = time.time(), time.monotonic()
    clock = Clock(1000.0)
    began = clock.now()
    assert wall - 0.001 <= began
    time.sleep(0.05)
    passed = clock.now() - began
    assert 50 <= passed <= (time.monotonic() - real) * 1000 + 1
    assert clock.real_seconds(1000.0) == 1.0
    wall = time.time()
    assert wall <= Clock().now() <= time.time()


def test_the_announcement_is_found():
    """Over this machine's own multicast, where it has any."""
    zeroconf = pytest.importorskip("zeroconf")

    async def main() -> object:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            listen = ListenOptions(host="127.0.0.1", announce=True)
            async with mdns_announcement(listen, sock):
                found: asyncio.Future = asyncio.get_running_loop().create_future()
                browser = zeroconf.asyncio.AsyncZeroconf()

                def changed(zeroconf, service_type, name, state_change) -> None:
                    if not found.done():
                        found.set_result(name)

                from zeroconf.asyncio import AsyncServiceBrowser

                watch = AsyncServiceBrowser(browser.zeroconf, SERVICE_TYPE, handlers=[changed])
                try:
                    async with asyncio.timeout(DEADLINE_S):
                        name = await found
                    info = await browser.async_get_service_info(SERVICE_TYPE, name)
                    assert info is not None and info.port == sock.getsockname()[1]
                    assert info.parsed_addresses() == ["127.0.0.1"]
                    return info.properties[b"scheme"]
                finally:
                    await watch.async_cancel()
                    await browser.async_close()

    try:
        assert asyncio.run(main()) == b"http"
    except (TimeoutError, OSError):
        pytest.skip("no multicast here")


def test_addresses_of_a_listener():
    assert reachable_addresses("192.0.2.7") == ["192.0.2.7"]
    found = reachable_addresses("0.0.0.0")
    assert found and all(socket.inet_aton(one) for one in found)
