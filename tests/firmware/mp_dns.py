# Names: what packets say, and asking real sockets.

import asyncio
import socket
from struct import pack

from mp import chip as c
from net import dns

ID = b"\x12\x34"


def name(text):
    out = b""
    for label in text.split("."):
        out += bytes([len(label)]) + label.encode()
    return out + b"\0"


def packet(records, question="a.example", kind=1, flags=0x8180, ident=ID):
    head = ident + pack(">5H", flags, 1, len(records), 0, 0)
    body = name(question) + pack(">HH", kind, 1)
    for owner, found, data in records:
        body += owner + pack(">HHIH", found, 1, 60, len(data)) + data
    return head + body


POINTER = b"\xc0\x0c"
IP = bytes([10, 0, 0, 7])


def fails(data, question="a.example", kind=1):
    try:
        dns.parse_answer(memoryview(data), ID, question, kind)
    except (ValueError, IndexError):
        return True
    return False


def test_an_address():
    for owner in (POINTER, name("a.example"), name("A.EXAMPLE")):
        found = dns.parse_answer(memoryview(packet([(owner, 1, IP)])), ID, "a.example", 1)
        assert found == ["10.0.0.7"]


def test_behind_an_alias():
    data = packet([(POINTER, 5, name("b.example")), (name("b.example"), 1, IP)])
    assert dns.parse_answer(memoryview(data), ID, "a.example", 1) == ["10.0.0.7"]


def test_somebody_elses_answer():
    good = packet([(POINTER, 1, IP)])
    assert fails(b"\x00\x00" + good[2:])
    assert fails(packet([(POINTER, 1, IP)], flags=0x0100))  # a question
    assert fails(packet([(POINTER, 1, IP)], flags=0x8183))  # no such name
    assert fails(packet([]))
    assert fails(packet([(POINTER, 28, bytes(16))]))
    # mDNS: an answer about another host is not one about this.
    other = packet([(name("other.local"), 1, IP)], "x.local")
    assert fails(other, "x.local")


def test_a_service():
    service = dns.SERVICE
    host = "box.local"
    srv = pack(">HHH", 0, 0, 8081) + name(host)
    records = [
        (name(service), 12, name("main." + service)),
        (name("main." + service), 33, srv),
        (name(host), 1, IP),
    ]
    data = packet(records, service, 12)
    assert dns.parse_answer(memoryview(data), ID, service, 12) == ["10.0.0.7", 8081]
    data = packet(records[:2], service, 12)
    assert dns.parse_answer(memoryview(data), ID, service, 12) == [host, 8081]
    assert fails(packet(records[:1], service, 12), service, 12)


def test_every_cut_and_every_flipped_byte():
    service = dns.SERVICE
    srv = pack(">HHH", 0, 0, 8081) + name("box.local")
    for data, question, kind in (
        (packet([(POINTER, 5, name("b.example")), (POINTER, 1, IP)]), "a.example", 1),
        (packet([(name("main." + service), 33, srv)], service, 12), service, 12),
    ):
        for i in range(len(data)):
            assert fails(data[:i], question, kind) or i > len(data) - 1
        for i in range(len(data)):
            for value in (0, 0x3F, 0x40, 0xC0, 0xFF):
                fails(data[:i] + bytes([value]) + data[i + 1 :], question, kind)


def test_pointers_end():
    loop = ID + pack(">5H", 0x8180, 1, 1, 0, 0) + b"\xc0\x0c" + bytes(4) + b"\xc0\x0c"
    assert fails(loop)
    ahead = ID + pack(">5H", 0x8180, 0, 1, 0, 0) + b"\xc0\x0e\xc0\x0c" + bytes(20)
    assert fails(ahead)


def test_numbers_need_no_server():
    assert asyncio.run(dns.resolve("192.168.1.5", "0.0.0.0")) == "192.168.1.5"


