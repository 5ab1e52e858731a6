"""A central's adapter in a room: what BlueZ is to bleak, over the room's socket.

One adapter per room and event loop, shared by all scanners and clients as `hci0` would be.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Self

from bumble import hci
from bumble.core import BaseBumbleError
from bumble.device import Connection, ConnectionParametersPreferences

from beacon_ota.virtual.radio.stack import HostStack
from beacon_ota.virtual.radio.transport import AdvertisingReport, HciClient
from beacon_ota.wire.scan import split_structures

SCAN_RSP = 4

# AD types (Assigned Numbers, 2.3).
_SHORT_NAME, _COMPLETE_NAME, _TX_POWER, _MANUFACTURER = 0x08, 0x09, 0x0A, 0xFF
_UUID_LISTS = {0x02: 2, 0x03: 2, 0x04: 4, 0x05: 4, 0x06: 16, 0x07: 16}
_SERVICE_DATA = {0x16: 2, 0x20: 4, 0x21: 16}


@dataclass
class AdvertiserData:
    """What is known of one advertiser from its advertisement and its scan response.

    Args:
        address: of the advertiser.
        rssi: dBm of the last report.
    """

    address: hci.Address
    rssi: int = -127
    name: str | None = None
    tx_power: int | None = None
    uuids: list[str] = field(default_factory=list)
    service_data: dict[str, bytes] = field(default_factory=dict)
    manufacturer_data: dict[int, bytes] = field(default_factory=dict)
    _advertisement: bytes = b""
    _response: bytes = b""

    def add_report(self, report: AdvertisingReport) -> None:
        """Take a report in; a field of the scan response wins over the advertisement's."""
        self.rssi = report.rssi
        if report.kind == SCAN_RSP:
            self._response = report.data
        else:
            self._advertisement = report.data
        self.name = self.tx_power = None
        self.uuids, self.service_data, self.manufacturer_data = [], {}, {}
        for payload in (self._advertisement, self._response):
            for kind, value in split_structures(payload):
                self._add_structure(kind, value)

    def _add_structure(self, kind: int, value: bytes) -> None:
        if kind in (_SHORT_NAME, _COMPLETE_NAME):
            if kind == _COMPLETE_NAME or self.name is None:
                self.name = value.decode("utf-8", "replace")
        elif kind == _TX_POWER and len(value) == 1:
            self.tx_power = int.from_bytes(value, "little", signed=True)
        elif kind == _MANUFACTURER and len(value) >= 2:
            self.manufacturer_data[int.from_bytes(value[:2], "little")] = value[2:]
        elif kind in _SERVICE_DATA and len(value) >= (size := _SERVICE_DATA[kind]):
            self.service_data[format_uuid(value[:size])] = value[size:]
        elif kind in _UUID_LISTS:
            size = _UUID_LISTS[kind]
            for start in range(0, len(value) - size + 1, size):
                uuid = format_uuid(value[start : start + size])
                if uuid not in self.uuids:
                    self.uuids.append(uuid)


def format_uuid(raw: bytes) -> str:
    """A UUID of 2, 4 or 16 little-endian bytes, written out in full as bleak does."""
    text = raw[::-1].hex()
    if len(raw) != 16:
        text = f"{text:0>8}00001000800000805f9b34fb"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


