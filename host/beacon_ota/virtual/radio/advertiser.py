"""Legacy advertising: what a radio of the room sends, and when."""

import asyncio
import math

from beacon_ota.virtual.radio.interfaces import MediumRadio

MAX_EVENT_DELAY_S = 0.010  # advDelay of every event (Core vol 6, part B, 4.4.2.2.1)

TYPES = {0: "ADV_IND", 2: "ADV_SCAN_IND", 3: "ADV_NONCONN_IND"}


class Advertiser:
    """Legacy advertising of one controller: what is sent, and when.

    Advertising events lie ``interval`` apart from the start on. While nobody in the room listens
    there is no timer; :meth:`wake` picks the rhythm up again.
    """

    def __init__(self, controller: MediumRadio) -> None:
        self.controller = controller
        self.adv_type = 0
        self.address = controller.public_address
        self.interval = 0.1
        self.data = b""
        self.response = b""
        self.enabled = False
        self.events = 0
        self._timers = controller.medium.timers
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
        """Begin with an event at once, as a controller does."""
        self.stop()
        self.enabled = True
        self._anchor = self._timers.time()
        if self.controller.medium.has_listeners:
            self._schedule_event(0)

    def stop(self) -> None:
        """End."""
        self.enabled = False
        self.update_timer()

    def update_timer(self) -> None:
        """Run the timer if, and only if, it has something to do."""
        if self.enabled and self.controller.medium.has_listeners:
            if self._timer is None:
                self._schedule_event(self._next_event())
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _next_event(self) -> int:
        """Number of the first event that is still to come."""
        return math.ceil((self._timers.time() - self._anchor) / self.interval)

    def _schedule_event(self, number: int) -> None:
        delay = self.controller.medium.random.random() * MAX_EVENT_DELAY_S
        when = self._anchor + number * self.interval + delay
        self._timer = self._timers.call_at(when, self._send_event, number)

    def _send_event(self, number: int) -> None:
        self._timer = None
        self.events += 1
        self.controller.medium.send_advertisement(self)
        # whoever heard it may have connected, or changed what is advertised
        if self.enabled and self._timer is None and self.controller.medium.has_listeners:
            self._schedule_event(max(number + 1, self._next_event()))
