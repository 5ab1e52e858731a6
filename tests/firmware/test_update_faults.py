"""Every way a download can fail: its name in the report, the old release running, and another try.

Each case plays its faults on one attempt; the next attempt meets a sound server and succeeds, so
that a failure never leaves a beacon that cannot be updated.
"""

import hashlib
import json

import pytest

from beacon_ota.images import boards
from beacon_ota.virtual.radio.vhci import RadiolessBackend
from tests.firmware.beacons import bench
from tests.firmware.server import Fault

TRIES = 6  # one and five retries


def fails(b, v2, stage: str, code: str, *, heals: bool = True) -> dict:
    """Offer v2, wait for the failure, then for the update that follows."""
    b.server.image, b.server.offering = v2, True
    failed = b.reported("failed")
    assert (failed["stage"], failed["code"]) == (stage, code), failed
    assert failed["detail"] and failed["previous_version"] == "1.0.0"
    assert b.running() == "ota_0"
    entry = next(e for e in b.server.journal() if e[2:4] == [stage, code])
    assert entry[4] in failed["detail"]
    if heals:
        b.server.downloads.clear()
        b.server.posts.clear()
        b.reported("success")
        assert b.running() == "ota_1"
        assert [ended for _, ended in b.causes()] == ["reset", None]
    return failed


@pytest.mark.parametrize(
    ("fault", "code", "requests"),
    [
        (Fault(status=404), "http", 1),
        (Fault(status=416), "http", 1),
        (Fault(status=500), "http", TRIES),
        (Fault(status=503, retry_after=1), "http", TRIES),
        (Fault(status=302), "http", TRIES),
        (Fault(raw=b"garbage\r\n\r\n"), "http", TRIES),
        (Fault(raw=b""), "connect", TRIES),
        (Fault(mac="00" * 32), "http", TRIES),
        (Fault(close=0), "truncated", TRIES),
        (Fault(close=10_000, ignore_range=True), "truncated", TRIES),
        (Fault(chunked=True, close=0), "truncated", TRIES),
        (Fault(length=5_000), "truncated", TRIES),
        (Fault(length=999_999), "http", TRIES),
        (Fault(stall=0), "stall", TRIES),
        (Fault(silent=True), "stall", TRIES),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, Fault) else "",
)
def test_a_server_that_fails(v1, v2, fault, code, requests):
    policy = {"stall_s": 10, "give_up_s": 120, "backoff_ms": 100}
    with bench(v1, scale=20, policy=policy) as b:
        b.server.downloads = [fault] * 50
        fails(b, v2, "download", code)
        first = [
            r
            for r in b.server.requests
            if r.path.endswith("/download") and r.target.endswith("0001")
        ]
        assert len(first) == requests


def test_a_server_that_drips(v1, v2):
    """Never so slow that it stalls, and never done: the time for it all is up."""
    with bench(v1, scale=20, policy={"give_up_s": 10, "stall_s": 5}) as b:
        b.server.downloads = [Fault(drip=0.02)]
        failed = fails(b, v2, "download", "timeout", heals=False)
        assert failed["bytes"] == 0


def test_the_wrong_bytes(v1, v2):
    with bench(v1) as b:
        b.server.downloads = [Fault(body=bytes(len(v2)))]
        failed = fails(b, v2, "verify", "checksum")
        assert failed["bytes"] == len(v2)


def test_not_an_image(v1):
    """Bytes with the right checksum that no bootloader would take."""
    with bench(v1) as b:
        b.server.image, b.server.offering = bytes(50_000), True
        failed = b.reported("failed")
        assert (failed["stage"], failed["code"]) == ("verify", "image")
        assert b.server.statuses() == ["downloading", "failed"]
        assert b.beacon.flash.read(0x0E000, 32) == b"\xff" * 32, "nothing was armed"


def test_a_core_that_set_boot_refuses(v1, v2):
    broken = bytearray(v2)
    broken[100] ^= 1  # the appended hash of the core no longer fits; the release's checksum does
    with bench(v1) as b:
        b.server.image, b.server.offering = bytes(broken), True
        failed = b.reported("failed")
        assert (failed["stage"], failed["code"]) == ("verify", "image")
        assert "OTA_VALIDATE_FAILED" in failed["detail"]
        assert b.server.statuses() == ["downloading", "verifying", "rebooting", "failed"]
        b.server.image = v2
        b.reported("success")


