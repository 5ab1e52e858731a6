"""Indications that wait for their confirmation, with the accounts of esp-nimble."""

import asyncio
import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from beacon_ota.virtual.radio.events import GATTS_INDICATE_DONE, IrqQueue

MAX_PROCEDURES = 4  # of all links; CONFIG_BT_NIMBLE_GATT_MAX_PROCS
TIMEOUT_S = 30.0  # then NimBLE disconnects
STATUS_NOT_CONNECTED = 7  # BLE_HS_ENOTCONN
STATUS_TIMEOUT = 13  # BLE_HS_ETIMEOUT


@dataclass(eq=False)
class _Indication:
    link: Any
    handle: int
    timer: asyncio.TimerHandle | None = None


class Indications:
    """The indications of one beacon that are under way.

    NimBLE sends a second one without waiting for the confirmation of the first. It notes the handle
    of the last one only, so that of two the first confirmation reports one, and the second none.

    Args:
        events: the queue of calls to the handler.
        disconnect: called with a link whose peer does not confirm.
    """

    def __init__(self, events: IrqQueue, disconnect: Callable[[Any], None]) -> None:
        self._irq_queue = events
        self._disconnect = disconnect
        self._sent: list[_Indication] = []
        self._noted: dict[Any, int] = {}  # link -> handle of its last indication

    def check_room(self) -> None:
        """Raise OSError ENOMEM while there are too many."""
        if len(self._sent) >= MAX_PROCEDURES:
            raise OSError(errno.ENOMEM)

    def add(self, link: Any, handle: int) -> None:
        """Note an indication that was sent."""
        sent = _Indication(link, handle)
        loop = asyncio.get_running_loop()
        sent.timer = loop.call_later(TIMEOUT_S, self._expire, sent)
        self._sent.append(sent)
        self._noted[link] = handle

    async def confirm(self, link: Any) -> None:
        """Report the confirmation of the oldest one, in the turn of its packet."""
        found = next((one for one in self._sent if one.link is link), None)
        if found is None:
            return
        self._remove(found)
        if self._noted.get(link) == found.handle:
            del self._noted[link]
            await self._irq_queue.call_in_turn(GATTS_INDICATE_DONE, link.handle, found.handle, 0)

    def fail_all(self, link: Any) -> None:
        """Report that the link of indications has ended."""
        self._noted.pop(link, None)
        for one in [one for one in self._sent if one.link is link]:
            self._remove(one)
            self._irq_queue.post_event(
                GATTS_INDICATE_DONE, link.handle, one.handle, STATUS_NOT_CONNECTED
            )

    def stop_timers(self) -> None:
        """Wait for no confirmation any more."""
        for one in tuple(self._sent):
            self._remove(one)

    def _expire(self, one: _Indication) -> None:
        self._remove(one)
        self._irq_queue.post_event(GATTS_INDICATE_DONE, one.link.handle, one.handle, STATUS_TIMEOUT)
        self._disconnect(one.link)

    def _remove(self, one: _Indication) -> None:
        self._sent.remove(one)
        if one.timer is not None:
            one.timer.cancel()
