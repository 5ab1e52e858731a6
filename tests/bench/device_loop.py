# Under MicroPython: the update's loop against the bare one, over the same socket, into the same
# flash in RAM. device.py asks.

import asyncio
import gc
import socket
import time
from hashlib import sha256

from mp import chip

SECTOR = 4096
PIECE = 1024
chip.modules(chip.Chip(chip.layout(slot=1)))

from net import http  # noqa: E402
from ota.download import Download  # noqa: E402
from ota.writer import Writer  # noqa: E402


# Flash that costs what moving the bytes costs; eight sectors of it, over and over.
class Flash:
    def __init__(self, size):
        self.size = size
        self.memory = memoryview(bytearray(8 * SECTOR))

    def ioctl(self, op, sector):
        return 0

    def writeblocks(self, sector, buf, offset=0):
        at = sector % 8 * SECTOR + offset
        self.memory[at : at + len(buf)] = buf

    def readblocks(self, sector, buf, offset=0):
        at = sector % 8 * SECTOR + offset
        buf[:] = self.memory[at : at + len(buf)]

    def info(self):
        return (0, 0x11, 0, self.size + 2 * SECTOR, "ota_1", False)


# readinto, writeblocks, sha256: no errors, no other tasks. `back`: what was written is read and
# compared as the writer does it.
def bare(address, size, back=False):
    flash = Flash(size)
    sock = socket.socket()
    sock.connect(address)
    sock.write(b"GET / HTTP/1.1\r\n\r\n")
    while sock.readline() != b"\r\n":
        pass
    buf = bytearray(SECTOR)
    again = bytearray(PIECE)
    pieces = [memoryview(buf)[at : at + PIECE] for at in range(0, SECTOR, PIECE)]
    sha = sha256()
    begun = time.ticks_us()
    for sector in range(size // SECTOR):
        sock.readinto(buf)
        flash.writeblocks(sector, buf)
        if back:
            flash.ioctl(6, sector)
            at = 0
            for piece in pieces:
                flash.readblocks(sector, again, at)
                if again != piece:
                    raise OSError(f"sector {sector}")
                at += PIECE
        sha.update(buf)
    took = time.ticks_diff(time.ticks_us(), begun)
    sock.close()
    return took


class Radio:
    def progress(self, value):
        pass


class Store:
    def policy(self, name):
        return 300


class Api:
    def __init__(self, address):
        self.address = address
        self.begun = 0  # ticks when the body began: connecting is not the loop's

    async def download(self, *_):
        connection = await http.request(self.address, "bench", "GET", "/", ())
        self.begun = time.ticks_us()
        return connection


class Beacon:
    radio = Radio()
    store = Store()

    def __init__(self, address):
        self.api = Api(address)


class Attempt:
    url = "/"
    record = {}


# Another task, that wants its turn all the time and notes the longest wait for it.
async def other(waits):
    while True:
        begun = time.ticks_us()
        await asyncio.sleep_ms(0)
        waits[0] = max(waits[0], time.ticks_diff(time.ticks_us(), begun))


async def ours(address, size, waits=None):
    beacon = Beacon(address)
    download = Download(beacon, Attempt, {"size": size, "checksum": "ab"})
    download._begun = time.ticks_ms()
    writer = Writer(Flash(size), size)
    task = asyncio.create_task(other(waits)) if waits else None
    await download._stream(writer)
    took = time.ticks_diff(time.ticks_us(), beacon.api.begun)
    if task:
        task.cancel()
    return took


def server(port):
    return socket.getaddrinfo("127.0.0.1", port)[0][-1]


# The best of `rounds` microseconds for each, in turns.
def race(port, size, rounds):
    address = server(port)
    best = [None, None]
    for _ in range(rounds):
        for i in (0, 1):
            gc.collect()
            took = asyncio.run(ours(address, size)) if i else bare(address, size)
            best[i] = took if best[i] is None else min(best[i], took)
    return best


# Microseconds of the longest turn that the update's loop took. The least of `rounds`: what the
# machine did meanwhile is not the loop's.
def stall(port, size, rounds):
    found = []
    for _ in range(rounds):
        waits = [0]
        asyncio.run(ours(server(port), size, waits))
        found.append(waits[0])
    return min(found)
