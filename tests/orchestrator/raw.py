"""HTTP as bytes: what no client library would send."""

import re
import socket
from typing import Any
from urllib.parse import urlsplit

from tests.orchestrator.world import DEADLINE_S

_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


class Raw:
    """A connection on which anything may be said."""

    def __init__(self, server: Any, *, receive_buffer: int | None = None):
        parts = urlsplit(server.url)
        self.sock = socket.socket()
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(DEADLINE_S)
        self.sock.connect((parts.hostname, parts.port))
        self.heard = b""
        self.closed = False

    def send(self, data: bytes) -> "Raw":
        try:
            self.sock.sendall(data)
        except OSError:
            pass  # it was closed on us; what was said before is still to be heard
        return self

    @property
    def statuses(self) -> list[int]:
        return [int(one) for one in _STATUS.findall(self.heard)]

    def read(self, count: int) -> list[int]:
        """Read until so many answers have begun, or the connection is closed."""
        while len(self.statuses) < count and self._more():
            pass
        return self.statuses

    def read_to_end(self) -> list[int]:
        """Read until the connection is closed."""
        while self._more():
            pass
        return self.statuses

    def read_until(self, end: bytes) -> bytes:
        while end not in self.heard and self._more():
            pass
        return self.heard

    def _more(self) -> bool:
        try:
            found = self.sock.recv(65536)
        except ConnectionError:
            found = b""
        self.heard += found
        self.closed = self.closed or not found
        return bool(found)

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
