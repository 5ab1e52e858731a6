"""Signed and encrypted releases, end to end, and everything that a signature keeps out."""

import json
import time
from dataclasses import replace

import pytest

from beacon_ota.images import synthetic
from beacon_ota.trust import KeySet, dsse, releases
from beacon_ota.trust.releases import Terms
from tests.firmware.beacons import bench, make
from tests.firmware.server import Fault
from tests.trust.lab import Key

FLEET = bytes(range(16))


@pytest.fixture(scope="module")
def key() -> Key:
    return Key("release")


@pytest.fixture(scope="module")
def trusted(key) -> bytes:
    return KeySet.of([key.public]).to_json()


@pytest.fixture(scope="module")
def old(small_core, trusted) -> bytes:
    return make(small_core, "1.0.0", keys=trusted, insecure=False)


@pytest.fixture(scope="module")
def new(small_core, trusted) -> bytes:
    return make(small_core, "2.0.0", keys=trusted, insecure=False)


def sign(b, data: bytes, signer: Key, *, fleet: bytes | None = None, **changes) -> None:
    """Let the orchestrator offer a signed release."""
    now = int(time.time())
    manifest, sealed = releases.describe_release(
        data, Terms(now - 100, now + 10**6), fleet_key=fleet
    )
    envelope = json.loads(dsse.sign_payload(replace(manifest, **changes).payload(), [signer]))
    b.server.plain, b.server.image = data, sealed or data
    b.server.manifest = lambda: envelope
    b.server.offering = True


def refused(b, code: str) -> None:
    failed = b.reported("failed")
    assert (failed["stage"], failed["code"]) == ("verify", code), failed
    assert not [r for r in b.server.requests if r.path.endswith("/download")]


def test_signed(old, new, key):
    with bench(old) as b:
        sign(b, new, key)
        done = b.reported("success")
        assert "insecure" not in done


def test_encrypted(old, new, key):
    """Decrypted on the way into flash, also across a resumed download and over a core that is kept;
    the first sector comes all the same, and tells whether the key is the right one."""
    with bench(old, settings={"fleet_key": FLEET}) as b:
        b.server.downloads = [None, Fault(close=30_000)]
        sign(b, new, key, fleet=FLEET)
        b.reported("success")
        assert b.server.ranges() == ["bytes=0-4095", "bytes=16384-", "bytes=45056-"]


def test_encrypted_with_another_core(old, trusted, key):
    new = make(synthetic.app_image(24 * 1024), "2.0.0", keys=trusted, insecure=False)
    with bench(old, settings={"fleet_key": FLEET}) as b:
        b.server.downloads = [Fault(close=30_000)]
        sign(b, new, key, fleet=FLEET)
        b.reported("success")
        assert b.server.ranges() == ["", "bytes=28672-"]


def test_encrypted_for_another_fleet(old, new, key):
    for own in (None, bytes(16)):
        with bench(old, settings={"fleet_key": own}) as b:
            sign(b, new, key, fleet=FLEET)
            failed = b.reported("failed")
            assert (failed["stage"], failed["code"]) == ("verify", "decrypt")
            assert b.beacon.flash.read(0x1D0000, 4) == b"\xff" * 4, "nothing was written"


def test_an_unsigned_offer(old, new):
    with bench(old) as b:
        b.server.image, b.server.offering = new, True
        refused(b, "signature")


def test_a_strangers_signature(old, new):
    with bench(old) as b:
        sign(b, new, Key("stranger"))
        refused(b, "signature")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"expires_at": 1_700_000_100, "issued_at": 1_700_000_000}, "expired"),
        ({"device_type": "esp32c3-8mb"}, "device_type"),
        ({"min_version": "1.5.0"}, "image"),
        ({"checksum": "ab" * 32}, "checksum"),
    ],
)
def test_terms_that_do_not_hold(old, new, key, changes, code):
    with bench(old) as b:
        sign(b, new, key, **changes)
        refused(b, code)


def test_below_the_floor(small_core, trusted, key, old):
    """A beacon that was once at 3.0.0 takes nothing below it, whatever it runs now."""
    with bench(old, settings={"floor": b"3.0.0"}) as b:
        sign(b, make(small_core, "2.5.0", keys=trusted, insecure=False), key)
        b.server.version = "2.5.0"
        refused(b, "downgrade")


@pytest.mark.parametrize("floor", [b"v2", b"\xff", b"9.0", 7])
def test_a_floor_that_is_no_version(small_core, trusted, key, old, floor):
    """Whatever left it there: it protects nothing, and keeps no beacon from updates for ever."""
    new = make(small_core, "1.5.0", keys=trusted, insecure=False)
    with bench(old, scale=20, settings={"floor": floor}) as b:
        b.server.version = "1.5.0"
        sign(b, new, key)
        b.reported("success")
        assert b.beacon.setting("floor") == b"1.5.0"
