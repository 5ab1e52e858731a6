# The owner of Bluetooth, told of events by a driver that is none.

import asyncio
import errno
import sys
import time

WRITE, CONNECT, DISCONNECT = 3, 1, 2
HANDLE = 7


class Ble:
    def __init__(self):
        self.cuts = []
        self.aired = []
        self.known = True  # the links that are cut are connected
        self.full = False  # NimBLE has no memory for another connection
        self.on_cut = lambda link: None

    def gap_advertise(self, _, adv_data=None, resp_data=None, connectable=True):
        if connectable and self.full:
            raise OSError(errno.ENOMEM)
        self.aired.append((adv_data, resp_data))

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
        self.on_cut(link)
        return self.known


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
    made.add_service("service", owner)
    made.start_advertising(b"frame")
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


# Time as the radio sees it: the interpreter's, and what was skipped.
class Clock:
    def __init__(self):
        self.skipped = 0

    def __getattr__(self, name):
        return getattr(time, name)

    def ticks_ms(self):
        return time.ticks_add(time.ticks_ms(), self.skipped)


# What happens to links: `steps` are (seconds that pass, what is done then).
def cuts(connected, *steps):
    made, _ = radio(lambda: False)
    import services.radio as room

    room.time = clock = Clock()
    cut = []
    try:
        for link in range(2, connected + 1):
            made._irq(CONNECT, (link, 0, bytes(6)))
        made._drain_events()
        for seconds, act in steps:
            act(made)
            made._drain_events()
            clock.skipped += 1000 * seconds
            made._check_links(clock.ticks_ms())
            cut.append(sorted(set(made._ble.cuts)))
    finally:
        room.time = time
    return cut


def say(made):
    for link in made._connections:
        made._irq(WRITE, (link, HANDLE))


def test_a_link_that_speaks_has_a_minute():
    assert cuts(1, *[(10, say)] * 7) == [[]] * 6 + [[1]]
    assert cuts(1, (10, say), (31, say)) == [[], [1]]


def test_a_link_that_proves_something_begins_again():
    def renew(made):
        say(made)
        made.renew_timeouts(1)

    assert cuts(1, *[(20, renew)] * 9) == [[]] * 9

    # On the terms of somebody else it stays what it was.
    def session(made):
        made.set_idle_timeout(1, 60_000, 60_000, 15_000)

    assert cuts(1, (1, session), *[(20, renew)] * 3) == [[], [], [], [1]]


def test_somebody_waits_for_the_place_of_a_link():
    def want(made):
        say(made)
        made.contested = 1

    assert cuts(1, (10, want), (6, say)) == [[], [1]]
    assert cuts(2, (10, want), (6, say)) == [[], [1]]

    # Not of one that may take its time.
    def trust(made):
        want(made)
        made.set_idle_timeout(1, 300_000, 1_800_000, 1_800_000)

    assert cuts(1, *[(200, trust)] + [(200, say)] * 9) == [[]] * 9 + [[1]]


def test_with_all_links_taken_those_go_that_had_their_share():
    assert cuts(3, (16, say)) == [[]]
    assert cuts(4, (10, say), (6, say)) == [[], [1, 2, 3, 4]]

    def prove(made):
        made.renew_timeouts(2)

    assert cuts(4, (10, say), (6, prove)) == [[], [1, 3, 4]]


def test_a_closed_door_is_not_kept_open_by_knocking():
    def refuse(made):
        made.set_idle_timeout(1, 200, 0)

    assert cuts(1, (1, refuse)) == [[1]]
    assert cuts(1, *[(10, say)] * 6 + [(1, refuse)])[-1] == [1]


