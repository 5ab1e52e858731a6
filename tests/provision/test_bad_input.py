"""Frames that no proper client sends: a named error or the end of the connection, and nothing else.

After each of them the beacon has not restarted, has stored nothing, and serves the next client.
"""

import asyncio
import os
import signal

import pytest

from beacon_ota.errors import ReachError
from beacon_ota.provision.gatt import GattConnection
from beacon_ota.provision.scan import Sighting
from beacon_ota.provision.session import SEALED as MODE
from beacon_ota.provision.session import Initiator
from beacon_ota.virtual.radio.adapter import SpaceAdapter
from beacon_ota.wire import blufi, ec1, tlv
from beacon_ota.wire.blufi import (
    CONNECT,
    CUSTOM,
    ERROR,
    GET_LIST,
    GET_STATUS,
    GET_VERSION,
    NEGOTIATE,
    SET_OPMODE,
    SET_SECURITY,
    STA_PASSWORD,
    STA_SSID,
    VERSION,
)
from tests.provision import scene as scenes
from tests.provision.raw import CHECKED, CUT, FRAGMENT, SEALED, Wire, frame, piece, wire
from tests.provision.scene import PASSWORD, PIN, SSID, run, scene

SEQUENCE, CHECKSUM, DECRYPT, SECURITY, MEMORY, FORMAT, STATE = 0, 1, 2, 4, 5, 9, 12
HELLO = b"\xec\x01\x01\x21"

# What is written -> the errors that come, in this order; CUT: the beacon hangs up.
CLEAR = {
    "nothing": ([b""], [FORMAT]),
    "one byte": ([b"\x1c"], [FORMAT]),
    "three bytes": ([b"\x1c\0\0"], [FORMAT]),
    "length over": ([frame(GET_VERSION, size=1)], [FORMAT]),
    "length 255 of 4": ([frame(NEGOTIATE, b"1234", size=255)], [FORMAT]),
    "length under": ([frame(NEGOTIATE, b"12345", size=4)], [FORMAT]),
    "no room for the checksum": ([b"\x1c\x02\0\0"], [FORMAT]),
    "longer than the buffer": ([frame(NEGOTIATE, bytes(500), size=500)], [FORMAT]),
    "a sequence number skipped": ([frame(GET_VERSION, seq=1)], [SEQUENCE]),
    "a frame replayed": (
        [frame(SET_SECURITY, b"\0"), frame(SET_SECURITY, b"\0")],
        [SEQUENCE],
    ),
    "a wrong checksum": ([frame(GET_VERSION, fc=CHECKED, crc=0x1234)], [CHECKSUM]),
    "a checksum of other data": (
        [frame(SET_SECURITY, b"\0", fc=CHECKED, crc=blufi.crc16(b"\0\1\1"))],
        [CHECKSUM],
    ),
    "encrypted, without a key": ([frame(GET_VERSION, b"12345678", fc=SEALED)], [DECRYPT, CUT]),
    "a fragment without a total": ([frame(NEGOTIATE, b"\1", fc=FRAGMENT)], [FORMAT]),
    "a fragment of nothing": ([frame(NEGOTIATE, fc=FRAGMENT)], [FORMAT]),
    "total 0": ([piece(NEGOTIATE, 0, b"1", seq=0)], [FORMAT]),
    "total 65535": ([piece(NEGOTIATE, 65535, b"1", seq=0)], [FORMAT]),
    "total 1025": ([piece(NEGOTIATE, 1025, b"1", seq=0)], [FORMAT]),
    "total 1, more comes": ([piece(NEGOTIATE, 1, bytes(16), seq=0)], [FORMAT]),
    "the last is longer than what is left": (
        [piece(NEGOTIATE, 20, bytes(16), seq=0), frame(NEGOTIATE, bytes(5), seq=1)],
        [FORMAT],
    ),
    "the last is shorter than what is left": (
        [piece(NEGOTIATE, 20, bytes(16), seq=0), frame(NEGOTIATE, bytes(3), seq=1)],
        [FORMAT],
    ),
    "fragments of nothing in a row": (
        [piece(NEGOTIATE, 20, b"", seq=0), piece(NEGOTIATE, 20, b"", seq=1)],
        [STATE],
    ),
    "fragments of several types": (
        [piece(NEGOTIATE, 20, bytes(16), seq=0), frame(STA_SSID, bytes(4), seq=1)],
        [STATE],
    ),
    "another message between the fragments": (
        [piece(NEGOTIATE, 20, bytes(16), seq=0), frame(GET_VERSION, seq=1)],
        [STATE],
    ),
    "an SSID": ([frame(STA_SSID, SSID.encode())], [SECURITY, CUT]),
    "a password": ([frame(STA_PASSWORD, PASSWORD.encode())], [SECURITY, CUT]),
    "a password in fragments": (
        [piece(STA_PASSWORD, 13, b"correct ", seq=0), frame(STA_PASSWORD, b"horse", seq=1)],
        [SECURITY, CUT],
    ),
    "a mode": ([frame(SET_OPMODE, b"\1")], [SECURITY, CUT]),
    "connect": ([frame(CONNECT)], [SECURITY, CUT]),
    "how is it": ([frame(GET_STATUS)], [SECURITY, CUT]),
    "which networks": ([frame(GET_LIST)], [SECURITY, CUT]),
    "settings": ([frame(CUSTOM, tlv.encode(tlv.QUERY, {}))], [SECURITY, CUT]),
    "forget": ([frame(CUSTOM, tlv.encode(tlv.FORGET, {}))], [SECURITY, CUT]),
    "an unknown request": ([frame(0xFC)], [SECURITY, CUT]),
    "unknown data": ([frame(0xFD, b"?")], [SECURITY, CUT]),
    "a certificate": ([frame(0x29, b"?")], [SECURITY, CUT]),
    "Espressif's negotiation": ([frame(NEGOTIATE, b"\0\1\7")], [SECURITY]),
    "nobody's negotiation": ([frame(NEGOTIATE, b"\x99")], [FORMAT]),
    "an empty negotiation": ([frame(NEGOTIATE)], [FORMAT]),
    "mistake after mistake": ([b""] * 9, [FORMAT] * 9 + [CUT]),
}

