"""Keys come and go with releases: the procedures of docs/security.md, walked through with real
release images and the beacon's own code."""

from dataclasses import dataclass, replace

import pytest

from beacon_ota.images import release
from beacon_ota.trust import KeySet, dsse, releases
from beacon_ota.trust.releases import Terms
from tests.trust.lab import BEACON, DAY, NOW, Device, Key, offer

TERMS = Terms(issued_at=NOW - DAY, expires_at=NOW + DAY)


@dataclass
class Beacon:
    """A beacon that installs what it accepts: then it trusts the keys in that release."""

    device: Device
    running: str
    keys: bytes

    def take(self, image: bytes, signers: list[Key]) -> object:
        """Offer a release; return True when it was installed, else the code of the refusal."""
        manifest, _ = releases.describe_release(image, TERMS)
        text = dsse.sign_payload(manifest.payload(), signers)
        situation = replace(BEACON, running=self.running, floor=self.running)
        verdict = self.device.verdict(offer(text, manifest), situation, self.keys)
        if not isinstance(verdict, dict):
            return verdict
        self.running = manifest.version
        self.keys = release.parse_release(image).files["keys.json"]
        return True


@pytest.fixture
def beacon(device):
    """A beacon that runs 1.0.0 and trusts the keys given."""
    return lambda *keys, threshold=1: Beacon(device, "1.0.0", trust(*keys, threshold=threshold))


def trust(*keys: Key, threshold: int = 1) -> bytes:
    return KeySet.of([key.public for key in keys], threshold).to_json()


def test_rotation(beacon, image, keys):
    old, new, *_ = keys
    first, late = beacon(old), beacon(old)
    fresh = KeySet.of([new.public])
    assert first.take(image("1.1.0", fresh), [new]) == "signature"
    assert first.take(image("1.1.0", fresh), [old]) is True
    # From now on the old key is nothing to it; the late one knows only the old key.
    assert first.take(image("1.2.0", fresh), [old]) == "signature"
    assert late.take(image("1.2.0", fresh), [new]) == "signature"
    # Signed by both, everybody takes it, also those that skipped the release in between.
    assert first.take(image("1.2.0", fresh), [old, new]) is True
    assert late.take(image("1.2.0", fresh), [old, new]) is True
    for each in (first, late):
        assert each.take(image("1.3.0", fresh), [old]) == "signature"
        assert each.take(image("1.3.0", fresh), [new]) is True


def test_a_lost_key_with_a_spare(beacon, image, keys):
    lost, spare, new, _ = keys
    fleet = beacon(lost, spare)
    fresh = KeySet.of([spare.public, new.public])
    assert fleet.take(image("1.1.0", fresh), [new]) == "signature"
    assert fleet.take(image("1.1.0", fresh), [spare]) is True
    assert fleet.take(image("1.2.0", fresh), [lost]) == "signature"
    assert fleet.take(image("1.2.0", fresh), [new]) is True


def test_a_lost_key_without_a_spare(beacon, image, keys):
    """Nothing over the air helps: that is what the key is for. The way back is a cable."""
    _, new, *others = keys
    fleet = beacon(keys[0])
    for version in ("1.1.0", "9.0.0"):
        assert fleet.take(image(version, KeySet.of([new.public])), [new, *others]) == "signature"
    assert fleet.running == "1.0.0"


def test_a_stolen_key_is_worth_nothing_after_its_rotation(beacon, image, keys):
    stolen, spare, new, _ = keys
    fleet = beacon(stolen, spare)
    fresh = KeySet.of([spare.public, new.public])
    # The thief's release, made while the key was good, but not yet offered.
    thieves = image("1.1.1", KeySet.of([stolen.public]))
    assert fleet.take(image("1.1.0", fresh), [spare]) is True
    assert fleet.take(thieves, [stolen]) == "signature"


def test_a_stolen_key_of_two_out_of_three(beacon, image, keys):
    stolen, second, third, new = keys
    fleet = beacon(stolen, second, third, threshold=2)
    assert fleet.take(image("1.1.0", KeySet.of([stolen.public])), [stolen]) == "signature"
    assert fleet.take(image("1.1.0", KeySet.of([stolen.public])), [stolen, new]) == "signature"
    fresh = KeySet.of([second.public, third.public, new.public], 2)
    assert fleet.take(image("1.1.0", fresh), [second, third]) is True
    assert fleet.take(image("1.2.0", fresh), [stolen, second]) == "signature"
    assert fleet.take(image("1.2.0", fresh), [new, third]) is True
