"""Other people's clients: Espressif's app (policy `legacy`), and one without encryption."""

import contextlib
import functools
import hashlib
import json
import random
from collections.abc import AsyncIterator

import pytest
from bleak.exc import BleakError
from pyblufi import client as pyblufi

from beacon_ota.provision.gatt import GattConnection
from beacon_ota.wire import blufi, wifi, wifi_reader
from tests.firmware.test_crypto_blufi_v1 import PRIME, AppCipher, params
from tests.provision import scene as scenes
from tests.provision.raw import CUT, Wire, frame
from tests.provision.scene import PASSWORD, SSID, run, scene

LEGACY = {"legacy": 1}
ASKED, ALL = 0x10, 0x33  # protection: checksums on requests; everything encrypted as well


class App:
    """What EspBluFi does: asks for the version, negotiates, asks for WiFi, step by step.

    The requests and which of them are encrypted, checked or to be acknowledged are those of the
    Android app; ``checked`` sends CONNECT as the iOS app does.
    """

    def __init__(self, line: Wire, *, checked: bool = False):
        self.line = line
        self.link = blufi.Link(False)
        self.checked = checked

    async def say(self, kind: int, data: bytes = b"", *, ack: bool = False) -> None:
        self.link.send(kind, data, ack)
        while one := self.link.transmit():
            await self.line.say(one)

    async def hear(self, kind: int) -> blufi.Message:
        """Return the next message, of this type; the app takes nothing else at that point."""
        while (message := self.link.receive(await self.line.hear())) is None:
            pass
        assert message.type == kind, (message.type, message.data)
        return message

    async def version(self) -> bytes:
        await self.say(blufi.GET_VERSION)
        return (await self.hear(blufi.VERSION)).data

    async def negotiate(self) -> None:
        self.link.mtu = self.line.gatt.mtu
        exponent = random.Random(5).getrandbits(256)
        offer = params(pow(2, exponent, PRIME))
        await self.say(blufi.NEGOTIATE, b"\0" + (len(offer) - 1).to_bytes(2, "big"))
        await self.say(blufi.NEGOTIATE, offer)
        public = int.from_bytes((await self.hear(blufi.NEGOTIATE)).data, "big")
        secret = pow(public, exponent, PRIME).to_bytes(128, "big").lstrip(b"\0")
        self.link.protect(ASKED)
        await self.say(blufi.SET_SECURITY, b"\3")
        self.link.protect(ALL, AppCipher(hashlib.md5(secret).digest()))

    async def configure(self, ssid: bytes, password: bytes) -> None:
        await self.say(blufi.SET_OPMODE, b"\1", ack=True)
        assert (await self.hear(blufi.ACK)).data
        await self.say(blufi.STA_SSID, ssid)
        await self.say(blufi.STA_PASSWORD, password)
        if not self.checked:
            self.link.protect(0)
        await self.say(blufi.CONNECT)
        self.link.protect(ALL)

    async def report(self) -> dict:
        """Return how it ended; the app waits through "connecting"."""
        while True:
            message = await self.hear(blufi.REPORT)
            assert message.sealed
            found = wifi_reader.parse_report(message.data)
            if found["state"] != wifi.CONNECTING:
                return found

    async def goodbye(self) -> None:
        self.link.protect(0)
        await self.say(blufi.DISCONNECT_BLE)
        assert await self.line.cut()


@contextlib.asynccontextmanager
async def app(s: scenes.Scene, **options) -> AsyncIterator[App]:
    found = await s.find()
    assert found.name.startswith("BLUFI"), "the app lists no others"
    async with GattConnection(found.device, found.name, s.radio) as gatt:
        yield App(Wire(gatt), **options)


def policy(s: scenes.Scene) -> dict:
    stored = s.beacon.setting("policy")
    assert isinstance(stored, bytes)
    return json.loads(stored)


@pytest.mark.parametrize("checked", [False, True], ids=["android", "ios"])
def test_espressifs_app_provisions_once(v1, checked):
    async def first(s: scenes.Scene) -> None:
        async with app(s, checked=checked) as phone:
            assert await phone.version() == b"\1\3"
            await phone.negotiate()
            await phone.configure(SSID.encode(), PASSWORD.encode())
            assert (await phone.report())["ssid"] == SSID.encode()
            await phone.say(blufi.GET_LIST)
            assert (SSID.encode(), -55) in wifi_reader.parse_list(
                (await phone.hear(blufi.LIST)).data
            )
            await phone.goodbye()

    async def again(s: scenes.Scene) -> None:
        async with app(s) as phone:
            await phone.version()
            await phone.say(blufi.NEGOTIATE, b"\0\1\7")
            assert (await phone.hear(blufi.ERROR)).data == b"\4"
            assert (await phone.hear(blufi.NEGOTIATE)).data == b"\0"
            assert await phone.line.cut()

    with scene(v1, policy=LEGACY) as s:
        run(first(s))
        assert s.beacon.setting("wifi_ssid") == SSID.encode()
        assert s.beacon.setting("wifi_pass") == PASSWORD.encode()
        s.wait(lambda: policy(s)["legacy"] == 0, what="switched off")
        run(again(s))
        # What the app cannot give, the key, this does.
        assert s.online(wifi=None).poll == "ok"