# A name server on a real socket: for each question the answers of `make(question)`.
def ask(make):
    sock, port = c.listen(socket.SOCK_DGRAM)
    seen = []

    async def server():
        while True:
            await asyncio.sleep_ms(5)
            try:
                data, peer = sock.recvfrom(512)
            except OSError:
                continue
            seen.append(data)
            for answer in make(data):
                sock.sendto(answer, peer)

    async def main():
        task = asyncio.create_task(server())
        try:
            return await dns._exchange("a.example", 1, "127.0.0.1", port)
        finally:
            task.cancel()

    try:
        return asyncio.run(main()), seen
    finally:
        sock.close()


def good(question):
    return packet([(POINTER, 1, IP)], ident=question[:2])


dns.WAIT = 200


def test_asking():
    found, seen = ask(lambda q: [good(q)])
    assert found == ["10.0.0.7"] and len(seen) == 1
    assert seen[0][2:12] == b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"
    assert seen[0][12:] == name("a.example") + b"\0\x01\0\x01"


# Datagrams that come faster than they can be read must not keep the other tasks waiting: the
# watchdog would end that, and on trial the release would be to blame.
def test_a_flood_lets_others_run():
    turns = [0]
    read = [0, 0]  # in which turn, how many

    class Flood:
        def __getattr__(self, _):
            return lambda *_: None

        def poll(self, _):
            return True

        def recv(self, _):
            read[:] = [turns[0], read[1] + 1 if read[0] == turns[0] else 1]
            assert read[1] < 100
            return bytes(12)

    class Net:
        AF_INET = SOCK_DGRAM = 0
        socket = staticmethod(lambda *_: Flood())

    class Select:
        POLLIN = 1
        poll = Flood

    async def others():
        while True:
            turns[0] += 1
            await asyncio.sleep_ms(0)

    async def main():
        task = asyncio.create_task(others())
        try:
            await dns._exchange("a.example", 1, "127.0.0.1", 53)
        except dns.NoAddress:
            return turns[0]
        finally:
            task.cancel()

    kept = dns.socket, dns.select, dns.address
    dns.socket, dns.select, dns.address = Net, Select, lambda *_: None
    try:
        assert asyncio.run(main()) > 100
    finally:
        dns.socket, dns.select, dns.address = kept


def test_rubbish_before_the_answer():
    stranger = packet([(POINTER, 1, bytes([6, 6, 6, 6]))], ident=b"\xff\xff")
    found, _ = ask(lambda q: [b"", b"\0" * 40, stranger, b"\xff" * 512, good(q)])
    assert found == ["10.0.0.7"]


def test_an_answer_right_behind_another():
    stranger = packet([(POINTER, 1, bytes([6, 6, 6, 6]))], ident=b"\xff\xff")
    found, seen = ask(lambda q: [stranger, good(q)])
    assert found == ["10.0.0.7"] and len(seen) == 1


def test_a_question_may_get_lost():
    asked = []

    def second(question):
        asked.append(question)
        return [good(question)] if len(asked) == 2 else []

    found, seen = ask(second)
    assert found == ["10.0.0.7"] and len(seen) == 2 and seen[0] == seen[1]


def test_no_answer_is_an_error():
    try:
        ask(lambda q: [])
    except dns.NoAddress as error:
        assert "a.example" in str(error)
        return
    raise AssertionError("answered")


def test_names_that_cannot_be_asked_for():
    for bad in ("", "a..b", "x" * 64 + ".local"):
        try:
            asyncio.run(dns.resolve(bad, "127.0.0.1"))
        except dns.NoAddress:
            continue
        raise AssertionError(bad)


# Some sites have .local names in a name server of their own, and nobody who answers mDNS.
def test_local_names_are_asked_of_everybody_and_then_of_the_name_server():
    asked = []
    real = dns._exchange

    async def ask(name, kind, server, port):
        asked.append((server, port))
        if port == 5353:
            raise dns.NoAddress(name)
        return ["10.0.0.9"]

    dns._exchange = ask
    try:
        assert asyncio.run(dns.resolve("orch.local", "10.0.0.1")) == "10.0.0.9"
        assert asked == [("224.0.0.251", 5353), ("10.0.0.1", 53)]
        asked.clear()
        assert asyncio.run(dns.resolve("orch.example", "10.0.0.1")) == "10.0.0.9"
        assert asked == [("10.0.0.1", 53)]
    finally:
        dns._exchange = real
