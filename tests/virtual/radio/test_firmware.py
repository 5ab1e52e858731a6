"""The beacon's own firmware over the air: what phones, readers and installers get to see."""

import asyncio
import hmac
from collections.abc import Callable
from typing import Any

import pytest
from bleak import BleakClient, BleakScanner
from bleak.backends.device import BLEDevice
from bleak.backends.scanner import AdvertisementData

from beacon_ota.virtual.radio.selection import select_radio
from beacon_ota.virtual.radio.space import RadioSpace
from beacon_ota.wire import access, access_reader
from tests.firmware.beacons import Bench, bench, make
from tests.virtual.radio.beacons import until

APPLE, NORDIC = 0x004C, 0x0059
IDENT, SECRET = b"\x01\x02\x03\x04", bytes(range(16))
REBOOTING = 0xFF


@pytest.fixture(scope="module")
def v1(small_core: bytes) -> bytes:
    return make(small_core, "1.0.0")


@pytest.fixture(scope="module")
def v2(small_core: bytes) -> bytes:
    return make(small_core, "2.0.0")


def positioned(device: BLEDevice, data: AdvertisementData) -> bool:
    """Whether it sends the positioning frame of the bench's beacon."""
    frame = data.manufacturer_data.get(APPLE, b"")
    return frame[:22] == b"\x02\x15" + bytes(range(20))


async def find(
    space: RadioSpace, wanted: Callable[[BLEDevice, AdvertisementData], bool]
) -> BLEDevice:
    device = await BleakScanner.find_device_by_filter(wanted, **select_radio(space.spec).scanner)
    assert device is not None
    return device


async def knock(client: BleakClient, ident: bytes, secret: bytes) -> int:
    """Ask to be let in; the kind of the answer."""
    answers: asyncio.Queue[bytes] = asyncio.Queue()
    await client.start_notify(access.STATUS, lambda c, data: answers.put_nowait(bytes(data)))
    await client.write_gatt_char(access.CONTROL, access_reader.build_request(ident), response=True)
    kind, nonce = access.parse_message(await asyncio.wait_for(answers.get(), 60))
    assert kind == access.CHALLENGE
    proof = access_reader.build_proof(hmac.digest(secret, nonce, "sha256"))
    await client.write_gatt_char(access.CONTROL, proof, response=True)
    answer = access.parse_message(await asyncio.wait_for(answers.get(), 60))[0]
    await client.stop_notify(access.STATUS)
    return answer


def test_a_reader_is_let_in_or_not(space: RadioSpace, v1: bytes) -> None:
    async def body() -> None:
        device = await find(space, positioned)
        async with BleakClient(device, **select_radio(space.spec).client) as client:
            assert await knock(client, IDENT, SECRET) == access.GRANTED
            assert await knock(client, IDENT, bytes(16)) == access.REFUSED
            assert await knock(client, b"\0\0\0\0", SECRET) == access.REFUSED
            assert await knock(client, IDENT, SECRET) == access.GRANTED

    capture = space.start_capture()
    with bench(v1, bluetooth=space.make_backend(), settings={"creds": IDENT + SECRET}, scale=1):
        asyncio.run(body())
    heard = b"".join(frame.att_pdu for frame in capture if frame.att_pdu)
    assert IDENT in heard and SECRET not in heard


def test_an_update_is_seen_and_stops_nothing(space: RadioSpace, v1: bytes, v2: bytes) -> None:
    seen: list[AdvertisementData] = []

    async def body(b: Bench) -> None:
        def callback(device: Any, data: AdvertisementData) -> None:
            seen.append(data)

        device = await find(space, positioned)
        async with BleakScanner(callback, **select_radio(space.spec).scanner):
            await until(lambda: seen)
            b.server.image, b.server.offering = v2, True
            await until(lambda: any(NORDIC in data.manufacturer_data for data in seen))
            async with BleakClient(device, **select_radio(space.spec).client) as client:
                assert await knock(client, IDENT, SECRET) == access.GRANTED
            await asyncio.to_thread(b.reported, "success")
            new = len(seen)
            await until(lambda: len(seen) > new + 20)

    settings = {"creds": IDENT + SECRET}
    # a slow network, so that there is time to watch
    with bench(v1, bluetooth=space.make_backend(), settings=settings, scale=4) as b:
        b.beacon.link.faults.throttle = 20_000
        asyncio.run(body(b))
    progress = [
        data.manufacturer_data[NORDIC][0] for data in seen if NORDIC in data.manufacturer_data
    ]
    shown = [value for value in progress if value <= 100]
    assert shown == sorted(shown) and len(set(shown)) > 3
    assert all(positioned(None, data) for data in seen)  # type: ignore[arg-type]
