"""What signing looks for in an image, and what can be said of it afterwards."""

import hashlib
from dataclasses import replace

import pytest

from beacon_ota.errors import InputError
from beacon_ota.images import release
from beacon_ota.trust import KeySet, Verifier, dsse, releases
from beacon_ota.trust.releases import Terms
from tests.trust.lab import DAY, NOW, signed

TERMS = Terms(issued_at=NOW, expires_at=NOW + DAY, min_version="0.9.0", required=True)
FLEET = bytes(16)


@pytest.fixture
def trusted(keys):
    return KeySet.of([keys[0].public])


def code(call, *args, **named) -> str:
    with pytest.raises(InputError) as caught:
        call(*args, **named)
    return caught.value.code


def test_the_image_speaks_for_itself(image, trusted):
    data = image("1.2.3", trusted)
    manifest, sealed = releases.describe_release(data, TERMS)
    assert sealed is None
    assert (manifest.version, manifest.device_type) == ("1.2.3", "esp32c3")
    assert (manifest.size, manifest.checksum) == (len(data), hashlib.sha256(data).hexdigest())
    assert manifest.core == release.parse_release(data).core_sha256
    assert (manifest.min_version, manifest.required) == ("0.9.0", True)
    assert (manifest.issued_at, manifest.expires_at) == (NOW, NOW + DAY)
    # The same image and terms, the same bytes to sign.
    assert releases.describe_release(data, TERMS)[0].payload() == manifest.payload()


def test_what_is_signed_is_what_an_upload_is_held_to(image, keys, trusted):
    data = image("1.2.3", trusted)
    manifest, _ = releases.describe_release(data, TERMS)
    text = dsse.sign_payload(manifest.payload(), keys[:1])
    facts = releases.claims_for_image(data, releases.claimed_manifest(text))
    assert Verifier(trusted).check_upload(text, facts, now=NOW) == manifest
    other = image("1.2.4", trusted)
    facts = releases.claims_for_image(other, releases.claimed_manifest(text))
    assert code(Verifier(trusted).check_upload, text, facts, now=NOW) == "manifest_mismatch"


def test_encrypted(image, keys, trusted):
    data = image("1.2.3", trusted)
    manifest, sealed = releases.describe_release(data, TERMS, fleet_key=FLEET)
    assert sealed is not None
    assert manifest.ciphertext_sha256 == hashlib.sha256(sealed).hexdigest()
    assert manifest.checksum == hashlib.sha256(data).hexdigest()
    text = dsse.sign_payload(manifest.payload(), keys[:1])
    verifier = Verifier(trusted)
    claimed = releases.claimed_manifest(text)
    # With the fleet key everything is looked at, without it what a server can see.
    facts = releases.claims_for_image(sealed, claimed, fleet_key=FLEET)
    assert facts.core == manifest.core
    assert verifier.check_upload(text, facts, now=NOW) == manifest
    facts = releases.claims_for_image(sealed, claimed)
    assert facts.core is None
    assert verifier.check_upload(text, facts, now=NOW) == manifest
    assert code(releases.claims_for_image, sealed, claimed, fleet_key=bytes([1]) * 16) == "decrypt"
    # One byte changed on the way is no longer what was signed.
    bent = sealed[:-1] + bytes([sealed[-1] ^ 1])
    facts = releases.claims_for_image(bent, claimed)
    assert code(verifier.check_upload, text, facts, now=NOW) == "manifest_mismatch"


def test_images_that_are_not_signed(image, trusted):
    good = image("1.2.3", trusted)
    assert code(releases.describe_release, b"", TERMS) == "image_truncated"
    assert code(releases.describe_release, bytes(5000), TERMS) == "image_magic"
    assert code(releases.describe_release, good + b"x", TERMS) == "app_trailing"
    unknown = image("1.2.3", trusted, device_type="toaster")
    assert code(releases.describe_release, unknown, TERMS) == "device_type_unknown"


def test_a_release_that_no_beacon_could_leave(image, trusted):
    assert code(releases.describe_release, image("1.2.3"), TERMS) == "keys_missing"
    assert releases.describe_release(image("1.2.3", insecure=True), TERMS)[0].version == "1.2.3"

    class Broken:
        def to_json(self):
            return b'{"keys":{},"threshold":1}'

    assert code(releases.describe_release, image("1.2.3", Broken()), TERMS) == "keys_file"


def test_terms_that_cannot_be(image, trusted):
    data = image("1.2.3", trusted)
    for terms in (
        Terms(NOW, NOW),
        Terms(-1, NOW),
        Terms(NOW, 1 << 60),
        replace(TERMS, min_version="1"),
    ):
        assert code(releases.describe_release, data, terms) == "manifest_field"


def test_adding_a_signature_to_the_right_manifest(image, keys, trusted):
    data = image("1.2.3", trusted)
    manifest, sealed = releases.describe_release(data, TERMS, fleet_key=FLEET)
    text = dsse.sign_payload(manifest.payload(), keys[:1])
    assert sealed is not None
    assert releases.manifest_for_image(text, sealed) == manifest
    assert code(releases.manifest_for_image, text, data) == "manifest_mismatch"
    assert code(releases.manifest_for_image, signed(keys[:1]), data) == "manifest_mismatch"
    for bad in ("", "{}", b"\xff", text[:-1]):
        assert code(releases.manifest_for_image, bad, data) == "manifest_signature"
