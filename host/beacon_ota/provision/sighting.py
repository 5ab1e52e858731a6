"""What the advertisements of one beacon say, as far as the operating system hands them on.

BlueZ and CoreBluetooth hand on what they remember, not what a packet held: a name, service data and
manufacturer data stay when a beacon stops sending them, and of two frames that take turns one may
never be seen. What a beacon does is therefore read from the status flags, which are in every scan
response; what is missing says nothing.

Beacons of before these flags (OPEN, UPDATING) are still understood: from plain packets as they
were then, from remembered ones as far as that can be told (:attr:`Sighting.open`,
:attr:`Sighting.updating`).
"""

import asyncio
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from beacon_ota.wire import adverts, scan

if TYPE_CHECKING:
    from bleak.backends.device import BLEDevice
    from bleak.backends.scanner import AdvertisementData

TURNS_S = 4.0  # for which a frame counts as sent: it takes turns with the positioning frame
NEWS_S = 30.0  # for which a progress counts that was seen to change
NO_RSSI = -127  # of bleak, in a report that no packet has caused
PREFIX = "BLUFI_"
FAILED, REBOOTING = 0xFE, 0xFF
_NEVER = -1e9
_UUID16 = "-0000-1000-8000-00805f9b34fb"
_NEW_FLAGS = adverts.OPEN | adverts.UPDATING


@dataclass
class Sighting:
    """One beacon, as its advertisements describe it.

    Attributes:
        device: what bleak connects to; it belongs to the event loop ``loop``.
        remembered: reports hold what the system remembers.
        rssi: dBm, of the newest report; None when it is not known.
        name: ``BLUFI_…``, as advertised, or as the address implies; else the address.
        named: whether ``name`` is the beacon's own: it is part of the proof of the PIN.
        seen, offered: ``time.monotonic()`` of the newest report, and of the newest that held the
            provisionable frame.
        reports: how many so far.
        flags, version, progress, suites: as :mod:`beacon_ota.wire.scan` reads them.
        progress_news: ``time.monotonic()`` of when the progress was seen to change.
        tells: it has had OPEN or UPDATING in its flags, so that their absence counts.
        position: UUID, major, minor of the iBeacon frame.
    """

    device: "BLEDevice"
    remembered: bool = False
    loop: asyncio.AbstractEventLoop | None = None
    rssi: int | None = None
    name: str = ""
    named: bool = False
    seen: float = 0.0
    offered: float = field(default=_NEVER)
    reports: int = 0
    flags: int | None = None
    version: str = ""
    progress: int | None = None
    progress_news: float = field(default=_NEVER)
    suites: int = 0
    tells: bool = False
    position: bytes | None = None

    @property
    def address(self) -> str:
        """What the operating system calls it: a Bluetooth address, on macOS a UUID of its own."""
        return self.device.address

    @property
    def open(self) -> bool:
        """Whether it can be provisioned now.

        Without the flag OPEN: a beacon of before the flag is open while it sends the provisionable
        frame. In remembered reports that frame may be an old one; then it counts while the beacon
        is not provisioned, because such a beacon is open anyway.
        """
        if self.has(adverts.OPEN):
            return True
        if self.tells:
            return False
        if self.remembered:
            return self.offered > _NEVER and not self.has(adverts.PROVISIONED)
        return self.seen - self.offered < TURNS_S

    @property
    def maybe_open(self) -> bool:
        """Whether only the beacon itself can say whether it is open: one of before the flags."""
        return self.remembered and not self.tells and self.offered > _NEVER

    @property
    def updating(self) -> int | None:
        """The progress of an update that goes on, or has just ended; None without one.

        Without the flag UPDATING: the progress of a beacon of before the flag counts in plain
        packets. In remembered ones it counts for a while after it was seen to change.
        """
        if self.has(adverts.UPDATING) or not (self.tells or self.remembered):
            return self.progress
        news = not self.tells and self.seen - self.progress_news < NEWS_S
        return self.progress if news else None

    def has(self, flag: int) -> bool:
        """Whether its status has a flag of :mod:`beacon_ota.wire.adverts`."""
        return bool((self.flags or 0) & flag)

    @property
    def state(self) -> str:
        """One word: what it is doing."""
        if (progress := self.updating) is not None:
            return {FAILED: "failed", REBOOTING: "rebooting"}.get(progress, "updating")
        if self.has(adverts.PRESSED):
            return "button"
        if self.open and self.has(adverts.LOCKED):
            return "locked"
        if self.open:
            return "open" if self.has(adverts.PROVISIONED) else "new"
        return "trial" if self.has(adverts.TRIAL) else "running"

    def as_dict(self) -> dict[str, object]:
        """Return the fields for ``--json``."""
        progress = self.updating
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
            "progress": progress if progress is not None and progress <= 100 else None,
            "position": format_position(self.position) if self.position else None,
        }


