# Where the orchestrator is, as whoever provisions has written it down.

from mp import chip as c

c.modules(c.Chip(c.layout(slot=1)))

from net import api  # noqa: E402
from net.http import HttpError  # noqa: E402


def test_urls():
    for url, found in (
        ("http://box", (False, "box", 80)),
        ("https://box", (True, "box", 443)),
        ("http://box:8080/", (False, "box", 8080)),
        ("https://10.0.0.1:65535/x:y", (True, "10.0.0.1", 65535)),
    ):
        assert api.split(url) == found, url


# A port beyond what fits the chip's small numbers makes getaddrinfo raise what nobody expects of
# it: the agent would die of it again and again, and take the chip with it.
def test_urls_that_lead_nowhere():
    for url in (
        "",
        "box:8080",
        "ftp://box",
        "http://box:port",
        "http://box:",
        "http://box:-1",
        "http://box:0",
        "http://box:65536",
        "http://box:" + "9" * 100,
    ):
        try:
            api.split(url)
        except HttpError as error:
            assert error.code == "connect"
        else:
            raise AssertionError(url)
