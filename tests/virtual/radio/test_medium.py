"""Advertising in a room: who hears it, how loudly, and what it costs."""

import asyncio
import math
import time
from typing import Any

import pytest
from bleak import BleakScanner
from bleak.backends.scanner import AdvertisementData

from beacon_ota.errors import UsageError
from beacon_ota.virtual.radio.selection import select_radio
from beacon_ota.virtual.radio.space import RadioSpace
from tests.virtual.radio.beacons import PROVISIONABLE, Beacon, until, wait_until
from tests.virtual.radio.timers import ManualTimers, Stopped


def scan(
    room: RadioSpace, *beacons: Beacon, mode: Any = "active", least: int = 2
) -> dict[str, list[AdvertisementData]]:
    """All advertisement data seen until these beacons were heard so often, by address.

    Without beacons: in a while.
    """
    seen: dict[str, list[AdvertisementData]] = {}

    async def body() -> None:
        def callback(device: Any, data: AdvertisementData) -> None:
            seen.setdefault(device.address, []).append(data)

        async with BleakScanner(callback, scanning_mode=mode, **select_radio(room.spec).scanner):
            if not beacons:
                await asyncio.sleep(0.25)
            await until(lambda: all(len(seen.get(b.address, [])) >= least for b in beacons))

    asyncio.run(body())
    return seen


def test_an_active_scan_brings_the_scan_response(room: RadioSpace) -> None:
    beacon = Beacon(room).start().advertise()
    last = scan(room, beacon)[beacon.address][-1]
    assert last.local_name == "BLUFI_A1B2C3"
    assert last.service_uuids == ["0000ffff-0000-1000-8000-00805f9b34fb"]
    assert last.service_data == {"0000ffff-0000-1000-8000-00805f9b34fb": b"\xec\x01\x03"}


def test_a_passive_scan_does_not(room: RadioSpace) -> None:
    beacon = Beacon(room).start().advertise()
    seen = scan(room, beacon, mode="passive")[beacon.address]
    assert seen and all(data.local_name is None for data in seen)
    assert seen[-1].service_uuids


def test_manufacturer_data_of_both_payloads(room: RadioSpace) -> None:
    ibeacon = b"\x1a\xff\x4c\x00\x02\x15" + bytes(range(16)) + b"\x00\x01\x00\x02\xc5"
    progress = b"\x04\xff\x59\x00\x2a"
    beacon = Beacon(room).start().advertise(b"\x02\x01\x06" + ibeacon, progress)
    last = scan(room, beacon)[beacon.address][-1]
    assert last.manufacturer_data == {0x004C: ibeacon[4:], 0x0059: b"\x2a"}


def test_the_interval_is_kept(room: RadioSpace, timers: ManualTimers) -> None:
    with Stopped(room, timers) as stopped:
        Beacon(room).start().advertise(interval_us=50_000)
        capture = room.start_capture()
        stopped.advance(10.0)
    times = [frame.at for frame in capture]
    assert 199 <= len(times) <= 201
    for number, at in enumerate(times):  # each event is 0..10 ms late, and that does not add up
        assert 0.050 * number <= at <= 0.050 * number + 0.010


