"""A primary and three mirrors as processes: uplinks cut, a mirror killed, counts exact."""

import json
import secrets
import threading
from contextlib import ExitStack

import pytest

from tests.orchestrator.test_counts import Life
from tests.orchestrator.uplinks import Uplink
from tests.orchestrator.world import Server, TestBeacon, until, upload

EVERYBODY = {"preset": "all-at-once", "window": "00:00-24:00"}
DEADLINE_S = 240.0


class Campus:
    """A primary, three sites, and a mirror with an uplink and beacons at each."""

    def __init__(self, folder, stack: ExitStack, count: int, *options: str):
        self.folder = folder
        self.primary = stack.enter_context(Server(folder / "primary", *options))
        self.admin = self.primary.admin()
        self.uplinks, self.mirrors, self.fleets = [], [], []
        for number in range(3):
            site = f"site{number}"
            self.admin.call("POST", "/api/sites", json={"path": site, "tz": "UTC"})
            uplink = stack.enter_context(Uplink(self.primary.url))
            token = folder / f"{site}.upstream"
            token.write_text(self.admin.create_mirror(site, site)["token"])
            given = (f"--upstream={uplink.url}", f"--upstream-token-file={token}")
            mirror = stack.enter_context(Server(folder / f"mirror{number}", *given, *options))
            self.uplinks.append(uplink)
            self.mirrors.append(mirror)
            fleet = []
            for n in range(count):
                key = secrets.token_bytes(32)
                name = f"{site}-{n}"
                self.admin.create_beacon(name, "esp32c3", key=key.hex(), site=site)
                fleet.append(TestBeacon(mirror.url, name, key))
            self.fleets.append(fleet)

    def everywhere(self, rollout: str) -> None:
        for mirror in self.mirrors:
            until(
                lambda m=mirror: (
                    [one["rollout_id"] for one in m.admin().list_rollouts()] == [rollout]
                ),
                deadline_s=DEADLINE_S,
                what="every mirror to have the rollout",
            )

    def results(self, rollout: str) -> dict[str, int]:
        return self.admin.get_rollout(rollout)["results"]


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


@pytest.mark.timeout(600)
def test_counts_are_exact_through_cut_uplinks_and_a_killed_mirror(tmp_path, stack):
    campus = Campus(tmp_path, stack, 4)
    firmware = upload(campus.admin, "1.1.0", tmp_path, channel="stable")["firmware_id"]
    rollout = campus.admin.create_rollout(firmware, EVERYBODY)["rollout_id"]
    campus.everywhere(rollout)
    for uplink in campus.uplinks[:2]:
        uplink.cut()
    ups = [threading.Event() for _ in range(3)]
    lives = [
        [Life(mirror, beacon, up) for beacon in fleet]
        for mirror, fleet, up in zip(campus.mirrors, campus.fleets, ups, strict=True)
    ]
    try:
        for up in ups:
            up.set()
        for life in (one for site in lives for one in site):
            life.start()
        until(lambda: any(life.acknowledged for life in lives[1]), deadline_s=DEADLINE_S)
        ups[1].clear()
        campus.mirrors[1].kill()
        campus.mirrors[1].start()
        ups[1].set()
        until(
            lambda: all(life.acknowledged for site in lives for life in site),
            deadline_s=DEADLINE_S,
            what="every beacon to have its answer",
        )
    finally:
        for life in (one for site in lives for one in site):
            life.over = True
        for up in ups:
            up.set()
    until(lambda: campus.results(rollout).get("success") == 4, deadline_s=DEADLINE_S)
    assert not any(
        one["beacon_id"].startswith("site0") for one in campus.admin.list_attempts(rollout)
    )
    for uplink in campus.uplinks[:2]:
        uplink.restore()
    until(lambda: campus.results(rollout) == {"success": 12}, deadline_s=DEADLINE_S)
    until(lambda: campus.admin.get_rollout(rollout)["status"] == "completed", deadline_s=DEADLINE_S)
    rows = list(campus.admin.list_attempts(rollout))
    everybody = sorted(beacon.id for fleet in campus.fleets for beacon in fleet)
    assert sorted(one["beacon_id"] for one in rows) == everybody
    until(
        lambda: all(one["connected"] and not one["backlog"] for one in campus.admin.list_mirrors()),
        deadline_s=DEADLINE_S,
        what="every mirror to have told everything",
    )
    told = campus.admin.call("GET", "/api/events/latest", params={"limit": 1000})["events"]
    ends = [one["data"]["beacon"] for one in told if one["kind"] == "attempt.success"]
    assert sorted(ends) == everybody
    for server in (campus.primary, *campus.mirrors):
        assert "Traceback" not in server.log(), server.log()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_beacon_with_its_own_code_behind_a_mirror(tmp_path, stack, small_core):
    """The firmware itself: it updates from the mirror while the primary cannot be reached."""
    from beacon_ota.virtual.beacon import VirtualBeacon
    from beacon_ota.virtual.flash.nor import Flash
    from beacon_ota.virtual.net.network import Network
    from tests.firmware.beacons import PASSWORD, POLICY, SCALE, SSID, make
    from tests.firmware.beacons import image as flash_image

    campus = Campus(tmp_path, stack, 0, "--poll=5", f"--time-scale={SCALE}")
    name, key = "real-0", secrets.token_bytes(32)
    campus.admin.create_beacon(name, "esp32c3", key=key.hex(), site="site0")
    network = Network(join_time=0.5)
    network.add_access_point(SSID, PASSWORD)
    port = int(campus.mirrors[0].url.rpartition(":")[2])
    network.set_host("orchestrator.local", "127.0.0.1", port)
    settings: dict[str, int | bytes] = {
        "beacon_id": name.encode(),
        "beacon_key": key,
        "orch_url": b"http://orchestrator.local:8080",
        "wifi_ssid": SSID.encode(),
        "wifi_pass": PASSWORD.encode(),
        "policy": json.dumps(POLICY).encode(),
    }
    memory = Flash(flash_image(make(small_core, "1.0.0"), settings))
    stack.callback(memory.close)
    file = tmp_path / "1.1.0.bin"
    file.write_bytes(make(small_core, "1.1.0"))
    fields = {"device_type": "esp32c3", "version": "1.1.0", "channel": "stable"}
    firmware = campus.admin.upload_firmware(file, **fields)["firmware_id"]
    rollout = campus.admin.create_rollout(firmware, EVERYBODY)["rollout_id"]
    until(lambda: campus.mirrors[0].admin().list_rollouts(), deadline_s=DEADLINE_S)
    campus.uplinks[0].cut()
    beacon = stack.enter_context(VirtualBeacon(memory, network=network, scale=SCALE))
    beacon.power_on()
    until(
        lambda: campus.mirrors[0].admin().get_rollout(rollout)["results"] == {"success": 1},
        deadline_s=150,
        what="the beacon to run 1.1.0",
    )
    assert campus.results(rollout) == {}
    campus.uplinks[0].restore()
    until(lambda: campus.results(rollout) == {"success": 1}, deadline_s=DEADLINE_S)
    shown = campus.admin.get_beacon(name)
    assert shown["version"] == "1.1.0" and shown["reports"][0]["status"]
