"""bleak backends for a radio space: plain bleak code reaches virtual beacons as it does real ones.

    BleakScanner(backend=SpaceScanner, space=path)
    BleakClient(device, backend=SpaceClient, space=path)

`space` is the path of the socket of the space; :func:`.selection.select_radio` makes
these arguments from the value of ``--radio``.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from bleak.args import SizedBuffer
from bleak.assigned_numbers import gatt_char_props_to_strs
from bleak.backends.characteristic import BleakGATTCharacteristic
from bleak.backends.client import BaseBleakClient, NotifyCallback
from bleak.backends.descriptor import BleakGATTDescriptor
from bleak.backends.device import BLEDevice
from bleak.backends.scanner import (
    AdvertisementData,
    AdvertisementDataCallback,
    BaseBleakScanner,
)
from bleak.backends.service import BleakGATTService, BleakGATTServiceCollection
from bleak.exc import (
    BleakBluetoothNotAvailableError,
    BleakBluetoothNotAvailableReason,
    BleakDeviceNotFoundError,
    BleakError,
    BleakGATTProtocolError,
)
from bumble import hci
from bumble.att import ATT_DEFAULT_MTU, ATT_Error
from bumble.core import BaseBumbleError
from bumble.device import Connection

from beacon_ota.errors import ReachError
from beacon_ota.virtual.radio.adapter import AdvertiserData, SpaceAdapter, format_uuid
from beacon_ota.virtual.radio.transport import AdvertisingReport

BLUEZ_MTU = 517  # MTU that BlueZ requests
INTERVAL_MS = 15.0
MAX_VALUE = 512
COMMANDS_PENDING_MAX = 24

T = TypeVar("T")


async def _acquire_adapter(path: str) -> SpaceAdapter:
    try:
        return await SpaceAdapter.acquire(path)
    except ReachError as error:
        reason = BleakBluetoothNotAvailableReason.NO_BLUETOOTH
        raise BleakBluetoothNotAvailableError(error.message, reason) from error


class SpaceScanner(BaseBleakScanner):
    """A scanner in a radio space.

    Args:
        space: path of the socket of the space.
    """

    def __init__(
        self,
        detection_callback: AdvertisementDataCallback | None,
        service_uuids: list[str] | None,
        scanning_mode: str,
        *,
        space: str,
        **kwargs: Any,
    ) -> None:
        super().__init__(detection_callback, service_uuids)
        self._active = scanning_mode == "active"
        self._path = space
        self._adapter: SpaceAdapter | None = None
        self._sightings: dict[hci.Address, AdvertiserData] = {}

    async def start(self) -> None:
        if self._adapter is not None:
            raise BleakError("Scanner is already started")
        self.seen_devices = {}
        self._sightings = {}
        self._adapter = await _acquire_adapter(self._path)
        await self._adapter.start_scan(self._on_report, self._active)

    async def stop(self) -> None:
        adapter, self._adapter = self._adapter, None
        if adapter is not None:
            await adapter.stop_scan(self._on_report)
            adapter.release()

    def _on_report(self, report: AdvertisingReport) -> None:
        sighting = self._sightings.setdefault(report.address, AdvertiserData(report.address))
        sighting.add_report(report)
        if not self.is_allowed_uuid(sighting.uuids):
            return
        address = report.address.to_string(False)
        data = AdvertisementData(
            local_name=sighting.name,
            manufacturer_data=sighting.manufacturer_data,
            service_data=sighting.service_data,
            service_uuids=sighting.uuids,
            tx_power=sighting.tx_power,
            rssi=sighting.rssi,
            platform_data=(report,),
        )
        details = {"address": report.address, "space": self._path}
        name = sighting.name or address.replace(":", "-")
        device = self.create_or_update_device(address, address, name, details, data)
        self.call_detection_callbacks(device, data)


class SpaceClient(BaseBleakClient):
    """A GATT client in a radio space.

    Args:
        space: path of the socket of the space; a device that a :class:`SpaceScanner` found has it.
        mtu: to request; 23 requests none.
    """

    def __init__(
        self,
        address_or_ble_device: BLEDevice | str,
        services: set[str] | None = None,
        *,
        disconnected_callback: Callable[[], None] | None,
        timeout: float,
        space: str | None = None,
        mtu: int = BLUEZ_MTU,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            address_or_ble_device,
            disconnected_callback=disconnected_callback,
            timeout=timeout,
        )
        self._peer: hci.Address | None = None
        if isinstance(address_or_ble_device, BLEDevice):
            self._peer = address_or_ble_device.details["address"]
            self._name = address_or_ble_device.name
            space = space or address_or_ble_device.details["space"]
        else:
            self._name = None
        if space is None:
            raise BleakError("A client needs the path of its radio space.")
        self._path = space
        self._service_filter = services
        self._mtu = mtu
        self._adapter: SpaceAdapter | None = None
        self._connection: Connection | None = None
        self._gone = asyncio.Event()
        self._subscribers: dict[int, Callable[[bytes], None]] = {}

    # Connecting

    @property
    def name(self) -> str:
        return self._name or self.address.replace(":", "-")

    @property
    def mtu_size(self) -> int:
        return self._connection.att_mtu if self._connection else ATT_DEFAULT_MTU

    @property
    def is_connected(self) -> bool:
        return self._connection is not None and not self._gone.is_set()

    async def connect(self, pair: bool, **kwargs: Any) -> None:
        if self.is_connected:
            raise BleakError("Client is already connected")
        timeout = kwargs.get("timeout", self._timeout)
        self._adapter = await _acquire_adapter(self._path)
        try:
            async with asyncio.timeout(timeout):
                if self._peer is None:
                    self._peer = await self._adapter.find_advertiser(self.address, timeout * 0.9)
                if self._peer is None:
                    raise BleakDeviceNotFoundError(
                        self.address, f"Device with address {self.address} was not found."
                    )
                self._gone = asyncio.Event()
                self._connection = await self._adapter.connect(self._peer, INTERVAL_MS, timeout)
                self._connection.on(Connection.EVENT_DISCONNECTION, self._on_disconnection)
                if self._mtu > ATT_DEFAULT_MTU:
                    await self._run_procedure(self._connection.gatt_client.request_mtu(self._mtu))
                if pair:
                    await self.pair()
                self.services = await self._run_procedure(self._discover_services(self._connection))
        except BaseException:
            await self._end_connection()
            raise

    async def disconnect(self) -> None:
        await self._end_connection()

    async def _end_connection(self) -> None:
        connection, adapter = self._connection, self._adapter
        if connection is not None and not self._gone.is_set() and adapter and not adapter.lost:
            try:
                async with asyncio.timeout(5):
                    await connection.disconnect()
            except (TimeoutError, BaseBumbleError):
                pass  # it has ended by itself
        self._release_adapter()

    def _release_adapter(self) -> None:
        adapter, self._adapter = self._adapter, None
        if adapter is not None:
            adapter.release()

    def _on_disconnection(self, reason: int) -> None:
        self._gone.set()
        self._release_adapter()
        self.services = None
        self._subscribers.clear()
        if self._disconnected_callback is not None:
            self._disconnected_callback()

    async def pair(self, *args: Any, **kwargs: Any) -> None:
        if self._connection is None:
            raise BleakError("Not connected")
        await self._run_procedure(self._connection.pair())

    async def unpair(self) -> None:
        raise BleakError("Virtual beacons keep no pairing.")

    async def _run_procedure(self, operation: Awaitable[T]) -> T:
        """Run one ATT procedure; the end of the connection ends it, too."""
        task = asyncio.ensure_future(operation)
        if not self.is_connected:
            task.cancel()
            raise BleakError("Not connected")
        ending = asyncio.ensure_future(self._gone.wait())
        try:
            await asyncio.wait((task, ending), return_when=asyncio.FIRST_COMPLETED)
            if not task.done() or task.cancelled():
                raise BleakError("disconnected")
            return task.result()
        except ATT_Error as error:
            raise BleakGATTProtocolError(error.error_code) from error
        except BaseBumbleError as error:
            raise BleakError(str(error)) from error
        finally:
            task.cancel()
            ending.cancel()

    # Services

    async def _discover_services(self, connection: Connection) -> BleakGATTServiceCollection:
        collection = BleakGATTServiceCollection()
        client = connection.gatt_client
        for service in await client.discover_services():
            uuid = format_uuid(service.uuid.to_bytes())
            if self._service_filter is not None and uuid not in self._service_filter:
                continue
            parent = BleakGATTService(service, service.handle, uuid)
            collection.add_service(parent)
            for characteristic in await client.discover_characteristics([], service):
                child = BleakGATTCharacteristic(
                    characteristic,
                    characteristic.handle,
                    format_uuid(characteristic.uuid.to_bytes()),
                    list(gatt_char_props_to_strs(int(characteristic.properties))),
                    lambda: connection.att_mtu - 3,
                    parent,
                )
                collection.add_characteristic(child)
                for descriptor in await client.discover_descriptors(characteristic):
                    text = format_uuid(descriptor.type.to_bytes())
                    collection.add_descriptor(
                        BleakGATTDescriptor(descriptor, descriptor.handle, text, child)
                    )
        return collection

    # Values

    async def read_gatt_char(
        self, characteristic: BleakGATTCharacteristic, *, use_cached: bool = False, **kwargs: Any
    ) -> bytearray:
        return await self._read_value(characteristic.handle)

    async def read_gatt_descriptor(
        self, descriptor: BleakGATTDescriptor, *, use_cached: bool = False, **kwargs: Any
    ) -> bytearray:
        return await self._read_value(descriptor.handle)

    async def _read_value(self, handle: int) -> bytearray:
        client = self._gatt_client()
        return bytearray(await self._run_procedure(client.read_value(handle)))

    async def write_gatt_char(
        self, characteristic: BleakGATTCharacteristic, data: SizedBuffer, response: bool
    ) -> None:
        await self._write_value(characteristic.handle, bytes(data), response)

    async def write_gatt_descriptor(
        self, descriptor: BleakGATTDescriptor, data: SizedBuffer
    ) -> None:
        await self._write_value(descriptor.handle, bytes(data), True)

    async def _write_value(self, handle: int, data: bytes, response: bool) -> None:
        client = self._gatt_client()
        limit = MAX_VALUE if response else min(self.mtu_size - 3, MAX_VALUE)
        if len(data) > limit:
            raise BleakError(f"{len(data)} bytes are too many; this write takes {limit}.")
        await self._run_procedure(client.write_value(handle, data, with_response=response))
        queue = client.connection.data_packet_queue
        if not response and queue is not None and queue.pending > COMMANDS_PENDING_MAX:
            await self._run_procedure(client.connection.drain())

    def _gatt_client(self) -> Any:
        if self._connection is None or self._gone.is_set():
            raise BleakError("Not connected")
        return self._connection.gatt_client

    async def start_notify(
        self, characteristic: BleakGATTCharacteristic, callback: NotifyCallback, **kwargs: Any
    ) -> None:
        def subscriber(value: bytes) -> None:
            callback(bytearray(value))

        if characteristic.handle in self._subscribers:
            raise BleakError("Characteristic notifications already started")
        self._subscribers[characteristic.handle] = subscriber
        try:
            await self._run_procedure(self._gatt_client().subscribe(characteristic.obj, subscriber))
        except BaseException:
            self._subscribers.pop(characteristic.handle, None)
            raise

    async def stop_notify(self, characteristic: BleakGATTCharacteristic) -> None:
        subscriber = self._subscribers.pop(characteristic.handle, None)
        if subscriber is not None:
            await self._run_procedure(
                self._gatt_client().unsubscribe(characteristic.obj, subscriber)
            )
