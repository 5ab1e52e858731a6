"""Finds the client of a request behind proxies; only trusted proxies are believed.

Each proxy appends the address that called it to ``X-Forwarded-For``. So the list is read from its
end, over the trusted proxies, up to the first address that is not one of them. Anything before that
address may be forged.
"""

import ipaddress
from collections.abc import Callable, Sequence
from functools import lru_cache

from beacon_ota.errors import UsageError
from beacon_ota.orchestrator.http.asgi import App, Receive, Scope, Send

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_HOPS = 8  # proxies in a row
_SCHEMES = (b"http", b"https")


def parse_proxies(text: str) -> tuple[Network, ...]:
    """Return the networks of an option: addresses and networks, separated by commas.

    Raises:
        UsageError: ``forwarded_allow_ips``.
    """
    found = []
    for one in text.replace(",", " ").split():
        try:
            found.append(ipaddress.ip_network(one))
        except ValueError:
            raise UsageError(
                "forwarded_allow_ips",
                "this is no address of a proxy",
                found=one,
                expected="addresses or networks: 127.0.0.1,10.0.0.0/24",
            ) from None
    return tuple(found)


class ForwardedMiddleware:
    """An ASGI application around another.

    Args:
        proxies: whose word is believed; nobody's when there are none.
    """

    def __init__(self, proxies: Sequence[Network], app: App):
        self._app = app
        self._trusted = lru_cache(4096)(make_membership_test(proxies))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        if scope["type"] == "http" and client and self._trusted(client[0]):
            given, scheme = [], b""
            for name, value in scope["headers"]:
                if name == b"x-forwarded-for":
                    given.append(value)
                elif name == b"x-forwarded-proto":
                    scheme = value.rpartition(b",")[2].strip().lower()
            scope["client"] = (self._from(b",".join(given), client[0]), 0)
            if scheme in _SCHEMES:
                scope["scheme"] = scheme.decode()
        await self._app(scope, receive, send)

    def _from(self, given: bytes, proxy: str) -> str:
        """Return the nearest address that is no trusted proxy; ``proxy`` where none is told."""
        nearest = proxy
        for one in reversed(given.rsplit(b",", _HOPS)[-_HOPS:]):
            found = read_address(one.decode("latin-1").strip())
            if found is None:
                break
            nearest = str(found)
            if not self._trusted(nearest):
                break
        return nearest


def read_address(text: str) -> Address | None:
    """Return an address as proxies write it, None of anything else.

    Some write ``1.2.3.4:5678`` or ``[2001:db8::1]:5678``.
    """
    if len(text) > 64:
        return None
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def make_membership_test(proxies: Sequence[Network]) -> Callable[[str], bool]:
    """Return what tells whether an address, as text, is in one of the networks."""

    def trusted(text: str) -> bool:
        found = read_address(text)
        return found is not None and any(found in network for network in proxies)

    return trusted
