"""Legacy advertising: what a radio of the room sends, and when."""

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from beacon_ota.virtual.radio.controller import RoomController

MAX_EVENT_DELAY_S = 0.010  # advDelay of every event (Core vol 6, part B, 4.4.2.2.1)

TYPES = {0: "ADV_IND", 2: "ADV_SCAN_IND", 3: "ADV_NONCONN_IND"}


class Advertiser:
    """Legacy advertising of one controller: what is sent, and when.

    Advertising events lie ``interval`` apart from the start on. While nobody in the room listens
    there is no timer; :meth:`wake` picks the rhythm up again.
    """

    def __init__(self, controller: "RoomController") -> None:
        self.controller = controller
        self.adv_type = 0
        self.address = controller.public_address
        self.interval = 0.1
        self.data = b""
        self.response = b""
        self.enabled = False
        self.events = 0
        self._loop = asyncio.get_running_loop()
        self._anchor = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def kind(self) -> str:
        return TYPES[self.adv_type]

    @property
    def connectable(self) -> bool:
        return self.adv_type == 0

    @property
    def scannable(self) -> bool:
        return self.adv_type in (0, 2)

    def start(self) -> None:
        self.stop()
        self.enabled = True
        self._anchor = self._loop.time()
        self.wake()

    def stop(self) -> None:
        self.enabled = False
        self.wake()

    def wake(self) -> None:
        """Run the timer if, and only if, it has something to do."""
        if self.enabled and self.controller.air.heard:
            if self._timer is None:
                self._schedule()
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self) -> None:
        now = self._loop.time()
        passed = int((now - self._anchor) / self.interval) + 1 if now > self._anchor else 0
        delay = self.controller.air.random.random() * MAX_EVENT_DELAY_S
        when = self._anchor + passed * self.interval + delay
        self._timer = self._loop.call_at(when, self._event)

    def _event(self) -> None:
        self._timer = None
        self.events += 1
        self.controller.air.advertise(self)
        if self.enabled:
            self.wake()
