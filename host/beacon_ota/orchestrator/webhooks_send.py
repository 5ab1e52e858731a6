"""One try at a webhook: where it may go, how it is signed, what is taken for an answer.

Signed as standardwebhooks.com has it, so that receivers verify it with what they have. The answer's
status is all that is ever looked at or kept, so that a webhook is no way to read what a network
keeps to itself; redirects are not followed, and a name is connected to at the address that was
judged, not looked up again.
"""

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import re
import secrets
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple
from urllib.parse import urlsplit

from beacon_ota import __version__
from beacon_ota.errors import InputError

TIMEOUT_S = 15.0  # for all of a try
URL_MAX = 1024
_RESOLVER = ThreadPoolExecutor(4, thread_name_prefix="webhook-names")  # it may take its time
_PORTS = {"http": 80, "https": 443}
_PREFIX = "whsec_"
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: |\r?\n)")


class Target(NamedTuple):
    """Where a webhook goes; ``path`` with its query."""

    scheme: str
    host: str
    port: int
    path: str


class Outcome(NamedTuple):
    """What came of a try: the HTTP status, or the word for why there is none."""

    status: int | None
    error: str | None
    took_ms: int

    @property
    def ok(self) -> bool:
        """The receiver has it."""
        return self.error is None

    @property
    def gone(self) -> bool:
        """The receiver wants nothing more, ever."""
        return self.status == 410


def target(url: str, *, local: bool = False) -> Target:
    """Read an address.

    Raises:
        InputError: ``webhook_url``; ``webhook_address`` for one where nothing is sent to.
    """
    if len(url) > URL_MAX or not url.isascii() or not url.isprintable() or " " in url:
        raise _malformed(url, "printable ASCII without spaces, at most 1024 characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _malformed(url, str(error)) from None
    if parts.scheme not in _PORTS or not parts.hostname:
        raise _malformed(url, "http:// or https:// and a host")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise _malformed(url, "no user, password or fragment in it")
    if port == 0:
        raise _malformed(url, "a port from 1 to 65535")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    found = Target(parts.scheme, parts.hostname, port or _PORTS[parts.scheme], path)
    try:
        literal = ipaddress.ip_address(found.host)
    except ValueError:
        return found
    if not allowed(str(literal), local=local):
        raise InputError(
            "webhook_address",
            "webhooks are not sent to this address",
            found=found.host,
            expected="not this machine, its own link, or many at once",
        )
    return found


def allowed(address: str, *, local: bool) -> bool:
    """Tell whether webhooks are sent to an IP address.

    Networks of one's own are where receivers are. What answers on the link (the metadata services
    of clouds) or only to this machine trusts its callers by where they are: not there.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip.sixtofour or ip
    if ip.is_loopback:
        return local
    return not (ip.is_unspecified or ip.is_link_local or ip.is_multicast or ip.is_reserved)


def new_secret() -> str:
    """Return a fresh secret of 256 bits."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def sign(secret: str, message_id: str, timestamp: int, body: str) -> str:
    """Return the signature header of a message."""
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    signed = f"{message_id}.{timestamp}.{body}".encode()
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


async def send(
    url: str, secret: str, message_id: str, timestamp: int, body: str, *, local: bool = False
) -> Outcome:
    """Make one try. Never raises for what a receiver or the network does.

    Args:
        timestamp: of this try, UTC seconds; receivers refuse old ones.
        local: receivers on this machine are allowed.
    """
    began = time.monotonic()
    status = None
    try:
        async with asyncio.timeout(TIMEOUT_S):
            where = target(url, local=local)
            status = await _post(where, secret, message_id, timestamp, body, local)
        error = None if 200 <= status < 300 else "http"
    except InputError as refused:
        error = refused.code
    except TimeoutError:
        error = "timeout"
    except socket.gaierror:
        error = "name"
    except ssl.SSLError:
        error = "tls"
    except OSError:
        error = "connect"
    return Outcome(status, error, round((time.monotonic() - began) * 1000))


async def _post(
    where: Target, secret: str, message_id: str, timestamp: int, body: str, local: bool
) -> int:
    loop = asyncio.get_running_loop()
    look_up = partial(socket.getaddrinfo, where.host, where.port, type=socket.SOCK_STREAM)
    found = await loop.run_in_executor(_RESOLVER, look_up)
    addresses = [str(info[4][0]) for info in found]
    addresses = [address for address in addresses if allowed(address, local=local)]
    if not addresses:
        raise InputError("webhook_address", "the name leads where webhooks are not sent to")
    tls = where.scheme == "https"
    reader, writer = await asyncio.open_connection(
        addresses[0],
        where.port,
        ssl=ssl.create_default_context() if tls else None,
        server_hostname=where.host if tls else None,
    )
    try:
        data = body.encode()
        host = f"[{where.host}]" if ":" in where.host else where.host
        if where.port != _PORTS[where.scheme]:
            host += f":{where.port}"
        lines = {
            "Host": host,
            "User-Agent": f"beacon-ota/{__version__}",
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            "Connection": "close",
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(secret, message_id, timestamp, body),
        }
        head = f"POST {where.path} HTTP/1.1\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        writer.write(head.encode("ascii") + b"\r\n" + data)
        await writer.drain()
        line = await reader.readline()
    except ValueError:
        line = b""  # longer than a line may be
    finally:
        writer.transport.abort()
    match = _STATUS.match(line)
    if match is None:
        raise InputError("answer", "what answered does not speak HTTP")
    return int(match[1])


def _malformed(url: str, expected: str) -> InputError:
    return InputError("webhook_url", "this is no address", found=url[:80], expected=expected)