class SpaceAdapter:
    """One central's radio in a room. Get it with :meth:`acquire`, give it back with `release`."""

    _shared: ClassVar[dict[tuple[asyncio.AbstractEventLoop, str], "SpaceAdapter"]] = {}

    def __init__(self, path: str, line: HciClient, device: HostStack) -> None:
        self.device = device
        self._path = path
        self._client = line
        self._users = 0
        self._scanners: dict[Callable[[AdvertisingReport], None], bool] = {}
        self._connecting = asyncio.Lock()
        self._scan_change = asyncio.Lock()
        line.host.on_report = self._on_report

    @classmethod
    async def acquire(cls, path: str) -> Self:
        """The adapter of this event loop in the room at ``path``.

        Raises:
            ReachError: ``radio_room`` when no room listens there.
        """
        loop = asyncio.get_running_loop()
        for old in [key for key in cls._shared if key[0].is_closed()]:
            del cls._shared[old]
        adapter = cls._shared.get((loop, path))
        if adapter is None or adapter.lost:
            adapter = await cls._open(path)
            # somebody else may have opened it meanwhile
            current = cls._shared.get((loop, path))
            if current is not None and not current.lost:
                adapter._client.close()
                adapter = current
            cls._shared[(loop, path)] = adapter
        adapter._users += 1
        assert isinstance(adapter, cls)
        return adapter

    @classmethod
    async def _open(cls, path: str) -> "SpaceAdapter":
        line = await HciClient.open(path)
        device = HostStack(line.host)
        await device.power_on()
        return cls(path, line, device)

    def release(self) -> None:
        """Give the adapter back; the last one out leaves the room."""
        self._users -= 1
        if self._users > 0:
            return
        key = (asyncio.get_running_loop(), self._path)
        if self._shared.get(key) is self:
            del self._shared[key]
        self._client.close()

    @property
    def lost(self) -> bool:
        """Whether the room has gone."""
        return self._client.host.lost.is_set()

    # Scanning

    async def start_scan(self, listener: Callable[[AdvertisingReport], None], active: bool) -> None:
        """Hand every advertising report to ``listener`` until :meth:`stop_scan`."""
        self._scanners[listener] = active
        await self._apply_scanners()

    async def stop_scan(self, listener: Callable[[AdvertisingReport], None]) -> None:
        self._scanners.pop(listener, None)
        if not self.lost:
            await self._apply_scanners()

    async def _apply_scanners(self) -> None:
        async with self._scan_change:
            if self.device.is_scanning:
                await self.device.stop_scanning(legacy=True)
            if self._scanners:
                await self.device.start_scanning(
                    legacy=True,
                    active=any(self._scanners.values()),
                    own_address_type=hci.OwnAddressType.PUBLIC,
                )

    def _on_report(self, report: AdvertisingReport) -> None:
        for listener in tuple(self._scanners):
            listener(report)

    async def find_advertiser(self, address: str, timeout: float) -> hci.Address | None:
        """The advertiser with this address, kind of address included; ``None`` after a while."""
        found: asyncio.Future[hci.Address] = asyncio.get_running_loop().create_future()

        def listener(report: AdvertisingReport) -> None:
            if report.address.to_string(False) == address.upper() and not found.done():
                found.set_result(report.address)

        await self.start_scan(listener, False)
        try:
            async with asyncio.timeout(timeout):
                return await found
        except TimeoutError:
            return None
        finally:
            await self.stop_scan(listener)

    # Connecting

    async def connect(self, address: hci.Address, interval_ms: float, timeout: float) -> Connection:
        """Connect to an advertiser; controllers initiate one connection at a time.

        Raises:
            TimeoutError: it was not heard in time.
        """
        preferences = ConnectionParametersPreferences()
        preferences.connection_interval_min = preferences.connection_interval_max = interval_ms
        preferences.supervision_timeout = 2000
        async with asyncio.timeout(timeout), self._connecting:
            connecting = asyncio.ensure_future(
                self.device.connect_le(
                    address,
                    {hci.Phy.LE_1M: preferences},
                    own_address_type=hci.OwnAddressType.PUBLIC,
                    timeout=None,
                )
            )
            try:
                return await asyncio.shield(connecting)
            except BaseBumbleError as error:
                raise TimeoutError(str(error)) from error
            except asyncio.CancelledError:
                await self._cancel_connecting(connecting)
                raise

    async def _cancel_connecting(self, connecting: "asyncio.Future[Connection]") -> None:
        """Take back an attempt; it may have succeeded at the same moment."""
        if self.lost:
            connecting.cancel()
            return
        try:
            await self.device.send_sync_command(hci.HCI_LE_Create_Connection_Cancel_Command())
        except BaseBumbleError:
            pass  # too late to cancel: there is a connection to end
        try:
            connection = await connecting
            await connection.disconnect()
        except (BaseBumbleError, asyncio.CancelledError):
            pass  # cancelled, or ended by the other side
