"""Scanning by a beacon: `gap_scan` of the port."""

import asyncio
import errno

from bumble import hci
from bumble.device import Device

from beacon_ota.virtual.radio.events import SCAN_DONE, SCAN_RESULT, IrqQueue
from beacon_ota.virtual.radio.transport import AdvertisingReport, RadioHost

SCAN_UNIT_US = 625
BACKLOG = 16  # results that wait for the handler; more are missed


class ScanObserver:
    """The scanner of one beacon, for one activation of its stack.

    Args:
        device: its host stack.
        events: tells the beacon's code.
    """

    def __init__(self, device: Device, events: IrqQueue) -> None:
        self._device = device
        self._irq_queue = events
        self._task: asyncio.Task[None] | None = None
        self._queued = 0
        host = device.host
        assert isinstance(host, RadioHost)
        host.on_report = self._on_report

    @property
    def active(self) -> bool:
        return self._task is not None

    async def start(
        self,
        duration_ms: int,
        interval_us: int,
        window_us: int,
        active: bool,
        own_address_type: int,
    ) -> None:
        """Scan for ``duration_ms`` (0: until stopped); results and the end come as events.

        Raises:
            OSError: EALREADY.
        """
        if self._task is not None:
            raise OSError(errno.EALREADY)
        interval = max(4, min(0x4000, interval_us // SCAN_UNIT_US))
        window = max(4, min(interval, window_us // SCAN_UNIT_US))
        await self._device.send_sync_command(
            hci.HCI_LE_Set_Scan_Parameters_Command(
                le_scan_type=int(active),
                le_scan_interval=interval,
                le_scan_window=window,
                own_address_type=own_address_type,
                scanning_filter_policy=0,
            )
        )
        await self._enable_scan(True)
        self._task = self._irq_queue.spawn_task(self._end_after(duration_ms))

    async def _end_after(self, duration_ms: int) -> None:
        if duration_ms == 0:
            await asyncio.Event().wait()  # until it is cancelled
        await asyncio.sleep(duration_ms / 1000)
        await self.stop()

    async def stop(self) -> None:
        """Stop scanning, if it runs."""
        task, self._task = self._task, None
        if task is None:
            return
        await self._enable_scan(False)
        self._irq_queue.post_event(SCAN_DONE)
        if task is not asyncio.current_task():
            task.cancel()

    async def _enable_scan(self, on: bool) -> None:
        await self._device.send_sync_command(
            hci.HCI_LE_Set_Scan_Enable_Command(le_scan_enable=int(on), filter_duplicates=0)
        )

    def _on_report(self, report: AdvertisingReport) -> None:
        if self._task is None or self._queued >= BACKLOG:
            return

        def taken() -> None:
            self._queued -= 1

        self._queued += 1
        address = bytes(report.address)[::-1]
        random = int(not report.address.is_public)
        self._irq_queue.post_event(
            SCAN_RESULT, random, address, report.kind, report.rssi, report.data, before=taken
        )
