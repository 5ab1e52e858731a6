"""What BlueZ keeps of one device: what it has ever advertised, its connection, its GATT objects.

Manufacturer data, service data and the name stay when the device stops sending them: a value is
only replaced by one with the same company or service.
"""

from typing import Any

from bleak.backends.characteristic import BleakGATTCharacteristic
from bleak.exc import BleakError, BleakGATTProtocolError

from beacon_ota.virtual.bluez.bus import CallError
from beacon_ota.virtual.bluez.objects import (
    CHARACTERISTIC,
    DESCRIPTOR,
    DEVICE,
    SERVICE,
    ObjectTree,
)
from beacon_ota.virtual.radio.adapter import AdvertiserData
from beacon_ota.virtual.radio.client import SpaceClient

FORGET_S = 30.0  # TemporaryTimeout of main.conf: a device that was never connected
CONNECT_S = 20.0  # of the kernel
RSSI_DELTA_DB = 8  # by which the signal has to change for BlueZ to say so
FAILED = "org.bluez.Error.Failed"
IN_PROGRESS = "org.bluez.Error.InProgress"
NOT_CONNECTED = "org.bluez.Error.NotConnected"
_ATT_ERROR = "Operation failed with ATT error: 0x{:02x}"


class RemoteDevice:
    """A device object.

    Args:
        objects: where it lives.
        adapter: path of its adapter.
        address: ``AA:BB:CC:DD:EE:FF``.
        space: path of the space's socket.
    """

    def __init__(self, objects: ObjectTree, adapter: str, address: str, space: str) -> None:
        self._objects, self._space = objects, space
        self.address = address
        self.path = f"{adapter}/dev_{address.replace(':', '_')}"
        self.temporary = True
        self.forget_at = 0.0
        self._client: SpaceClient | None = None
        self._connecting = False
        self._subscribers: dict[str, set[str]] = {}  # characteristic's path -> programs
        self._fresh: dict[str, Any] | None = {
            "Address": address,
            "AddressType": "public",
            "Alias": address.replace(":", "-"),
            "Adapter": adapter,
            "Connected": False,
            "Paired": False,
            "Bonded": False,
            "Trusted": False,
            "Blocked": False,
            "LegacyPairing": False,
            "ServicesResolved": False,
            "UUIDs": [],
        }

    # What it advertises

    def record(self, heard: AdvertiserData) -> None:
        """Take in what was heard of it."""
        known = self._fresh or self._objects.properties(self.path)
        assert known is not None
        changed: dict[str, Any] = {}
        if "RSSI" not in known or abs(known["RSSI"] - heard.rssi) >= RSSI_DELTA_DB:
            changed["RSSI"] = heard.rssi
        if heard.name is not None:
            changed["Name"] = changed["Alias"] = heard.name
        if heard.tx_power is not None:
            changed["TxPower"] = heard.tx_power
        if heard.manufacturer_data:
            before = known.get("ManufacturerData", {})
            changed["ManufacturerData"] = before | heard.manufacturer_data
        if heard.service_data:
            changed["ServiceData"] = known.get("ServiceData", {}) | heard.service_data
        changed["UUIDs"] = list(dict.fromkeys([*known["UUIDs"], *heard.uuids]))
        if self._fresh is not None:
            properties, self._fresh = self._fresh | changed, None
            self._objects.add(self.path, DEVICE, properties)
        else:
            self._objects.change(self.path, **changed)

    def end_discovery(self) -> None:
        """Nobody scans any more: signal and power are no longer known."""
        self._objects.change(self.path, "RSSI", "TxPower")

    # Its connection

    @property
    def connected(self) -> bool:
        """Whether there is a connection; it stays when the program that made it has ended."""
        return self._client is not None

    async def connect(self) -> None:
        """Connect, and discover its services.

        Raises:
            CallError: it is being connected to, or was not heard in time.
        """
        if self._connecting:
            raise CallError(IN_PROGRESS, "Operation already in progress")
        if self.connected:
            return
        self.temporary = False
        self._connecting = True
        client = SpaceClient(
            self.address,
            disconnected_callback=self._on_disconnected,
            timeout=CONNECT_S,
            space=self._space,
        )
        try:
            await client.connect(False)
        except (BleakError, TimeoutError) as error:
            raise CallError(FAILED, "le-connection-abort-by-local") from error
        finally:
            self._connecting = False
        self._client = client
        self._objects.change(self.path, Connected=True)
        self._add_attributes(client)
        self._objects.change(self.path, ServicesResolved=True)

    async def disconnect(self) -> None:
        """Disconnect, whoever has connected.

        Raises:
            CallError: there is no connection.
        """
        if self._client is None:
            raise CallError(NOT_CONNECTED, "Not Connected")
        await self._client.disconnect()

    def _on_disconnected(self) -> None:
        self._client = None
        self._subscribers.clear()
        if self._objects.properties(self.path) is not None:
            self._objects.change(self.path, Connected=False, ServicesResolved=False)

    def _add_attributes(self, client: SpaceClient) -> None:
        assert client.services is not None
        for service in client.services:
            path = f"{self.path}/service{service.handle:04x}"
            if self._objects.properties(path) is None:
                known = {"UUID": service.uuid, "Device": self.path, "Primary": True}
                self._objects.add(path, SERVICE, known)
            for characteristic in service.characteristics:
                self._add_characteristic(path, characteristic)

    def _add_characteristic(self, service: str, found: BleakGATTCharacteristic) -> None:
        path = f"{service}/char{found.handle:04x}"
        mtu = found.max_write_without_response_size + 3
        if self._objects.properties(path) is not None:
            self._objects.change(path, MTU=mtu)
            return
        known = {"UUID": found.uuid, "Service": service, "Flags": found.properties, "MTU": mtu}
        self._objects.add(path, CHARACTERISTIC, known | {"Notifying": False})
        for descriptor in found.descriptors:
            below = {"UUID": descriptor.uuid, "Characteristic": path}
            self._objects.add(f"{path}/desc{descriptor.handle:04x}", DESCRIPTOR, below)

    # Its values

    async def read(self, path: str) -> bytes:
        """Read a characteristic or a descriptor."""
        client = self._connected_client()
        return bytes(await self._run(client._read_value(_handle(path))))

    async def write(self, path: str, data: bytes, *, response: bool) -> None:
        """Write a characteristic or a descriptor."""
        client = self._connected_client()
        await self._run(client._write_value(_handle(path), data, response))

    async def start_notify(self, path: str, program: str) -> None:
        """Have the values of a characteristic announced."""
        client = self._connected_client()
        programs = self._subscribers.setdefault(path, set())
        if program in programs:
            raise CallError(IN_PROGRESS, "Operation already in progress")
        if not programs:

            def announce(value: bytearray) -> None:
                self._objects.change(path, Value=bytes(value))

            assert client.services is not None
            characteristic = client.services.get_characteristic(_handle(path))
            assert characteristic is not None
            await self._run(client.start_notify(characteristic, announce))
        programs.add(program)
        self._objects.change(path, Notifying=True)

    async def stop_notify(self, path: str, program: str) -> None:
        """Have them announced to this program no more."""
        client = self._connected_client()
        programs = self._subscribers.get(path, set())
        if program not in programs:
            raise CallError(FAILED, "No notify session started")
        programs.discard(program)
        if not programs:
            assert client.services is not None
            characteristic = client.services.get_characteristic(_handle(path))
            assert characteristic is not None
            await self._run(client.stop_notify(characteristic))
            self._objects.change(path, Notifying=False)

    def _connected_client(self) -> SpaceClient:
        if self._client is None:
            raise CallError(FAILED, "Not connected")
        return self._client

    async def _run(self, procedure: Any) -> Any:
        try:
            return await procedure
        except BleakGATTProtocolError as error:
            raise CallError(FAILED, _ATT_ERROR.format(int(error.code))) from error
        except BleakError as error:
            raise CallError(FAILED, "Not connected") from error


def _handle(path: str) -> int:
    return int(path[-4:], 16)
