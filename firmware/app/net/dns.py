# Resolves names without blocking the loop, as the port's getaddrinfo does while a name server is
# slow. Names are asked of the network's name server, names under .local of all hosts (one-shot
# mDNS: RFC 6762, section 5.1). An answer is only an address to try: the host there has to
# authenticate its answers.

import asyncio
import os
import select
import socket
import time
from struct import unpack_from

from micropython import const
from wire.url import is_ipv4

_A = const(1)
_PTR = const(12)
_SRV = const(33)
_PACKET = const(512)
_RECORDS = const(32)
_LABELS = const(32)
_TRIES = const(3)
_TICK = const(20)
_DATAGRAMS = const(8)  # read at a time: a flood of datagrams must not stop the other tasks
_MDNS = const("224.0.0.251")

WAIT = 1000  # ms for an answer

SERVICE = "_beacon-ota._tcp.local"


# There is no address for this name.
class NoAddress(OSError):
    pass


def address(host, port, kind=socket.SOCK_STREAM):
    return socket.getaddrinfo(host, port, 0, kind)[0][-1]


# The IPv4 address of a host as text; `server` is the network's name server.
async def resolve(host, server):
    if is_ipv4(host):
        return host
    if host.endswith(".local"):
        try:
            return (await _exchange(host, _A, _MDNS, 5353))[0]
        except NoAddress:
            pass  # some sites serve .local from their own name server
    return (await _exchange(host, _A, server, 53))[0]


# The (host, port) of an orchestrator that announces itself on this network.
async def discover():
    found = await _exchange(SERVICE, _PTR, _MDNS, 5353)
    return found[0], found[1]


# Asks one question up to three times. The socket is polled at intervals, because an answer arrives
# within milliseconds or not at all. Each datagram is received on its own: the port's readinto()
# would continue with the bytes of the next one, and an answer behind a foreign one would be lost.
async def _exchange(name, kind, server, port):
    number = os.urandom(2)
    query = _build_query(number, name, kind)
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        target = address(server, port, socket.SOCK_DGRAM)
        for _ in range(_TRIES):
            sock.sendto(query, target)
            begun = time.ticks_ms()
            while time.ticks_diff(time.ticks_ms(), begun) < WAIT:
                await asyncio.sleep_ms(_TICK)
                for _ in range(_DATAGRAMS):
                    if not poll.poll(0):
                        break
                    try:
                        return parse_answer(memoryview(sock.recv(_PACKET)), number, name, kind)
                    except (ValueError, IndexError):
                        continue  # an answer to another question, or garbage
    except OSError as error:
        raise NoAddress("%s: %s" % (name, error))
    finally:
        sock.close()
    raise NoAddress("%s: no answer from %s" % (name, server))


def _build_query(number, name, kind):
    query = number + b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"
    for label in name.split("."):
        label = label.encode()
        if not 0 < len(label) < 64:
            raise NoAddress("bad name: " + name)
        query += bytes((len(label),)) + label
    return query + bytes((0, 0, kind, 0, 1))


# Parses an answer: [address] for an A question; [host or address, port] for a service. Raises
# ValueError or IndexError for every packet that does not answer this question.
def parse_answer(packet, number, name, kind):
    flags, questions, answers, authority, additional = unpack_from(">5H", packet, 2)
    if packet[:2] != number or flags & 0x800F != 0x8000 or questions > 4:
        raise ValueError
    at = 12
    for _ in range(questions):
        _, at = _read(packet, at)
        at += 4
    host = port = None
    addresses = {}
    first = None
    for _ in range(min(answers + authority + additional, _RECORDS)):
        owner, at = _read(packet, at)
        found, cls, _, size = unpack_from(">HHIH", packet, at)
        at += 10
        if at + size > len(packet):
            raise ValueError
        if cls & 0x7FFF == 1:
            if found == _A and size == 4:
                addresses[owner] = ".".join([str(b) for b in packet[at : at + 4]])
                first = first or addresses[owner]
            elif found == _SRV and owner.endswith(SERVICE) and size > 6 and not host:
                port = unpack_from(">H", packet, at + 4)[0]
                host, _ = _read(packet, at + 6)
        at += size
    if kind == _A:
        # Behind an alias the address has another name; mDNS answers also name other hosts.
        if not first or (name.endswith(".local") and name.lower() not in addresses):
            raise ValueError
        return [addresses.get(name.lower(), first)]
    if not port:
        raise ValueError
    return [addresses.get(host, host), port]


# Reads a name; returns it and the position behind it. Pointers lead backwards only, so they end.
def _read(packet, at):
    labels = []
    after = None
    lowest = at
    while len(labels) < _LABELS:
        size = packet[at]
        if size == 0:
            return ".".join(labels), after or at + 1
        if size & 0xC0:
            if size < 0xC0:
                raise ValueError
            after = after or at + 2
            at = (size & 0x3F) << 8 | packet[at + 1]
            if at >= lowest:
                raise ValueError
            lowest = at
            continue
        labels.append(str(packet[at + 1 : at + 1 + size], "ascii").lower())
        at += 1 + size
    raise ValueError
