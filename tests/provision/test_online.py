"""From the box to the orchestrator: the beacon's own code, over the air, end to end."""

import asyncio
import hmac
import time

import pytest
from bleak import BleakClient

from beacon_ota.errors import BeaconOtaError, ReachError
from beacon_ota.provision.desired_config import Network, Secret, parse_position
from beacon_ota.provision.session import hmac_sha256
from beacon_ota.provision.sighting import format_position
from beacon_ota.wire import access, access_reader, adverts
from tests.firmware.server import Fault
from tests.provision import scene as scenes
from tests.provision.scene import ID, NAME, PASSWORD, POP, SSID, WIFI, run, scene

IDENTITY = parse_position("00112233-4455-6677-8899-aabbccddeeff:7:65535")
CREDENTIALS = b"door" + bytes(range(16))


def polled(s: scenes.Scene) -> bool:
    return any(r.path.startswith("/firmwares/latest") for r in s.server.requests)


def test_a_beacon_out_of_its_box_goes_online(v1):
    """PIN, key, network, first authenticated poll; at a chip's own pace of time."""
    config = {"site": "berlin/hq", "channel": "beta", "window": "03:00-05:00", "utc_off": -90}
    with scene(v1, scale=1) as s:
        book = s.book
        found = run(s.find())
        assert (found.name, found.state, found.version, found.suites) == (NAME, "new", "1.0.0", 2)
        assert not found.has(adverts.PROVISIONED)
        steps = []
        done = s.online(
            config={**config, "ibeacon": IDENTITY},
            creds=CREDENTIALS,
            book=book,
            on_step=lambda step, detail: steps.append(step),
        )
        print(f"from connect to online: {done.seconds:.2f} s")
        assert (done.beacon_id, done.device_type, done.poll) == (ID, "esp32c3", "ok")
        assert (done.ssid, done.registered, done.key) == (SSID, "registered", "")
        assert done.ip == s.beacon.link.address and done.rssi == -55
        assert steps[0] == "connecting" and steps[-1] == "waiting"
        [(state, key, _)] = book.entered
        assert state.version == "1.0.0" and len(state.image) == 64
        stored = {k: v for (space, k), v in s.beacon.settings().items() if space == "beacon"}
        assert stored["wifi_ssid"] == SSID.encode() and stored["wifi_pass"] == PASSWORD.encode()
        assert stored["beacon_key"] == key and stored["ibeacon"] == IDENTITY
        assert stored["site"] == b"berlin/hq" and stored["utc_off"] == -90
        assert stored["channel"] == b"beta" and stored["window"] == b"03:00-05:00"
        assert stored["creds"] == CREDENTIALS and "pin_fail" not in stored
        assert polled(s)
        # The door is shut behind it, and its frame says where it is.
        s.wait(lambda: not s.opened(), what="closed")
        after = run(s.heard(lambda b: b.position and b.has(adverts.PROVISIONED)))
        assert (
            format_position(after.position or b"") == "00112233-4455-6677-8899-aabbccddeeff:7:65535"
        )
        # Next time it goes by itself.
        s.beacon.power_cut()
        s.server.requests.clear()
        s.beacon.power_on()
        s.wait(lambda: polled(s), what="a poll after power-on")


def test_with_a_proof_of_possession(v1):
    """Suite 0x11: ECDH, HKDF and AES-128 as the original design has it."""
    with scene(v1, settings={"pin_w": None, "pop": POP}) as s:
        assert run(s.find()).suites == 1
        with pytest.raises(BeaconOtaError) as caught:
            s.online()
        assert caught.value.code == "ec1_suite"
        assert s.online(secret=Secret(pop=POP)).poll == "ok"


def test_both_secrets_serve(v1):
    with scene(v1, settings={"pop": POP}) as s:
        assert run(s.find()).suites == 3
        assert s.online(secret=Secret(pop=POP)).poll == "ok"
        s.unlock()
        assert s.online().registered == "updated"


@pytest.mark.parametrize("mtu", [23, 185, 256, 517])
def test_every_mtu(v1, mtu):
    """Frames and fragments of every size both ways: settings of 400 bytes, a list of networks."""

    async def body(s: scenes.Scene) -> None:
        async with s.client(mtu=mtu) as client:
            assert client._link.mtu == min(mtu, 256)
            networks = await client.list_networks()
            assert len(networks) == 24 and networks[0] == (SSID.encode(), -55)
            state = await client.configure(
                orch_url="https://" + "h" * 56 + "." + "h" * 57 + ":65535",
                site="s" * 64,
                wifi2_ssid=bytes(range(32)),
                wifi2_pass=b"p" * 63,
                beacon_key=bytes(32),
                ibeacon=IDENTITY,
            )
            assert state.beacon_id == ID and len(state.image) == 64
            await client.replace_credentials(bytes(range(240)) + bytes(400))
            assert (await client.join_network(SSID.encode(), PASSWORD.encode())).word == "connected"
        stored = s.beacon.settings()
        assert stored["beacon", "wifi2_ssid"] == bytes(range(32))
        assert stored["beacon", "creds"] == bytes(range(240)) + bytes(400)

    with scene(v1) as s:
        for number in range(23):
            s.network.add_access_point(
                f"neighbour-{number:02}" + "x" * number, "pass word", rssi=-60 - number
            )
        run(body(s))


