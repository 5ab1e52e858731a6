"""Whole updates on virtual beacons, when nothing goes wrong."""

import hashlib
import time

import pytest

from beacon_ota.virtual.radio.vhci import RadiolessBackend
from beacon_ota.wire import adverts, scan
from tests.firmware.beacons import bench, make
from tests.firmware.server import BEACON

PROGRESS = b"\x04\xff\x59\x00"
SUCCESS = ["downloading", "verifying", "rebooting", "success"]


class Air(RadiolessBackend):
    """Keeps everything that was advertised: (interval, data, response)."""

    def __init__(self):
        self.history = []
        super().__init__()

    def _gap_advertise(self, interval, data, response, connectable):
        self.history.append((interval, data, response))
        return super()._gap_advertise(interval, data, response, connectable)


def test_there_and_on(v1, v2, v3):
    """Two updates in a row, so that both slots are written and both are confirmed."""
    with bench(v1) as b:
        first = hashlib.sha256(v1).hexdigest()
        b.wait(lambda: b.polled("1.0.0"))
        assert b.server.requests[-1].query["image"] == first
        b.server.image, b.server.version, b.server.offering = v2, "2.0.0", True
        done = b.reported("success")
        assert b.server.statuses() == SUCCESS
        hello = b.server.reports[0]
        assert hello["update_status"] == "idle" and "clock_unset" not in hello
        assert 0 <= done["updated_at"] - hello["updated_at"] < 3600
        attempt = [r for r in b.server.reports if r["update_status"] != "idle"]
        assert {r["attempt_id"] for r in attempt} == {attempt[0]["attempt_id"]}
        assert {r["firmware_id"] for r in attempt} == {b.server.firmware_id}
        assert all(r["previous_version"] == "1.0.0" for r in attempt)
        assert all(r["firmware_version"] == "2.0.0" for r in attempt)
        assert all(r["image_sha256"] == first for r in attempt[:-1])
        assert done["image_sha256"] == hashlib.sha256(v2).hexdigest()
        assert done["trials"] == 1 and done["bytes"] == len(v2) and done["reset_cause"] == 2
        assert done["insecure"] is True and "clock_unset" not in done
        assert abs(done["updated_at"] - b.server.now()) < 10
        assert b.running() == "ota_1"
        assert b.polled("2.0.0", "trial")
        b.wait(lambda: b.beacon.setting("attempt") is None)
        assert b.beacon.setting("floor") == b"2.0.0"

        b.server.image, b.server.version = v3, "3.0.0-rc.1+build.5"
        b.wait(lambda: b.server.statuses() == SUCCESS * 2)
        assert b.running() == "ota_0"
        assert b.server.reports[-1]["firmware_version"] == "3.0.0-rc.1+build.5"
        b.wait(lambda: b.polled("3.0.0-rc.1%2Bbuild.5"))
        assert [ended for _, ended in b.causes()] == ["reset", "reset", None]
        assert b.server.refused == ["clock_skew"]
        assert not b.server.journal()


def test_progress_is_on_the_air(v1, v2):
    air = Air()
    with bench(v1, bluetooth=air) as b:
        b.wait(lambda: air.advertising == 100_000)
        assert air.data[:9] == b"\x02\x01\x06\x1a\xff\x4c\x00\x02\x15"
        frame = air.data
        about = adverts.build_status(adverts.PROVISIONED | adverts.INSECURE, "1.0.0")
        assert air.response == about
        b.server.image, b.server.offering = v2, True
        b.reported("success")
        flags = adverts.PROVISIONED | adverts.INSECURE
        b.wait(lambda: air.response == adverts.build_status(flags, "2.0.0"))
    shown = [(i, d, r[4]) for i, d, r in air.history if r and r.startswith(PROGRESS)]
    assert adverts.build_status(flags | adverts.TRIAL, "2.0.0") in [r for *_, r in air.history]
    assert all(d == frame for _, d, _ in shown), "positioning goes on"
    assert {i for i, _, _ in shown} == {400_000}
    values = [value for *_, value in shown]
    assert values[0] == 0 and values[-1] == 0xFF and values[-2] == 100
    assert values == sorted(values) and len(values) > 20
    for response in [r for *_, r in air.history if r]:
        updating = scan.read_payloads(response)["flags"] & adverts.UPDATING
        assert bool(updating) == response.startswith(PROGRESS), "each scan response says which"


def test_a_window_is_respected(v1, v2):
    with bench(v1) as b:
        now = b.server.now()
        b.server.extra = {"not_before": now + 20, "not_after": now + 4000}
        b.server.image, b.server.offering = v2, True
        b.wait(lambda: b.server.attempts > 1)
        assert b.server.statuses() == []
        begun = b.beacon.clock.now()
        done = b.reported("success")
        assert done["updated_at"] >= now + 20
        assert b.beacon.clock.now() - begun > 5


