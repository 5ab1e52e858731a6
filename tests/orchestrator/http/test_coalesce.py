"""Head and body of an answer leave together, in order, and nothing waits for what does not come."""

import asyncio
import socket
from urllib.parse import urlsplit

import pytest
import uvloop

from beacon_ota.orchestrator.http.coalesce import CoalescingTransport

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"


class Wire:
    """A transport that keeps what it was given, call by call."""

    def __init__(self):
        self.calls: list[bytes] = []
        self.state = "open"

    def write(self, data) -> None:
        self.calls.append(bytes(data))

    def close(self) -> None:
        self.state = "closed"

    def abort(self) -> None:
        self.state = "aborted"

    def is_closing(self) -> bool:
        return self.state != "open"

    def get_extra_info(self, name: str) -> str:
        return name


@pytest.mark.parametrize("factory", [uvloop.new_event_loop, asyncio.new_event_loop])
def test_what_leaves_when(factory):
    async def main() -> None:
        wire = Wire()
        joined = CoalescingTransport(wire, asyncio.get_running_loop())
        joined.write(HEAD)
        assert wire.calls == []
        joined.write(b"hello")
        assert wire.calls == [HEAD + b"hello"]
        joined.write(memoryview(b"more"))
        assert wire.calls[1:] == [b"more"]

        joined.write(HEAD)  # no body: at the end of the turn
        await asyncio.sleep(0)
        assert wire.calls[2:] == [HEAD]

        joined.write(HEAD)  # an empty one
        joined.write(b"")
        assert wire.calls[3:] == [HEAD]
        await asyncio.sleep(0)
        assert wire.calls[4:] == []

        joined.write(memoryview(HEAD))  # a body that looks like a head
        joined.write(b"rest")
        assert wire.calls[4:] == [HEAD + b"rest"]

        image = bytes(100_000)
        joined.write(HEAD)
        joined.write(memoryview(image))
        assert wire.calls[5:] == [HEAD, image]
        wire.calls[5:] = []

        joined.write(HEAD)
        joined.close()
        assert wire.calls[5:] == [HEAD] and joined.is_closing()
        assert joined.get_extra_info("peername") == "peername"

        dropped = Wire()
        joined = CoalescingTransport(dropped, asyncio.get_running_loop())
        joined.write(HEAD)
        joined.abort()
        await asyncio.sleep(0)
        assert dropped.calls == [] and dropped.state == "aborted"

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


def test_a_stream_begins_before_it_has_something_to_say(server):
    """The head of the event stream arrives although no event follows."""
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), 60) as sock:
        sock.settimeout(60)
        request = f"GET /api/events HTTP/1.1\r\nHost: o\r\nAuthorization: Bearer {server.token}"
        sock.sendall(request.encode() + b"\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")