@pytest.mark.parametrize(
    ("ssid", "password"),
    [
        ("x" * 32, "p" * 63),
        ("Café Zürich ☕", "пароль-пароль"),
        (b"\xff\xfe\x00bytes", "correct horse"),
        ("open", ""),
        ("psk", "0123456789abcdef" * 4),
    ],
    ids=["longest", "utf-8", "bytes", "open", "psk"],
)
def test_names_and_passwords(v1, ssid, password):
    with scene(v1) as s:
        wifi = Network.of(ssid, password)
        s.network.add_access_point(wifi.ssid, wifi.password)
        assert s.online(wifi=wifi).poll == "ok"
        assert s.beacon.setting("wifi_ssid") == wifi.ssid
        assert s.beacon.setting("wifi_pass") == (wifi.password or None)
        s.beacon.power_cut()
        s.beacon.power_on()
        s.wait(lambda: s.beacon.wlan.connected, what="on WiFi again")


def test_a_wrong_password_costs_nothing(v1):
    """What does not work is not kept, what worked is: the beacon goes back to it by itself."""
    with scene(v1) as s:
        s.online()
        before = s.beacon.settings()
        s.network.add_access_point("new", "other password")
        s.unlock()
        with pytest.raises(BeaconOtaError) as caught:
            s.online(wifi=Network.of("new", "wrong password"))
        assert caught.value.code == "wifi_wrong_password"
        assert caught.value.found == "wrong_password"
        after = s.beacon.settings()
        for key in ("wifi_ssid", "wifi_pass"):
            assert after["beacon", key] == before["beacon", key]
        s.wait(lambda: s.beacon.wlan.connected, what="back on the old network")
        assert s.joined() == SSID.encode()
        # The new key came before the network: with it the beacon is heard.
        assert s.online(wifi=Network.of("new", "other password")).poll == "ok"
        assert s.joined() == b"new"


@pytest.mark.parametrize(
    ("refusals", "code"),
    [
        ((15,), "wifi_wrong_password"),
        ((204,), "wifi_wrong_password"),
        ((202,), "wifi_wrong_password"),
        ((15, 205), "wifi_wrong_password"),
        ((201, 15), "wifi_wrong_password"),
        ((2, 201), "wifi_failed"),
        ((203,), "wifi_failed"),
        ((201,), "wifi_failed"),
        ((210,), "wifi_security"),
        ((211,), "wifi_security"),
    ],
)
def test_refusals_as_drivers_report_them(v1, refusals, code):
    """A wrong password by any of its reasons; and no network of its list is said to be missing."""
    with scene(v1) as s:
        s.network.points[0].refusals = refusals
        with pytest.raises(BeaconOtaError) as caught:
            s.online(wifi=Network.of(SSID, "wrong password"))
        assert caught.value.code == code, caught.value
        if code == "wifi_failed":
            assert "check the password" in str(caught.value)
        s.wait(lambda: not s.beacon.wlan._connecting, what="the driver is left alone")


@pytest.mark.parametrize("missed", [1, 2, 3])
def test_a_network_that_a_scan_misses(v1, missed):
    with scene(v1) as s:
        s.network.points[0].missed = missed
        assert s.online().poll == "ok"


def test_a_network_that_is_not_there(v1):
    with scene(v1) as s:
        s.network.add_access_point("Site", "with a capital", rssi=-70)
        with pytest.raises(BeaconOtaError) as caught:
            s.online(wifi=Network.of("sitee", "pass word"))
        assert caught.value.code == "wifi_not_found"
        assert caught.value.expected == "one of site (-55 dBm), Site (-70 dBm)"
        assert s.online().poll == "ok"


def test_an_orchestrator_that_is_not_there(v1):
    with scene(v1) as s:
        s.server.away = True
        with pytest.raises(BeaconOtaError) as caught:
            s.online(online_s=4)
        assert caught.value.code == "poll_connect" and s.beacon.link.address in str(caught.value)
        s.server.away = False
        s.wait(s.opened, what="there is something left to be put right")
        assert s.online().poll == "ok"
        s.wait(lambda: not s.opened(), what="closed")


