"""Beacon code under the real interpreter, against a central that speaks bleak."""

import asyncio
import contextlib
import re
import time
from pathlib import Path
from typing import Any

import pytest
from bleak import BleakClient
from bleak.exc import BleakError, BleakGATTProtocolError

from beacon_ota.virtual.beacon import VirtualBeacon
from beacon_ota.virtual.radio.selection import select_radio
from beacon_ota.virtual.radio.space import RadioSpace, RemoteSpace, open_space
from tests.virtual.radio.beacons import (
    FF01,
    FF02,
    WAIT,
    until,
    wait_until,
)
from tests.virtual.radio.chips import address, running

# Echoes every write as a notification, advertises again after a disconnection.
ECHO = """
def irq(event, data):
    if event == 3:
        try:
            ble.gatts_notify(data[0], tx, ble.gatts_read(data[1]))
        except OSError as error:
            print("lost", error)
    elif event == 2:
        ble.gap_advertise(20_000)
serve(irq)
print("up")
asyncio.run(forever())
"""


def client(space: RadioSpace, number: int = 0, **arguments: Any) -> BleakClient:
    return BleakClient(address(number), **select_radio(space.spec).client, **arguments)


async def collect(connected: BleakClient) -> list[bytes]:
    """Subscribe; what is notified appears in the list."""
    got: list[bytes] = []
    await connected.start_notify(FF02, lambda c, data: got.append(bytes(data)))
    return got


def lines(beacon: VirtualBeacon, start: str) -> list[str]:
    """What the console says on lines that begin with ``start``."""
    return [line for line in beacon.console.splitlines() if line.startswith(start)]


def test_a_session(space: RadioSpace) -> None:
    program = """
def irq(event, data):
    if event in (1, 2):
        print("irq", event, data[0], data[1], bytes(data[2]).hex())
    else:
        print("irq", event, data)
        if event == 3:
            value = ble.gatts_read(data[1])
            print("value", value)
            ble.gatts_notify(data[0], tx, bytes(reversed(value)))
serve(irq)
print("handles", rx, tx)
asyncio.run(forever())
"""

    async def body() -> None:
        async with client(space) as connected:
            got = await collect(connected)
            await connected.write_gatt_char(FF01, b"hello", response=True)
            await until(lambda: got)
            assert got == [b"olleh"]

    with running(space, program, ready="handles 16 18") as beacon:
        asyncio.run(body())
        beacon.wait_for(lambda: re.search(r"irq 2 0 0 \w{12}", beacon.console))
        assert re.fullmatch(
            r"irq 1 0 0 02b1e00000\w\w\nirq 21 \(0, 256\)\nirq 3 \(0, 16\)\n"
            r"value b'hello'\nirq 2 0 0 02b1e00000\w\w",
            "\n".join(beacon.console.splitlines()[1:]),
        ), beacon.console
        assert beacon.bluetooth.advertising is None  # type: ignore[attr-defined]


def test_the_errors_of_the_port(space: RadioSpace) -> None:
    program = """
def attempt(name, call, *args, **kw):
    try:
        print("try", name, call(*args, **kw))
    except Exception as error:
        print("try", name, type(error).__name__, error.args)
ble.active(False)
attempt("off", ble.gap_advertise, 100_000, ADV)
attempt("off register", ble.gatts_register_services, [])
attempt("off mtu", ble.config, "mtu")
attempt("name", ble.config, "gap_name")
attempt("on", ble.active, True)
serve(None)
attempt("rxbuf", ble.config, "rxbuf")
attempt("set rxbuf", ble.config, rxbuf=100)
attempt("mtu", ble.config, "mtu")
attempt("low mtu", ble.config, mtu=22)
attempt("high mtu", ble.config, mtu=528)
attempt("both", ble.config, "mtu", mtu=100)
attempt("neither", ble.config)
attempt("busy", ble.gatts_register_services, [])
attempt("long", ble.gap_advertise, 100_000, bytes(32))
attempt("long response", ble.gap_advertise, 100_000, b"", resp_data=bytes(32))
attempt("fast", ble.gap_advertise, 10_000)
attempt("slow", ble.gap_advertise, 10_250_000)
attempt("no buffer", ble.gap_advertise, 100_000, 7)
attempt("no handle", ble.gatts_write, 99, b"")
attempt("no such value", ble.gatts_read, 99)
attempt("write", ble.gatts_write, rx, "text")
attempt("read", ble.gatts_read, rx)
attempt("nobody", ble.gatts_notify, 0, tx, b"")
attempt("no int", ble.gatts_notify, "0", tx, b"")
attempt("gone", ble.gap_disconnect, 0)
attempt("handler", ble.irq, 7)
attempt("client", ble.gattc_read, 0, 16)
attempt("uuid", ble.gatts_register_services, [(0xFFFF, ())])
attempt("leftovers", ble.gatts_register_services, [])
attempt("again", ble.gatts_register_services, [])
attempt("truths", ble.config, bond=True, mitm=False, le_secure="yes")
attempt("name", ble.config, gap_name="x" * 32)
ble.config(gap_name="beacon")
attempt("name", ble.config, "gap_name")
print("done")
"""
    expected = """
off OSError (19,)
off register OSError (19,)
off mtu OSError (19,)
name b'MPY ESP32'
on True
rxbuf ValueError ('unknown config param',)
set rxbuf ValueError ('unknown config param',)
mtu 256
low mtu OSError (22,)
high mtu OSError (22,)
both TypeError ("can't specify pos and kw args",)
neither TypeError ('must query one param',)
busy OSError (16,)
long OSError (-18,)
long response OSError (22,)
fast OSError (22,)
slow OSError (22,)
no buffer TypeError ('object with buffer protocol required',)
no handle OSError (22,)
no such value b''
write 4
read b'text'
nobody OSError (107,)
no int TypeError ("can't convert str to int",)
gone False
handler ValueError ('invalid handler',)
client OSError (95,)
uuid ValueError ('invalid service UUID',)
leftovers OSError (12,)
again ()
truths None
name OSError (22,)
name b'beacon'
"""
    with running(space, program, ready="done") as beacon:
        found = [line.removeprefix("try ") for line in lines(beacon, "try ")]
        assert found == expected.strip().splitlines()


