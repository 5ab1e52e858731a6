"""Scans for beacons in range, and keeps the newest advertisement of each.

:mod:`beacon_ota.wire.scan` reads the payloads. Nothing is forgotten here by itself. An address is
the name that the operating system has for a device: a Bluetooth address, on macOS a UUID.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from beacon_ota.errors import ReachError, UsageError
from beacon_ota.virtual.radio.selection import RadioSelection
from beacon_ota.wire import adverts, scan

if TYPE_CHECKING:
    from bleak.backends.device import BLEDevice
    from bleak.backends.scanner import AdvertisementData

OPEN_S = 4.0  # of the provisionable frame are remembered: it takes turns with the positioning frame
FAILED, REBOOTING = 0xFE, 0xFF
_UUID16 = "-0000-1000-8000-00805f9b34fb"


@dataclass
class Sighting:
    """One beacon, as its advertisements describe it.

    Attributes:
        device: what bleak connects to.
        rssi: dBm, of the newest packet.
        name: ``BLUFI_…``, as advertised, or as the address implies.
        seen, opened: ``time.monotonic()`` of the newest packet, and of the newest that said it can
            be provisioned.
        packets: how many so far.
        flags, version, progress, suites: as :mod:`beacon_ota.wire.scan` reads them.
        position: UUID, major, minor of the iBeacon frame.
    """

    device: "BLEDevice"
    rssi: int = -127
    name: str = ""
    seen: float = 0.0
    opened: float = field(default=-1e9)
    packets: int = 0
    flags: int | None = None
    version: str = ""
    progress: int | None = None
    suites: int = 0
    position: bytes | None = None

    @property
    def address(self) -> str:
        """What the operating system calls it."""
        return self.device.address

    @property
    def open(self) -> bool:
        """Whether it can be provisioned now."""
        return self.seen - self.opened < OPEN_S

    def has(self, flag: int) -> bool:
        """Whether its status has a flag of :mod:`beacon_ota.wire.adverts`."""
        return bool((self.flags or 0) & flag)

    @property
    def state(self) -> str:
        """One word: what it is doing."""
        if self.progress is not None:
            return {FAILED: "failed", REBOOTING: "rebooting"}.get(self.progress, "updating")
        if self.has(adverts.PRESSED):
            return "button"
        if self.open and self.has(adverts.LOCKED):
            return "locked"
        if self.open:
            return "open" if self.has(adverts.PROVISIONED) else "new"
        return "trial" if self.has(adverts.TRIAL) else "running"

    def as_dict(self) -> dict[str, object]:
        """Return the fields for ``--json``."""
        percent = self.progress if self.progress is not None and self.progress <= 100 else None
        return {
            "name": self.name,
            "address": self.address,
            "rssi": self.rssi,
            "state": self.state,
            "open": self.open,
            "provisioned": self.has(adverts.PROVISIONED) if self.flags is not None else None,
            "trial": self.has(adverts.TRIAL),
            "insecure": self.has(adverts.INSECURE),
            "locked": self.has(adverts.LOCKED),
            "version": self.version or None,
            "progress": percent,
            "position": format_position(self.position) if self.position else None,
        }


def format_position(position: bytes) -> str:
    """Write an iBeacon identity as ``UUID:major:minor``."""
    major, minor = int.from_bytes(position[16:18], "big"), int.from_bytes(position[18:], "big")
    return f"{uuid.UUID(bytes=position[:16])}:{major}:{minor}"


class BeaconScanner:
    """Keeps the newest state of every beacon whose advertisements it is given."""

    def __init__(self) -> None:
        self._devices: dict[str, Sighting] = {}

    def record_advertisement(
        self, device: "BLEDevice", data: "AdvertisementData"
    ) -> Sighting | None:
        """Read one advertisement; returns the beacon, None for other devices."""
        found: dict[str, object] = {}
        for company, payload in data.manufacturer_data.items():
            found |= scan.parse_manufacturer(company, payload)
        for service, payload in data.service_data.items():
            if service.startswith("0000") and service.endswith(_UUID16):
                found |= scan.parse_service_data(int(service[4:8], 16), payload)
        known = self._devices.get(device.address)
        blufi = "suites" in found or (data.local_name or "").startswith("BLUFI_")
        if known is None and not blufi and "flags" not in found:
            return None
        if known is None:
            known = self._devices[device.address] = Sighting(device)
        known.device, known.rssi, known.seen = device, data.rssi, time.monotonic()
        known.packets += 1
        if blufi:
            known.opened = known.seen
            known.suites = int(str(found.get("suites", 0)))
        if "flags" in found:
            known.flags, known.version = int(str(found["flags"])), _printable(str(found["version"]))
        known.progress = found.get("progress")  # type: ignore[assignment]
        if isinstance(position := found.get("ibeacon"), bytes):
            known.position = position
        name = (
            data.local_name
            if blufi and data.local_name
            else known.name or _name_from_address(device)
        )
        known.name = _printable(name)
        return known

    def beacons(self, since: float = 0.0) -> list[Sighting]:
        """Return those heard of after ``since`` (``time.monotonic()``), the nearest first."""
        heard = [one for one in self._devices.values() if one.seen >= since]
        return sorted(heard, key=lambda one: -one.rssi)


def _printable(text: str) -> str:
    """Return received text with everything unprintable replaced by question marks."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _name_from_address(device: "BLEDevice") -> str:
    try:
        return adverts.device_name(bytes.fromhex(device.address.replace(":", ""))).decode()
    except (ValueError, IndexError):
        return device.address  # macOS: the address is not to be had


