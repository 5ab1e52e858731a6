# The owner of Bluetooth, told of events by a driver that is none.

import asyncio
import sys

WRITE, CONNECT, DISCONNECT = 3, 1, 2
HANDLE = 7


class Ble:
    def __init__(self):
        self.cuts = []

    def __getattr__(self, _):
        return lambda *_, **__: None

    def config(self, *what, **_):
        return (0, bytes(6)) if what == ("mac",) else None

    def gatts_register_services(self, services):
        return [(HANDLE,) for _ in services]

    def gatts_read(self, _):
        return b"x"

    def gap_disconnect(self, link):
        self.cuts.append(link)


class Driver:
    BLE = Ble


class Store:
    def policy(self, _):
        return 1

    def number(self, _):
        return 2


class Journal:
    def write(self, *words):
        raise AssertionError(words)


# Whoever owns the service is written to again while it answers, as long as `more()` says so.
class Owner:
    def __init__(self, radio, more):
        self.radio = radio
        self.more = more
        self.heard = 0

    def on_handles(self, ble, handles):
        pass

    def on_disconnect(self, link):
        pass

    def on_write(self, link, handle, data):
        self.heard += 1
        if self.more():
            self.radio._irq(WRITE, (link, HANDLE))


def radio(more):
    sys.modules["bluetooth"] = Driver
    from services.radio import Radio

    made = Radio(Store(), Journal())
    made.start(1)
    owner = Owner(made, more)
    made.add("service", owner)
    made.open(b"frame")
    made._irq(CONNECT, (1, 0, bytes(6)))
    return made, owner


# A peer that writes as fast as it is heard keeps nobody else from running: the watchdog would end
# that, and on trial the release would be to blame.
def test_a_peer_that_never_stops_lets_others_run():
    turns = [0]
    made, owner = radio(lambda: owner.heard < 1000 and turns[0] < 20)

    async def others():
        while turns[0] < 20:
            turns[0] += 1
            await asyncio.sleep_ms(0)

    async def main():
        task = asyncio.create_task(made.run())
        await asyncio.sleep_ms(0)
        made._irq(WRITE, (1, HANDLE))
        await others()
        task.cancel()

    asyncio.run(main())
    assert 10 < owner.heard < 100, owner.heard


def test_who_writes_more_than_is_heard_is_cut():
    made, owner = radio(lambda: False)

    async def main():
        task = asyncio.create_task(made.run())
        await asyncio.sleep_ms(0)
        for _ in range(33):
            made._irq(WRITE, (1, HANDLE))
        await asyncio.sleep_ms(20)
        task.cancel()

    asyncio.run(main())
    assert owner.heard == 32 and made._ble.cuts == [1]
