"""Who answers at the orchestrator's address: an answer without a right mac is a stranger's."""

import json

import pytest

from tests.firmware.beacons import PATIENT, POLICY, bench
from tests.firmware.server import STRANGERS, Fault, Request, Server

ORCHESTRATOR = "orchestrator.local"
HEAP = 148_000  # bytes: what a chip has left once WiFi is up, with objects twice its size


def moved(b, other: Server) -> None:
    """The orchestrator has another address; at the old one answers who is there now."""
    b.network.move_host(ORCHESTRATOR, "127.0.0.1", other.port)


@pytest.mark.parametrize("kind", STRANGERS)
def test_the_orchestrator_has_moved(v1, v2, kind):
    """Its name is looked up again as soon as something else than the orchestrator answers."""
    with Server(scale=20).run() as other, bench(v1, scale=20) as b:
        b.wait(lambda: b.polled("1.0.0"))
        b.server.stranger = lambda _: STRANGERS[kind]
        moved(b, other)
        other.image, other.offering = v2, True
        b.wait(lambda: other.last("success"))
        assert [ended for _, ended in b.causes()] == ["reset", None]


@pytest.mark.parametrize("kind", ["404", "silent", "short"])
def test_the_orchestrator_moves_during_a_download(v1, v2, kind):
    with Server(scale=20).run() as other, bench(v1, scale=20) as b:
        b.wait(lambda: b.polled("1.0.0"))

        def stranger(request: Request) -> Fault | None:
            if not other.offering and request.path.endswith("/download"):
                moved(b, other)
                other.image, other.version, other.offering = v2, "2.0.0", True
            return STRANGERS[kind] if other.offering else None

        b.server.stranger = stranger
        b.server.image, b.server.offering = v2, True
        b.wait(lambda: other.last("success"))
        assert not other.last("failed")


def test_a_download_that_stalls_asks_for_the_name(v1, v2):
    """Half of the image came, and then nothing more: the rest is fetched from where it is now."""
    with Server(scale=20).run() as other, bench(v1, scale=20) as b:
        b.wait(lambda: b.polled("1.0.0"))

        def stranger(request: Request) -> Fault | None:
            if not other.offering and request.path.endswith("/download"):
                moved(b, other)
                other.image, other.version, other.offering = v2, "2.0.0", True
            return None

        b.server.stranger = stranger
        b.server.downloads = [Fault(stall=30_000)] + [Fault(status=404)] * 9
        b.server.image, b.server.offering = v2, True
        b.wait(lambda: other.last("success"))
        asked = [r.headers.get("range", "") for r in other.requests if "/download" in r.target]
        assert asked == ["bytes=28672-"]


def test_a_name_that_nobody_knows_leads_where_it_led(v1, v2):
    """Name servers are away, and somebody else has answered once: the address is still good."""
    with bench(v1, scale=20) as b:
        b.wait(lambda: b.polled("1.0.0"))
        b.beacon.link.faults.names = False
        strange = [STRANGERS["404"], STRANGERS["silent"], STRANGERS["garbage"]]
        b.server.stranger = lambda _: strange.pop(0) if strange else None
        b.server.image, b.server.offering = v2, True
        b.wait(lambda: b.server.last("rebooting"))


@pytest.mark.parametrize("kind", STRANGERS)
def test_a_stranger_calls_nothing_off(v1, v2, kind):
    """Some of the answers to everything that an attempt asks and says are a stranger's."""
    seen: dict[str, int] = {}

    def stranger(request: Request) -> Fault | None:
        word = request.path.rpartition("/")[2]
        if request.method == "POST":
            word = json.loads(request.body)["update_status"]
        seen[word] = seen.get(word, 0) + 1
        return STRANGERS[kind] if seen[word] <= 3 else None

    with bench(v1, scale=20, policy={"stall_s": 10, "give_up_s": 4000, "backoff_ms": 100}) as b:
        b.server.stranger = stranger
        b.server.image, b.server.offering = v2, True
        b.reported("success")
        assert b.server.statuses()[-3:] == ["verifying", "rebooting", "success"]
        assert not b.server.last("failed") and b.server.attempts == 1
        assert {"download", "verifying", "rebooting", "success"} <= set(seen)
        assert POLICY["retry_s"] == 1


@pytest.mark.parametrize("size", [2000, 10_000, 20_000])
def test_a_stranger_answers_at_length(v1, v2, size):
    """In pieces of one byte, while the sector's buffers fill the heap: his answer is no answer, and
    nothing that this beacon has to die of."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    long = Fault(raw=head + b"1\r\n[\r\n" * size + b"0\r\n\r\n")
    seen: dict[str, int] = {}

    def stranger(request: Request) -> Fault | None:
        word = request.path.rpartition("/")[2]
        if request.method == "POST":
            word = json.loads(request.body)["update_status"]
        elif "state=trial" in request.target:
            word = "trial"
        seen[word] = seen.get(word, 0) + 1
        return long if seen[word] <= 3 else None

    with bench(v1, scale=20, heap=HEAP, policy={"trial_s": 300, **PATIENT}) as b:
        b.server.stranger = stranger
        b.server.image, b.server.offering = v2, True
        b.reported("success")
        assert {"download", "verifying", "rebooting", "trial", "success"} <= set(seen)
        assert not b.server.last("failed") and b.server.attempts == 1
        assert [ended for _, ended in b.causes()] == ["reset", None]
        assert "task" not in [entry[2] for entry in b.server.journal()]


def test_a_stranger_wears_nothing_out(v1):
    """Another status with every answer: one journal entry until it could be delivered."""
    count = 0

    def stranger(request: Request) -> Fault | None:
        nonlocal count
        count += 1
        return Fault(raw=b"HTTP/1.1 4%02d X\r\nContent-Length: 0\r\n\r\n" % (count % 100))

    with bench(v1, scale=20) as b:
        b.server.stranger = stranger
        b.wait(lambda: count > 20)
        entries = [b.beacon.setting(f"journal{n}") for n in range(8)]
        assert sum(b"stranger" in entry for entry in entries if isinstance(entry, bytes)) == 1
        b.server.stranger = lambda _: None
        b.wait(lambda: ["answer", "stranger"] in [e[2:4] for e in b.server.journal()])


def test_an_orchestrator_that_does_not_know_it_is_no_stranger(v1):
    with bench(v1, scale=20) as b:
        b.server.stranger = lambda _: STRANGERS["401"]
        before = len(b.server.requests)
        b.wait(lambda: len(b.server.requests) > before + 2)
        b.server.stranger = lambda _: None
        b.wait(lambda: ["answer", "unsealed"] in [e[2:4] for e in b.server.journal()])
        assert ["answer", "stranger"] not in [e[2:4] for e in b.server.journal()]


@pytest.mark.parametrize(
    "url", ["http://orchestrator.local:8080/old/path", "HTTP://Orchestrator.local.:8080"]
)
def test_an_address_that_another_release_has_stored(v1, url):
    with bench(v1, scale=20, settings={"orch_url": url.encode()}) as b:
        b.wait(lambda: b.polled("1.0.0"))
