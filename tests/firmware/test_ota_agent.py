"""The update agent between attempts: reports that are not taken, and the pause after a failure."""

import json

import pytest

from beacon_ota import paths
from tests.firmware.beacons import bench, make
from tests.firmware.server import Fault

REFUSALS = [403, 413, 422]
FINAL = ("success", "failed", "rolled_back")


def record(b) -> dict:
    """What the beacon remembers of its attempt."""
    found = b.beacon.setting("attempt")
    return json.loads(found) if isinstance(found, bytes) else {}


@pytest.mark.parametrize("status", REFUSALS)
@pytest.mark.parametrize("word", ["verifying", "rebooting"])
def test_a_report_that_is_refused_is_no_leave_to_go_on(v1, v2, word, status):
    with bench(v1, scale=20, policy={"backoff_ms": 50}) as b:
        b.wait(lambda: b.polled("1.0.0"))
        b.server.judge = lambda r: (
            Fault(status=status)
            if r.method == "POST" and json.loads(r.body)["update_status"] == word
            else None
        )
        b.server.image, b.server.offering = v2, True
        failed = b.reported("failed")
        assert (failed["stage"], failed["code"]) == ("download", "http")
        assert failed["detail"] == f"report {word}: status {status}"
        assert b.beacon.flash.read(0x0E000, 32) == b"\xff" * 32, "nothing was armed"
        b.server.judge = lambda _: None
        b.reported("success")


@pytest.mark.parametrize("status", [*REFUSALS, 503])
def test_a_final_report_is_kept(v1, v2, status):
    """Refused, it is said again after pauses that grow, across a reset, too; polls go on."""
    with bench(v1, scale=20) as b:
        posts = []

        def refuse(request):
            if request.method != "POST" or json.loads(request.body)["update_status"] not in FINAL:
                return None
            posts.append(b.beacon.clock.now())
            return Fault(status=status)

        b.server.judge = refuse
        b.server.image, b.server.offering = v2, True
        b.wait(lambda: len(posts) >= 11)
        gaps = [after - before for before, after in zip(posts, posts[1:], strict=False)]
        assert gaps[-1] >= 16 and gaps[-1] > 1.5 * gaps[-2]
        assert b.polled("2.0.0")
        b.beacon.power_cut()
        b.beacon.power_on()
        told = len(posts)
        b.wait(lambda: len(posts) > told)
        assert record(b)["status"] == "success"
        b.server.judge = lambda _: None
        b.reported("success")
        b.wait(lambda: b.beacon.setting("attempt") is None)


def test_the_next_attempt_takes_the_place_of_a_report_that_is_never_taken(v1, v2, v3):
    with bench(v1, scale=20) as b:
        refused = []

        def refuse(request):
            doc = json.loads(request.body) if request.method == "POST" else {}
            if doc.get("update_status") in FINAL and doc["previous_version"] == "1.0.0":
                refused.append(doc)
                return Fault(status=422)
            return None

        b.server.judge = refuse
        b.server.image, b.server.offering = v2, True
        b.wait(lambda: len(refused) == 2)
        b.server.image, b.server.version = v3, "3.0.0-rc.1+build.5"
        done = b.reported("success")
        assert done["firmware_version"] == "3.0.0-rc.1+build.5"
        assert len(refused) >= 6, "it was said often enough"
        b.wait(lambda: b.beacon.setting("attempt") is None)
        assert ["report", "rejected"] in [e[2:4] for e in b.server.journal()]


# -- the pause after a failed attempt


def attempts(b) -> list[float]:
    """When each attempt was begun, in the beacon's seconds."""
    begun, seen = [], set()
    for request in b.server.requests:
        if request.method == "POST":
            doc = json.loads(request.body)
            if doc.get("attempt_id") and doc["attempt_id"] not in seen:
                seen.add(doc["attempt_id"])
                begun.append(request.at * b.server.scale)
    return begun


RETRY = 60  # seconds


def test_the_pause_holds_when_the_report_cannot_be_delivered(v1, v2):
    with bench(v1, scale=20, policy={"retry_s": RETRY}) as b:
        b.server.downloads = [Fault(status=404)] * 2
        b.server.stranger = lambda r: (
            Fault(raw=b"")
            if r.method == "POST" and json.loads(r.body)["update_status"] == "failed"
            else None
        )
        b.server.image, b.server.offering = v2, True
        b.wait(lambda: b.server.count("/api/beacons") > 3)
        b.server.stranger = lambda _: None
        b.reported("success")
        first, second, third = attempts(b)
        assert second - first >= RETRY and third - second >= 2 * RETRY


