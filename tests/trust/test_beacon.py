"""Trust on whole virtual beacons: nothing is downloaded that is not to be believed, encrypted
releases become plain on their way into flash, keys change with a release."""

import hashlib
import json
from dataclasses import replace

import pytest

from beacon_ota.trust import KeySet, dsse, releases
from beacon_ota.trust.releases import Terms
from tests.firmware.beacons import bench, make

FLEET = bytes(range(1, 17))


@pytest.fixture(scope="module")
def build(small_core):
    """Build a release of the beacon's app that trusts these keys and accepts nothing unsigned."""

    def build(version: str, *keys) -> bytes:
        trusted = KeySet.of([key.public for key in keys]).to_json()
        return make(small_core, version, keys=trusted, insecure=False)

    return build


def offer(server, image: bytes, signers, *, fleet_key: bytes | None = None, **changes) -> None:
    """Let the orchestrator offer a release, with some fields of the manifest changed."""
    now = server.now()
    manifest, sealed = releases.describe_release(
        image, Terms(now - 60, now + 86_400), fleet_key=fleet_key
    )
    manifest = replace(manifest, **changes)
    envelope = json.loads(dsse.sign_payload(manifest.payload(), signers))
    server.image = sealed or image
    server.version = manifest.version
    server.extra = {"checksum": manifest.checksum}
    server.manifest = lambda: envelope
    server.offering = True


def refused(b) -> dict:
    """Wait for the failed attempt; the old release goes on and nothing was downloaded."""
    failed = b.reported("failed")
    assert failed["stage"] == "verify"
    assert "insecure" not in failed
    assert not b.server.count("/firmwares/" + b.server.firmware_id)
    assert b.running() == "ota_0"
    return failed


REFUSALS = {
    "signature": {"by_new": True},
    "expired": {"expires_at": 1},
    "device_type": {"device_type": "esp32c3-8mb"},
    "image": {"min_version": "1.5.0"},
    "checksum": {"version": "1.5.0"},  # signed for another release than the one offered
}


@pytest.mark.parametrize("code", REFUSALS)
def test_not_a_byte_is_downloaded_of_what_is_refused(build, keys, code):
    old, new, *_ = keys
    changes = dict(REFUSALS[code])
    signers = [new] if changes.pop("by_new", False) else [old]
    with bench(build("1.0.0", old)) as b:
        offer(b.server, build("2.0.0", new), signers, issued_at=0, **changes)
        b.server.version = "2.0.0"
        assert refused(b)["code"] == code


def test_an_unsigned_offer_is_not_enough(build, keys):
    with bench(build("1.0.0", keys[0])) as b:
        b.server.image, b.server.offering = build("2.0.0", keys[0]), True
        failed = refused(b)
        assert (failed["code"], failed["detail"]) == ("signature", "no manifest")


def test_the_keys_change_with_a_release(build, keys):
    """What the old key signed brings the new one, and from then on only that counts."""
    old, new, *_ = keys
    with bench(build("1.0.0", old)) as b:
        offer(b.server, build("2.0.0", new), [old])
        b.wait(lambda: b.polled("2.0.0"))
        third = build("3.0.0", new)
        offer(b.server, third, [old])
        assert b.reported("failed")["code"] == "signature"
        offer(b.server, third, [new])
        b.wait(lambda: b.polled("3.0.0"), 40)
        assert b.beacon.setting("floor") == b"3.0.0"


def test_an_encrypted_release(build, keys):
    old = build("1.0.0", keys[0])
    new = build("2.0.0", keys[0])
    with bench(old, settings={"fleet_key": FLEET}) as b:
        offer(b.server, new, keys[:1], fleet_key=FLEET)
        assert b.server.image != new
        done = b.reported("success")
        assert done["image_sha256"] == hashlib.sha256(new).hexdigest()
        assert b.running() == "ota_1"


@pytest.mark.parametrize("fleet_key", [None, bytes(16)])
def test_an_encrypted_release_without_its_key(build, keys, fleet_key):
    old = build("1.0.0", keys[0])
    with bench(old, settings={"fleet_key": fleet_key}) as b:
        target = 0x1D0000
        offer(b.server, build("2.0.0", keys[0]), keys[:1], fleet_key=FLEET)
        failed = b.reported("failed")
        assert (failed["stage"], failed["code"]) == ("verify", "decrypt"), failed
        assert b.flash.read(target, 4096) == b"\xff" * 4096, "nothing was written"
        assert b.running() == "ota_0"