def format_position(position: bytes) -> str:
    """Write an iBeacon identity as ``UUID:major:minor``."""
    major, minor = int.from_bytes(position[16:18], "big"), int.from_bytes(position[18:], "big")
    return f"{uuid.UUID(bytes=position[:16])}:{major}:{minor}"


class BeaconTable:
    """Keeps the newest state of every beacon whose advertisements it is given.

    Args:
        remembered: the reports hold what the system remembers
            (:attr:`~beacon_ota.virtual.radio.selection.RadioSelection.remembers`).
    """

    def __init__(self, *, remembered: bool = False) -> None:
        self._remembered = remembered
        self._sightings: dict[str, Sighting] = {}
        self.reports = 0  # of any device

    def record_advertisement(
        self, device: "BLEDevice", data: "AdvertisementData"
    ) -> Sighting | None:
        """Read one report; returns the beacon, None for other devices and for no packet at all."""
        if data.rssi == NO_RSSI:  # a property of the device has changed; it was not heard
            return None
        self.reports += 1
        found: dict[str, object] = {}
        for company, payload in data.manufacturer_data.items():
            found |= scan.parse_manufacturer(company, payload)
        for service, payload in data.service_data.items():
            if service.startswith("0000") and service.endswith(_UUID16):
                found |= scan.parse_service_data(int(service[4:8], 16), payload)
        known = self._sightings.get(device.address)
        offers = "suites" in found or (data.local_name or "").startswith(PREFIX)
        if known is None and not offers and "flags" not in found:
            return None
        if known is None:
            known = Sighting(device, self._remembered)
            self._sightings[device.address] = known
        known.device, known.rssi, known.seen = device, data.rssi, time.monotonic()
        known.loop = asyncio._get_running_loop()
        known.reports += 1
        if offers:
            known.offered = known.seen
            known.suites = int(str(found.get("suites", 0)))
        if "flags" in found:
            known.flags, known.version = int(str(found["flags"])), _printable(str(found["version"]))
            known.tells = known.tells or known.has(_NEW_FLAGS)
        progress = found.get("progress")
        if known.reports > 1 and progress not in (None, known.progress):
            known.progress_news = known.seen
        known.progress = progress  # type: ignore[assignment]
        if isinstance(position := found.get("ibeacon"), bytes):
            known.position = position
        _set_name(known, data.local_name if offers else None)
        return known

    def beacons(self, since: float = 0.0) -> list[Sighting]:
        """Return those heard of after ``since`` (``time.monotonic()``), the nearest first."""
        heard = [one for one in self._sightings.values() if one.seen >= since]
        return sorted(heard, key=lambda one: -(NO_RSSI if one.rssi is None else one.rssi))


def _set_name(known: Sighting, advertised: str | None) -> None:
    """Set the name: as advertised, as the address implies, or as the system has cached it."""
    cached = known.device.name or ""
    if advertised:
        known.name, known.named = _printable(advertised), True
    elif not known.named:
        try:
            address = bytes.fromhex(known.device.address.replace(":", ""))
            known.name, known.named = adverts.device_name(address).decode(), True
        except (ValueError, IndexError):  # macOS: the address is not to be had
            known.named = cached.startswith(PREFIX)
            known.name = _printable(cached) if known.named else known.device.address


def _printable(text: str) -> str:
    """Return received text with everything unprintable replaced by question marks."""
    return "".join(c if c.isprintable() else "?" for c in text)