# EC1 messages -> the codes of the aborts that answer them, None for a proper answer, CUT.
EXCHANGE = {
    "a point off the curve": ([HELLO + bytes(16) + b"\1" * 64], [3]),
    "no point at all": ([HELLO + bytes(80)], [3]),
    "coordinates out of range": ([HELLO + bytes(16) + b"\xff" * 64], [3]),
    "too short": ([HELLO + bytes(79)], [6]),
    "too long": ([HELLO + bytes(81)], [6]),
    "only a head": ([b"\xec"], [6]),
    "another version": ([b"\xec\x02\x01\x21" + bytes(80)], [1]),
    "another suite": ([b"\xec\x01\x01\x01" + bytes(80)], [2]),
    "the suite without a secret": ([b"\xec\x01\x01\x11" + bytes(80)], [2]),
    "a proof before the hello": ([b"\xec\x01\x03\x21" + bytes(16)], [6]),
    "an answer of a beacon": ([b"\xec\x01\x02\x21" + bytes(80)], [6]),
    "a wrong proof": (["hello", b"\xec\x01\x03\x21" + bytes(16)], [None, 4]),
    "the hello again": (["hello", "hello"], [None, 6]),
    "a proof that is too short": (["hello", b"\xec\x01\x03\x21" + bytes(15)], [None, 6]),
    "a proof of another suite": (["hello", b"\xec\x01\x03\x11" + bytes(16)], [None, 2]),
    "an abort": (["hello", b"\xec\x01\x7f\x21\x04"], [None, CUT]),
    "an abort before anything": ([b"\xec\x01\x7f\x21\x04"], [CUT]),
}

