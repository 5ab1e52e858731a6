# Whoever provisions gets the driver within moments, whenever he asks for it.

import asyncio
import sys

_DEADLINE = 30_000  # ms: of a test; what is waited for takes less than one second
_NEVER = 10_000_000


# A driver whose network is there or not, as the test has it.
class Driver:
    def __init__(self, _):
        self.joined = self.there = self.refuses = False
        self.attempts = 0

    def active(self, _):
        pass

    def config(self, **settings):
        assert settings == {"reconnects": 0}

    def isconnected(self):
        return self.joined

    def disconnect(self):
        self.joined = False

    def connect(self, ssid, password):
        self.attempts += 1
        if self.refuses:
            raise OSError("Wifi Internal State Error")
        self.joined = self.there

    def status(self):
        return 1010 if self.joined else 1001


class network:
    STA_IF = 0
    WLAN = Driver


sys.modules["network"] = network

from net import wifi  # noqa: E402


class Store:
    def __init__(self, networks):
        self.blobs = {}
        for i in range(networks):
            name = ("wifi", "wifi2")[i]
            self.blobs[name + "_ssid"] = name.encode()

    def blob(self, name):
        return self.blobs.get(name, b"")

    def policy(self, name):
        assert name == "join_s"
        return 10_000


class Journal:
    def write(self, *_):
        pass


# The pause after a failed round lasts for ever: what ends it is the call.
wifi.add_jitter = lambda ms: _NEVER


async def until(condition):
    while not condition():
        await asyncio.sleep_ms(1)


# `act` runs beside the station's own loop.
def beside(act, networks=1):
    async def body():
        station = wifi.Wifi(Store(networks), Journal())
        loop = asyncio.create_task(station.run())
        await act(station)
        loop.cancel()

    asyncio.run(asyncio.wait_for_ms(body(), _DEADLINE))


async def provision(station):
    await station.claim()
    attempts = station.wlan.attempts
    assert station._idle
    station.wlan.there = True
    assert await station.join(b"moved", b"")
    assert station.wlan.attempts == attempts + 1
    station.release()
    await until(lambda: not station._idle and station.state == "got_ip")


def test_a_claim_while_a_network_is_tried():
    async def act(station):
        await until(lambda: station.state == "connecting")
        await provision(station)

    beside(act)
    beside(act, networks=2)


def test_a_claim_in_the_pause_after_a_failure():
    async def act(station):
        station.wlan.refuses = True
        await until(lambda: station.state == "driver")
        await asyncio.sleep_ms(10)
        station.wlan.refuses = False
        await provision(station)

    beside(act)


def test_a_claim_without_any_network():
    beside(provision, networks=0)


# Given back and taken again before the loop has looked.
def test_a_claim_right_after_a_release():
    async def act(station):
        await station.claim()
        station.release()
        await provision(station)
        station.wlan.joined = station.wlan.there = False
        await until(lambda: station.state == "connecting")
        await station.claim()
        station.release()
        await provision(station)

    beside(act)


# Given back while the attempt before the claim has not noticed: the loop tries on at once.
def test_a_release_is_heard_too():
    async def act(station):
        for attempts in range(1, 4):
            await until(lambda: station.state == "connecting")
            await station.claim()
            station.release()
            await until(lambda n=attempts: station.wlan.attempts > n)
        station.wlan.there = True
        await station.claim()
        station.release()
        await until(station.is_up)

    beside(act)
