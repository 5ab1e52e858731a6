"""The line between a mirror and its primary, which can be cut in the middle of anything."""

import contextlib
import socket
import threading
from urllib.parse import urlsplit


class Uplink:
    """Forwards TCP to a server; ``cut`` ends what is under way and refuses what comes."""

    def __init__(self, url: str):
        parts = urlsplit(url)
        self._there = (parts.hostname or "", parts.port or 0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._down = False
        self.budget: int | None = None  # bytes towards the mirror until it cuts itself
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        with self._lock:
            self._down = True
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def restore(self) -> None:
        self.budget = None
        self._down = False

    def lead_to(self, url: str) -> None:
        """Forward what comes from now on to another server."""
        parts = urlsplit(url)
        self._there = (parts.hostname or "", parts.port or 0)

    def close(self) -> None:
        self.cut()
        self._listener.close()

    def __enter__(self) -> "Uplink":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                if self._down:
                    raise ConnectionRefusedError
                far = socket.create_connection(self._there, 10)
            except OSError:
                near.close()
                continue
            with self._lock:
                if self._down:  # cut since we looked
                    near.close()
                    far.close()
                    continue
                self._open |= {near, far}
            for pair in ((near, far, False), (far, near, True)):
                threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, down: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(16384):
                if down and self.budget is not None:
                    data = data[: self.budget]
                    self.budget -= len(data)
                sink.sendall(data)
                if down and self.budget == 0:
                    self.cut()
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._open -= {source}
        source.close()