def test_an_orchestrator_that_will_not_have_it(v1):
    class Forgetful(scenes.Book):
        def register(self, state, key, config, tags) -> str:
            return "registered"

    with scene(v1) as s:
        with pytest.raises(BeaconOtaError) as caught:
            s.online(book=Forgetful(s.server))
        assert caught.value.code == "poll_refused" and ID in str(caught.value)
        assert s.online().poll == "ok"


def page(status: str, size: int = 16, *more: str) -> Fault:
    head = [f"HTTP/1.1 {status}", "Content-Type: text/html", f"Content-Length: {size}", *more]
    return Fault(raw="\r\n".join([*head, "", "x" * size]).encode())


PORTALS = {
    "sends elsewhere": page("302 Found", 0, "Location: http://portal.example/"),
    "asks to sign in": page("200 OK"),
    "a long page": page("200 OK", 60_000),
    "in chunks": Fault(
        raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nyes\r\n0\r\n\r\n"
    ),
    "nothing": page("204 No Content", 0),
    "forbids": page("403 Forbidden"),
    "knows no such page": page("404 Not Found", 3_000),
    "wants a password": page("401 Unauthorized", 16, "WWW-Authenticate: Basic"),
    "says what it is": page("511 Network Authentication Required"),
    "makes up a mac": page("200 OK", 16, "X-Beacon-Mac: " + 64 * "0"),
}


@pytest.mark.parametrize("kind", PORTALS)
def test_something_else_answers(v1, kind):
    """It is no refusal: the beacon is registered, and the orchestrator has not been asked."""
    with scene(v1) as s:
        s.server.stranger = lambda request: PORTALS[kind]
        with pytest.raises(ReachError) as caught:
            s.online()
        assert caught.value.code == "poll_stranger"
        assert "not the orchestrator" in str(caught.value)
        s.server.stranger = lambda request: None
        assert s.online().poll == "ok"
        s.wait(lambda: ["answer", "stranger"] in [e[2:4] for e in s.server.journal()], what="told")


@pytest.mark.parametrize("status", ["500", "502", "503"])
def test_a_server_that_fails_is_no_stranger(v1, status):
    with scene(v1) as s:
        s.server.stranger = lambda request: page(f"{status} Oh")
        with pytest.raises(ReachError) as caught:
            s.online(online_s=3)
        assert caught.value.code == "poll_http"


def test_the_second_network_takes_over(v1):
    config = {"wifi2_ssid": b"spare", "wifi2_pass": b"spare password"}
    with scene(v1) as s:
        s.network.add_access_point("spare", "spare password")
        s.online(config=config)
        s.network.points[0].visible = False
        s.beacon.drop_wifi()
        s.wait(lambda: s.beacon.wlan.connected, what="on the second network")
        assert s.joined() == b"spare"


def test_settings_are_taken_whole_or_not_at_all(v1):
    async def body(s: scenes.Scene) -> None:
        async with s.client() as client:
            with pytest.raises(BeaconOtaError) as caught:
                await client.configure(site="s" * 65)
            assert caught.value.code == "setting_value"
            before = s.beacon.settings()
            # What only a client with other rules would send.
            await client._send_message(0x4D, b"\x01\x04\x01a\x07\x05other")
            await client._expect_message(0x4D, 60)
            assert client.state.refused == "channel"
            for junk in (b"", b"\x01\x04", b"\x09", b"\x81", b"\x01" + b"\x04\x01a" * 2):
                await client._send_message(0x4D, junk)
                await client._expect_message(0x4D, 60)
                assert client.state.refused == "message", junk
            assert s.beacon.settings() == before
            assert (await client.configure(site="a")).refused == ""
            assert s.beacon.setting("site") == b"a"
            await client.configure(site="")
            assert s.beacon.setting("site") is None

    with scene(v1) as s:
        run(body(s))


def test_a_beacon_without_an_id_is_called_by_its_chip(v1):
    with scene(v1, settings={"beacon_id": None}) as s:
        done = s.online()
        assert done.beacon_id == "beacon-7cdfa1a1b2c3"
        assert s.beacon.setting("beacon_id") == b"beacon-7cdfa1a1b2c3"