def test_a_handler_is_asked_for_the_secret_of_private_addresses(space: RadioSpace) -> None:
    program = """
def irq(event, data):
    print("irq", event, *[len(x) if isinstance(x, memoryview) else x for x in data])
ble.irq(irq)
ble.active(False)
ble.active(True)
print("done")
"""
    with running(space, program, ready="done") as beacon:
        assert lines(beacon, "irq") == ["irq 29 10 0 3", "irq 30 10 3 16"]


def test_uuids(space: RadioSpace) -> None:
    program = """
long = UUID("6E400001-B5A3-F393-E0A9-E50E24DCCA9E")
print("uuid", UUID(0xFFFF), UUID(b"\\x01\\x02"), UUID(b"\\x01\\x02\\x03\\x04"), long)
print("uuid", bytes(long)[:4].hex(), bytes(UUID(0x180F)), UUID(bytes(long)) == long)
print("uuid", UUID(1) == UUID(1), UUID(1) < UUID(2), UUID(0xFFFF) < long, {UUID(5): 6}[UUID(5)])
for bad in (0x10000, "6E400001", "6E400001-B5A3-F393-E0A9-E50E24DCCA9E00", "x" * 32, 1.5):
    try:
        UUID(bad)
    except Exception as error:
        print("bad", type(error).__name__, error)
print("done")
"""
    with running(space, program, ready="done") as beacon:
        assert lines(beacon, "uuid") == [
            "uuid UUID(0xffff) UUID(0x0201) UUID(0x04030201)"
            " UUID('6e400001-b5a3-f393-e0a9-e50e24dcca9e')",
            "uuid 9ecadc24 b'\\x0f\\x18' True",
            "uuid True True True 6",
        ]
        assert lines(beacon, "bad") == [
            "bad ValueError invalid UUID",
            "bad ValueError UUID too short",
            "bad ValueError UUID too long",
            "bad ValueError invalid char in UUID",
            "bad TypeError object with buffer protocol required",
        ]


@pytest.mark.parametrize("mtu", [23, 185, 256, 517])
def test_echo_at_every_mtu(space: RadioSpace, mtu: int) -> None:
    # At MTU 23 NimBLE has memory for twelve parts of a long write.
    sent = bytes(n & 0xFF for n in range(512 if mtu > 23 else 216))

    async def body() -> None:
        async with client(space, mtu=mtu) as connected:
            got = await collect(connected)
            assert connected.mtu_size == min(mtu, 512)
            await connected.write_gatt_char(FF01, sent, response=True)
            await connected.write_gatt_char(FF01, sent[:20], response=False)
            await until(lambda: len(got) == 2)
            assert got == [sent[: connected.mtu_size - 3], sent[:20]]

    with running(space, "ble.config(mtu=512)\n" + ECHO, ready="up"):
        asyncio.run(body())


