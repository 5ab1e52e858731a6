# Joins the WiFi networks that were provisioned, the second when the first fails, and keeps trying
# for ever with growing pauses. Power saving stays on: without it WiFi starves Bluetooth.

import asyncio
import time

import network
from event import AutoResetEvent
from micropython import const
from ota.schedule import add_jitter

_TICK = const(250)  # ms between looks at the driver
_TRIES = const(2)  # one scan may miss a network, one handshake may fail
_PAUSES = const(6)  # 2, 4, ... 64 s
_UNKNOWN = const(255)
_NO_AP = const(201)
_IDLE = const(1000)  # from here on the driver's states are no reasons of a refusal

# The port's exceptions for the driver's errors: OSError for those that it knows by name.
DRIVER = (OSError, RuntimeError)

# The driver's reasons as words of the journal.
_WORDS = {
    _UNKNOWN: "connecting",
    15: "wrong_password",
    200: "beacon_timeout",
    201: "no_ap",
    202: "wrong_password",
    203: "assoc_fail",
    204: "handshake",
}


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

    # True as soon as there is a network, False after `ms` without one.
    async def wait_until_up(self, ms):
        deadline = time.ticks_add(time.ticks_ms(), ms)
        while not self.is_up():
            if time.ticks_diff(deadline, time.ticks_ms()) <= 0:
                return False
            await asyncio.sleep_ms(_TICK)
        return True

    # A provisioning session has the driver for itself from claim() until release(): the loop below
    # stops using it within moments. After release() the loop continues at once, because there may
    # be other credentials, and with its shortest pause.
    async def claim(self):
        self._claimed = True
        self._wake.set()
        while not self._idle:
            await asyncio.sleep_ms(_TICK)

    def release(self):
        self._claimed = False
        self._wake.set()

    # [(SSID, password)] as bytes: the standard defines no encoding for them.
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
                if fails == 2 and networks:  # in the first round the access point may be rebooting
                    self._journal.write("wifi", self.state)
                await self._wake.wait_ms(add_jitter(2000 << min(fails, _PAUSES) - 1))

    # The driver may be reconnecting by itself, and has to be stopped before it takes a command.
    def disconnect(self):
        try:
            self.wlan.disconnect()
        except DRIVER as error:
            print("wifi:", error)

    # Tries one network, twice when it refuses; True when it was joined. The driver must not try
    # again by itself: while it does, it hides most of its reasons.
    async def join(self, ssid, password):
        self.state = "connecting"
        self.reason = _UNKNOWN
        self.ssid = ssid
        begun = time.ticks_ms()
        claimed = self._claimed
        self.disconnect()
        try:
            self.wlan.config(reconnects=0)
            self.wlan.connect(ssid, password or None)
        except DRIVER as error:
            self.state = "driver"
            print("wifi:", error)
            return False
        tries = 0
        while not self.is_up():
            await asyncio.sleep_ms(_TICK)
            reason = self.wlan.status()
            if reason < _IDLE:
                # This may be the reason of an earlier attempt: the driver begins the next one only
                # when the present one has ended. A network that refuses has been found.
                try:
                    self.wlan.connect()
                    tries += 1
                    if reason != _NO_AP or self.reason == _UNKNOWN:
                        self.reason = reason
                except DRIVER:
                    pass
            took = time.ticks_diff(time.ticks_ms(), begun)
            late = took > 1000 * self._store.policy("join_s")
            if tries == _TRIES or late or claimed != self._claimed:
                self.disconnect()
                self.state = _WORDS.get(self.reason, "unknown")
                return False
        self.state = "got_ip"
        return True
