# The one button. Always loaded is only who notices it; services/held.py sees the press through.

import asyncio
import time

import machine
from lazy import forget
from micropython import const

_BOUNCE = const(50)  # ms
_IDLE = const(1000)  # ms between looks, should an edge be missed


class Button:
    def __init__(self, beacon, number):
        self._beacon = beacon
        self._begun = time.ticks_ms()
        self.held = False
        self._flag = asyncio.ThreadSafeFlag()
        self._pin = machine.Pin(number, machine.Pin.IN, machine.Pin.PULL_UP)
        self._pin.irq(self._edge, machine.Pin.IRQ_FALLING)

    def _edge(self, _):
        self._flag.set()

    def pressed(self):
        return self._pin.value() == 0

    # On the air it shows that the button is being held.
    def show(self, held):
        self.held = held
        self._beacon.announce()

    async def run(self):
        while True:
            try:
                await asyncio.wait_for_ms(self._flag.wait(), _IDLE)
            except asyncio.TimeoutError:
                pass  # look all the same
            if not self.pressed():
                continue
            await asyncio.sleep_ms(_BOUNCE)
            if self.pressed():
                from services import held

                await held.see(self._beacon, self, self._begun)
                held = None
                forget("services.held")