# A computer may see one of the two frames only, and remembers what no packet repeats.
def test_both_frames_say_what_the_beacon_does():
    from wire import adverts, scan

    made, _ = radio(lambda: False)
    aired = made._ble.aired

    def shown():
        aired.clear()
        for _ in range(2):
            made._check_links(time.ticks_ms())
            made._advertise()
        said = [scan.read_payloads(response) for _, response in aired]
        assert said[0] == said[1]
        return {data for data, _ in aired}, said[0]

    made.set_status(adverts.PROVISIONED, "1.0.0")
    idle = {"flags": adverts.PROVISIONED, "version": "1.0.0"}
    assert shown() == ({b"frame"}, idle)
    made.set_alternate_adv(b"open")
    opened = {"flags": adverts.PROVISIONED | adverts.OPEN, "version": "1.0.0"}
    assert shown() == ({b"frame", b"open"}, opened)
    for value in (0, 100, 0xFE, 0xFF):
        made.set_progress(value)
        flags = opened["flags"] | adverts.UPDATING
        assert shown()[1] == {"flags": flags, "version": "1.0.0", "progress": value}
    made.set_progress(None)
    assert shown()[1] == opened
    made.set_alternate_adv(b"")
    assert shown() == ({b"frame"}, idle)


# NimBLE may have replaced or stopped what is on the air, and says nothing.
def test_the_advertisement_is_applied_again():
    import services.radio as room

    made, _ = radio(lambda: False)
    room.time = clock = Clock()
    try:
        made._advertise()
        aired = made._ble.aired
        for seconds, more in ((1, 0), (4, 0), (1, 1), (4, 0), (2, 1)):
            clock.skipped += 1000 * seconds
            before = len(aired)
            made._check_links(clock.ticks_ms())
            if made._stale:
                made._advertise()
            assert len(aired) - before == more, (seconds, aired)
    finally:
        room.time = time


def test_without_memory_for_a_connection_it_advertises_all_the_same():
    made, _ = radio(lambda: False)
    made._ble.aired.clear()
    made._ble.full = True
    made._advertise()
    assert [data for data, _ in made._ble.aired] == [b"frame"]


# A connection that failed at its beginning: no event tells of its end.
def test_a_link_that_nimble_does_not_know_is_dropped():
    gone = []
    made, owner = radio(lambda: False)
    owner.on_disconnect = gone.append
    made._drain_events()
    made._stale = False
    made._ble.known = False
    made.disconnect(1)
    made._drain_events()
    assert gone == [1] and not made._limits and not made._connections
    assert made._stale, "it can take another connection now"


def test_the_next_connection_with_the_same_handle_is_not_dropped():
    made, owner = radio(lambda: False)
    made._drain_events()
    made._ble.known = False
    made._ble.on_cut = lambda link: made._irq(CONNECT, (link, 0, bytes(6)))
    made.disconnect(1)
    made._drain_events()
    assert list(made._limits) == [1] and made._limits[1][0] == 2
    assert made._connections[1][0] == 2


def test_a_link_that_never_spoke_has_ten_seconds():
    assert cuts(1, (9, lambda made: None), (2, lambda made: None)) == [[], [1]]
    assert cuts(1, (9, say), (20, lambda made: None), (2, lambda made: None)) == [[], [], [1]]


# Every link that lost a write is cut, whenever it lost it.
def test_two_links_that_write_too_much_are_both_cut():
    made, _ = radio(lambda: False)
    made._irq(CONNECT, (2, 0, bytes(6)))
    made._drain_events()

    def flood(link):
        for _ in range(33):
            made._irq(WRITE, (link, HANDLE))

    made._ble.on_cut = lambda link: flood(2) if link == 1 else None
    flood(1)
    made._drain_events()
    made._drain_events()
    assert made._ble.cuts == [1, 2]


# Its handle may belong to somebody else by then.
def test_a_link_that_wrote_too_much_and_went_harms_no_other():
    made, _ = radio(lambda: False)
    made._drain_events()
    for _ in range(33):
        made._irq(WRITE, (1, HANDLE))
    made._irq(DISCONNECT, (1, 0, bytes(6)))
    made._irq(CONNECT, (1, 0, bytes(6)))
    made._drain_events()
    made._drain_events()
    assert made._ble.cuts == []
