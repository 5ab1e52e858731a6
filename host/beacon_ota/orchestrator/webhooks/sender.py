"""Makes one try at a delivery: checks the address, signs the message, reads the answer's status.

Messages are signed as standardwebhooks.com has it, so that receivers verify them with existing
libraries. Only the status of the answer is read, so that a webhook cannot be used to read from a
network; redirects are not followed.

requests and httpx are not used: both look the name up again when they connect, so that the checked
address and the connected one may differ, and both bound each read but not the whole try (15 s).
Here the checked addresses are tried one after the other; once something was sent, the next try is
the dispatcher's.
"""

import asyncio
import base64
import contextlib
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
from beacon_ota.orchestrator.webhooks.addresses import is_allowed_address

TIMEOUT_S = 15.0  # of a whole try
_ADDRESSES_MAX = 8  # addresses of a host that are tried
URL_MAX = 1024
_RESOLVER = ThreadPoolExecutor(4, thread_name_prefix="webhook-names")  # getaddrinfo blocks
_PORTS = {"http": 80, "https": 443}
_SECRET_PREFIX = "whsec_"
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: |\r?\n)")


class WebhookTarget(NamedTuple):
    """The parsed URL of a webhook; ``path`` includes the query."""

    scheme: str
    host: str
    port: int
    path: str


class DeliveryOutcome(NamedTuple):
    """The result of a try: the HTTP status, or a word for the reason why there is none."""

    status: int | None
    error: str | None
    took_ms: int

    @property
    def ok(self) -> bool:
        """The receiver has accepted the message."""
        return self.error is None

    @property
    def gone(self) -> bool:
        """The receiver wants no more messages (410)."""
        return self.status == 410


def parse_target(url: str, *, local: bool = False) -> WebhookTarget:
    """Parse and check the URL of a webhook.

    Raises:
        InputError: ``webhook_url``; ``webhook_address`` for an IP address that is not allowed.
    """
    if len(url) > URL_MAX or not url.isascii() or not url.isprintable() or " " in url:
        raise _malformed_url(url, "printable ASCII without spaces, at most 1024 characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _malformed_url(url, str(error)) from None
    if parts.scheme not in _PORTS or not parts.hostname:
        raise _malformed_url(url, "http:// or https:// and a host")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise _malformed_url(url, "no user, password or fragment in it")
    if port == 0:
        raise _malformed_url(url, "a port from 1 to 65535")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    found = WebhookTarget(parts.scheme, parts.hostname, port or _PORTS[parts.scheme], path)
    try:
        literal = ipaddress.ip_address(found.host)
    except ValueError:
        return found
    if not is_allowed_address(str(literal), local=local):
        raise InputError(
            "webhook_address",
            "webhooks are not sent to this address",
            found=found.host,
            expected="a global or a private address, and not a cloud's metadata",
        )
    return found


def new_secret() -> str:
    """Return a fresh secret of 256 bits."""
    return _SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def sign_message(secret: str, message_id: str, timestamp: int, body: str) -> str:
    """Return the signature header of a message."""
    key = base64.b64decode(secret.removeprefix(_SECRET_PREFIX))
    signed = f"{message_id}.{timestamp}.{body}".encode()
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


async def send_webhook(
    url: str, secret: str, message_id: str, timestamp: int, body: str, *, local: bool = False
) -> DeliveryOutcome:
    """Make one try; failures of receiver or network are results, not exceptions.

    Args:
        timestamp: UTC seconds of this try; receivers refuse old ones.
        local: receivers on this machine are allowed.
    """
    began = time.monotonic()
    status = None
    try:
        where = parse_target(url, local=local)
        end = asyncio.get_running_loop().time() + TIMEOUT_S
        async with asyncio.timeout_at(end):
            addresses = await _resolve_addresses(where, local)
            reader, writer = await _connect_to_first(where, addresses, end)
            status = await _post_message(reader, writer, where, secret, message_id, timestamp, body)
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
    return DeliveryOutcome(status, error, round((time.monotonic() - began) * 1000))


async def _post_message(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    where: WebhookTarget,
    secret: str,
    message_id: str,
    timestamp: int,
    body: str,
) -> int:
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
            "webhook-signature": sign_message(secret, message_id, timestamp, body),
        }
        head = f"POST {where.path} HTTP/1.1\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        writer.write(head.encode("ascii") + b"\r\n" + data)
        await writer.drain()
        line = await reader.readline()
    except ValueError:
        line = b""  # the line exceeds the limit of StreamReader
    finally:
        writer.transport.abort()
    match = _STATUS.match(line)
    if match is None:
        raise InputError("answer", "what answered does not speak HTTP")
    return int(match[1])


async def _resolve_addresses(where: WebhookTarget, local: bool) -> list[str]:
    """Return the allowed addresses of a host, in the system's order."""
    look_up = partial(socket.getaddrinfo, where.host, where.port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_RESOLVER, look_up)
    addresses = dict.fromkeys(str(info[4][0]) for info in found)
    kept = [address for address in addresses if is_allowed_address(address, local=local)]
    if not kept:
        raise InputError("webhook_address", "the name leads where webhooks are not sent to")
    return kept[:_ADDRESSES_MAX]


async def _connect_to_first(
    where: WebhookTarget, addresses: list[str], end: float
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the first address that accepts.

    Args:
        addresses: IP addresses that were checked; no name is looked up.
        end: end of the try in the loop's time; the addresses share the time that is left equally.

    Raises:
        OSError: the error of the last address.
    """
    loop = asyncio.get_running_loop()
    tls = ssl.create_default_context() if where.scheme == "https" else None
    for left in range(len(addresses), 1, -1):
        with contextlib.suppress(OSError):  # includes TimeoutError and ssl.SSLError
            async with asyncio.timeout((end - loop.time()) / left):
                return await _open_connection(where, addresses[-left], tls)
    return await _open_connection(where, addresses[-1], tls)


async def _open_connection(
    where: WebhookTarget, address: str, tls: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    name = where.host if tls else None
    return await asyncio.open_connection(address, where.port, ssl=tls, server_hostname=name)


def _malformed_url(url: str, expected: str) -> InputError:
    return InputError("webhook_url", "this is no address", found=url[:80], expected=expected)
