# Follows a press of the button to its end. A short press opens provisioning, ten seconds erase what
# was provisioned, and one second within ten seconds of power-on unlocks the PIN: a person who can
# do that holds the beacon. On most C3 boards the button is BOOT (GPIO 9), which starts the chip's
# own loader when it is held during power-on; hence "within".

import asyncio
import time

import machine
from micropython import const

_LOOK = const(50)  # ms
_SHORT = const(5000)
_FORGET = const(10_000)
_UNLOCK = const(1000)
_POWER_ON = const(1)


# `early`: the press began within ten seconds of the start.
async def run(beacon, button, early):
    since = time.ticks_ms()
    early = early and beacon.reset_cause == _POWER_ON
    held = 0
    button.set_pressed(True)
    while button.is_down():
        held = time.ticks_diff(time.ticks_ms(), since)
        if early and held >= _UNLOCK:
            early = False
            _unlock_pin(beacon)
        if held >= _FORGET:
            import factory_reset

            beacon.journal.write("button", "forgot")
            try:
                factory_reset.erase(beacon.store)
            except OSError as error:
                beacon.journal.write("button", "not_stored", str(error))
                break
            machine.reset()
        await asyncio.sleep_ms(_LOOK)
    button.set_pressed(False)
    if held < _SHORT:
        beacon.blufi.open_window()


def _unlock_pin(beacon):
    if beacon.blufi.failures:
        beacon.blufi.failures = 0
        kept = beacon.store.try_put("pin_fail", None)  # if not, it is locked again after a reset
        beacon.journal.write("button", "unlocked" if kept else "not_stored")