def test_the_rhythm_goes_on_when_somebody_listens_again(
    room: RadioSpace, timers: ManualTimers
) -> None:
    with Stopped(room, timers) as stopped:
        Beacon(room).start().advertise(interval_us=100_000)
        stopped.advance(0.975)  # nobody listens
        capture = room.start_capture()
        stopped.advance(0.2)
    assert [round((frame.at + 0.975) // 0.1) for frame in capture] == [10, 11]


def test_what_is_new_is_sent_at_once(room: RadioSpace, timers: ManualTimers) -> None:
    """Each start sends its first event, however long the interval is."""
    beacon = Beacon(room).start()
    capture = room.start_capture()
    with Stopped(room, timers) as stopped:
        for value in range(10):
            beacon.advertise(bytes([2, 0xFF, value]), interval_us=10_000_000)
            stopped.advance(0.010)
    assert [frame.payload[2] for frame in capture] == list(range(10))


def test_not_connectable_is_scannable_still(room: RadioSpace) -> None:
    beacon = Beacon(room).start().advertise(connectable=False)
    seen = scan(room, beacon)[beacon.address]
    assert seen[-1].local_name == "BLUFI_A1B2C3"
    kinds = {data.platform_data[0].kind for data in seen}
    assert kinds == {2, 4}  # ADV_SCAN_IND and SCAN_RSP


def test_nothing_is_sent_while_nobody_listens(room: RadioSpace, timers: ManualTimers) -> None:
    beacon = Beacon(room).start().advertise()
    advertiser = next(iter(room.medium.controllers)).advertiser  # type: ignore[attr-defined]
    with Stopped(room, timers) as stopped:
        stopped.advance(10.0)
        assert advertiser.events == 0
    assert scan(room, beacon)[beacon.address]
    wait_until(lambda: not room.medium.has_listeners)
    heard = advertiser.events
    assert heard >= 1
    with Stopped(room, timers) as stopped:
        stopped.advance(10.0)
        assert advertiser.events == heard


def test_distance_is_loudness(room: RadioSpace) -> None:
    near, far = Beacon(room, 1).start().advertise(), Beacon(room, 2).start().advertise()
    room.move_radio(near.address, 1.0)
    room.move_radio(far.address, 20.0, 5.0, tx_power=-3)
    seen = scan(room, near, far)
    assert {data.rssi for data in seen[near.address]} == {-59}
    expected = -59 - 3 - 22 * math.log10(math.hypot(20, 5))
    assert {data.rssi for data in seen[far.address]} == {round(expected)}


def test_noise_scatters_around_the_level(room: RadioSpace) -> None:
    beacon = Beacon(room).start().advertise()
    room.move_radio(beacon.address, 1.0)
    room.set_conditions(noise=3.0)
    levels = [data.rssi for data in scan(room, beacon, least=50)[beacon.address]]
    assert len(set(levels)) > 3
    assert -66 < sum(levels) / len(levels) < -52


def test_out_of_reach_is_silence(room: RadioSpace) -> None:
    beacon = Beacon(room).start().advertise()
    room.move_radio(beacon.address, 500.0)
    assert beacon.address not in scan(room)


def test_loss_thins_out(room: RadioSpace) -> None:
    lossy, clear = Beacon(room, 1).start().advertise(), Beacon(room, 2).start().advertise()
    room.move_radio(lossy.address, loss=0.7)
    seen = scan(room, clear, mode="passive", least=60)
    share = len(seen.get(lossy.address, [])) / len(seen[clear.address])
    assert 0.05 < share < 0.6
    room.set_conditions(loss=1.0)
    assert not scan(room)


def test_payloads_change_while_it_runs(room: RadioSpace) -> None:
    beacon = Beacon(room).start().advertise(response=b"\x04\xff\x59\x00\x01")

    async def body() -> None:
        seen: set[bytes] = set()

        def callback(device: Any, data: AdvertisementData) -> None:
            seen.add(data.manufacturer_data.get(0x59, b""))

        async with BleakScanner(callback, **select_radio(room.spec).scanner):
            await until(lambda: b"\x01" in seen)
            await asyncio.to_thread(beacon.advertise, None, b"\x04\xff\x59\x00\x02")
            await until(lambda: b"\x02" in seen)

    asyncio.run(body())
    # None keeps the other payload
    assert scan(room, beacon)[beacon.address][-1].service_uuids


def test_filter_by_service(room: RadioSpace) -> None:
    wanted = Beacon(room, 1).start().advertise()
    other = Beacon(room, 2).start().advertise(b"\x02\x01\x06", b"")

    async def body() -> None:
        every: set[str] = set()
        filtered: set[str] = set()
        arguments = select_radio(room.spec).scanner
        uuids = ["0000ffff-0000-1000-8000-00805f9b34fb"]
        async with (
            BleakScanner(lambda d, a: every.add(d.address), **arguments),
            BleakScanner(lambda d, a: filtered.add(d.address), uuids, **arguments),
        ):
            await until(lambda: every == {wanted.address, other.address} and filtered)
        assert filtered == {wanted.address}

    asyncio.run(body())


def test_many_beacons_are_all_heard(room: RadioSpace) -> None:
    beacons = [Beacon(room, n).start().advertise(interval_us=100_000) for n in range(30)]
    assert set(scan(room, *beacons)) == {beacon.address for beacon in beacons}


def test_two_scanners_share_the_adapter(room: RadioSpace) -> None:
    beacon = Beacon(room).start().advertise()

    async def body() -> None:
        active: list[AdvertisementData] = []
        passive: list[AdvertisementData] = []
        arguments = select_radio(room.spec).scanner
        async with BleakScanner(lambda d, a: passive.append(a), None, "passive", **arguments):
            second = BleakScanner(lambda d, a: active.append(a), None, "active", **arguments)
            await second.start()
            await until(lambda: active and active[-1].local_name)
            assert sum(item["scanning"] for item in room.list_radios()) == 1
            await second.stop()
            assert passive
            count = len(passive)
            await until(lambda: len(passive) > count)
        await until(lambda: [item["address"] for item in room.list_radios()] == [beacon.address])

    asyncio.run(body())


def test_a_broken_payload_gives_what_is_whole(room: RadioSpace) -> None:
    beacon = Beacon(room).start().advertise(PROVISIONABLE + b"\x09\x09cut", b"\x00\x05junk")
    last = scan(room, beacon)[beacon.address][-1]
    assert last.local_name is None and last.service_uuids


@pytest.mark.parametrize("text", ["", "AA:BB", "not an address", "AA:BB:CC:DD:EE:GG"])
def test_a_place_needs_an_address(room: RadioSpace, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        room.move_radio(text)
    assert caught.value.code == "radio_address"


@pytest.mark.slow
def test_thirty_beacons_cost_little(room: RadioSpace) -> None:
    """At ten advertisements a second each, with somebody who listens; nothing without."""
    for number in range(30):
        Beacon(room, number).start().advertise(interval_us=100_000)

    def used(seconds: float) -> float:
        start = time.process_time()
        time.sleep(seconds)
        return (time.process_time() - start) / seconds

    assert used(0.5) < 0.01
    capture = room.start_capture()
    assert used(1.0) < 0.15
    assert len(capture) >= 100