def test_the_app_with_a_wrong_password(v1):
    async def body(s: scenes.Scene) -> None:
        async with app(s) as phone:
            await phone.version()
            await phone.negotiate()
            await phone.configure(SSID.encode(), b"wrong password")
            found = await phone.report()
            assert (found["state"], found["ssid"]) == (wifi.FAILED, SSID.encode())
            await phone.configure(SSID.encode(), PASSWORD.encode())
            assert (await phone.report())["state"] == wifi.CONNECTED
            await phone.goodbye()

    with scene(v1, policy=LEGACY, settings={"pin_w": None}) as s:
        run(body(s))
        assert s.beacon.setting("wifi_pass") == PASSWORD.encode()


def test_what_the_app_may_not(v1):
    """Send names or passwords in the clear, before or after it has negotiated; settings at all."""
    clear = [
        (frame(blufi.STA_SSID, SSID.encode()), 4),
        (frame(blufi.STA_PASSWORD, PASSWORD.encode()), 4),
        (frame(blufi.CONNECT), 4),
    ]

    async def before(s: scenes.Scene, sent: bytes, code: int) -> None:
        async with app(s) as phone:
            await phone.line.say(sent)
            assert await phone.line.error() == code
            assert await phone.line.error() == CUT

    async def after(s: scenes.Scene, kind: int, data: bytes, clear: bool) -> None:
        async with app(s) as phone:
            await phone.negotiate()
            if clear:
                phone.link.protect(0)
            await phone.say(kind, data)
            assert (await phone.hear(blufi.ERROR)).data == b"\4"
            if clear:
                assert await phone.line.cut()

    with scene(v1, policy=LEGACY) as s:
        for sent, code in clear:
            run(before(s, sent, code))
        run(after(s, blufi.STA_PASSWORD, PASSWORD.encode(), True))
        run(after(s, blufi.SET_OPMODE, b"\1", True))
        run(after(s, blufi.CUSTOM, b"\2", False))
        assert s.beacon.setting("wifi_ssid") is None
        assert policy(s)["legacy"] == 1
        assert s.online().poll == "ok"


def test_a_client_that_knows_no_encryption(v1, monkeypatch):
    """pyblufi 0.1 finds the beacon, asks for its version, and that is all it gets."""

    async def tell(s: scenes.Scene, *steps: str) -> pyblufi.BlufiClient:
        found = await s.find()
        outsider = pyblufi.BlufiClient()
        said: list[str] = []
        outsider.on_error = said.append
        assert await outsider.connect(found.address, timeout=30)
        assert await outsider.get_version() == "1.3"
        with contextlib.suppress(BleakError):  # it has been cut off
            for step in steps:
                await {
                    "negotiate": outsider.negotiate,
                    "mode": outsider.set_sta_mode,
                    "ssid": functools.partial(outsider.set_ssid, SSID),
                    "password": functools.partial(outsider.set_password, PASSWORD),
                    "connect": outsider.connect_to_ap,
                    "list": functools.partial(outsider._send, frame(blufi.GET_LIST, seq=1)),
                    "custom": functools.partial(outsider.send_custom_data, b"\2"),
                }[step]()
        assert outsider._client is not None
        for _ in range(600):
            if not outsider._client.is_connected:
                break
            await scenes.asyncio.sleep(0.05)
        assert not outsider._client.is_connected, steps
        assert not outsider._wifi_list and outsider._wifi_status is None
        assert [one for one in said if "Device error" in one], said
        return outsider

    with scene(v1) as s:
        monkeypatch.setattr(
            pyblufi, "BleakClient", functools.partial(pyblufi.BleakClient, **s.radio.client)
        )
        for steps in (
            ("mode", "ssid", "password", "connect"),
            ("ssid",),
            ("password",),
            ("connect",),
            ("list",),
            ("custom",),
            ("negotiate", "ssid", "password", "connect"),
        ):
            run(tell(s, *steps))
        assert s.beacon.setting("wifi_ssid") is None and s.beacon.setting("wifi_pass") is None
        assert len(s.beacon.boots) == 1 and "Traceback" not in s.beacon.console
        assert s.online().poll == "ok"