@pytest.mark.parametrize(
    "fault",
    [Fault(chunked=True), Fault(length=None), Fault(ignore_range=True)],
    ids=["chunked", "no length", "no ranges"],
)
def test_servers_that_are_only_different(v1, v2, fault):
    with bench(v1) as b:
        b.server.downloads = [fault] * 9
        b.server.image, b.server.offering = v2, True
        b.reported("success")
        assert len(b.server.ranges()) == 1


def test_a_server_that_sends_more_without_saying_so(v1, v2):
    """The signed size is where a release ends: what follows is not read, and costs no try."""
    with bench(v1) as b:
        b.server.downloads = [Fault(chunked=True, body=v2 + bytes(1000))]
        b.server.image, b.server.offering = v2, True
        b.reported("success")
        assert len(b.server.ranges()) == 1
        assert "download: " not in b.beacon.boots[0].console


def test_resume(v1, v2):
    """Three connections, each cut: Range and If-Range, and never a byte twice."""
    with bench(v1) as b:
        b.server.downloads = [Fault(close=20_000), Fault(close=30_000), Fault(stall=9_000)]
        b.server.image, b.server.offering = v2, True
        b.reported("success")
        asked = [
            r.headers.get("range", "") for r in b.server.requests if r.path.endswith("/download")
        ]
        assert asked == ["", "bytes=16384-", "bytes=45056-", "bytes=53248-"]


@pytest.mark.parametrize("ahead", [1, 200])
def test_resume_on_an_orchestrator_that_was_restarted(v1, v2, ahead):
    """It takes nothing that was signed before its start, and the beacon's clock lags: the beacon is
    told the time, and goes on."""
    with bench(v1, scale=1 if ahead == 1 else 10) as b:
        b.server.downloads = [Fault(close=20_000, restart=ahead)]
        b.server.image, b.server.offering = v2, True
        b.reported("success")
        asked = [
            r.headers.get("range", "") for r in b.server.requests if r.path.endswith("/download")
        ]
        assert asked[0] == "" and set(asked[1:]) == {"bytes=16384-"}
        assert "clock_skew" in b.server.refused or ahead == 1
        assert b.server.attempts == 1


def test_resume_on_a_server_that_begins_again(v1, v2):
    with bench(v1) as b:
        b.server.downloads = [Fault(close=20_000), Fault(ignore_range=True)]
        b.server.image, b.server.offering = v2, True
        b.reported("success")


@pytest.mark.parametrize("etag", ['W/"{}"', '"{}-gzip"', '"{}--br"', "{}", "", '"cd"'])
def test_an_etag_that_a_proxy_has_changed(v1, v2, etag):
    """Which file it is, the answer's mac says; a resume asks for it by its digest as before."""
    digest = hashlib.sha256(v2).hexdigest()
    with bench(v1) as b:
        tag = etag.format(digest)
        b.server.downloads = [Fault(close=20_000, etag=tag), Fault(etag=tag)]
        b.server.image, b.server.offering = v2, True
        b.reported("success")
        asked = [r.headers for r in b.server.requests if r.path.endswith("/download")]
        assert asked[1]["if-range"] == f'"{digest}"'


@pytest.mark.parametrize(("join_s", "requests"), [(0.5, 1), (4.5, 2)])
def test_wifi_drops_in_the_middle(v1, v2, join_s, requests):
    """Back before the stall timeout, the connection goes on; later, the download resumes."""
    with bench(v1) as b:
        b.wait(lambda: b.polled("1.0.0"))
        b.network.join_time = join_s
        b.beacon.link.faults.drop_after = 40_000
        b.server.image, b.server.offering = v2, True
        b.reported("success")
        assert b.beacon.link.faults.drop_after is None
        assert len(b.server.ranges()) == requests