def test_buffers(space: RadioSpace) -> None:
    program = """
def irq(event, data):
    if event == 3:
        print("value", len(ble.gatts_read(data[1])) if data[1] == rx else "kept")
serve(irq, 0)
ble.gap_advertise(None)
((rx, kept),) = ble.gatts_register_services(
    [(UUID(0xFFFF), ((UUID(0xFF01), 8), (UUID(0xFF02), 0x1A)))]
)
ble.gatts_set_buffer(kept, 30, True)
ble.gap_advertise(20_000)
print("up")
asyncio.run(forever())
"""

    async def body() -> None:
        async with client(space) as connected:
            await connected.write_gatt_char(FF01, bytes(100), response=True)
            for _ in range(4):
                await connected.write_gatt_char(FF02, bytes(9), response=True)
            assert len(await connected.read_gatt_char(FF02)) == 30

    with running(space, program, ready="up") as beacon:
        asyncio.run(body())
        assert lines(beacon, "value") == ["value 20"] + ["value kept"] * 4


def test_an_exception_removes_the_handler(space: RadioSpace) -> None:
    program = """
def irq(event, data):
    if event == 3:
        print("write")
        1 / 0
serve(irq)
asyncio.run(forever())
"""

    async def body() -> None:
        async with client(space) as connected:
            for _ in range(3):
                await connected.write_gatt_char(FF01, b"x", response=True)

    with running(space, program) as beacon:
        asyncio.run(body())
        console = beacon.console
        assert console.count("write\n") == 1
        assert "Unhandled exception in IRQ callback handler" in console
        assert "ZeroDivisionError" in console


def test_addresses_are_valid_only_during_the_call(space: RadioSpace) -> None:
    program = """
lent = None
def irq(event, data):
    global lent
    if event == 1:
        lent = data[2]
        print("during", bytes(lent).hex())
    if event == 3:
        print("after", bytes(lent).hex())
serve(irq)
asyncio.run(forever())
"""

    async def body() -> None:
        async with client(space) as connected:
            await connected.write_gatt_char(FF01, b"x", response=True)

    with running(space, program) as beacon:
        asyncio.run(body())
        assert lines(beacon, "during")[0].startswith("during 02b1e0")
        assert lines(beacon, "after") == ["after 000000000000"]


def test_the_response_waits_for_the_handler(space: RadioSpace) -> None:
    program = """
def irq(event, data):
    if event == 3:
        time.sleep_ms(200)
        print("handled")
serve(irq)
asyncio.run(forever())
"""

    async def body() -> None:
        async with client(space) as connected:
            start = time.monotonic()
            await connected.write_gatt_char(FF01, b"x", response=True)
            assert time.monotonic() - start >= 0.19

    with running(space, program) as beacon:
        asyncio.run(body())
        assert "handled" in beacon.console


MAINS = pytest.mark.parametrize(
    "main",
    [
        "while True:\n    for i in range(1000):\n        i * i",
        "while True:\n    time.sleep(60)",
        "asyncio.run(forever())",
        "while True:\n    bytes(200)",
    ],
    ids=["computing", "sleeping", "asyncio", "allocating"],
)


def echoes(space: RadioSpace, main: str) -> float:
    """Have forty writes echoed; return the least seconds that one took."""
    program = ECHO.replace("asyncio.run(forever())", main)

    async def body() -> float:
        times = []
        async with client(space) as connected:
            got = await collect(connected)
            for n in range(40):
                start = time.perf_counter()
                await connected.write_gatt_char(FF01, bytes([n]), response=True)
                times.append(time.perf_counter() - start)
            await until(lambda: len(got) == 40)
            assert got == [bytes([n]) for n in range(40)]
        return min(times)  # what it takes when nothing else keeps the machine busy

    with running(space, program, ready="up"):
        return asyncio.run(body())


@MAINS
def test_handlers_run_at_any_moment(space: RadioSpace, main: str) -> None:
    assert echoes(space, main)


@pytest.mark.slow
@MAINS
def test_handlers_run_at_once(space: RadioSpace, main: str) -> None:
    assert echoes(space, main) < 0.02  # there, the handler with three calls, and back


def woken(space: RadioSpace) -> float:
    """Have a flag wake a task thirty times; return the least seconds that one took."""
    program = """
flag = asyncio.ThreadSafeFlag()
def irq(event, data):
    if event == 3:
        flag.set()
async def main():
    while True:
        await flag.wait()
        ble.gatts_notify(0, tx, ble.gatts_read(rx))
serve(irq)
print("up")
asyncio.run(main())
"""

    async def body() -> float:
        times = []
        async with client(space) as connected:
            got = await collect(connected)
            for n in range(30):
                start = time.perf_counter()
                await connected.write_gatt_char(FF01, bytes([n]), response=True)
                await until(lambda n=n: len(got) == n + 1)
                times.append(time.perf_counter() - start)
        return min(times)  # what it takes when nothing else keeps the machine busy

    with running(space, program, ready="up"):
        return asyncio.run(body())