def local_hours(now: float, offset_min: int) -> bytes:
    """The hour around a time, on a clock so many minutes before UTC."""
    begins = time.gmtime(now + 60 * offset_min - 1800)
    ends = time.gmtime(now + 60 * offset_min + 1800)
    return time.strftime("%H:%M-", begins).encode() + time.strftime("%H:%M", ends).encode()


@pytest.mark.parametrize("extra", ["the server's window", "the server's offset"])
def test_a_beacon_from_the_other_half_of_the_year(v1, v2, extra):
    """Provisioned when the building's clock went otherwise, or by somebody who named no offset."""
    with bench(v1, settings={"window": local_hours(time.time(), 660), "utc_off": 540}) as b:
        now = b.server.now()
        b.server.image, b.server.offering = v2, True
        b.wait(lambda: b.server.attempts >= 2)
        assert b.server.statuses() == []
        b.wait(lambda: ["offer", "window"] in [e[2:4] for e in b.server.journal()])
        (said,) = {e[4] for e in b.server.journal() if e[2:4] == ["offer", "window"]}
        assert said.startswith("2.0.0 in ")
        window = {"not_before": now - 60, "not_after": now + 4000}
        b.server.extra = window if extra == "the server's window" else {"utc_off": 660}
        b.reported("success")


def test_a_window_that_holds_back_wears_nothing_out(v1, v2):
    """One entry for each release, however often it is offered."""
    away = local_hours(time.time() + 8 * 3600, 0)
    with bench(v1, settings={"window": away}) as b:
        b.server.image, b.server.offering = v2, True
        b.wait(lambda: b.server.attempts >= 6)
        entries = {e[0] for e in b.server.journal() if e[2:4] == ["offer", "window"]}
        assert len(entries) == 1


def test_the_local_window_holds_back_what_comes_without_one(v1, v2):
    """An hour that is not now, in the beacon's own time zone."""
    away = time.gmtime(time.time() + 8 * 3600 + 2 * 3600)
    window = f"{away.tm_hour:02}:00-{(away.tm_hour + 1) % 24:02}:00"
    with bench(v1, settings={"window": window.encode(), "utc_off": 120}) as b:
        b.server.image, b.server.offering = v2, True
        b.wait(lambda: b.server.attempts >= 2)
        assert b.server.statuses() == []
        b.server.required = True
        b.reported("success")


def test_required_ignores_windows(v1, v2):
    with bench(v1) as b:
        now = b.server.now()
        b.server.extra = {"not_before": now + 4000, "not_after": now + 8000}
        b.server.required = True
        b.server.image, b.server.offering = v2, True
        b.reported("success")


def test_a_beacon_without_credentials_waits_for_them(v1):
    with bench(v1, settings={"beacon_key": None, "wifi_ssid": None}) as b:
        b.wait(lambda: b.beacon.clock.now() > 20)
        assert b.server.requests == [] and [e for _, e in b.causes()] == [None]


def test_a_new_key_takes_over(v1):
    with bench(v1) as b:
        fresh = bytes(range(100, 132))
        b.server.rekey = fresh
        b.wait(lambda: b.server.keys[BEACON] == fresh)
        before = len(b.server.requests)
        b.wait(lambda: len(b.server.requests) > before + 1)
        assert b.beacon.setting("beacon_key") == fresh
        assert b.server.refused == ["clock_skew"]


def test_found_by_its_service(v1):
    """No name leads to it: only the announcement does."""
    with bench(v1, settings={"orch_url": None}, power=False) as b:
        b.network.hosts.clear()
        b.network.set_host("box.local", "127.0.0.1", b.server.port)
        b.network.services["_beacon-ota._tcp"] = ("box.local", 8080)
        b.beacon.power_on()
        b.wait(lambda: b.polled("1.0.0"))


def test_the_second_network_is_tried(v1):
    settings = {"wifi_ssid": b"typo", "wifi2_ssid": b"site", "wifi2_pass": b"correct horse"}
    with bench(v1, settings=settings) as b:
        b.wait(lambda: b.polled("1.0.0"))


def test_other_layouts(small_core):
    """Factory first, slots of 2 MB; the first update leaves factory, the next goes on."""
    board = "esp32c3-8mb"
    old, new, newer = (make(small_core, v, device_type=board) for v in ("1.0.0", "2.0.0", "3.0.0"))
    with bench(old, board=board) as b:
        b.server.image, b.server.offering = new, True
        b.reported("success")
        b.server.image, b.server.version = newer, "3.0.0"
        b.wait(lambda: b.server.statuses() == SUCCESS * 2)
        assert [slot for slot, _ in b.causes()] == ["factory", "ota_0", "ota_1"]
