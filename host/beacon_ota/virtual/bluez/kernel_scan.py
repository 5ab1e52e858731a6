"""Scanning as Linux does it: one packet of each kind per device and cycle, both in one report.

The controller filters duplicates by address and kind, so that of two frames that take turns one is
reported. The filter is emptied when scanning begins anew, which happens every 10.24 s.
"""

from collections.abc import Callable

from bumble import hci

from beacon_ota.virtual.radio.adapter import SCAN_RSP, AdvertiserData, SpaceAdapter
from beacon_ota.virtual.radio.transport import AdvertisingReport

CYCLE_S = 10.24  # DISCOV_LE_TIMEOUT
_SCANNABLE = (0, 2)  # ADV_IND, ADV_SCAN_IND: a scan response may follow

# Takes what one device has sent: an advertisement, with its scan response when that arrived.
OnFound = Callable[[AdvertiserData], None]


class KernelScan:
    """Scans through an adapter of a space; use it in the event loop of the space."""

    def __init__(self, adapter: SpaceAdapter, on_found: OnFound) -> None:
        self._adapter, self._on_found = adapter, on_found
        self._reported: set[tuple[hci.Address, bool]] = set()
        self._waiting: AdvertisingReport | None = None
        self.running = False

    async def start(self) -> None:
        """Scan, unless it does."""
        if not self.running:
            self.running = True
            self.begin_cycle()
            await self._adapter.start_scan(self._on_report, True)

    async def stop(self) -> None:
        """Stop scanning."""
        if self.running:
            self.running = False
            self._flush()
            await self._adapter.stop_scan(self._on_report)

    def begin_cycle(self) -> None:
        """Begin anew: every device may be reported once more."""
        self._flush()
        self._reported.clear()

    def _on_report(self, report: AdvertisingReport) -> None:
        response = report.kind == SCAN_RSP
        if (report.address, response) in self._reported:
            return
        self._reported.add((report.address, response))
        if response:
            waiting, self._waiting = self._waiting, None
            mine = waiting is not None and waiting.address == report.address
            if waiting is not None and not mine:
                self._report(waiting)
            self._report(waiting if mine else None, report)
        else:
            self._flush()
            if report.kind in _SCANNABLE:
                self._waiting = report
            else:
                self._report(report)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._report(waiting)

    def _report(self, *packets: AdvertisingReport | None) -> None:
        heard = [packet for packet in packets if packet is not None]
        data = AdvertiserData(heard[0].address)
        for packet in heard:
            data.add_report(packet)
        self._on_found(data)
