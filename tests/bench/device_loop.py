# Under MicroPython: the update's loop against the bare one, over the same socket, into the same
# flash: memory (device_ram.py), or a virtual beacon's (device_beacon.py). device.py asks.

import asyncio
import gc
import socket
import time
from hashlib import sha256

from net import http
from ota import image
from ota.download import Download
from ota.writer import Writer

SECTOR = 4096


# readinto, writeblocks, sha256: no errors, no other tasks, nothing read back.
def bare(flash, address, size):
    sock = socket.socket()
    sock.connect(address)
    sock.write(b"GET / HTTP/1.1\r\n\r\n")
    while sock.readline() != b"\r\n":
        pass
    buf = bytearray(SECTOR)
    sha = sha256()
    begun = time.ticks_us()
    for sector in range(size // SECTOR):
        sock.readinto(buf)
        flash.writeblocks(sector, buf)
        sha.update(buf)
    took = time.ticks_diff(time.ticks_us(), begun)
    sock.close()
    return took


class Radio:
    def set_progress(self, value):
        pass


class Store:
    def policy(self, name):
        return 300


class Api:
    def __init__(self, address):
        self.address = address
        self.begun = 0  # ticks when the body began: connecting is not the loop's

    async def open_request(self, *_):
        connection = await http.request(self.address, "bench", "GET", "/", ())
        self.begun = time.ticks_us()
        return connection

    def check_mac(self, connection, digest):
        pass


class Beacon:
    radio = Radio()
    store = Store()

    def __init__(self, address):
        self.api = Api(address)


class Attempt:
    download_url = "/"
    record = {}


# Another task, that wants its turn all the time and notes the longest wait for it.
async def other(waits):
    while True:
        begun = time.ticks_us()
        await asyncio.sleep_ms(0)
        waits[0] = max(waits[0], time.ticks_diff(time.ticks_us(), begun))


async def ours(flash, address, size, waits=None):
    beacon = Beacon(address)
    download = Download(beacon, Attempt, {"size": size, "checksum": "ab"})
    download._begun = time.ticks_ms()
    download.plan = bytes(size // SECTOR)  # nothing of it is in flash
    writer = Writer(flash, [0, 0, 0])
    task = asyncio.create_task(other(waits)) if waits else None
    await download._stream(writer)
    await image.digest(flash, size)
    took = time.ticks_diff(time.ticks_us(), beacon.api.begun)
    if task:
        task.cancel()
    return took


def server(port):
    return socket.getaddrinfo("127.0.0.1", port)[0][-1]


# The best of `rounds` microseconds for each, in turns.
def race(flash, port, size, rounds):
    address = server(port)
    best = [None, None]
    for _ in range(rounds):
        for i in (0, 1):
            gc.collect()
            took = asyncio.run(ours(flash, address, size)) if i else bare(flash, address, size)
            best[i] = took if best[i] is None else min(best[i], took)
    return best


# Microseconds of the longest turn that the update's loop took. The least of `rounds`: what the
# machine did meanwhile is not the loop's.
def stall(flash, port, size, rounds):
    found = []
    for _ in range(rounds):
        waits = [0]
        asyncio.run(ours(flash, server(port), size, waits))
        found.append(waits[0])
    return min(found)