# In a session, sealed: type and data -> the error; CUT: the session ends.
SESSION = {
    "SSID of 0": (STA_SSID, b"", [FORMAT]),
    "SSID of 33": (STA_SSID, b"x" * 33, [FORMAT]),
    "password of 65": (STA_PASSWORD, b"x" * 65, [FORMAT]),
    "an access point": (SET_OPMODE, b"\2", [FORMAT]),
    "no mode": (SET_OPMODE, b"", [FORMAT]),
    "connect to nothing": (CONNECT, b"", [FORMAT]),
    "the exchange again": (NEGOTIATE, HELLO + bytes(80), [CUT]),
    "Espressif's negotiation": (NEGOTIATE, b"\0\1\7", [SECURITY, CUT]),
}


async def hung_up(line: Wire) -> None:
    assert await line.cut(), "still connected"


async def works(s: scenes.Scene) -> None:
    """The proof that nothing was broken."""
    async with s.client() as client:
        state = await client.query_state()
        assert (state.beacon_id, state.refused) == (scenes.ID, "")


def unharmed(s: scenes.Scene) -> None:
    assert len(s.beacon.boots) == 1, s.beacon.console
    assert "Traceback" not in s.beacon.console, s.beacon.console
    left = {key for space, key in s.beacon.settings() if space == "beacon"}
    assert left <= {"beacon_id", "pin_w", "policy", "ble", "pin_fail"}, left


@pytest.mark.parametrize("half", [0, 1])
def test_frames_in_the_clear(v1, half):
    async def body(s: scenes.Scene) -> None:
        for name in list(CLEAR)[half::2]:
            frames, errors = CLEAR[name]
            async with wire(s) as line:
                await line.say(*frames)
                for code in errors:
                    assert await line.error() == code, name
                if name == "Espressif's negotiation":
                    assert (await line.hear())[4:] == b"\0" and await line.cut()
                elif CUT not in errors:
                    # It goes on from the sequence number that was expected, not from the lie.
                    taken = sum(taken_of(frames))
                    await line.say(frame(GET_VERSION, seq=taken))
                    assert (await line.hear())[0] == VERSION, name
            await works(s)

    with scene(v1, heap_watch=True) as s:
        run(works(s))
        boot = s.beacon.boots[0]
        before = boot.heap
        run(body(s))
        unharmed(s)
        assert s.beacon.setting("pin_fail") is None
        s.wait(lambda: boot.heap < before + 4096, what="memory given back")


def taken_of(frames: list[bytes]) -> list[bool]:
    """Which of these frames used up a sequence number: those of a right length in their turn."""
    used, taken = 0, []
    for one in frames:
        whole = len(one) >= 4 and len(one) == 4 + one[3] + (2 if one[1] & CHECKED else 0)
        taken.append(whole and one[2] == used)
        used += taken[-1]
    return taken


@pytest.mark.parametrize("half", [0, 1])
def test_an_exchange_that_goes_wrong(v1, half):
    async def say(line: Wire, link: blufi.Link, message: bytes) -> None:
        link.send(NEGOTIATE, message)
        while one := link.transmit():
            await line.say(one)

    async def answer(line: Wire, link: blufi.Link) -> bytes | int:
        while True:
            try:
                message = link.receive(await line.hear())
            except ReachError:
                return CUT
            if message is not None:
                assert message.type == NEGOTIATE
                return message.data

    async def body(s: scenes.Scene) -> None:
        for name in list(EXCHANGE)[half::2]:
            messages, codes = EXCHANGE[name]
            async with wire(s) as line:
                link = blufi.Link(False)
                for message, code in zip(messages, codes, strict=True):
                    if isinstance(message, str):
                        message = Initiator(scenes.NAME.encode(), pin=PIN).hello()
                    await say(line, link, message)
                    said = await answer(line, link)
                    if code is None:
                        assert isinstance(said, bytes) and said[2] == ec1.S_HELLO, name
                    elif code == CUT:
                        assert said == CUT, name
                    else:
                        assert isinstance(said, bytes), name
                        assert (said[2], said[4]) == (ec1.ABORT, code), name
            failures = s.beacon.setting("pin_fail")
            assert failures == (1 if "hello" in messages else None), name
            if failures:
                s.skip(1)
            await works(s)
            assert s.beacon.setting("pin_fail") is None

    with scene(v1) as s:
        run(body(s))
        unharmed(s)


