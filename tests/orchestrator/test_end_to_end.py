"""The beacons' own code, on virtual beacons, against the orchestrator's own process."""

import contextlib
import json
import secrets

import pytest

from beacon_ota.virtual.beacon import VirtualBeacon
from beacon_ota.virtual.flash.nor import Flash
from beacon_ota.virtual.net.network import Network
from tests.firmware.beacons import PASSWORD, SSID, image, make
from tests.orchestrator.world import Server, until
from tests.system.scene import POLICY, SCALE

EVERYBODY = {"preset": "all-at-once", "window": "00:00-24:00", "gate": {"in_a_row": 1}}


@pytest.fixture
def fleet(tmp_path, small_core):
    """An orchestrator, and three beacons that run 1.0.0 and know it."""
    built = make(small_core, "1.0.0")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(tmp_path / "data", f"--time-scale={SCALE}", "--poll=5"))
        network = Network(join_time=0.5)
        network.add_access_point(SSID, PASSWORD)
        network.set_host("orchestrator.local", "127.0.0.1", int(server.url.rpartition(":")[2]))
        beacons = {}
        for number in range(3):
            name, key = f"real-{number}", secrets.token_bytes(32)
            server.admin().create_beacon(name, "esp32c3", key=key.hex())
            settings: dict[str, int | bytes] = {
                "beacon_id": name.encode(),
                "beacon_key": key,
                "orch_url": b"http://orchestrator.local:8080",
                "wifi_ssid": SSID.encode(),
                "wifi_pass": PASSWORD.encode(),
                "policy": json.dumps(POLICY).encode(),
            }
            memory = Flash(image(built, settings))
            stack.callback(memory.close)
            beacon = stack.enter_context(VirtualBeacon(memory, network=network, scale=SCALE))
            beacon.power_on()
            beacons[name] = beacon
        yield server, beacons
        assert "Traceback" not in server.log()


def roll_out(server, tmp_path, built: bytes, version: str) -> str:
    file = tmp_path / f"{version}.bin"
    file.write_bytes(built)
    admin = server.admin()
    fields = {"device_type": "esp32c3", "version": version, "channel": "stable"}
    firmware = admin.upload_firmware(file, **fields)
    return admin.create_rollout(firmware["firmware_id"], EVERYBODY)["rollout_id"]


def versions(server) -> list[str]:
    return [one["version"] for one in server.admin().list_beacons()]


@pytest.mark.timeout(600)
def test_a_good_release_then_a_bad_one(fleet, tmp_path, small_core):
    server, beacons = fleet
    admin = server.admin()
    until(lambda: versions(server) == ["1.0.0"] * 3, deadline_s=120, what="the first polls")

    rollout = roll_out(server, tmp_path, make(small_core, "1.1.0"), "1.1.0")
    until(
        lambda: admin.get_rollout(rollout)["status"] == "completed",
        deadline_s=120,
        what="everybody to run 1.1.0",
    )
    shown = admin.get_rollout(rollout)
    assert shown["results"] == {"success": 3} and versions(server) == ["1.1.0"] * 3
    for row in admin.list_attempts(rollout):
        assert row["trials"] == 1 and row["bytes"] and row["duration_ms"]
        assert row["from_version"] == "1.0.0" and row["rebooting_at"]
    for name in beacons:
        assert admin.get_beacon(name)["insecure"] is True

    bad = make(small_core, "1.2.0", {"main.py": "raise ValueError('a bad release')\n"})
    rollout = roll_out(server, tmp_path, bad, "1.2.0")
    until(
        lambda: admin.get_rollout(rollout)["status"] == "halted",
        deadline_s=120,
        what="the bad release to be halted",
    )
    failed = [row for row in admin.list_attempts(rollout) if row["result"] == "rolled_back"]
    assert failed and {(row["failed_in"], row["code"]) for row in failed} == {("boot", "crash")}
    until(
        lambda: (
            versions(server) == ["1.1.0"] * 3
            and not any(row["result"] is None for row in admin.list_attempts(rollout))
        ),
        deadline_s=120,
        what="everybody to be back on 1.1.0",
    )
    journal = admin.get_beacon(failed[0]["beacon_id"])["journal"]
    assert any("a bad release" in entry["detail"] for entry in journal), journal
    assert admin.verify_audit()["entries"]
