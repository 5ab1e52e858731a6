"""A connection to one beacon: BluFi frames over bleak, in order, with deadlines.

One frame is one write with response or one notification. The beacon hangs up by disconnecting;
a pending call then raises :class:`~beacon_ota.errors.ReachError`.
"""

import asyncio
from typing import TYPE_CHECKING, Any, Self

from beacon_ota.errors import ReachError
from beacon_ota.virtual.radio.selection import RadioSelection

if TYPE_CHECKING:
    from bleak.backends.device import BLEDevice

WRITE_UUID = "0000ff01-0000-1000-8000-00805f9b34fb"
NOTIFY_UUID = "0000ff02-0000-1000-8000-00805f9b34fb"
CONNECT_S = 15.0
WRITE_S = 10.0
ATTEMPTS = 3
_MAX_QUEUED = 256  # frames not yet received by the caller


class GattConnection:
    """An open connection; use it as ``async with``.

    Args:
        device: what a scan found, or an address.
        name: for messages.
        radio: which adapter or room.
        mtu: what to ask for, in rooms only; adapters decide by themselves.
    """

    def __init__(
        self, device: "BLEDevice | str", name: str, radio: RadioSelection, *, mtu: int | None = None
    ):
        self.name = name
        self._device, self._radio = device, radio
        self._options: dict[str, Any] = {"mtu": mtu} if mtu and radio.virtual else {}
        self._frames: asyncio.Queue[bytes | None] = asyncio.Queue(_MAX_QUEUED)
        self._gone = False

    async def __aenter__(self) -> Self:
        from bleak import BleakClient
        from bleak.exc import BleakError

        for attempt in range(1, ATTEMPTS + 1):
            self._client = BleakClient(
                self._device,
                disconnected_callback=lambda _: self._mark_gone(),
                timeout=CONNECT_S,
                **self._radio.client,
                **self._options,
            )
            self._gone = False
            try:
                await self._client.connect()
                await self._client.start_notify(
                    NOTIFY_UUID, lambda _, data: self._queue_frame(bytes(data))
                )
                return self
            except (BleakError, TimeoutError, OSError) as error:
                await self._disconnect()
                if attempt == ATTEMPTS:
                    raise ReachError(
                        "out_of_range",
                        f"cannot connect to {self.name}: go nearer, or wait until nobody else is "
                        "connected to it",
                        found=str(error) or type(error).__name__,
                    ) from None
        raise AssertionError("unreachable")

    async def __aexit__(self, *_: object) -> None:
        await self._disconnect()

    async def _disconnect(self) -> None:
        from bleak.exc import BleakError

        try:
            async with asyncio.timeout(WRITE_S):
                await self._client.disconnect()
        except (BleakError, TimeoutError, OSError):
            pass  # it was gone already

    @property
    def mtu(self) -> int:
        """Bytes of an ATT packet, as far as the operating system tells."""
        characteristic = self._client.services.get_characteristic(WRITE_UUID)
        return 23 if characteristic is None else characteristic.max_write_without_response_size + 3

    @property
    def gone(self) -> bool:
        """Whether the connection has ended."""
        return self._gone

    async def send(self, frame: bytes) -> None:
        """Write a frame.

        Raises:
            ReachError: ``disconnected``.
        """
        from bleak.exc import BleakError

        try:
            async with asyncio.timeout(WRITE_S):
                await self._client.write_gatt_char(WRITE_UUID, frame, response=True)
        except (BleakError, TimeoutError, OSError) as error:
            raise self._disconnected_error(str(error)) from None

    async def receive(self, seconds: float) -> bytes | None:
        """Return the next frame, None when there is none for so long.

        Raises:
            ReachError: ``disconnected``, once everything that came before was taken.
        """
        try:
            async with asyncio.timeout(seconds):
                frame = await self._frames.get()
        except TimeoutError:
            return None
        if frame is None:
            self._frames.put_nowait(None)
            raise self._disconnected_error("")
        return frame

    def _queue_frame(self, frame: bytes) -> None:
        if self._frames.full():  # a beacon sends a dozen; this is none
            self._frames = asyncio.Queue(_MAX_QUEUED)
            self._mark_gone()
            return
        self._frames.put_nowait(frame)

    def _mark_gone(self) -> None:
        self._gone = True
        if not self._frames.full():
            self._frames.put_nowait(None)

    def _disconnected_error(self, why: str) -> ReachError:
        return ReachError(
            "disconnected", f"the connection to {self.name} has ended: try again", found=why or None
        )
