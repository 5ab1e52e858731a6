# Notices that the button is pressed; services/button_press.py is loaded to follow the press.

import asyncio
import time

import machine
from micropython import const
from modules import call

_BOUNCE = const(50)  # ms
_IDLE = const(1000)  # ms between checks, in case an edge was missed
_EARLY = const(10_000)  # ms after the start in which a press counts as early


class Button:
    def __init__(self, beacon, number):
        self._beacon = beacon
        self._begun = time.ticks_ms()  # None after _EARLY: ticks wrap around
        self.pressed = False
        self._flag = asyncio.ThreadSafeFlag()
        self._pin = machine.Pin(number, machine.Pin.IN, machine.Pin.PULL_UP)
        self._pin.irq(self._on_edge, machine.Pin.IRQ_FALLING)
        # A pin that is low from the beginning is not a pressed button but a board (or emulator)
        # that holds it low: ten seconds of that must not erase everything. (With a button held
        # while the chip starts, the chip's own loader runs instead.)
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

    # Advertises whether the button is pressed.
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
                pass  # check the pin all the same
            early = self._just_started()
            if not self.is_down():
                continue
            await asyncio.sleep_ms(_BOUNCE)
            if self.is_down():
                await call("services.button_press", "run", self._beacon, self, early)