@pytest.mark.parametrize("how", ["poke", "reset"])
def test_the_pause_holds_when_the_beacon_is_told_to_hurry(v1, v2, small_core, how):
    main = (
        "import asyncio, real_main\n"
        "class Beacon(real_main.Beacon):\n"
        "    async def nudge(self):\n"
        "        while True:\n"
        "            await asyncio.sleep(3)\n"
        "            self.agent.poll_now()\n"
        "    async def run(self):\n"
        "        asyncio.create_task(self.nudge())\n"
        "        await super().run()\n"
        "def run():\n    asyncio.run(Beacon().run())\n"
    )
    real = paths.data_path("firmware", "app", "main.py").read_text()
    hurried = make(small_core, "1.0.0", {"main.py": main, "real_main.py": real})
    with bench(hurried if how == "poke" else v1, scale=20, policy={"retry_s": RETRY}) as b:
        b.server.downloads = [Fault(status=404)]
        if how == "reset":  # before the failure can be reported
            b.server.stranger = lambda r: (
                Fault(raw=b"")
                if r.method == "POST" and json.loads(r.body)["update_status"] == "failed"
                else None
            )
        b.server.image, b.server.offering = v2, True
        if how == "reset":
            b.wait(lambda: record(b).get("status") == "failed")
            b.beacon.power_cut()
            b.server.stranger = lambda _: None
            b.beacon.power_on()
        b.reported("success")
        first, second = attempts(b)
        assert second - first >= RETRY
        assert b.server.count("/firmwares/latest") > 3


def test_the_pause_is_over_in_a_week(v1, v2):
    """Nothing was offered since the failed attempt, and the chip's ticks came round meanwhile."""
    with bench(v1, scale=20) as b:
        b.server.downloads = [Fault(status=404)]
        b.server.image, b.server.offering = v2, True
        b.reported("failed")
        b.server.offering = False
        for _ in range(28):
            polls = b.server.count("/firmwares/latest")
            b.beacon.skip_time(6 * 3600)
            b.wait(lambda polls=polls: b.server.count("/firmwares/latest") > polls + 1)
        b.server.offering = True
        b.reported("success")


# -- what is left of other attempts

SOME = {"attempt_id": "0" * 24, "firmware_id": "1" * 24, "version": "9.0.0", "previous": "8.0.0"}


@pytest.mark.parametrize("status", ["downloading", "rebooting", *FINAL])
@pytest.mark.parametrize(
    "left",
    [
        {},
        {"attempt_id": "0" * 24},
        SOME,
        SOME | {"checksum": "2" * 64, "detail": 5},
        SOME | {"checksum": [], "stage": 1, "code": {}},
        SOME | {"checksum": "2" * 64, "attempt_id": "another's", "slot": "ota_1", "armed": 1},
        SOME | {"checksum": "2" * 64, "slot": [], "armed": {}, "journal": "", "back": 7},
    ],
)
def test_a_record_of_another_release_keeps_nobody_from_updates(v1, v2, left, status):
    """It may come from a newer release that was rolled back, and lack anything."""
    doc = json.dumps(left | {"status": status}).encode()
    with bench(v1, scale=20, settings={"attempt": doc, "confirmed": doc}) as b:
        b.server.image, b.server.offering = v2, True
        b.wait(lambda: b.polled("2.0.0"))
        assert [ended for _, ended in b.causes()] == ["reset", None]


def test_a_strangers_words_are_no_longer_than_the_record(v1, v2):
    """The range is not sealed: who sits in between may write what becomes long in JSON."""
    with bench(v1, scale=20, policy={"backoff_ms": 20}) as b:
        b.wait(lambda: b.polled("1.0.0"))
        odd = Fault(content_range="bytes " + 400 * "\x01")
        b.server.downloads = [Fault(close=30_000)] + [odd] * 12
        b.server.image, b.server.offering = v2, True
        failed = b.reported("failed")
        assert (failed["stage"], failed["code"]) == ("download", "http")
        assert failed["detail"].startswith("range bytes ")


def test_an_answer_that_never_comes_to_its_body_is_given_up(v1, v2):
    """Byte by byte, so that it never stalls."""
    with bench(v1, scale=20, policy={"give_up_s": 30}) as b:
        b.wait(lambda: b.polled("1.0.0"))
        head = b"HTTP/1.1 200 OK\r\n" + 39 * (b"X: " + 400 * b"y" + b"\r\n")
        b.server.stranger = lambda r: (
            Fault(raw=head, drip=0.02) if r.path.endswith("/download") else None
        )
        b.server.image, b.server.offering = v2, True
        failed = b.reported("failed", 30)
        assert (failed["stage"], failed["code"]) == ("download", "timeout")
