"""Whoever has the orchestrator, or a beacon's key and the LAN, can offer what they like: the seals
are right then. What a beacon runs is still decided by signatures. One thing is changed at a time;
each is refused with its code, the old release goes on, and the orchestrator's counts show it."""

import base64
import contextlib
import json
import re
import time
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from beacon_ota.trust import dsse
from beacon_ota.wire import manifest as wire
from tests.system.conftest import put
from tests.system.middle import Answer, Request, bent, flip
from tests.system.scene import metric, pair, roll_out

pytestmark = pytest.mark.timeout(600)  # for machines that do other things as well
YEAR = 365 * 86_400


def on_offer(change):
    """Change offers, and nothing else."""

    def altered(request: Request, answer: Answer) -> Answer:
        if request.kind != "poll" or answer.status != 200:
            return answer
        return change(answer)

    return altered


def on_download(change):
    """Change images and parts of them, and nothing else; ``change(bytes, offset)``."""

    def altered(request: Request, answer: Answer) -> Answer:
        if request.kind != "download" or answer.status not in (200, 206):
            return answer
        found = re.match(r"bytes (\d+)-", answer.headers.get("content-range", ""))
        return replace(answer, body=change(answer.body, int(found[1]) if found else 0))

    return altered


def attacks(release, old, same, other, key, stranger):
    """Return what is tried: name -> (change, the code that it has to end with)."""
    payload = release.manifest.payload()
    signature = key.sign(wire.pae(payload))
    now = int(time.time())

    def signed(by=key, offer=None, **changes):
        bent = replace(release.manifest, **changes)
        envelope = json.loads(dsse.sign_payload(bent.payload(), [by]))
        fields = {"checksum": bent.checksum, "size": bent.size, "version": bent.version}
        return on_offer(lambda a: a.offer(manifest=envelope, **fields, **(offer or {})))

    def sealed(signature: bytes, payload: bytes = payload):
        text = dsse.pack_envelope(payload, [(key.public.keyid, signature)])
        return on_offer(lambda a: a.offer(manifest=json.loads(text)))

    def scheme(salt, hash_):
        pss = padding.PSS(padding.MGF1(hash_), salt)
        return sealed(key.key.sign(wire.pae(payload), pss, hash_))

    def instead(another):
        manifest = json.loads(another.envelope)
        fields = {"version": another.version, "checksum": another.checksum}
        return on_offer(lambda a: a.offer(manifest=manifest, size=len(another.image), **fields))

    def envelope_with(**changes):
        def change(answer):
            manifest = json.loads(answer.body)["manifest"]
            return answer.offer(manifest={**manifest, **changes})

        return on_offer(change)

    def bit_in_manifest(answer):
        manifest = json.loads(answer.body)["manifest"]
        return answer.offer(manifest={**manifest, "payload": bent(manifest["payload"], 100)})

    twice = payload[:-1] + b',"version":"9.0.0"}'
    again = base64.b64encode(payload.replace(b'":', b'": ')).decode()
    return {
        "flipped bit in the manifest": (on_offer(bit_in_manifest), "signature"),
        "flipped bit in the signature": (sealed(flip(signature, 1000)), "signature"),
        "flipped bit in the image": (on_download(lambda d, at: flip(d, 80_001)), "checksum"),
        "the last bit of the image": (on_download(lambda d, at: flip(d, 0)), "checksum"),
        "the image of another release": (
            on_download(lambda d, at: other.image[at : at + len(d)]),
            "checksum",
        ),
        "the manifest of another release": (
            on_offer(lambda a: a.offer(manifest=json.loads(other.envelope))),
            "checksum",
        ),
        "for another device type": (signed(device_type="esp32c3-8mb"), "device_type"),
        "expired": (signed(issued_at=now - YEAR, expires_at=now - 60), "expired"),
        "an old release replayed": (instead(old), "downgrade"),
        "the running release": (instead(same), "downgrade"),
        "a version of another offer": (on_offer(lambda a: a.offer(version="9.9.9")), "checksum"),
        "a huge version": (on_offer(lambda a: a.offer(version="9" * 60 + ".0.0")), "checksum"),
        "from a version above": (signed(min_version="1.5.0"), "image"),
        "larger than a slot": (signed(size=0x1C0001), "image"),
        "no manifest": (on_offer(lambda a: a.offer(manifest=None)), "signature"),
        "a stranger's signature": (signed(by=stranger), "signature"),
        "salt of 20 bytes": (scheme(20, hashes.SHA256()), "signature"),
        "no salt": (scheme(0, hashes.SHA256()), "signature"),
        "SHA-512": (scheme(32, hashes.SHA512()), "signature"),
        "PKCS #1 v1.5": (
            sealed(key.key.sign(wire.pae(payload), padding.PKCS1v15(), hashes.SHA256())),
            "signature",
        ),
        "a byte too short": (sealed(signature[:-1]), "signature"),
        "a byte too long": (sealed(signature + b"\0"), "signature"),
        "a field twice, and signed": (sealed(key.sign(wire.pae(twice)), twice), "signature"),
        "other spaces": (envelope_with(payload=again), "signature"),
        "a payload of a megabyte's shape": (envelope_with(payload="A" * 4000), "signature"),
    }


