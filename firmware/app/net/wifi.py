# WiFi: joins the network it was given, the second one when the first will not have it, and keeps
# trying for ever with a growing pause. Power saving stays on: without it WiFi starves Bluetooth.

import asyncio
import time

import network
from micropython import const
from ota.schedule import jitter

_TICK = const(250)  # ms between looks at the driver
_SETTLE = const(2000)  # ms before a refusal counts: the driver repeats itself
_PAUSES = const(6)  # 2, 4, ... 64 s

# The driver's states in the words that provisioning shows.
_WORDS = {
    1000: "idle",
    1001: "connecting",
    1010: "got_ip",
    200: "beacon_timeout",
    201: "no_ap",
    202: "wrong_password",
    203: "assoc_fail",
    204: "handshake_timeout",
}


class Wifi:
    def __init__(self, store, journal):
        self._store = store
        self._journal = journal
        self.wlan = network.WLAN(network.STA_IF)
        self.wlan.active(True)
        self.state = "idle"
        self._wake = asyncio.Event()

    def up(self):
        return self.wlan.isconnected()

    # The address of the network's name server.
    def nameserver(self):
        return self.wlan.ifconfig()[3]

    # True as soon as there is a network, False after `ms` without.
    async def wait(self, ms):
        deadline = time.ticks_add(time.ticks_ms(), ms)
        while not self.up():
            if time.ticks_diff(deadline, time.ticks_ms()) <= 0:
                return False
            await asyncio.sleep_ms(_TICK)
        return True

    # Credentials were written: look at once.
    def reconfigured(self):
        self._wake.set()

    def _networks(self):
        found = []
        for name in ("wifi", "wifi2"):
            ssid = self._store.text(name + "_ssid")
            if ssid:
                found.append((ssid, self._store.text(name + "_pass")))
        return found

    async def run(self):
        fails = 0
        while True:
            if self.up():
                self.state = "got_ip"
                fails = 0
                await asyncio.sleep_ms(4 * _TICK)
                continue
            for ssid, password in self._networks():
                if await self._join(ssid, password):
                    break
            else:
                fails += 1
                if fails == 2:  # the first round may be the access point's reboot
                    self._journal.write("wifi", self.state)
                await self._pause(jitter(2000 << min(fails, _PAUSES) - 1))

    async def _pause(self, ms):
        self._wake.clear()
        try:
            await asyncio.wait_for_ms(self._wake.wait(), ms)
        except asyncio.TimeoutError:
            pass  # nobody called: the pause is over

    # One attempt at one network. The driver may be reconnecting by itself; it has to be stopped
    # before it takes other credentials.
    async def _join(self, ssid, password):
        self.state = "connecting"
        begun = time.ticks_ms()
        try:
            self.wlan.disconnect()
        except OSError as error:
            print("wifi: nothing to leave:", error)
        try:
            self.wlan.connect(ssid, password or None)
        except OSError as error:
            self.state = "driver"
            print("wifi:", error)
            return False
        while not self.up():
            await asyncio.sleep_ms(_TICK)
            took = time.ticks_diff(time.ticks_ms(), begun)
            state = _WORDS.get(self.wlan.status(), "unknown")
            refused = state in ("wrong_password", "no_ap", "assoc_fail") and took > _SETTLE
            if refused or took > 1000 * self._store.policy("join_s"):
                self.state = state
                return False
        return True