def test_five_minutes_are_enough(v1, v2):
    """A trickle that never stalls: given up by the clock."""
    with bench(v1, policy={"give_up_s": 12, "stall_s": 10}) as b:
        b.wait(lambda: b.polled("1.0.0"))
        b.beacon.link.faults.throttle = 4_000
        b.server.image, b.server.offering = v2, True
        failed = b.reported("failed")
        assert (failed["stage"], failed["code"]) == ("download", "timeout")
        assert 0 < failed["bytes"] < len(v2) and failed["duration_ms"] >= 12_000
        b.beacon.link.faults.throttle = None
        b.reported("success")


def test_bluetooth_is_still_when_downloads_starve(v1, v2):
    air = RadiolessBackend()
    with bench(v1, bluetooth=air) as b:
        b.server.downloads = [Fault(stall=0)] * 3
        b.server.image, b.server.offering = v2, True
        done = b.reported("success")
        assert done["advertising_paused_ms"] > 1000
        assert air.advertising


def test_a_download_that_never_comes_keeps_no_beacon_off_the_air(v1, v2):
    """Positioning stops for no longer than a reboot takes, whoever sits in between."""
    air = RadiolessBackend()
    silent = []  # the beacon's seconds, one number for each look at the air that found none

    def look() -> bool:
        now = b.beacon.clock.now()
        if air.advertising:
            silent.append([now, now])
        elif silent:
            silent[-1][1] = now
        return b.server.last("failed") is not None

    with bench(v1, bluetooth=air, scale=20, policy={"stall_s": 60, "give_up_s": 240}) as b:
        b.wait(lambda: b.polled("1.0.0") and air.advertising)
        b.server.downloads = [Fault(stall=0)] * 9
        b.server.image, b.server.offering = v2, True
        b.wait(look)
        assert b.reported("failed")["advertising_paused_ms"] > 1000
        assert max(end - begun for begun, end in silent) < 50


# -- flash


@pytest.mark.parametrize(
    ("kind", "code"), [("fail_erase", "erase"), ("fail_program", "write"), ("stuck", "readback")]
)
def test_flash_that_fails(v1, v2, kind, code):
    """The slot is given up; with two slots there is no other, until the power was cut."""
    with bench(v1) as b:
        sector = 0x1D0000 // 4096 + 5
        faults = b.beacon.flash.faults
        if kind == "stuck":
            # A bit that stays 0 where the release has a 1.
            at = next(i for i in range(5 * 4096, 6 * 4096) if v2[i] & 1)
            faults.stuck = {0x1D0000 + at: 1}
        else:
            setattr(faults, kind, {sector})
        b.server.image, b.server.offering = v2, True
        failed = b.reported("failed")
        assert (failed["stage"], failed["code"]) == ("flash", code), failed
        assert "sector 5" in failed["detail"]
        b.wait(lambda: b.server.statuses().count("failed") > 1)
        second = b.reported("failed")
        assert (second["stage"], second["code"]) == ("flash", "no_slot")
        assert b.beacon.setting("bad_slot") == 0b10
        faults.fail_erase, faults.fail_program, faults.stuck = set(), set(), {}
        b.beacon.power_cut()
        b.beacon.power_on()
        b.reported("success")


# -- offers


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"version": "0.9.0"}, "downgrade"),
        ({"version": "1.0.0"}, "downgrade"),
        ({"size": 9_000_000}, "image"),
    ],
)
def test_offers_that_are_refused(v1, v2, change, code):
    """Nothing is downloaded for them."""
    with bench(v1) as b:
        b.server.extra = change
        b.server.image, b.server.offering = v2, True
        failed = b.reported("failed")
        assert (failed["stage"], failed["code"]) == ("verify", code)
        assert not [r for r in b.server.requests if r.path.endswith("/download")]
        b.server.extra = {}
        b.reported("success")


HOSTILE = [
    b"[]",
    b"5",
    b"null",
    b'"offer"',
    b"{}",
    b'{"firmware_id": 5}',
    b"[" * 8000,
    b'{"a":' * 1000 + b"1" + b"}" * 1000,
    json.dumps({"x": "y" * 9000}).encode(),
]