def test_signatures_decide(server, released, key, stranger, tmp_path):
    base, release, other = released("1.0.0"), released("2.0.0"), released("2.5.0")
    tried = attacks(release, released("0.9.0"), base, other, key, stranger)
    firmware = put(server, release, tmp_path)
    expected = {name: code for name, (_, code) in tried.items()}
    with contextlib.ExitStack() as stack:
        pairs = {}
        for number, (name, (change, _)) in enumerate(tried.items()):
            victim = pair(server, f"victim-{number}", base.image, tag="victims", power=False)
            one = stack.enter_context(victim)
            one.middle.change, one.middle.key = change, one.key
            pairs[name] = one
        rollout = roll_out(server, firmware["firmware_id"], "victims")
        for one in pairs.values():
            one.beacon.power_on()
        found = {}
        for name, one in pairs.items():
            (attempt,) = one.until(
                lambda one=one: [a for a in one.attempts if a["result"]], f"the end of {name!r}"
            )
            found[name] = attempt["code"] if attempt["failed_in"] == "verify" else attempt
        assert found == expected
        for name, one in pairs.items():
            # The old release goes on, nothing is armed, and the floor is where it was.
            shown = one.shown
            assert (shown["version"], shown["image"]) == ("1.0.0", base.checksum), name
            assert {boot.slot for boot in one.beacon.boots} == {"ota_0"}, name
            assert one.beacon.setting("floor") in (None, b"", b"1.0.0"), name
            downloads = sum(request.kind == "download" for request, _ in one.middle.seen)
            assert bool(downloads) == ("image" in name.partition("the ")[2]), name
    admin = server.admin()
    assert admin.get_rollout(rollout)["results"] == {"failed": len(tried)}
    for code in set(expected.values()):
        labels = 'code="%s",device_type="esp32c3",result="failed",stage="verify",version="2.0.0"'
        count = metric(admin, f"beacon_ota_failures_total{{{labels % code}}}")
        assert count == list(expected.values()).count(code), code


NO_OFFERS = {
    "a malformed version": lambda a: a.offer(version="2.x"),
    "a url of another host": lambda a: a.offer(download_url="//evil/x"),
    "nesting": lambda a: replace(a, body=b"[" * 4000 + b"]" * 4000),
    "a megabyte": lambda a: a.offer(description="x" * 1_000_000),
    "no JSON": lambda a: replace(a, body=b"\x00" * 100),
    "no object": lambda a: replace(a, body=b'"offer"'),
}


def test_what_is_no_offer_begins_nothing(server, released, tmp_path):
    base, release = released("1.0.0"), released("2.0.0")
    firmware = put(server, release, tmp_path)["firmware_id"]
    with contextlib.ExitStack() as stack:
        pairs = {}
        for number, (name, change) in enumerate(NO_OFFERS.items()):
            one = stack.enter_context(
                pair(server, f"odd-{number}", base.image, tag="odd", power=False)
            )
            one.middle.change, one.middle.key = on_offer(change), one.key
            pairs[name] = one
        roll_out(server, firmware, "odd")
        for one in pairs.values():
            one.beacon.power_on()
        for name, one in pairs.items():
            one.until(lambda one=one: one.middle.changed >= 2, "two offers that are none")
            assert [a["taken_at"] for a in one.attempts] == [None], name
            one.middle.change = None
        # As soon as nobody is in the middle any more, they update.
        for name, one in pairs.items():
            one.runs("2.0.0")
            assert one.beacon.boots[-1].slot == "ota_1", name