def test_what_it_was_given_opens_the_door(v1):
    async def enter(s: scenes.Scene, key: bytes) -> int:
        found = await s.heard(lambda b: not b.open)
        async with BleakClient(found.device, **s.radio.client) as client:
            answers: asyncio.Queue[bytes] = asyncio.Queue()
            await client.start_notify(access.STATUS, lambda _, d: answers.put_nowait(bytes(d)))
            await client.write_gatt_char(
                access.CONTROL, access_reader.build_request(b"door"), response=True
            )
            _, nonce = access.parse_message(await answers.get())
            proof = access_reader.build_proof(hmac.digest(key, nonce, "sha256"))
            await client.write_gatt_char(access.CONTROL, proof, response=True)
            return access.parse_message(await answers.get())[0]

    with scene(v1) as s:
        s.online(creds=CREDENTIALS)
        secret = bytes(range(16))
        assert run(enter(s, secret)) == access.GRANTED
        key = access.door_key(hmac_sha256, secret, ID)
        assert run(enter(s, key)) == access.GRANTED
        # Bound: the secret never gets to the beacon, and opens nothing there.
        s.unlock()
        s.online(creds=CREDENTIALS, bound=frozenset((b"door",)))
        assert s.beacon.setting("creds") == b"door" + key
        assert run(enter(s, key)) == access.GRANTED
        assert run(enter(s, secret)) == access.REFUSED


def test_the_network_is_changed_while_nobody_listens(v1):
    """The attempt goes on when the client leaves, and what works is kept."""

    async def body(s: scenes.Scene) -> None:
        async with s.client() as client:
            await client.configure(beacon_key=bytes(32))
            for kind, data in ((0x08, b"\1"), (0x09, b"site"), (0x0D, PASSWORD.encode())):
                await client._send_message(kind, data)
            await client._send_message(0x0C)
            await client._expect_message(0x3D, 60)

    with scene(v1) as s:
        run(body(s))
        s.wait(lambda: s.beacon.setting("wifi_ssid") == SSID.encode(), what="stored")
        assert s.beacon.wlan.connected


def test_status_and_oblivion(v1):
    async def status(s: scenes.Scene):
        async with s.client() as client:
            return await client.wifi_status(), await client.query_state()

    async def forget(s: scenes.Scene) -> None:
        async with s.client() as client:
            await client.forget()

    with scene(v1) as s:
        report, state = run(status(s))
        assert (report.word, state.ip, state.poll) == ("failed", "", "none")
        s.online(config={"site": "x", "wifi2_ssid": b"y"}, creds=CREDENTIALS)
        s.unlock()
        report, state = run(status(s))
        assert (report.word, report.ssid, report.rssi) == ("connected", WIFI.ssid, -55)
        assert state.poll == "ok" and state.ip == s.beacon.link.address
        run(forget(s))
        s.wait(lambda: len(s.beacon.boots) == 2, what="reset")
        left = {key for space, key in s.beacon.settings() if space == "beacon"}
        assert left >= {"beacon_id", "pin_w", "policy"}
        assert not left & {"wifi_ssid", "wifi_pass", "wifi2_ssid", "beacon_key", "site", "creds"}
        assert s.online().poll == "ok"


def visits(v1) -> list[float]:
    """Enter again and again while somebody provisions; return all waits, in seconds."""

    async def enter(reader: BleakClient, answers: asyncio.Queue[bytes]) -> float:
        begun = time.monotonic()
        await reader.write_gatt_char(
            access.CONTROL, access_reader.build_request(b"door"), response=True
        )
        _, nonce = access.parse_message(await answers.get())
        proof = access_reader.build_proof(hmac.digest(bytes(range(16)), nonce, "sha256"))
        await reader.write_gatt_char(access.CONTROL, proof, response=True)
        assert access.parse_message(await answers.get())[0] == access.GRANTED
        return (time.monotonic() - begun) / 2

    async def body(s: scenes.Scene) -> list[float]:
        found = await s.find()
        answers: asyncio.Queue[bytes] = asyncio.Queue()
        waits = []
        async with BleakClient(found.device, **s.radio.client) as reader:
            await reader.start_notify(access.STATUS, lambda _, d: answers.put_nowait(bytes(d)))
            work = asyncio.create_task(s.provision())
            while not work.done():
                waits.append(await enter(reader, answers))
            assert (await work).poll == "ok"
        return waits

    with scene(v1, settings={"creds": CREDENTIALS}, scale=1) as s:
        return sorted(run(body(s)))


def test_doors_open_while_somebody_provisions(v1):
    """The exchange of keys is computed in steps: readers get their answers meanwhile."""
    assert visits(v1)


@pytest.mark.slow
def test_nobody_waits_long_while_somebody_provisions(v1):
    """A door may wait 250 ms; nine in ten are well below twice that on a quiet machine."""
    waits = visits(v1)
    print(f"{len(waits)} visits, the longest wait {1000 * waits[-1]:.0f} ms")
    assert len(waits) > 5 and waits[len(waits) * 9 // 10] < 2 * 0.25, waits
