"""Scans for the advertisements of all beacons, in a thread, during the demonstration."""

import asyncio
import contextlib
import threading

from beacon_ota.provision import scan
from beacon_ota.provision.scan import BeaconScanner
from beacon_ota.provision.sighting import Sighting
from beacon_ota.virtual.radio.selection import RadioSelection

START_S = 10.0


class BeaconListener:
    """Scans in its own thread while the context is open."""

    def __init__(self, radio: RadioSelection):
        self._radio = radio
        self._watch = BeaconScanner()
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run, name="listener", daemon=True)

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._scan())

    async def _scan(self) -> None:
        async with scan.open_scanner(self._radio) as self._watch:
            self._begun.set()
            await self._end.wait()

    def newest_sightings(self) -> dict[str, Sighting]:
        """Return the newest sighting of each beacon, by Bluetooth address."""
        return {one.address.upper(): one for one in self._watch.beacons()}

    def __enter__(self) -> "BeaconListener":
        self._thread.start()
        self._begun.wait(START_S)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(START_S)