def test_requests_that_make_no_sense(v1):
    async def body(s: scenes.Scene) -> None:
        for name, (kind, data, errors) in SESSION.items():
            async with s.client() as client:
                line = Wire(client._gatt)
                client._link.send(kind, data)
                while one := client._link.transmit():
                    await line.say(one)
                for code in errors:
                    assert await said_next(line, client._link) == code, name
                if CUT not in errors:
                    assert (await client.query_state()).beacon_id == scenes.ID, name
        await works(s)

    async def said_next(line: Wire, link: blufi.Link) -> int:
        """Return the next error's code, CUT at the end; an abort counts as nothing said."""
        while True:
            try:
                found = link.receive(await line.hear())
            except ReachError:
                return CUT
            if found is not None and found.type == ERROR:
                return found.data[0]

    with scene(v1) as s:
        run(body(s))
        unharmed(s)


def test_a_session_is_taken_over_by_nobody(v1):
    """In the clear, bent, replayed, under another key: the session ends, and nothing was done."""

    async def body(s: scenes.Scene, name: str) -> None:
        async with s.client() as client:
            line = Wire(client._gatt)
            link = client._link
            link.send(STA_SSID, SSID.encode())
            good = link.transmit()
            assert good is not None
            if name == "clear":
                await line.say(frame(STA_SSID, SSID.encode(), seq=good[2]))
                assert await line.error() == SECURITY
            elif name == "tag":
                await line.say(good[:-1] + bytes((good[-1] ^ 1,)))
                assert await line.error() == DECRYPT
            elif name == "data":
                await line.say(good[:4] + bytes((good[4] ^ 1,)) + good[5:])
                assert await line.error() == DECRYPT
            elif name == "type":
                await line.say(bytes((STA_PASSWORD,)) + good[1:])
                assert await line.error() == DECRYPT
            elif name == "short":
                await line.say(frame(STA_SSID, good[4:11], seq=good[2], fc=SEALED))
                assert await line.error() == DECRYPT
            elif name == "replay":
                await line.say(good, good)
                assert await line.error() == SEQUENCE
                await line.say(bytes((good[0], good[1], good[2] + 1)) + good[3:])
                assert await line.error() == DECRYPT
            await hung_up(line)
        await works(s)

    with scene(v1) as s:
        for name in ("clear", "tag", "data", "type", "short", "replay"):
            run(body(s, name))
        unharmed(s)


def test_whoever_leaves(v1):
    """At every step; in the middle of a message, of the exchange, of an attempt to connect."""

    async def said(line: Wire, link: blufi.Link) -> bytes:
        while (message := link.receive(await line.hear())) is None:
            pass
        return message.data

    async def so_far(line: Wire, step: int) -> None:
        exchange = Initiator(scenes.NAME.encode(), pin=PIN)
        link = blufi.Link(False)
        link.mtu = line.gatt.mtu

        async def send(kind: int, data: bytes = b"") -> None:
            link.send(kind, data)
            while one := link.transmit():
                await line.say(one)

        if step == 0:
            return
        if step == 1:
            await line.say(piece(NEGOTIATE, 84, bytes(16), seq=0))
            return
        await send(NEGOTIATE, exchange.hello())
        if step == 2:
            return  # it computes
        answer = await said(line, link)
        if step == 3:
            return
        await send(NEGOTIATE, exchange.answer(answer))
        if step == 4:
            return
        link.protect(MODE, exchange.finish(await said(line, link)))
        requests = (SET_OPMODE, b"\1"), (STA_SSID, b"nowhere"), (STA_PASSWORD, b"pass word")
        for kind, data in (*requests, (CONNECT, b""))[: step - 4]:
            await send(kind, data)

    async def body(s: scenes.Scene, step: int) -> None:
        async with wire(s) as line:
            await so_far(line, step)
            await line.leave()

    with scene(v1) as s:
        for step in range(9):
            run(body(s, step))
            s.skip(1)  # leaving after S_HELLO counts as a guess
            run(works(s))
        unharmed(s)


