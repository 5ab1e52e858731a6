"""Advertising by a beacon: `gap_advertise` and the address mode of the port."""

import errno
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from bumble import hci
from bumble.device import AdvertisingType, LegacyAdvertiser

from beacon_ota.virtual.radio.stack import HostStack

MAX_CONNECTIONS = 4
MAX_ADV_DATA = 31
ADV_UNIT_US = 625
DEFAULT_INTERVALS = {True: 0x30, False: 0xA0}  # of 625 us: connectable, not connectable
INVALID_HCI_PARAMETERS = 0x12


@dataclass(frozen=True)
class Advertising:
    """An advertisement of a beacon.

    Args:
        interval_us: between two events.
        data: AD structures of the advertisement; ``response``: of the scan response.
    """

    interval_us: int
    connectable: bool
    data: bytes
    response: bytes


class GapAdvertiser:
    """The advertising of one beacon, for one activation of its stack.

    Args:
        device: its host stack.
        changed: called when something else is advertised.

    Attributes:
        advertising: the current advertisement, None while there is none.
        own_address_type: of advertisements and scan requests.
    """

    def __init__(self, device: HostStack, changed: Callable[[], None]) -> None:
        self.advertising: Advertising | None = None
        self.own_address_type = hci.OwnAddressType.PUBLIC
        self._device = device
        self._changed = changed
        self._payloads = (b"", b"")
        self._last = (0, False)  # interval in 625 us and connectable, as last begun

    async def set_address_mode(self, mode: int) -> None:
        """Use the public address (mode 0), or a new random one of the kind ``mode``."""
        device = self._device
        if mode == 0:
            self.own_address_type = hci.OwnAddressType.PUBLIC
            return
        raw = bytearray(secrets.token_bytes(6))
        top = {1: 0xC0, 2: 0x40}.get(mode, 0x00)  # static, resolvable, non-resolvable
        raw[5] = raw[5] & 0x3F | top
        device.random_address = hci.Address(bytes(raw), hci.Address.RANDOM_DEVICE_ADDRESS)
        await device.send_sync_command(
            hci.HCI_LE_Set_Random_Address_Command(random_address=device.random_address)
        )
        self.own_address_type = hci.OwnAddressType.RANDOM

    async def start(
        self,
        interval_us: int,
        data: bytes | None,
        response: bytes | None,
        connectable: bool,
    ) -> None:
        """Advertise every ``interval_us`` (rounded down to 625); ``None`` reuses the last payload.

        Raises:
            OSError: -18 for more than 31 bytes of data, EINVAL for so many of a response, and
                outside 20 ms to 10.24 s; ENOMEM connectable with four connections. Advertising has
                stopped then.
        """
        device = self._device
        await self.stop()
        if data is not None:
            if len(data) > MAX_ADV_DATA:
                raise OSError(-INVALID_HCI_PARAMETERS)
            await self._set_data(data)
        if response is not None:
            if len(response) > MAX_ADV_DATA:
                raise OSError(errno.EINVAL)
            self._payloads = (self._payloads[0], response)
            await device.send_sync_command(
                hci.HCI_LE_Set_Scan_Response_Data_Command(scan_response_data=response)
            )
        interval = interval_us // ADV_UNIT_US
        if interval and not 0x20 <= interval <= 0x4000:
            raise OSError(errno.EINVAL)
        self._check_room(connectable)
        await self._begin(interval or DEFAULT_INTERVALS[connectable], connectable)

    async def resume_empty(self) -> None:
        """Advertise again after a connection that failed, as esp-nimble does: without any data.

        It takes the last parameters, and the data of an interface that MicroPython does not use.
        The scan response remains.
        """
        await self.stop()
        await self._set_data(b"")
        interval, connectable = self._last
        self._check_room(connectable)
        await self._begin(interval, connectable)

    def _check_room(self, connectable: bool) -> None:
        if connectable and len(self._device.connections) >= MAX_CONNECTIONS:
            raise OSError(errno.ENOMEM)

    async def _set_data(self, data: bytes) -> None:
        self._payloads = (data, self._payloads[1])
        await self._device.send_sync_command(
            hci.HCI_LE_Set_Advertising_Data_Command(advertising_data=data)
        )

    async def _begin(self, interval: int, connectable: bool) -> None:
        self._last = (interval, connectable)
        await self._device.send_sync_command(
            hci.HCI_LE_Set_Advertising_Parameters_Command(
                advertising_interval_min=interval,
                advertising_interval_max=interval,
                # general discoverable and not connectable is scannable to NimBLE
                advertising_type=0 if connectable else 2,
                own_address_type=self.own_address_type,
                peer_address_type=hci.AddressType.PUBLIC_DEVICE,
                peer_address=hci.Address.ANY,
                advertising_channel_map=7,
                advertising_filter_policy=0,
            )
        )
        await self._enable(True)
        self.advertising = Advertising(interval * ADV_UNIT_US, connectable, *self._payloads)
        self._changed()

    async def stop(self) -> None:
        """Stop advertising, if it runs."""
        if self.advertising is not None:
            await self._enable(False)
            self.end()

    def end(self) -> None:
        """Note that advertising has ended: a connection ends it, too."""
        self.advertising = None
        self._changed()

    def forget(self) -> None:
        """Note that the controller was reset: it advertises nothing, and has no data."""
        self._payloads = (b"", b"")
        self.end()

    async def _enable(self, on: bool) -> None:
        device = self._device
        await device.send_sync_command(
            hci.HCI_LE_Set_Advertising_Enable_Command(advertising_enable=int(on))
        )
        device.legacy_advertiser = (
            LegacyAdvertiser(  # sets the address that bumble uses for a connection
                device=device,
                advertising_type=AdvertisingType.UNDIRECTED_CONNECTABLE_SCANNABLE,
                own_address_type=self.own_address_type,
                peer_address=hci.Address.ANY,
                auto_restart=False,
            )
        )
