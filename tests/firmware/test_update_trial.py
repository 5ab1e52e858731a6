"""Releases on trial: what happens to those that are no good, and to good ones in bad times."""

import hashlib
import json

import pytest

from beacon_ota import paths
from beacon_ota.campaign.power.recording import replay_operation
from beacon_ota.images import otadata
from beacon_ota.virtual.flash import bootloader
from beacon_ota.virtual.flash.nor import Flash
from beacon_ota.virtual.flash.nvs import Nvs
from tests.firmware.beacons import bench, make
from tests.firmware.server import STRANGERS, Fault

# What a stock core makes of an app without app.json.
NOBODY = """
def read():
    return "", "v1.27.0", True
"""
YEAR = 365.2425 * 86_400  # s

CRASH = """
def run():
    raise ValueError("broken release")
"""
IMPORT = "import nothing_that_exists\n"
HANG = """
def run():
    while True:
        pass
"""
# Confirms itself, and never comes as far as a watchdog of its own again.
LATE_HANG = """
from esp32 import Partition
def run():
    Partition.mark_app_valid_cancel_rollback()
    while True:
        pass
"""
# Runs, and asks for nothing with a key that the orchestrator knows.
MUTE = """
from hashlib import sha256
def hmac_sha256(key, *parts):
    return sha256(b"").digest()
def equal(a, b):
    return a == b
"""
DEAF = """
class Radio:
    def __init__(self, *_): pass
    def start(self, cause): pass
    def is_up(self): return False
    def start_advertising(self, frame): pass
    def set_status(self, flags, version): pass
    def is_healthy(self): return False
    def set_progress(self, value): pass
    def resume(self): return 0
    async def run(self):
        import asyncio
        while True:
            await asyncio.sleep(1)
"""
FRAGILE = """
from services import positioning
def frame(store):
    return b""
import net.wifi
async def _run(self):
    raise RuntimeError("no wifi here")
net.wifi.Wifi.run = _run
"""


