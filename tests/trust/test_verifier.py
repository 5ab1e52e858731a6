"""The orchestrator's question: does this manifest belong to this upload?"""

from dataclasses import replace

import pytest

from beacon_ota.errors import InputError
from beacon_ota.trust import KeySet, ManifestClaims, Verifier
from tests.trust.lab import NOW, RELEASE, signed

FACTS = ManifestClaims(
    device_type=RELEASE.device_type,
    version=RELEASE.version,
    size=RELEASE.size,
    sha256=RELEASE.checksum,
    core=RELEASE.core,
    required=RELEASE.required,
)
SEALED = replace(RELEASE, ciphertext_sha256="5e" * 32)


@pytest.fixture
def verifier(keys):
    return Verifier(KeySet.of([keys[0].public]))


def refused(verifier, envelope, facts=FACTS, now: float | None = NOW) -> InputError:
    with pytest.raises(InputError) as caught:
        verifier.check_upload(envelope, facts, now=now)
    return caught.value


def test_accepted(verifier, keys):
    text = signed(keys[:1])
    assert verifier.check_upload(text, FACTS, now=NOW) == RELEASE
    assert verifier.check_upload(text.encode(), FACTS, now=NOW + 0.5) == RELEASE
    assert (
        verifier.check_upload(text, replace(FACTS, core=None, required=None), now=None) == RELEASE
    )


def test_missing(verifier):
    for nothing in (None, "", b"", {}):
        assert refused(verifier, nothing).code == "manifest_missing"


def test_not_to_be_believed(verifier, keys):
    text = signed(keys[1:2])
    for bad in (text, text[:-1], "{}", "[]", "x", b"\xff", {"payload": ""}, "[" * 9999):
        error = refused(verifier, bad)
        assert error.code == "manifest_signature"
        assert len(error.message) < 200
    assert refused(Verifier(None), signed(keys[:1])).code == "manifest_signature"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("device_type", "esp32c3-8mb"),
        ("version", "1.3.1"),
        ("size", RELEASE.size - 1),
        ("sha256", "00" * 32),
        ("core", "00" * 32),
        ("required", True),
    ],
)
def test_signed_for_something_else(verifier, keys, field, value):
    error = refused(verifier, signed(keys[:1]), replace(FACTS, **{field: value}))
    assert error.code == "manifest_mismatch"
    assert field in error.message
    assert error.found == value


def test_expired(verifier, keys):
    text = signed(keys[:1])
    assert refused(verifier, text, now=RELEASE.expires_at).code == "manifest_expired"
    assert refused(verifier, text, now=RELEASE.expires_at + 0.5).code == "manifest_expired"
    assert verifier.check_upload(text, FACTS, now=RELEASE.expires_at - 1) == RELEASE


def test_ciphertext_is_held_to_its_own_hash(verifier, keys):
    text = signed(keys[:1], SEALED)
    sealed = replace(FACTS, sha256="5e" * 32, core=None)
    found = verifier.check_upload(text, sealed, now=NOW)
    assert found.encrypted
    assert found.served_sha256 == "5e" * 32
    assert found.checksum == RELEASE.checksum
    # The plain image is not what was announced to be served.
    assert refused(verifier, text, FACTS).code == "manifest_mismatch"
    assert not RELEASE.encrypted
    assert RELEASE.served_sha256 == RELEASE.checksum


def test_fields_that_no_manifest_can_have():
    for changes in (
        {"version": "1.3"},
        {"min_version": "v1"},
        {"size": 0},
        {"size": 1 << 25},
        {"checksum": "AB" * 32},
        {"device_type": "Esp32"},
        {"expires_at": RELEASE.issued_at},
        {"issued_at": -1},
        {"ciphertext_sha256": ""},
    ):
        with pytest.raises(InputError) as caught:
            replace(RELEASE, **changes).payload()  # type: ignore[arg-type]
        assert caught.value.code == "manifest_field"