@asynccontextmanager
async def open_scanner(radio: RadioSelection) -> AsyncIterator[BeaconScanner]:
    """Scan for the length of the block.

    Raises:
        ReachError: ``bluetooth_off``: there is no adapter to scan with.
    """
    from bleak import BleakScanner
    from bleak.exc import BleakError

    watch = BeaconScanner()

    def on_advertisement(device: "BLEDevice", data: "AdvertisementData") -> None:
        watch.record_advertisement(device, data)

    scanner = BleakScanner(on_advertisement, **radio.scanner)
    try:
        await scanner.start()
    except BleakError as error:
        raise ReachError(
            "bluetooth_off",
            f"cannot scan with {radio.name}: {error}. Is Bluetooth on, and may you use it?",
        ) from None
    try:
        yield watch
    finally:
        await scanner.stop()


def matches_name(beacon: Sighting, wanted: str) -> bool:
    """Whether a name, the last digits of one, or an address means this beacon."""
    text = wanted.upper()
    return text in (beacon.name.upper(), beacon.address.upper()) or (
        len(text) >= 4 and beacon.name.upper().endswith(text) and text.isalnum()
    )


async def collect_sightings(radio: RadioSelection, seconds: float) -> list[Sighting]:
    """Return the beacons that are heard of within some seconds, the nearest first."""
    async with open_scanner(radio) as watch:
        await asyncio.sleep(seconds)
        return watch.beacons()


async def find_beacon(
    radio: RadioSelection, wanted: str | None, seconds: float, *, opened: bool = True
) -> Sighting:
    """Return the beacon that is meant, as soon as one of its advertisements is received.

    Args:
        wanted: a name, the last digits of one, or an address; None for the only one that can be
            provisioned.
        seconds: for which to listen at most.
        opened: wait until it can be provisioned.

    Raises:
        ReachError: ``no_beacon``, with the beacons heard instead; ``closed`` when the beacon is in
            range, but cannot be provisioned now.
        UsageError: ``which_beacon`` when several could be meant.
    """
    end = time.monotonic() + seconds
    async with open_scanner(radio) as watch:
        while True:
            heard = watch.beacons()
            meant = [b for b in heard if matches_name(b, wanted)] if wanted else heard
            ready = [b for b in meant if b.open or not opened]
            late = time.monotonic() >= end
            if (wanted and ready) or late:
                break
            await asyncio.sleep(0.05)
    if len(ready) == 1:
        return ready[0]
    names = [f"{b.name} ({b.rssi} dBm, {b.state})" for b in ready or meant or heard]
    if ready:
        raise UsageError(
            "which_beacon", "several beacons could be meant: name one", found=", ".join(names)
        )
    if wanted and meant:
        raise ReachError(
            "closed",
            f"{meant[0].name} is in range, but cannot be provisioned: press its button shortly",
            found=meant[0].state,
        )
    who = f"{wanted} is not in range" if wanted else "no beacon in range can be provisioned"
    raise ReachError(
        "no_beacon",
        f"{who}: go nearer, check its power, press its button",
        found=", ".join(names) or "no beacon at all",
    )