@pytest.mark.parametrize(
    ("name", "changes", "code", "detail"),
    [
        ("crash", {"main.py": CRASH}, "crash", "ValueError: broken release"),
        ("import", {"main.py": IMPORT}, "crash", "ImportError"),
        ("hang", {"main.py": HANG}, "watchdog", "reset cause 3"),
        ("mute", {"crypto/hmac.py": MUTE}, "self_test", "refused by the orchestrator"),
        ("deaf", {"services/radio.py": DEAF}, "self_test", "bluetooth"),
        ("fragile", {"services/positioning.py": FRAGILE}, "crash", "task wifi died"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 8 else "",
)
def test_three_trials_and_back(small_core, v1, v2, name, changes, code, detail):
    bad = make(small_core, "1.5.0", changes)
    with bench(v1, scale=40) as b:
        b.server.image, b.server.version, b.server.offering = bad, "1.5.0", True
        back = b.reported("rolled_back")
        assert back is not None
        assert (back["stage"], back["code"]) == ("boot", code), back
        assert detail in back["detail"] and back["trials"] == 3
        assert back["firmware_version"] == back["previous_version"] == "1.0.0"
        assert back["image_sha256"] == hashlib.sha256(v1).hexdigest()
        assert [slot for slot, _ in b.causes()] == ["ota_0"] + ["ota_1"] * 3 + ["ota_0"]
        # The same image is not tried a second time, and does not stand in the way of another.
        failed = b.reported("failed")
        assert (failed["stage"], failed["code"]) == ("verify", "known_bad")
        b.server.image, b.server.version = v2, "2.0.0"
        b.reported("success")
        assert b.beacon.setting("floor") == b"2.0.0"


def test_a_filesystem_that_does_not_mount(small_core, v1):
    """Stage 0 resets a trial that it cannot mount; nobody is left to write a reason down."""
    bad = bytearray(make(small_core, "1.5.0", filler=8000))
    at = -(-len(small_core) // 4096) * 4096
    for block in (0, 512):
        for i in range(40, 512):
            bad[at + block + i] ^= 0x5A
    with bench(v1, scale=40) as b:
        b.server.image, b.server.version, b.server.offering = bytes(bad), "1.5.0", True
        back = b.reported("rolled_back")
        assert (back["code"], back["trials"]) == ("crash", 3)
        assert [slot for slot, _ in b.causes()] == ["ota_0"] + ["ota_1"] * 3 + ["ota_0"]


def test_the_orchestrator_is_away_during_the_trial(v1, v2):
    """Its outage costs no good release its trial: confirmed at the deadline, reported later."""
    with bench(v1, scale=40) as b:
        b.server.image, b.server.offering = v2, True
        b.wait(lambda: b.server.last("rebooting"))
        b.server.away = True
        b.wait(lambda: b.beacon.setting("floor") == b"2.0.0")
        boot = b.beacon.boots[-1]
        assert boot.ended is None and boot.slot == "ota_1"
        assert b.beacon.clock.now() - boot.began >= 20
        b.server.away = False
        done = b.reported("success")
        assert done["trials"] == 1
        assert ["trial", "unconfirmed"] in [e[2:4] for e in b.server.journal()]


def test_a_policy_that_wants_the_orchestrator(v1, v2):
    with bench(v1, scale=40, policy={"offline_ok": 0}) as b:
        b.server.image, b.server.offering = v2, True
        b.wait(lambda: b.server.last("rebooting"))
        b.server.away = True
        b.wait(lambda: len(b.beacon.boots) == 5 and b.running() == "ota_0")
        b.server.away = False
        back = b.reported("rolled_back")
        assert (back["code"], back["detail"]) == ("self_test", "orchestrator away")
        b.reported("success")


@pytest.mark.parametrize("kind", STRANGERS)
def test_a_stranger_answers_during_the_trial(v1, v2, kind):
    """A captive portal, or an orchestrator that does not know this beacon: its answer carries no
    right mac, so that it says nothing against the release."""
    with bench(v1, scale=20) as b:
        b.server.image, b.server.offering = v2, True
        b.server.stranger = lambda r: STRANGERS[kind] if "state=trial" in r.target else None
        done = b.reported("success")
        assert done["trials"] == 1 and b.running() == "ota_1"
        assert [ended for _, ended in b.causes()] == ["reset", None]
        b.wait(lambda: ["trial", "unconfirmed"] in [e[2:4] for e in b.server.journal()])
        said = next(e[4] for e in b.server.journal() if e[3] == "unconfirmed")
        assert said.startswith("orchestrator away")
        if kind.isdigit():
            assert said == f"orchestrator away: status {kind}, not authentic"
        assert b.beacon.setting("bad_sha") is None


def test_a_stranger_is_no_orchestrator(v1, v2):
    """Where the policy wants the orchestrator itself, the release goes back, and is not to blame:
    as soon as the orchestrator answers, it is installed."""
    with bench(v1, scale=20, policy={"offline_ok": 0}) as b:
        b.server.image, b.server.offering = v2, True
        b.server.stranger = lambda r: STRANGERS["403"] if "state=trial" in r.target else None
        back = b.reported("rolled_back")
        assert (back["code"], back["trials"]) == ("self_test", 3)
        assert back["detail"] == "orchestrator away: status 403, not authentic"
        assert b.beacon.setting("bad_sha") is None
        b.server.stranger = lambda r: None
        b.reported("success")
        assert "failed" not in b.server.statuses()


def test_a_sealed_refusal_is_the_releases_own(small_core, v1):
    """A poll that the orchestrator cannot read: 422, sealed."""
    source = paths.data_path("firmware", "app", "ota", "agent.py").read_text()
    assert source.count("?version=") == 1
    bad = make(small_core, "1.5.0", {"ota/agent.py": source.replace("?version=", "?versoin=")})
    with bench(v1, scale=40) as b:
        b.server.image, b.server.version, b.server.offering = bad, "1.5.0", True
        back = b.reported("rolled_back")
        assert (back["code"], back["detail"]) == ("self_test", "refused by the orchestrator")
        assert b.beacon.setting("bad_sha")


@pytest.mark.parametrize("fault", [Fault(status=401, code="nonce_used"), Fault(status=429)])
def test_refusals_that_others_can_bring_about(v1, v2, fault):
    """Whoever sends the beacon's request a second time before the beacon's own arrives has the
    orchestrator seal a refusal; that says nothing against the release."""
    with bench(v1, scale=20) as b:
        b.server.image, b.server.offering = v2, True
        b.wait(lambda: b.server.last("rebooting"))
        b.server.polls = [fault] * 40
        b.wait(lambda: b.beacon.setting("floor") == b"2.0.0")
        assert [ended for _, ended in b.causes()] == ["reset", None]
        b.server.polls = []
        b.reported("success")


@pytest.mark.parametrize("year", [1970, 2003, 2024, 2250])
def test_an_orchestrator_whose_clock_is_not_set(v1, v2, year):
    """It refuses every beacon that knows the time, and tells one that no clock takes: that is not
    the release's doing. As soon as its clock is right, everything is."""
    with bench(v1, scale=20) as b:
        b.server.image, b.server.offering = v2, True
        b.wait(lambda: b.server.last("rebooting"))
        b.server.skew = int((year - 2026) * YEAR)
        b.wait(lambda: b.beacon.setting("floor") == b"2.0.0" or len(b.causes()) > 2)
        assert [ended for _, ended in b.causes()] == ["reset", None]
        assert "clock_skew" in b.server.refused
        b.server.skew = 0
        b.reported("success")
        assert b.beacon.setting("bad_sha") is None


def test_a_release_that_cannot_be_told_the_time(small_core, v1):
    """Refused for its time, and told one that every other release signs with."""
    source = paths.data_path("firmware", "app", "net", "clock.py").read_text()
    bad = make(small_core, "1.5.0", {"net/clock.py": source + "def set(*_):\n    pass\n"})
    with bench(v1, scale=40) as b:
        b.server.image, b.server.version, b.server.offering = bad, "1.5.0", True
        b.wait(lambda: b.server.last("rebooting"))
        b.server.skew = 3600
        back = b.reported("rolled_back")
        assert (back["code"], back["detail"]) == ("self_test", "refused by the orchestrator")
        assert b.beacon.setting("bad_sha")


@pytest.mark.parametrize("called", ["two", "1.0.0", "2.0.0 x\r\ny", "2.0.0-" + "a" * 999, None])
def test_a_release_that_calls_itself_otherwise(small_core, v1, v3, called):
    """Than its manifest does: of one that runs under no version, or an old one, no beacon would
    ever come away. Nobody is there to refuse it."""
    if called is None:
        bad = make(small_core, "2.0.0", {"about.py": NOBODY})
    else:
        about = {"version": called, "device_type": "esp32c3", "insecure": True}
        bad = make(small_core, "2.0.0", extra={"app.json": json.dumps(about).encode()})
    with bench(v1, scale=40) as b:
        b.server.image, b.server.offering = bad, True
        b.wait(lambda: b.server.last("rebooting"))
        b.server.away = True
        b.wait(lambda: len(b.causes()) == 5 or b.beacon.setting("floor") is not None)
        b.server.away = False
        back = b.reported("rolled_back")
        assert (back["code"], back["detail"][:13]) == ("self_test", "calls itself ")
        assert [slot for slot, _ in b.causes()] == ["ota_0"] + ["ota_1"] * 3 + ["ota_0"]
        assert b.beacon.setting("bad_sha") and b.beacon.setting("floor") is None
        b.server.image, b.server.version = v3, "3.0.0-rc.1+build.5"
        b.reported("success")


def test_no_wifi_in_the_new_release(v1, v2):
    with bench(v1, scale=40) as b:
        b.server.image, b.server.offering = v2, True
        b.wait(lambda: b.server.last("rebooting"))
        point = b.network.points[0]
        point.visible = False
        b.wait(lambda: len(b.beacon.boots) == 5 and b.running() == "ota_0")
        point.visible = True
        back = b.reported("rolled_back")
        assert (back["code"], back["detail"]) == ("self_test", "wifi")
        assert back["acquitted"] is True
        # That was the access point's fault for all anybody knows: the release is tried again.
        b.reported("success")
        assert b.beacon.setting("bad_sha") is None and b.running() == "ota_1"


def test_the_same_words_of_an_earlier_trial(v1, v2):
    """Nobody has fetched them; they are written again all the same, for they are this trial's."""
    words = json.dumps([1, 0, "boot", "self_test", "wifi"]).encode()
    with bench(v1, scale=40, settings={"journal1": words}) as b:
        b.server.fetches = False
        b.server.image, b.server.offering = v2, True
        b.wait(lambda: b.server.last("rebooting"))
        point = b.network.points[0]
        point.visible = False
        b.wait(lambda: len(b.beacon.boots) == 5 and b.running() == "ota_0")
        point.visible = True
        back = b.reported("rolled_back")
        assert (back["code"], back["detail"]) == ("self_test", "wifi")
        assert b.beacon.setting("bad_sha") is None


@pytest.mark.parametrize("ends", ["reset", "watchdog", "power"])
def test_a_reset_before_arming_convicts_nobody(small_core, v1, v3, ends):
    """An earlier release was rolled back, and its traces are in otadata and in the journal. This
    one was not armed yet when its attempt was cut off."""
    bad = make(small_core, "2.0.0", {"main.py": CRASH})
    with bench(v1, policy={"backoff_ms": 2000}) as b:
        b.server.image, b.server.version, b.server.offering = bad, "2.0.0", True
        b.reported("rebooting")
        b.server.offering = False
        b.reported("rolled_back")
        b.wait(lambda: b.beacon.setting("attempt") is None)
        before = len(b.server.reports)
        b.server.posts = [None, None] + [Fault(status=503)] * 4 + [None] * 40
        b.server.image, b.server.version, b.server.offering = v3, "3.0.0-rc.1+build.5", True
        b.wait(lambda: '"rebooting"' in str(b.beacon.setting("attempt")))
        if ends == "power":
            b.beacon.power_cut()
            b.beacon.power_on()
        else:
            b.beacon._reactor.call(b.beacon._end_boot, ends, "of the old release")
        b.wait(lambda: rolled_back(b, before))
        back = rolled_back(b, before)[0]
        assert back["code"] == ("power" if ends == "power" else "not_booted")
        assert back["trials"] == 0 and back["firmware_version"] == "1.0.0"
        done = b.reported("success")
        assert done["firmware_version"] == "3.0.0-rc.1+build.5"
        assert "known_bad" not in [r.get("code") for r in b.server.reports[before:]]


def rolled_back(b, before: int) -> list[dict]:
    """Return the reports of a rollback after so many reports."""
    return [r for r in b.server.reports[before:] if r["update_status"] == "rolled_back"]


def test_power_cuts_during_a_trial_cost_one_each(v1, v2):
    with bench(v1) as b:
        b.server.image, b.server.offering = v2, True
        b.wait(lambda: b.running() == "ota_1" and b.beacon.phase == "main.py")
        b.beacon.power_cut()
        b.beacon.power_on()
        done = b.reported("success")
        assert done["trials"] == 2 and done["reset_cause"] == 1


def test_an_image_that_breaks_after_it_was_armed(v1, v2):
    """The bootloader falls back by itself; the beacon takes the choice back and says so."""
    with bench(v1, power=False) as b:
        b.server.image, b.server.offering = v2, True
        b.beacon.power_on()
        b.wait(lambda: b.server.last("rebooting"))
        b.wait(lambda: len(b.beacon.boots) > 1)
        b.beacon.power_cut()
        # As if it had been cut before the first trial: armed, not booted, and broken.
        flash = b.beacon.flash
        flash.overwrite(0xE000, otadata.make_entry(2, otadata.NEW).pack())
        flash.overwrite(0x1D0000 + 200, bytes([flash.read(0x1D0000 + 200, 1)[0] ^ 1]))
        b.beacon.power_on()
        back = b.reported("rolled_back")
        assert back["code"] in ("not_booted", "power") and b.running() == "ota_0"
        assert flash.read(0xE000, 4) == b"\xff" * 4, "no longer armed"
        b.reported("success")


# -- after the trial


def test_a_confirmed_release_that_crashes_for_ever(small_core, v1):
    """Stage 0 gives the old release a trial; it confirms itself, and blames nobody else."""
    main = (
        "import machine\nfrom esp32 import NVS\n"
        "def run():\n"
        "    try:\n        NVS('beacon').get_i32('rotten')\n"
        "    except OSError:\n        import real_main\n        real_main.run()\n"
        "    raise MemoryError('rotten')\n"
    )
    real = paths.data_path("firmware", "app", "main.py").read_text()
    late = make(small_core, "2.0.0", {"main.py": main, "real_main.py": real})
    with bench(v1, scale=100) as b:
        b.server.image, b.server.offering = late, True
        success = b.reported("success")
        b.server.offering = False
        b.wait(lambda: b.beacon.setting("attempt") is None)
        b.beacon.power_cut()
        set_number(b, "rotten", 1)
        b.beacon.power_on()
        b.wait(lambda: b.running() == "ota_0" and b.beacon.phase == "main.py")
        b.wait(lambda: b.server.reports[-1]["firmware_version"] == "1.0.0")
        words = [entry[2:4] for entry in b.server.journal()]
        assert ["boot", "crash"] in words and ["boot", "rescue"] in words
        b.wait(lambda: not b.beacon.setting("crashes"))
        assert "rotten" in next(e[4] for e in b.server.journal() if e[3] == "crash")
        # Its success is taken back, under the attempt that it came by.
        back = b.reported("rolled_back")
        assert back is not None
        assert (back["stage"], back["code"]) == ("boot", "crash")
        assert back["detail"] == "rescued to ota_0: 8 resets, the last by cause 2"
        for name in ("attempt_id", "firmware_id", "previous_version"):
            assert back[name] == success[name]
        assert back["firmware_version"] == "1.0.0"
        assert back["image_sha256"] == hashlib.sha256(v1).hexdigest()
        # The release that crashed is offered again, and not taken.
        b.server.offering = True
        failed = b.reported("failed")
        assert (failed["stage"], failed["code"]) == ("verify", "known_bad")


def test_crashes_of_the_old_release_are_not_laid_to_the_new(v1, v2):
    """Stage 0 counts them in NVS. They are forgotten before the new release is confirmed: should
    power fail between the two, one crash of its own would bring the old one back."""
    crashed = {"crashes": 7}
    with bench(v1, power=False, policy={"healthy_s": 3600}, settings=crashed) as b:
        before = b.flash.snapshot()
        b.flash.record = True
        b.server.image, b.server.offering = v2, True
        b.beacon.power_on()
        b.reported("success")
        ops = list(b.flash.journal)
    flash = Flash(before)
    table = bootloader.read_table(flash)
    assert table.nvs is not None and table.otadata is not None
    for op in ops:
        replay_operation(flash, op)
        entries = otadata.parse_entries(flash.read(table.otadata.offset, otadata.SIZE))
        a = otadata.active_entry(entries)
        if a >= 0 and entries[a].slot(2) == 1 and entries[a].state == otadata.VALID:
            break
    else:
        raise AssertionError("never confirmed")
    store = Nvs(flash, table.nvs)
    assert store.get(store.open_namespace("beacon"), "crashes", int) is None


def set_number(b, key: str, value: int) -> None:
    """Write a number into the NVS of a beacon without power."""
    b.beacon.flash.power_on()
    part = bootloader.read_table(b.beacon.flash).nvs
    assert part is not None
    store = Nvs(b.beacon.flash, part)
    store.set(store.open_namespace("beacon"), key, value)
    b.beacon.flash.powered = False


def test_a_confirmed_release_that_hangs_at_its_start_is_rescued_from(small_core, v1):
    bad = make(small_core, "1.5.0", {"main.py": LATE_HANG})
    with bench(v1, scale=100) as b:
        b.server.image, b.server.version, b.server.offering = bad, "1.5.0", True
        b.wait(lambda: b.server.last("rebooting"))
        b.server.offering = False
        back = b.reported("rolled_back", 40)
        assert (back["stage"], back["code"]) == ("boot", "watchdog"), back
        assert back["detail"] == "rescued to ota_0: 8 resets, the last by watchdog"
