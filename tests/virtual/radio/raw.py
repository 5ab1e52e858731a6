"""Requests by hand, for what bleak does not send."""

from typing import Any

import pytest
from bleak import BleakClient
from bleak.exc import BleakGATTProtocolError


def connection(connected: BleakClient) -> Any:
    """bumble's connection of a client, for what bleak cannot send."""
    return connected._backend._connection  # type: ignore[attr-defined]


def opcodes(capture: Any) -> list[bytes]:
    return [frame.att_pdu[:1] for frame in capture if frame.att_pdu]


async def answer(connected: BleakClient, request: Any) -> Any:
    return await connection(connected).gatt_client.send_request(request)


async def write_descriptor(connected: BleakClient, handle: int, value: bytes) -> None:
    """Write also what bleak writes by itself only: subscriptions."""
    await connected._backend._write_value(handle, value, True)  # type: ignore[attr-defined]


async def error_code(operation: Any) -> int:
    with pytest.raises(BleakGATTProtocolError) as caught:
        await operation
    return caught.value.code
