"""Scans for beacons in range.

However many tasks of a program look for beacons, there is one scanner (:class:`BeaconFinder`):
BlueZ refuses a second one. With a real adapter the scan begins anew every few seconds, because a
system may report a beacon once per scan: each beacon in range is then reported every few seconds,
with the frame that it sends at that moment, a beacon that is not reported is not in range, and an
adapter that was switched off is noticed.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from beacon_ota.errors import ReachError, UsageError
from beacon_ota.provision.radio_errors import bluetooth_error, is_busy, radio_failures
from beacon_ota.provision.sighting import BeaconTable, Sighting
from beacon_ota.virtual.radio.selection import RadioSelection

if TYPE_CHECKING:
    from bleak import BleakScanner
    from bleak.backends.device import BLEDevice
    from bleak.backends.scanner import AdvertisementData

RENEW_S = 4.0  # after which a scan begins anew; BlueZ's own cycle is 10.24 s
BUSY_S = 12.0  # for which a busy adapter is waited for
BUSY_PAUSE_S = 0.5
LOOK_S = 0.05  # between looks at what was heard


class BeaconScanner(BeaconTable):
    """The beacons that a running scan has heard."""

    def __init__(self, *, remembered: bool = False) -> None:
        super().__init__(remembered=remembered)
        self.failure: ReachError | None = None  # the scan has ended by itself

    def check(self) -> None:
        """Raise the error that has ended the scan, if there is one."""
        if self.failure is not None:
            raise self.failure

    async def wait(self, seconds: float) -> None:
        """Let some seconds pass.

        Raises:
            ReachError: ``bluetooth_off``: the scan has ended meanwhile.
        """
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check()
            await asyncio.sleep(min(left, LOOK_S))
        self.check()


@asynccontextmanager
async def open_scanner(radio: RadioSelection) -> AsyncIterator[BeaconScanner]:
    """Scan for the length of the block.

    Raises:
        ReachError: ``bluetooth_off`` or ``bluetooth_busy``: there is no adapter to scan with.
    """
    from bleak import BleakScanner

    heard = BeaconScanner(remembered=radio.remembers)

    def on_advertisement(device: "BLEDevice", data: "AdvertisementData") -> None:
        heard.record_advertisement(device, data)

    try:
        scanner = BleakScanner(on_advertisement, **radio.scanner)
        await _start_scan(scanner)
    except radio_failures() as error:
        raise bluetooth_error(radio, error, "scanning") from None
    ending = asyncio.Event()
    renewal = asyncio.ensure_future(_renew_scan(scanner, heard, radio, ending))
    try:
        yield heard
    finally:
        # Not cancelled: a call of BlueZ that was sent has to be answered, or the scan goes on.
        ending.set()
        await renewal
        # What was heard counts, whatever becomes of the scanner.
        with contextlib.suppress(*radio_failures()):
            await scanner.stop()


async def _start_scan(scanner: "BleakScanner") -> None:
    """Start to scan, as soon as an adapter that is busy is free.

    Linux is, until the end of a cycle, when the program or the daemon that scanned was killed.
    """
    end = time.monotonic() + BUSY_S
    while True:
        try:
            await scanner.start()
            return
        except radio_failures() as error:
            if not is_busy(error) or time.monotonic() > end:
                raise
        await asyncio.sleep(BUSY_PAUSE_S)


async def _renew_scan(
    scanner: "BleakScanner", heard: BeaconScanner, radio: RadioSelection, ending: asyncio.Event
) -> None:
    """Begin the scan anew every few seconds, where that is necessary, until ``ending`` is set."""
    while radio.renews:
        try:
            async with asyncio.timeout(RENEW_S):
                await ending.wait()
                return
        except TimeoutError:
            pass
        with contextlib.suppress(*radio_failures()):
            await scanner.stop()
        try:
            await _start_scan(scanner)
        except radio_failures() as error:
            heard.failure = bluetooth_error(radio, error, "scanning")
            return


class BeaconFinder:
    """Looks for beacons; all who look at the same time share one scanner.

    Args:
        radio: which adapter or room.
    """

    def __init__(self, radio: RadioSelection) -> None:
        self.radio = radio
        self._change = asyncio.Lock()
        self._users = 0
        self._stack = contextlib.AsyncExitStack()
        self._scanner = BeaconScanner()

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[BeaconScanner]:
        """Scan for the length of the block.

        Raises:
            ReachError: as :func:`open_scanner`.
        """
        async with self._change:
            if not self._users:
                self._scanner = await self._stack.enter_async_context(open_scanner(self.radio))
            self._users += 1
        try:
            yield self._scanner
        finally:
            async with self._change:
                self._users -= 1
                if not self._users:
                    await self._stack.aclose()

    async def find(self, wanted: str | None, seconds: float, *, opened: bool = True) -> Sighting:
        """Return the beacon that is meant, as soon as one of its advertisements is received.

        Args:
            wanted: a name, the last digits of one, or an address; None for the only one that can
                be provisioned.
            seconds: for which to listen at most.
            opened: wait until it can be provisioned.

        Raises:
            ReachError: ``no_beacon``, with the beacons heard instead; ``closed`` when the beacon
                is in range, but cannot be provisioned now; ``bluetooth_off``, ``bluetooth_busy``.
            UsageError: ``which_beacon`` when several could be meant.
        """
        async with self.listen() as scanner:
            begun = time.monotonic()
            while True:
                scanner.check()
                heard = scanner.beacons(begun)
                meant = [b for b in heard if matches_name(b, wanted)] if wanted else heard
                # The proof of the PIN has the name in it, which macOS knows by one frame only.
                ready = [b for b in meant if (b.open and b.named) or not opened]
                late = time.monotonic() >= begun + seconds
                if (wanted and ready) or late:
                    break
                await asyncio.sleep(LOOK_S)
        if wanted and not ready:
            ready = [b for b in meant if b.maybe_open and b.named]  # it says so itself
        if len(ready) == 1:
            return ready[0]
        if ready:
            raise UsageError(
                "which_beacon",
                "several beacons could be meant: name one",
                found=_describe(ready),
            )
        raise _not_found_error(wanted, meant, heard, scanner)


def _describe(beacons: list[Sighting]) -> str:
    return ", ".join(f"{b.name} ({format_rssi(b.rssi)}, {b.state})" for b in beacons)


def format_rssi(rssi: int | None) -> str:
    """Write a signal strength for people."""
    return "signal unknown" if rssi is None else f"{rssi} dBm"


def _not_found_error(
    wanted: str | None, meant: list[Sighting], heard: list[Sighting], scanner: BeaconScanner
) -> ReachError:
    if wanted and meant and meant[0].open:
        return ReachError(
            "no_beacon",
            f"{meant[0].address} has not said its name, which is part of the proof: try again",
            found=_describe(meant),
        )
    if wanted and meant:
        return ReachError(
            "closed",
            f"{meant[0].name} is in range, but cannot be provisioned: press its button briefly",
            found=meant[0].state,
        )
    who = f"{wanted} is not in range" if wanted else "no beacon in range can be provisioned"
    if not scanner.reports:
        return ReachError(
            "no_beacon",
            f"{who}, and no other Bluetooth device was heard: go nearer; is Bluetooth on?",
            found="no device at all",
        )
    return ReachError(
        "no_beacon",
        f"{who}: go nearer, check its power, press its button",
        found=_describe(meant or heard) or "no beacon at all",
    )


def matches_name(beacon: Sighting, wanted: str) -> bool:
    """Whether a name, the last digits of one, or an address means this beacon."""
    text = wanted.upper()
    return text in (beacon.name.upper(), beacon.address.upper()) or (
        len(text) >= 4 and beacon.name.upper().endswith(text) and text.isalnum()
    )


async def hear_beacons(radio: RadioSelection, seconds: float) -> BeaconScanner:
    """Scan for some seconds; return what was heard.

    Raises:
        ReachError: ``bluetooth_off``, ``bluetooth_busy``; also when that happens on the way.
    """
    async with open_scanner(radio) as heard:
        await heard.wait(seconds)
        return heard


async def collect_sightings(radio: RadioSelection, seconds: float) -> list[Sighting]:
    """Return the beacons of :func:`hear_beacons`, the nearest first."""
    return (await hear_beacons(radio, seconds)).beacons()


async def find_beacon(
    radio: RadioSelection, wanted: str | None, seconds: float, *, opened: bool = True
) -> Sighting:
    """Return the beacon that is meant; see :meth:`BeaconFinder.find`."""
    return await BeaconFinder(radio).find(wanted, seconds, opened=opened)
