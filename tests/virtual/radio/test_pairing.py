"""Pairing: it succeeds, and is not kept."""

from typing import Any

import pytest
from bleak import BleakClient

from beacon_ota.virtual.radio.space import RadioSpace
from tests.virtual.radio.beacons import (
    BLUFI,
    FF01,
    FF02,
    FLAG_READ,
    RX,
    TX,
    Beacon,
    talk,
    until,
    wait_until,
)
from tests.virtual.radio.raw import connection, error_code

DISCONNECT = 2
ENCRYPTED, GET_SECRET, SET_SECRET = 28, 29, 30


@pytest.mark.parametrize("bond", [False, True])
def test_pairing_succeeds_and_is_not_kept(space: RadioSpace, bond: bool) -> None:
    guarded = (BLUFI, [(RX, FLAG_READ | 0x0200, []), (TX, FLAG_READ | 0x0400, [])])
    beacon = Beacon(space).start(guarded)
    beacon.do("set_config", "bond", bond)
    beacon.advertise()
    keys: list[Any] = []

    async def body(connected: BleakClient) -> None:
        assert await error_code(connected.read_gatt_char(FF01)) == 0x05
        connection(connected).on("pairing", keys.append)
        await connected.pair()
        await until(lambda: beacon.seen(ENCRYPTED) and keys)
        assert await connected.read_gatt_char(FF01) == b""
        assert await error_code(connected.read_gatt_char(FF02)) == 0x05  # not authenticated

    talk(beacon, body)
    assert beacon.seen(ENCRYPTED) == [(0, 1, 0, int(bond), 16)]
    assert [data[:2] for data in beacon.seen(GET_SECRET)] == [(2, 0)]
    assert [data[0] for data in beacon.seen(SET_SECRET)] == ([1, 2] if bond else [])
    wait_until(lambda: beacon.seen(DISCONNECT))
    beacon.advertise()

    async def later(connected: BleakClient) -> None:
        link = connection(connected)
        await link.device.keystore.update(str(link.peer_address), keys[0])
        with pytest.raises(Exception, match="PIN_OR_KEY_MISSING"):
            await link.device.encrypt(link)

    if bond:
        talk(beacon, later)
        assert [data[:2] for data in beacon.seen(GET_SECRET)] == [(2, 0), (1, 0)]