def test_hostile_answers(v1, v2):
    """Signed rubbish: the beacon says so, and goes on."""
    with bench(v1) as b:
        raws = [Fault(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 20_000)]
        b.server.image, b.server.offering = v2, True
        b.server.polls = [Fault(body=body) for body in HOSTILE if _is_json(body)] + raws
        b.reported("success")
        assert [ended for _, ended in b.causes()] == ["reset", None]
        words = [entry[2:4] for entry in b.server.journal()]
        assert ["offer", "malformed"] in words


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


# -- the orchestrator ends an attempt


@pytest.mark.parametrize("word", ["downloading", "verifying", "rebooting"])
def test_called_off(v1, v2, word):
    """409: whatever was done, nothing is armed, and the beacon waits for the next offer."""
    with bench(v1) as b:
        b.server.over = {word}
        b.server.image, b.server.offering = v2, True
        b.wait(lambda: b.server.attempts > 1)
        assert set(b.server.statuses()) <= {"downloading", "verifying", "rebooting"}
        assert b.server.statuses()[-1] in (word, "downloading")
        assert b.beacon.flash.read(0x0E000, 32) == b"\xff" * 32
        b.server.over = set()
        b.reported("success")
        assert [ended for _, ended in b.causes()] == ["reset", None]


def test_the_download_is_gone(v1, v2):
    with bench(v1) as b:
        b.server.downloads = [Fault(status=410)]
        b.server.image, b.server.offering = v2, True
        b.reported("success")
        assert "failed" not in b.server.statuses() and b.server.attempts == 2


def test_reports_get_lost(v1, v2):
    """The server is in trouble while it should take reports: they are said again."""
    with bench(v1) as b:
        b.wait(lambda: b.polled("1.0.0"))
        b.server.posts = [Fault(status=500), Fault(raw=b""), Fault(status=503)] * 2
        b.server.image, b.server.offering = v2, True
        b.reported("success")
        assert b.server.statuses()[-3:] == ["verifying", "rebooting", "success"]


def test_the_server_that_never_takes_the_last_word(v1, v2):
    """`rebooting` has to be acknowledged: without it nothing is armed."""
    with bench(v1, policy={"backoff_ms": 50}) as b:
        b.wait(lambda: b.polled("1.0.0"))
        b.server.posts = [None, None] + [Fault(status=500)] * 8
        b.server.image, b.server.offering = v2, True
        failed = b.reported("failed")
        assert (failed["stage"], failed["code"]) == ("download", "http")
        assert failed["detail"].startswith("report rebooting")
        b.reported("success")


@pytest.mark.parametrize("word", ["verifying", "rebooting"])
def test_what_was_called_off_boots_by_no_way(v1, v2, word):
    """The image is whole by then, but for its head: no bootloader and no rescue takes it."""
    with bench(v1) as b:
        b.server.over = {word}
        b.server.image, b.server.offering = v2, True
        b.wait(lambda: word in b.server.statuses())
        b.server.offering = False
        polls = b.server.count("/firmwares/latest/")
        b.wait(lambda: b.server.count("/firmwares/latest/") > polls, what="the next poll")
        assert b.beacon.flash.read(0x1D0000, len(v2)) == b"\xff" * 256 + v2[256:]
        assert b.running() == "ota_0"


def test_what_could_not_be_armed_does_not_boot(v1, v2):
    """Bits of otadata are stuck: the choice is there, but not as it has to be."""
    board = boards.load_board("esp32c3")
    with bench(v1, scale=20) as b:
        b.wait(lambda: b.polled("1.0.0"))
        at = board.otadata.offset
        b.beacon.flash.faults.stuck = {at + 4: 0xFF, at + 0x1004: 0xFF}
        b.server.image, b.server.offering = v2, True
        failed = b.reported("failed")
        assert (failed["stage"], failed["code"]) == ("flash", "write"), failed
        b.server.offering = False
        b.beacon.power_cut()
        b.beacon.power_on()
        polls = b.server.count("/firmwares/latest")
        b.wait(lambda: b.server.count("/firmwares/latest") > polls + 2)
        assert b.running() == "ota_0" and not b.polled("2.0.0", "trial")
        assert b.server.statuses().count("failed") == 1
        slot = board.slots[1]
        assert b.beacon.flash.read(slot.offset, 256) == b"\xff" * 256
