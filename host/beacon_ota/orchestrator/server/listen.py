"""The options of a listener, and its bound socket."""

import asyncio
import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from beacon_ota.errors import ReachError
from beacon_ota.orchestrator.http.forwarded import Network


@dataclass(frozen=True, slots=True)
class ListenOptions:
    """Where and how the orchestrator listens.

    Attributes:
        token_file: file for the first admin token; None: it is passed to ``on_ready``.
        first_token: make an admin token if no usable one exists.
        on_ready: called with URL and first token (None if there is none to show).
        stop: ends the server when set.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    tls_cert: Path | None = None
    tls_key: Path | None = None
    announce: bool = False
    token_file: Path | None = None
    proxies: tuple[Network, ...] = ()  # in front of us: they say who a request is from
    path_prefix: str = ""  # below which the administrators' side is reached
    first_token: bool = True  # made here when there is no admin token that works
    time_scale: float = 1.0
    on_ready: Callable[[str, str | None], None] = field(default=lambda url, token: None)
    stop: asyncio.Event = field(default_factory=asyncio.Event)


def bind_socket(
    listen: ListenOptions, *, port: int | None = None, many: bool = False
) -> socket.socket:
    """Return a socket bound to the address of the options.

    Args:
        port: instead of the port of the options.
        many: several sockets share the port; the kernel distributes the connections.

    Raises:
        ReachError: ``address_in_use``, ``address_unusable``.
    """
    try:
        family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if many:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((listen.host, listen.port if port is None else port))
        return sock
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        raise ReachError(
            "address_in_use" if taken else "address_unusable",
            f"cannot listen on {listen.host}:{listen.port}: {error.strerror}",
            found=f"{listen.host}:{listen.port}",
            expected="another --port, or the end of what listens there" if taken else None,
        ) from None


def url_of(listen: ListenOptions, sock: socket.socket) -> str:
    """Return the URL at which a bound socket is reached."""
    scheme = "https" if listen.tls_cert else "http"
    host = f"[{listen.host}]" if ":" in listen.host else listen.host
    return f"{scheme}://{host}:{sock.getsockname()[1]}"
