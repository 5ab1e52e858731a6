"""Frames by hand, for what no proper client sends."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from beacon_ota.errors import ReachError
from beacon_ota.provision.gatt import GattConnection
from beacon_ota.wire import blufi
from tests.provision.scene import Scene

CUT = -1
FRAGMENT, CHECKED, SEALED = 0x10, 0x02, 0x01


def frame(
    kind: int,
    data: bytes = b"",
    *,
    seq: int = 0,
    fc: int = 0,
    size: int | None = None,
    crc: int | None = None,
) -> bytes:
    """Build a frame; ``size`` and ``crc`` may lie."""
    size = len(data) if size is None else size
    head = bytes((kind, fc, seq & 255, size & 255))
    if not fc & CHECKED:
        return head + data
    right = blufi.crc16(data, blufi.crc16(head[2:]))
    return head + data + (right if crc is None else crc).to_bytes(2, "little")


def piece(kind: int, total: int, data: bytes, *, seq: int, fc: int = 0) -> bytes:
    """Build a fragment that is not the last."""
    return frame(kind, total.to_bytes(2, "little") + data, seq=seq, fc=fc | FRAGMENT)


class Wire:
    """A connection on which anything can be sent."""

    def __init__(self, gatt: GattConnection):
        self.gatt = gatt

    async def say(self, *frames: bytes) -> None:
        """Write frames; that the beacon has hung up meanwhile is for :meth:`hear` to find."""
        for one in frames:
            try:
                await self.gatt.send(one)
            except ReachError:
                return

    async def hear(self, seconds: float = 30) -> bytes:
        """Return the next frame.

        Raises:
            ReachError: the beacon has hung up.
            AssertionError: nothing came.
        """
        found = await self.gatt.receive(seconds)
        assert found is not None, "no answer"
        return found

    async def error(self) -> int:
        """Return the code of the error frame that comes next, CUT when the beacon hangs up."""
        try:
            found = await self.hear()
        except ReachError:
            return CUT
        assert found[0] == blufi.ERROR and len(found) == 5, found.hex()
        return found[4]

    async def cut(self) -> bool:
        """Whether the beacon hangs up; what it says before does not matter."""
        try:
            while await self.gatt.receive(30) is not None:
                pass
        except ReachError:
            return True
        return False

    async def leave(self) -> None:
        """Hang up in the middle of whatever this is."""
        await self.gatt._hang_up()


@contextlib.asynccontextmanager
async def wire(s: Scene) -> AsyncIterator[Wire]:
    """Connect to the beacon once it can be provisioned, without a word."""
    found = await s.find()
    async with asyncio.timeout(60), GattConnection(found.device, found.name, s.radio) as gatt:
        yield Wire(gatt)