def test_a_flag_wakes_asyncio(space: RadioSpace) -> None:
    assert woken(space)


@pytest.mark.slow
def test_a_flag_wakes_asyncio_at_once(space: RadioSpace) -> None:
    assert woken(space) < 0.03


def test_a_flood_of_notifications(space: RadioSpace) -> None:
    program = """
start = asyncio.ThreadSafeFlag()
def irq(event, data):
    if event == 3:
        start.set()
async def main():
    await start.wait()
    refused = 0
    for n in range(150):
        while True:
            try:
                ble.gatts_notify(0, tx, n.to_bytes(2, "big") * 100)
                break
            except OSError as error:
                if error.errno != errno.ENOMEM:
                    raise
                refused += 1
                await asyncio.sleep_ms(5)
    print("refused", refused)
    await forever()
serve(irq)
print("up")
asyncio.run(main())
"""

    async def body() -> None:
        async with client(space) as connected:
            got = await collect(connected)
            await connected.write_gatt_char(FF01, b"go", response=True)
            await until(lambda: len(got) == 150)
            assert got == [n.to_bytes(2, "big") * 100 for n in range(150)]

    with running(space, program, ready="up") as beacon:
        space.set_conditions(paced=True, per_event=4)
        asyncio.run(body())
        beacon.wait_for(lambda: lines(beacon, "refused"))
        assert int(lines(beacon, "refused")[0].split()[1]) > 0


def test_reads_are_asked_for(space: RadioSpace) -> None:
    program = """
def irq(event, data):
    if event == 4:
        print("read", data)
        if data[0] == 0xFFFF:
            ble.gatts_write(tx, b"for NimBLE")
        elif ble.gatts_read(rx) == b"deny":
            return 5
        else:
            ble.gatts_write(tx, b"fresh")
    if event == 3 and ble.gatts_read(rx) == b"notify":
        ble.gatts_notify(data[0], tx)
serve(irq)
asyncio.run(forever())
"""

    async def body() -> None:
        async with client(space) as connected:
            got = await collect(connected)
            assert await connected.read_gatt_char(FF02) == b"fresh"
            await connected.write_gatt_char(FF01, b"deny", response=True)
            with pytest.raises(BleakGATTProtocolError) as caught:
                await connected.read_gatt_char(FF02)
            assert caught.value.code == 5
            await connected.write_gatt_char(FF01, b"notify", response=True)
            await until(lambda: got == [b"for NimBLE"])

    with running(space, program) as beacon:
        asyncio.run(body())
        assert lines(beacon, "read") == ["read (0, 18)", "read (0, 18)", "read (65535, 18)"]


def test_two_beacons_one_central(space: RadioSpace) -> None:
    async def one(number: int) -> None:
        async with client(space, number) as connected:
            got = await collect(connected)
            for n in range(20):
                await connected.write_gatt_char(FF01, bytes([number, n]), response=True)
            await until(lambda: len(got) == 20)
            assert got == [bytes([number, n]) for n in range(20)]

    async def body() -> None:
        await asyncio.gather(one(1), one(2))

    with running(space, ECHO, 1, ready="up"), running(space, ECHO, 2, ready="up"):
        asyncio.run(body())


@pytest.mark.parametrize("after", [1, 2, 4, 7, 11, 16, 40])
def test_the_end_at_any_moment(space: RadioSpace, after: int) -> None:
    async def broken() -> None:
        async with client(space) as connected:
            space.break_links(address(0), after=after)
            await collect(connected)
            for n in range(40):
                await connected.write_gatt_char(FF01, bytes([n]), response=True)

    async def body() -> None:
        with pytest.raises(BleakError):
            await asyncio.wait_for(broken(), WAIT)
        async with client(space) as connected:
            got = await collect(connected)
            await connected.write_gatt_char(FF01, b"again", response=True)
            await until(lambda: b"again" in got)

    with running(space, ECHO, ready="up"):
        asyncio.run(body())


