"""Serves the administrators' side below a path: ``https://tools.example.org/ota/``.

The prefix is that of ``--path-prefix``, or what a trusted proxy says in ``X-Forwarded-Prefix``. The
path of a request may have it, or the proxy has taken it away already. Pages and redirections read
the prefix with :func:`prefix_of`. Beacons' calls have no prefix: they sign the path that they send.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from beacon_ota.errors import UsageError
from beacon_ota.orchestrator.http.asgi import App, Receive, Scope, Send
from beacon_ota.orchestrator.http.forwarded import Network, make_membership_test

_KEY = "beacon_ota.prefix"
_PREFIX = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*){1,8}")
_MAX = 128


def parse_prefix(text: str) -> str:
    """Return a prefix without a slash at its end, "" for none.

    Raises:
        UsageError: ``path_prefix``.
    """
    found = text.strip().rstrip("/")
    if found and (len(found) > _MAX or not _PREFIX.fullmatch(found)):
        raise UsageError(
            "path_prefix", "this is no path to serve below", found=text[:_MAX], expected="/ota"
        )
    return found


def prefix_of(scope: Mapping[str, Any]) -> str:
    """Return the prefix below which a request has come, "" for none."""
    return scope.get(_KEY, "")


class PrefixMiddleware:
    """An ASGI application around another, which sees paths without the prefix.

    Args:
        prefix: as :func:`parse_prefix` returns it.
        proxies: whose ``X-Forwarded-Prefix`` is believed.
    """

    def __init__(self, prefix: str, proxies: Sequence[Network], app: App):
        self._prefix, self._app = prefix, app
        self._trusted = lru_cache(4096)(make_membership_test(proxies))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            prefix = self._told_prefix(scope) or self._prefix
            if prefix:
                scope[_KEY] = prefix
                path = scope["path"]
                if path == prefix or path.startswith(prefix + "/"):
                    scope["path"] = path[len(prefix) :] or "/"
        await self._app(scope, receive, send)

    def _told_prefix(self, scope: Scope) -> str:
        client = scope.get("client")
        for name, value in scope["headers"]:
            if name == b"x-forwarded-prefix" and client and self._trusted(client[0]):
                try:
                    return parse_prefix(value.decode("latin-1"))
                except UsageError:
                    return ""
        return ""
