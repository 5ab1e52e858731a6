"""Bad releases at the door of the running orchestrator: each is refused with its code, nothing
of it stays, and the refusal is counted."""

import base64
import json
import time
from collections import Counter
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from beacon_ota.errors import BeaconOtaError
from beacon_ota.trust import dsse
from beacon_ota.wire import manifest as wire
from tests.system.middle import bent, flip
from tests.system.scene import everything, problems

YEAR = 365 * 86_400


def uploads(good, other, key, stranger) -> dict[str, tuple[bytes, str | None, dict, str]]:
    """Return what is tried: name -> (image, manifest, other form fields, code)."""
    payload = good.manifest.payload()
    signature = key.sign(wire.pae(payload))
    now = int(time.time())
    envelope = json.loads(good.envelope)

    def signed(by=key, **changes) -> str:
        return dsse.sign_payload(replace(good.manifest, **changes).payload(), [by])

    def sealed(signature: bytes, payload: bytes = payload) -> str:
        return dsse.pack_envelope(payload, [(key.public.keyid, signature)])

    def scheme(salt: int, hash_) -> str:
        pss = padding.PSS(padding.MGF1(hash_), salt)
        return sealed(key.key.sign(wire.pae(payload), pss, hash_))

    def with_(**changes) -> str:
        return json.dumps({**envelope, **changes}, separators=(",", ":"))

    pkcs = key.key.sign(wire.pae(payload), padding.PKCS1v15(), hashes.SHA256())
    spaces = payload.replace(b'":', b'": ')
    twice = payload[:-1] + b',"version":"9.0.0"}'
    image, wrong = good.image, "manifest_signature"
    return {
        "no manifest": (image, None, {}, "manifest_missing"),
        "a bit of the manifest": (
            image,
            with_(payload=bent(envelope["payload"], 100)),
            {},
            wrong,
        ),
        "a bit of the signature": (image, sealed(flip(signature, 1000)), {}, wrong),
        "a bit of the core": (
            flip(image, len(image) * 8 - 60_000),
            good.envelope,
            {},
            "image_checksum",
        ),
        "a bit of the app": (flip(image, 300_001), good.envelope, {}, "manifest_mismatch"),
        "cut short": (image[:-4096], good.envelope, {}, "app_mount"),
        "another's manifest": (image, other.envelope, {}, "manifest_mismatch"),
        "another's image": (
            other.image,
            good.envelope,
            {"version": other.version},
            "manifest_mismatch",
        ),
        "another device type": (image, signed(device_type="esp32c3-8mb"), {}, "manifest_mismatch"),
        "the form says another type": (
            image,
            good.envelope,
            {"device_type": "esp32c3-8mb"},
            "app_device_type",
        ),
        "the form says another version": (
            image,
            good.envelope,
            {"version": "3.0.1"},
            "app_version",
        ),
        "a version that is none": (image, good.envelope, {"version": "3.x"}, "version_syntax"),
        "a version of a megabyte": (
            image,
            good.envelope,
            {"version": "1" * 1_000_000},
            "form_field",
        ),
        "expired": (
            image,
            signed(issued_at=now - YEAR, expires_at=now - 60),
            {},
            "manifest_expired",
        ),
        "a stranger's signature": (image, signed(by=stranger), {}, wrong),
        "salt of 20 bytes": (image, scheme(20, hashes.SHA256()), {}, wrong),
        "SHA-512": (image, scheme(32, hashes.SHA512()), {}, wrong),
        "PKCS #1 v1.5": (image, sealed(pkcs), {}, wrong),
        "a byte too short": (image, sealed(signature[:-1]), {}, wrong),
        "a byte too long": (image, sealed(signature + b"\0"), {}, wrong),
        "the signature of zero": (image, sealed(bytes(384)), {}, wrong),
        "other spaces, signed": (image, sealed(key.sign(wire.pae(spaces)), spaces), {}, wrong),
        "a field twice, signed": (image, sealed(key.sign(wire.pae(twice)), twice), {}, wrong),
        "an envelope's field twice": (
            image,
            good.envelope[:-1] + ',"payload":"e30="}',
            {},
            wrong,
        ),
        "a field too many": (image, with_(more=1), {}, wrong),
        "nesting": (image, "[" * 3000 + "]" * 3000, {}, wrong),
        "a megabyte": (image, with_(payload="A" * 1_000_000), {}, "form_field"),
        "no base64": (image, with_(payload="%%%"), {}, wrong),
        "no JSON": (image, "\x00\x01", {}, wrong),
        "an old payload type": (image, with_(payloadType="text/plain"), {}, wrong),
        "eight thousand signatures": (
            image,
            with_(signatures=envelope["signatures"] * 8000),
            {},
            "form_field",
        ),
        "ciphertext that nobody vouches for": (
            flip(image, 1),
            signed(by=stranger, ciphertext_sha256="0" * 64),
            {},
            wrong,
        ),
        "base64 of another alphabet": (
            image,
            with_(payload=base64.urlsafe_b64encode(b"\xff\xfe" * 30).decode()),
            {},
            wrong,
        ),
    }


def test_bad_releases_are_refused_and_leave_nothing(server, released, key, stranger, tmp_path):
    admin = server.admin()
    good = released("3.0.0")
    before, counted = everything(server), problems(admin)
    refused: Counter[str] = Counter()
    file = tmp_path / "image.bin"
    for name, (data, manifest, form, code) in uploads(
        good, released("3.1.0"), key, stranger
    ).items():
        file.write_bytes(data)
        fields = {"device_type": "esp32c3", "version": "3.0.0", **form}
        if manifest is not None:
            fields["manifest"] = manifest
        with pytest.raises(BeaconOtaError) as caught:
            admin.upload_firmware(file, **fields)
        assert caught.value.code == code, (name, caught.value)
        assert caught.value.code not in ("internal", "not_an_orchestrator"), name
        refused[caught.value.code] += 1
    assert everything(server) == before
    now = problems(admin)
    assert {code: now[code] - counted.get(code, 0) for code in refused} == dict(refused)
    # And the good one is taken.
    file.write_bytes(good.image)
    done = admin.upload_firmware(
        file, device_type="esp32c3", version="3.0.0", manifest=good.envelope
    )
    assert done["signed"]
    # Its version is not free any more, whoever signed what.
    with pytest.raises(BeaconOtaError) as caught:
        other = replace(good.manifest, checksum="0" * 64)
        file.write_bytes(flip(good.image, 1))
        admin.upload_firmware(
            file,
            device_type="esp32c3",
            version="3.0.0",
            manifest=dsse.sign_payload(other.payload(), [key]),
        )
    assert caught.value.code == "manifest_mismatch"