def test_a_reset_is_silence_and_a_new_start(space: RadioSpace) -> None:
    program = ECHO.replace('print("up")', 'print("up", machine.reset_cause())').replace(
        "    if event == 3:",
        "    if event == 3 and ble.gatts_read(rx) == b'r': machine.reset()\n    if event == 3:",
    )

    async def body(beacon: VirtualBeacon) -> None:
        gone = asyncio.Event()
        connected = client(space, disconnected_callback=lambda c: gone.set())
        await connected.connect()
        start = time.monotonic()
        with pytest.raises(BleakError):
            await connected.write_gatt_char(FF01, b"r", response=True)
        assert time.monotonic() - start > 1.5 and gone.is_set()
        assert len(beacon.boots) == 2
        async with client(space) as connected:
            await connected.write_gatt_char(FF01, b"x", response=True)

    with running(space, program, ready="up 1") as beacon:
        asyncio.run(body(beacon))


def test_switching_off_ends_links_at_once(space: RadioSpace) -> None:
    """The peer is told; it does not have to find out by waiting."""
    program = """
off = False
def irq(event, data):
    global off
    print("irq", event)
    off = off or event == 3
serve(irq)
print("up")
while not off:
    time.sleep_ms(10)
ble.active(False)
print("off", ble.active())
asyncio.run(forever())
"""

    async def body() -> None:
        gone = asyncio.Event()
        connected = client(space, disconnected_callback=lambda c: gone.set())
        await connected.connect()
        with contextlib.suppress(BleakError):
            await connected.write_gatt_char(FF01, b"off", response=True)
        await asyncio.wait_for(gone.wait(), 30)

    capture = space.start_capture()
    with running(space, program, ready="up") as beacon:
        asyncio.run(body())
        beacon.wait_for(lambda: "off False" in beacon.console)
        beacon.wait_for(lambda: "irq 2\n" in beacon.console)
        wait_until(lambda: space.list_radios() == [])
    assert any(frame.kind == "LL_TERMINATE_IND" for frame in capture)


def test_a_beacon_hears_another(space: RadioSpace) -> None:
    program = """
def irq(event, data):
    if event == 5:
        print("heard", bytes(data[1]).hex(), data[2], data[3], bytes(data[4]))
    elif event == 6:
        print("over")
ble.irq(irq)
ble.gap_scan(300, 30_000, 30_000, True)
asyncio.run(forever())
"""
    space.move_radio(address(1), 10.0)
    with running(space, ECHO, 1, ready="up"), running(space, program, 2, ready="over") as beacon:
        heard = set(lines(beacon, "heard"))
        mac = address(1).replace(":", "").lower()
        assert heard == {
            f"heard {mac} 0 -81 b'\\x02\\x01\\x06\\x03\\x03\\xff\\xff'",
            f"heard {mac} 4 -81 b'\\x04\\tBAB'",
        }


def test_the_eavesdropper_hears_the_values(space: RadioSpace) -> None:
    async def body() -> None:
        async with client(space) as connected:
            got = await collect(connected)
            await connected.write_gatt_char(FF01, b"in the clear", response=True)
            await until(lambda: got)

    with running(space, ECHO, ready="up"):
        capture = space.start_capture()
        asyncio.run(body())
        heard = [
            frame for frame in capture if frame.att_pdu and frame.att_pdu[3:] == b"in the clear"
        ]
        assert [frame.sender == address(0) for frame in heard] == [False, True]


def test_a_beacon_joins_the_room_of_another_process(space: RadioSpace) -> None:
    async def body() -> None:
        async with client(space) as connected:
            got = await collect(connected)
            await connected.write_gatt_char(FF01, b"through two sockets", response=True)
            await until(lambda: got == [b"through two sockets"])

    joined = open_space(space.path)
    assert isinstance(joined, RemoteSpace) and joined.spec == space.spec
    with running(joined, ECHO, ready="up"):
        assert [radio["address"] for radio in space.list_radios()] == [address(0)]
        asyncio.run(body())
    wait_until(lambda: space.list_radios() == [])


def test_without_a_room_a_new_one_is_made(tmp_path: Path) -> None:
    with open_space(tmp_path / "room") as made, running(made, ECHO, ready="up"):
        assert isinstance(made, RadioSpace)
        assert len(made.list_radios()) == 1
        with open_space(made.path) as joined, running(joined, ECHO, 1, ready="up"):
            assert len(made.list_radios()) == 2
    assert not made.path.exists()


def test_a_beacon_outlives_its_room() -> None:
    program = """
serve(None)
print("up")
time.sleep_ms(300)
try:
    ble.active(True)
except OSError as error:
    print("no radio", error.errno == errno.ETIMEDOUT, ble.active())
print("goes on")
"""
    with RadioSpace() as space, running(RemoteSpace(space.path), program, ready="up") as beacon:
        space.close()
        beacon.wait_for(lambda: "goes on" in beacon.console)
        assert "no radio True False" in beacon.console
