"""Below a path: with the prefix in the request or taken away by a proxy, and whose word counts."""

import asyncio

import pytest

from beacon_ota.errors import UsageError
from beacon_ota.orchestrator.http.forwarded import parse_proxies
from beacon_ota.orchestrator.http.prefix import PrefixMiddleware, parse_prefix, prefix_of

PROXIES = parse_proxies("192.0.2.1")


def seen(path: str, prefix: str = "/ota", told: str | None = None, client: str = "192.0.2.1"):
    """Return path and prefix of a request as the application sees them."""
    found = {}

    async def app(scope, _receive, _send):
        found.update(scope)

    headers = [] if told is None else [(b"x-forwarded-prefix", told.encode("latin-1"))]
    scope = {"type": "http", "client": (client, 9), "path": path, "headers": headers}
    asyncio.run(PrefixMiddleware(prefix, PROXIES, app)(scope, None, None))  # type: ignore[arg-type]
    return found["path"], prefix_of(found)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/ota/beacons", "/beacons"),
        ("/ota/", "/"),
        ("/ota", "/"),
        ("/beacons", "/beacons"),  # taken away by the proxy
        ("/", "/"),
        ("/otaku", "/otaku"),
        ("/api/ota/x", "/api/ota/x"),
    ],
)
def test_the_prefix_is_taken_away_once(path, expected):
    assert seen(path) == (expected, "/ota")
    assert seen(path, prefix="") == (path, "")


def test_a_proxy_says_the_prefix():
    assert seen("/beacons", "", "/a/b") == ("/beacons", "/a/b")
    assert seen("/a/b/beacons", "/ota", "/a/b/") == ("/beacons", "/a/b")
    assert seen("/beacons", "", "/a/b", client="203.0.113.5") == ("/beacons", "")
    for told in ("//evil.example", "/a b", "/a?x", "javascript:x", "/..", '/"', "/" + "a" * 200):
        assert seen("/beacons", "", told) == ("/beacons", "")


@pytest.mark.parametrize(
    "text", ["ota", "/o ta", "//x", "/ota?x=1", "/a/../b", "/é", "/" + "a" * 200]
)
def test_a_prefix_that_is_none(text):
    with pytest.raises(UsageError) as caught:
        parse_prefix(text)
    assert caught.value.code == "path_prefix"


def test_a_slash_at_the_end_is_none():
    assert parse_prefix("/ota/") == parse_prefix(" /ota ") == "/ota"
    assert parse_prefix("") == parse_prefix("/") == ""
