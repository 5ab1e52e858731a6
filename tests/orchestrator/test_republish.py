"""The way back to a release that was better: downloaded, renumbered, signed anew, uploaded."""

import hashlib
import json
from pathlib import Path

import pytest

from beacon_ota.cli import main
from beacon_ota.images import blocks, release
from beacon_ota.trust import KeySet, encrypt, releases
from tests.orchestrator.world import Server, beacons, environment, image

PASSWORD = "correct horse battery"


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Run a command; return its output, and check its exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BEACON_OTA_KEYRING", str(tmp_path / "keys"))
    monkeypatch.setenv("BEACON_OTA_KEY_PASSWORD", PASSWORD)

    def go(*args: object, code: int = 0) -> str:
        exit_code = 0
        try:
            main([str(arg) for arg in args])
        except SystemExit as error:
            exit_code = int(error.code or 0)
        out, err = capfd.readouterr()
        assert exit_code == code, (args, out, err)
        return out if code == 0 else err.split()[-1]

    return go


@pytest.fixture
def keys(run) -> bytes:
    """The public half of a fresh key."""
    run("keys", "new", "release")
    run("keys", "export", "-o", "keys.json")
    return Path("keys.json").read_bytes()


@pytest.fixture
def server(tmp_path, keys, run, monkeypatch):
    """An orchestrator that takes signed releases only."""
    keys_file = tmp_path / "keys.json"
    with Server(tmp_path / "data", f"--keys={keys_file}", insecure=False) as server:
        for name, value in environment(tmp_path, server).items():
            monkeypatch.setenv(name, value)
        yield server
        assert "Traceback" not in server.log()


def put(run, version: str, keys: bytes, *options: str, out: str = "") -> bytes:
    """Build, sign and upload a release; return the plain image."""
    data = image(version, keys=keys, seed=version)
    file = Path(f"{version}.bin")
    file.write_bytes(data)
    run("release", "sign", file, *options)
    run("release", "upload", out or file, "--stable")
    return data


def test_the_previous_release_comes_again(server, run, keys):
    old = put(run, "1.0.0", keys)
    put(run, "1.1.0", keys)
    done = json.loads(run("release", "republish", "previous", "--as", "1.1.1", "--json"))
    assert done["version"] == "1.1.1" and done["signed"] and done["state"] == "testing"
    assert done["description"] == "1.0.0 again"
    run("release", "promote", "1.1.1")
    got = json.loads(run("release", "download", "1.1.1", "-o", "again.bin", "--json"))
    again = Path("again.bin").read_bytes()
    assert got["sha256"] == hashlib.sha256(again).hexdigest() == done["checksum"]
    found, before = release.parse_release(again), release.parse_release(old)
    assert found.info.version == "1.1.1" and found.core_sha256 == before.core_sha256
    assert found.files["main.mpy"] == before.files["main.mpy"]
    assert found.files["keys.json"] == before.files["keys.json"]
    run("release", "verify", "again.bin", "--keys", "keys.json", "--running", "1.1.0")
    # Who runs the release that was no good is offered it; so is everybody below.
    fleet = beacons(server, 2)
    fleet[0].version = "1.1.0"
    plan = {"preset": "all-at-once", "window": "00:00-24:00"}
    server.admin().create_rollout(done["firmware_id"], plan)
    assert [beacon.offered()["version"] for beacon in fleet] == ["1.1.1"] * 2
    actions = [
        entry["action"] for entry in server.admin().list_audit_entries(target=done["firmware_id"])
    ]
    assert actions == ["firmware.uploaded", "firmware.promoted"]


def test_what_would_be_no_way_back(server, run, keys):
    put(run, "1.0.0", keys)

    def refused(*args: object) -> str:
        return run("release", "republish", *args, code=1)

    assert refused("1.0.0", "--as", "1.0.0") == "version_not_higher"
    assert refused("1.0.0", "--as", "0.9.0") == "version_not_higher"
    assert refused("1.0.0", "--as", "1.x") == "app_version"
    assert refused("9.9.9", "--as", "10.0.0") == "firmware_unknown"
    assert run("release", "republish", "previous", "--as", "2.0.0", code=2) == "firmware_unknown"
    assert len(server.admin().list_firmwares()) == 1
    # The keys were rotated since: the old image would bring the retired one back.
    run("keys", "rotate", "release", "fresh")
    assert run("release", "republish", "1.0.0", "--as", "1.0.1", code=2) == "keys_old"
    run("keys", "export", "-o", "fresh.json")
    both = ("--key", "release", "--key", "fresh", "--keys", "fresh.json")
    made = json.loads(run("release", "republish", "1.0.0", "--as", "1.0.1", *both, "--json"))
    run("release", "download", "1.0.1", "-o", "again.bin")
    inside = release.parse_release(Path("again.bin").read_bytes()).files["keys.json"]
    assert inside == KeySet.parse(Path("fresh.json").read_bytes()).to_json()
    assert made["version"] == "1.0.1"


def test_without_a_server(run, keys):
    Path("old.bin").write_bytes(image("1.0.0", keys=keys))
    run("release", "republish", "old.bin", "--as", "2.0.0", "-o", "new.bin")
    run("release", "verify", "new.bin", "--running", "1.9.0")
    frozen = Path("frozen.bin")
    frozen.write_bytes(b"\xe9" + bytes(100))
    assert run("release", "republish", frozen, "--as", "2.0.0", code=1).startswith("image_")
    unsigned = ("republish", "old.bin", "--as", "2.0.1", "--unsigned", "-o", "plain.bin")
    run("release", *unsigned)
    assert release.parse_release(Path("plain.bin").read_bytes()).info.version == "2.0.1"
    assert not Path("plain.bin.manifest.json").exists()


def test_an_encrypted_release(server, run, keys):
    run("keys", "fleet", "fleet.key")
    sealing = ("--encrypt", "--fleet-key", "fleet.key", "-o", "sealed.bin")
    plain = put(run, "1.0.0", keys, *sealing, out="sealed.bin")
    again = ("release", "republish", "1.0.0", "--as", "1.0.1")
    assert run(*again, code=2) == "fleet_key"
    run("keys", "fleet", "other.key")
    assert run(*again, "--fleet-key", "other.key", code=1) == "decrypt"
    done = json.loads(run(*again, "--fleet-key", "fleet.key", "--json"))
    assert done["checksum"] != done["blob"]
    run("release", "download", "1.0.1", "-o", "again.bin")
    sealed = Path("again.bin").read_bytes()
    index = Path("again.bin.blocks").read_bytes()
    manifest = releases.claimed_manifest(Path("again.bin.manifest.json").read_bytes())
    fleet_key = encrypt.read_fleet_key(Path("fleet.key"))
    opened = encrypt.crypt_image(sealed, fleet_key, manifest.checksum)
    assert index == blocks.hash_sectors(opened)
    assert release.parse_release(opened).info.version == "1.0.1"
    assert (
        release.parse_release(opened).files["main.mpy"]
        == release.parse_release(plain).files["main.mpy"]
    )
    assert release.parse_release(opened).files["main.mpy"] not in sealed
