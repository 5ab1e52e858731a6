# The one button. Always loaded is only who notices it; services/button_press.py sees the press through.

import asyncio
import time

import machine
from micropython import const
from modules import unload

_BOUNCE = const(50)  # ms
_IDLE = const(1000)  # ms between looks, should an edge be missed
_EARLY = const(10_000)  # ms after the start


class Button:
    def __init__(self, beacon, number):
        self._beacon = beacon
        self._begun = time.ticks_ms()  # None as soon as that is long ago: ticks come round
        self.pressed = False
        self._flag = asyncio.ThreadSafeFlag()
        self._pin = machine.Pin(number, machine.Pin.IN, machine.Pin.PULL_UP)
        self._pin.irq(self._on_edge, machine.Pin.IRQ_FALLING)
        # A pin that is low from the beginning is no button but one that is wired, strapped or
        # emulated so: ten seconds of that must not make the beacon forget everything. (A button
        # that is held when the chip starts never gets here: the chip's loader has it.)
        self._stuck = self.is_down()

    def _on_edge(self, _):
        self._flag.set()

    def is_down(self):
        return self._pin.value() == 0

    def _just_started(self):
        begun = self._begun
        if begun is not None and time.ticks_diff(time.ticks_ms(), begun) >= _EARLY:
            self._begun = None
        return self._begun is not None

    # On the air it shows that the button is being held.
    def set_pressed(self, held):
        self.pressed = held
        self._beacon.advertise_status()

    async def run(self):
        while self._stuck:
            await asyncio.sleep_ms(_IDLE)
            self._stuck = self.is_down()
            self._just_started()
        while True:
            try:
                await asyncio.wait_for_ms(self._flag.wait(), _IDLE)
            except asyncio.TimeoutError:
                pass  # look all the same
            early = self._just_started()
            if not self.is_down():
                continue
            await asyncio.sleep_ms(_BOUNCE)
            if self.is_down():
                from services import button_press

                await button_press.follow_press(self._beacon, self, early)
                button_press = None
                unload("services.button_press")