def advertises(s: scenes.Scene) -> bool:
    [found] = [one for one in s.space.list_radios() if one["address"] == scenes.ADDRESS]
    return found["advertising"]


async def touch(s: scenes.Scene) -> None:
    """Connect and hang up, without a word that the beacon would have to answer."""
    adapter = await SpaceAdapter.acquire(str(s.space.path))
    try:
        address = await adapter.find_advertiser(scenes.ADDRESS, 60)
        assert address is not None
        connection = await adapter.connect(address, 15.0, 60)
        await connection.disconnect()
    finally:
        adapter.release()


def test_whoever_is_gone_before_he_is_noticed(v1):
    """A connection that begins and ends while the beacon is busy: it goes on advertising."""

    async def body(s: scenes.Scene) -> None:
        await s.find()
        pid = s.beacon.process
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            await touch(s)
            assert not advertises(s)
        finally:
            os.kill(pid, signal.SIGCONT)
        s.beacon.wait_for(lambda: advertises(s), 60)
        await works(s)

    with scene(v1) as s:
        run(body(s))
        unharmed(s)


def test_a_flood(v1):
    """Far more than there is room for: whoever does that is cut off, and nobody else is."""

    async def body(s: scenes.Scene) -> None:
        async with wire(s) as line:
            flood = [frame(NEGOTIATE, bytes(200), seq=seq, fc=FRAGMENT) for seq in range(300)]
            await line.say(*flood)
            await hung_up(line)
        await works(s)

    with scene(v1) as s:
        run(body(s))
        unharmed(s)


def test_one_at_a_time(v1):
    """A second client is cut off, and the first does not notice."""

    async def body(s: scenes.Scene) -> None:
        async with s.client() as client:
            found = await s.find(opened=False)
            async with GattConnection(found.device, found.name, s.radio) as second:
                await Wire(second).say(frame(GET_VERSION))
                await hung_up(Wire(second))
            assert (await client.query_state()).beacon_id == scenes.ID

    with scene(v1) as s:
        run(body(s))
        unharmed(s)


async def ask_version(s: scenes.Scene, found: Sighting) -> int:
    async with GattConnection(found.device, found.name, s.radio) as gatt:
        await Wire(gatt).say(frame(GET_VERSION))
        return (await Wire(gatt).hear())[0]


def test_the_next_one_waits(v1):
    """Who comes while the beacon ends what somebody else began is served, not cut off."""

    async def body(s: scenes.Scene) -> None:
        found = await s.find()
        pid = s.beacon.process
        assert pid is not None
        async with GattConnection(found.device, found.name, s.radio) as first:
            await Wire(first).say(frame(GET_VERSION))
            assert (await Wire(first).hear())[0] == VERSION
            os.kill(pid, signal.SIGSTOP)
            try:
                await Wire(first).leave()
                coming = asyncio.create_task(ask_version(s, found))
                await asyncio.sleep(0.2)  # NimBLE answers nothing until its handler has run
                assert not coming.done()
            finally:
                os.kill(pid, signal.SIGCONT)
            assert await coming == VERSION
        await works(s)

    with scene(v1, scale=1) as s:
        run(body(s))
        unharmed(s)
