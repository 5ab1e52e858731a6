"""A connection to one beacon: BluFi frames over bleak, in order, with deadlines.

It is tried once; :mod:`beacon_ota.provision.contact` looks for the beacon again and retries. One
frame is one write with response or one notification. The beacon hangs up by disconnecting; a
pending call then raises :class:`~beacon_ota.errors.ReachError`.
"""

import asyncio
from typing import TYPE_CHECKING, Any, Self

from beacon_ota.errors import ReachError
from beacon_ota.provision.radio_errors import radio_failures
from beacon_ota.virtual.radio.selection import RadioSelection

if TYPE_CHECKING:
    from bleak.backends.device import BLEDevice

WRITE_UUID = "0000ff01-0000-1000-8000-00805f9b34fb"
NOTIFY_UUID = "0000ff02-0000-1000-8000-00805f9b34fb"
CONNECT_S = 15.0
WRITE_S = 10.0
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
        try:
            if _is_held(self._device):
                # A program that was killed leaves its connection, and its session, to BlueZ.
                await self._connect()
                await self._disconnect()
            await self._connect()
            await self._client.start_notify(
                NOTIFY_UUID, lambda _, data: self._queue_frame(bytes(data))
            )
        except radio_failures() as error:
            await self._disconnect()
            raise ReachError(
                "out_of_range",
                f"cannot connect to {self.name}: go nearer, or wait until nobody else is "
                "connected to it",
                found=str(error) or type(error).__name__,
            ) from None
        except BaseException:  # interrupted: the connection would outlive this program
            await self._disconnect()
            raise
        return self

    async def _connect(self) -> None:
        from bleak import BleakClient

        self._client = BleakClient(
            self._device,
            disconnected_callback=lambda _: self._mark_gone(),
            timeout=CONNECT_S,
            **self._radio.client,
            **self._options,
        )
        self._frames = asyncio.Queue(_MAX_QUEUED)
        self._gone = False
        await self._client.connect()

    async def __aexit__(self, *_: object) -> None:
        await self._disconnect()

    async def _disconnect(self) -> None:
        try:
            async with asyncio.timeout(WRITE_S):
                await self._client.disconnect()
        except radio_failures():
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
        try:
            async with asyncio.timeout(WRITE_S):
                await self._client.write_gatt_char(WRITE_UUID, frame, response=True)
        except radio_failures() as error:
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


def _is_held(device: "BLEDevice | str") -> bool:
    """Whether BlueZ had a connection to this device when the device was seen."""
    details = getattr(device, "details", None)
    properties = details.get("props") if isinstance(details, dict) else None
    return bool(properties and properties.get("Connected"))
