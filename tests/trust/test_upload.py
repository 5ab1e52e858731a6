"""What an orchestrator checks of an upload, plain and encrypted (docs/contracts.md §5)."""

import hashlib
import io

import pytest

from beacon_ota.errors import InputError
from beacon_ota.orchestrator.releases import validate
from beacon_ota.trust import KeySet, dsse, releases
from beacon_ota.trust.releases import Terms
from tests.trust.lab import DAY, NOW

FLEET = bytes(range(16))
TERMS = Terms(NOW, NOW + DAY)


@pytest.fixture
def trusted(keys):
    return KeySet.of([keys[0].public])


@pytest.fixture
def sealed(image, keys, trusted) -> tuple[bytes, str]:
    """An encrypted release and its manifest."""
    manifest, data = releases.describe_release(image("1.2.3", trusted), TERMS, fleet_key=FLEET)
    assert data is not None
    return data, dsse.sign_payload(manifest.payload(), keys[:1])


def upload(data: bytes, envelope: str | None, trusted, *, insecure=False, now=NOW, **claimed):
    fields = {"device_type": "esp32c3", "version": "1.2.3"} | claimed
    claim = validate.UploadClaim(
        **fields,
        description="",
        channel="beta",
        required=None,
        manifest=envelope,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    return validate.examine_image(io.BytesIO(data), claim, trusted, insecure, now)


def refused(*args, **named) -> str:
    with pytest.raises(InputError) as caught:
        upload(*args, **named)
    return caught.value.code


def test_plain(image, keys, trusted):
    data = image("1.2.3", trusted)
    text = dsse.sign_payload(releases.describe_release(data, TERMS)[0].payload(), keys[:1])
    found = upload(data, text, trusted)
    assert (found.checksum, found.blob) == (hashlib.sha256(data).hexdigest(),) * 2
    assert found.info["signed"]
    assert refused(data, None, trusted) == "manifest_missing"
    assert refused(data, "{}", trusted) == "manifest_signature"
    assert refused(data, text, trusted, now=NOW + DAY) == "manifest_expired"
    other = KeySet.of([keys[1].public])
    assert refused(data, text, other) == "manifest_signature"
    another = image("1.2.3", trusted, insecure=True)
    assert refused(another, text, trusted) == "manifest_mismatch"


def test_encrypted_is_taken_for_its_signature(sealed, trusted):
    data, text = sealed
    found = upload(data, text, trusted)
    assert found.blob == hashlib.sha256(data).hexdigest()
    assert found.checksum == releases.claimed_manifest(text).checksum != found.blob
    assert found.size == len(data)
    assert found.info == {"encrypted": True, "signed": True}


def test_encrypted_is_held_to_what_was_signed(sealed, trusted, keys):
    data, text = sealed
    assert refused(data[:-1] + b"x", text, trusted) == "manifest_mismatch"
    assert refused(data[:-1], text, trusted) == "manifest_mismatch"
    assert refused(data, text, trusted, version="1.2.4") == "manifest_mismatch"
    assert refused(data, text, trusted, device_type="esp32c3-8mb") == "manifest_mismatch"
    assert refused(data, text, trusted, device_type="toaster") == "device_type_unknown"
    assert refused(data, text, KeySet.of([keys[1].public])) == "manifest_signature"


def test_ciphertext_needs_somebody_who_vouches(sealed, trusted):
    data, text = sealed
    # Also where unsigned releases are welcome: there is nothing else to go by.
    assert refused(data, text, None, insecure=True) == "manifest_signature"
    assert refused(data, None, None, insecure=True).startswith("image_")
    assert refused(data, text[:-1], trusted) in ("manifest_signature", "image_magic")


def test_encrypted_still_has_to_fit(image, keys, trusted):
    big = b"\0" * (0x1C0000 + 4096)
    manifest = releases.describe_release(image("1.2.3", trusted), TERMS)[0]
    fields = manifest.__dict__ | {
        "size": len(big),
        "ciphertext_sha256": hashlib.sha256(big).hexdigest(),
    }
    text = dsse.sign_payload(type(manifest)(**fields).payload(), keys[:1])
    assert refused(big, text, trusted) == "slot_too_small"
