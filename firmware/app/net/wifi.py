# WiFi: joins the network it was given, the second one when the first will not have it, and keeps
# trying for ever with a growing pause. Power saving stays on: without it WiFi starves Bluetooth.

import asyncio
import time

import network
from event import AutoResetEvent
from micropython import const
from ota.schedule import add_jitter

_TICK = const(250)  # ms between looks at the driver
_SETTLE = const(2000)  # ms before a refusal counts: the driver repeats itself
_PAUSES = const(6)  # 2, 4, ... 64 s
_UNKNOWN = const(255)

# What the port raises for the driver's errors: OSError for those it knows by name.
DRIVER = (OSError, RuntimeError)

# The driver's states, as the journal has them.
_WORDS = {
    1000: "idle",
    1001: "connecting",
    1010: "got_ip",
    200: "beacon_timeout",
    201: "no_ap",
    202: "wrong_password",
    203: "assoc_fail",
    204: "handshake",
}

_REFUSALS = const(("wrong_password", "no_ap", "assoc_fail"))


class Wifi:
    def __init__(self, store, journal):
        self._store = store
        self._journal = journal
        self.wlan = network.WLAN(network.STA_IF)
        self.wlan.active(True)
        self.state = "idle"
        self.reason = _UNKNOWN  # the driver's number for why the last attempt failed
        self.ssid = b""  # of the last attempt
        self._wake = AutoResetEvent()
        self._claimed = self._idle = False

    def is_up(self):
        return self.wlan.isconnected()

    # The address of the network's name server.
    def nameserver(self):
        return self.wlan.ifconfig()[3]

    # True as soon as there is a network, False after `ms` without.
    async def wait_until_up(self, ms):
        deadline = time.ticks_add(time.ticks_ms(), ms)
        while not self.is_up():
            if time.ticks_diff(deadline, time.ticks_ms()) <= 0:
                return False
            await asyncio.sleep_ms(_TICK)
        return True

    # Whoever provisions has the driver for itself from claim() until release(): the loop below lets
    # go of it within moments, whatever it is at. Then it looks at once, for there may be other
    # credentials, and its pauses begin again with the shortest.
    async def claim(self):
        self._claimed = True
        self._wake.set()
        while not self._idle:
            await asyncio.sleep_ms(_TICK)

    def release(self):
        self._claimed = False
        self._wake.set()

    # Names and passwords are bytes: the standard gives them no encoding.
    def _stored_networks(self):
        found = []
        for name in ("wifi", "wifi2"):
            ssid = self._store.blob(name + "_ssid")
            if ssid:
                found.append((ssid, self._store.blob(name + "_pass")))
        return found

    async def run(self):
        fails = 0
        while True:
            self._idle = self._claimed
            if self._claimed:
                fails = 0
                await self._wake.wait_ms(4 * _TICK)
                continue
            if self.is_up():
                self.state = "got_ip"
                fails = 0
                await self._wake.wait_ms(4 * _TICK)
                continue
            networks = self._stored_networks()
            for ssid, password in networks:
                if self._claimed or await self.join(ssid, password):
                    break
            else:
                fails += 1
                if fails == 2 and networks:  # the first round may be the access point's reboot
                    self._journal.write("wifi", self.state)
                await self._wake.wait_ms(add_jitter(2000 << min(fails, _PAUSES) - 1))

    # The driver may be reconnecting by itself; it has to be stopped before it does anything else.
    def disconnect(self):
        try:
            self.wlan.disconnect()
        except DRIVER as error:
            print("wifi:", error)

    # One attempt at one network.
    async def join(self, ssid, password):
        self.state = "connecting"
        self.reason = _UNKNOWN
        self.ssid = ssid
        begun = time.ticks_ms()
        claimed = self._claimed
        self.disconnect()
        try:
            self.wlan.connect(ssid, password or None)
        except DRIVER as error:
            self.state = "driver"
            print("wifi:", error)
            return False
        stale = self.wlan.status()  # of the network before, until it changes
        while not self.is_up():
            await asyncio.sleep_ms(_TICK)
            took = time.ticks_diff(time.ticks_ms(), begun)
            reason = self.wlan.status()
            if reason != stale:
                stale = None
            state = _WORDS.get(reason, "unknown")
            refused = state in _REFUSALS and stale is None and took > _SETTLE
            late = took > 1000 * self._store.policy("join_s")
            if refused or late or claimed != self._claimed:
                self.state = state
                self.reason = reason if 0 < reason < _UNKNOWN else _UNKNOWN
                return False
        self.state = "got_ip"
        return True
