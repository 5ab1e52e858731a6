"""What an attacker may try with a release, refused with its code by the host's implementation
and by the firmware's own, running in its interpreter."""

import base64
import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from beacon_ota.trust import KeySet, Situation, dsse
from beacon_ota.wire import manifest as wire
from tests.trust.lab import BEACON, DAY, NOW, RELEASE, Key, host_verdict, offer, signed

PAYLOAD = RELEASE.payload()


@pytest.fixture
def both(device, keys):
    """Ask both judges; they have to give the same answer, which is returned."""

    def ask(offer, beacon: Situation = BEACON, trusted=None):
        trusted = trusted or KeySet.of([keys[0].public])
        host = host_verdict(offer, beacon, trusted)
        assert device.verdict(offer, beacon, trusted) == host
        return host

    return ask


def envelope(payload: bytes, *pairs: tuple[Key, bytes]) -> str:
    """Pack signatures that nobody would make."""
    return dsse.pack_envelope(payload, [(key.public.keyid, signature) for key, signature in pairs])


def flip(data: bytes, bit: int) -> bytes:
    return (int.from_bytes(data) ^ 1 << bit).to_bytes(len(data))


def test_the_real_release_is_accepted(both, keys):
    assert both(offer(signed(keys[:1]))) == RELEASE.fields()
    assert both(offer(signed(keys[:1])), replace(BEACON, now=None)) == RELEASE.fields()
    # An offer holds the envelope as an object, not as text in text.
    assert both({**offer(None), "manifest": signed(keys[:1])}) == "signature"


@pytest.mark.parametrize("bit", [0, 1, 7, 8, 1000, 1535, 3000, 3064, 3071])
def test_a_flipped_bit_in_the_signature(both, keys, bit):
    signature = flip(keys[0].sign(wire.pae(PAYLOAD)), bit)
    assert both(offer(envelope(PAYLOAD, (keys[0], signature)))) == "signature"


@pytest.mark.parametrize("position", range(0, len(PAYLOAD) * 8, 401))
def test_a_flipped_bit_in_the_payload(both, keys, position):
    signature = keys[0].sign(wire.pae(PAYLOAD))
    assert both(offer(envelope(flip(PAYLOAD, position), (keys[0], signature)))) == "signature"


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "9.0.0"},
        {"checksum": "ff" * 32},
        {"expires_at": NOW + 999 * DAY},
        {"device_type": "esp32c3-8mb"},
        {"required": True},
    ],
)
def test_a_payload_that_somebody_rewrote(both, keys, changes):
    bent = replace(RELEASE, **changes)
    signature = keys[0].sign(wire.pae(PAYLOAD))
    assert both(offer(envelope(bent.payload(), (keys[0], signature)), bent)) == "signature"


def test_a_release_for_another_device_type(both, keys):
    other = replace(RELEASE, device_type="esp32c3-8mb")
    assert both(offer(signed(keys[:1], other), other)) == "device_type"


def test_an_expired_release(both, keys):
    assert both(offer(signed(keys[:1], expires_at=NOW)), BEACON) == "expired"
    assert both(offer(signed(keys[:1], expires_at=NOW - 1)), BEACON) == "expired"
    fields = both(offer(signed(keys[:1], expires_at=NOW + 1)), BEACON)
    assert isinstance(fields, dict)


def test_a_replayed_old_release(both, keys):
    old = replace(RELEASE, version="1.1.0")
    replay = offer(signed(keys[:1], old), old)
    assert both(replay) == "downgrade"
    # Not even after the beacon was talked, or flashed, back below it: the floor remembers.
    assert both(replay, replace(BEACON, running="1.0.0")) == "downgrade"


@pytest.mark.parametrize(
    ("version", "running", "code"),
    [
        ("1.2.0", "1.2.0", "downgrade"),
        ("1.2.0+newer", "1.2.0", "downgrade"),
        ("1.2.0-rc.9", "1.2.0", "downgrade"),
        ("1.1.9", "1.2.0", "downgrade"),
        ("0.0.0-0", "1.2.0", "downgrade"),
        ("1.3.0", "99999999999999999999.0.0", "downgrade"),
        ("1.3.0", "not a version", "downgrade"),
        ("1.3.0", "0.9.9", "image"),
    ],
)
def test_versions_that_do_not_go_up(both, keys, version, running, code):
    release = replace(RELEASE, version=version)
    assert both(offer(signed(keys[:1], release), release), replace(BEACON, running=running)) == code


def test_a_huge_version_number_still_compares(both, keys):
    release = replace(RELEASE, version="9" * 50 + ".0.0")
    assert both(offer(signed(keys[:1], release), release)) == release.fields()


@pytest.mark.parametrize(
    "version", ["1.3", "v1.3.0", "1.3.0 ", "01.3.0", "1.3.0-" + "a" * 70, "9" * 500 + ".0.0", ""]
)
def test_malformed_versions_even_when_signed(both, keys, version):
    payload = PAYLOAD.replace(b'"1.3.0"', json.dumps(version).encode())
    text = envelope(payload, (keys[0], keys[0].sign(wire.pae(payload))))
    assert both(offer(text, version=version)) == "signature"


def test_the_manifest_of_one_release_with_the_image_of_another(both, keys):
    text = signed(keys[:1])
    for changes in ({"checksum": "ba" * 32}, {"size": RELEASE.size + 1}, {"version": "1.3.1"}):
        assert both(offer(text) | changes) == "checksum"
    without = offer(text)
    del without["checksum"]
    assert both(without) == "checksum"


def test_an_image_larger_than_the_slot(both, keys):
    assert both(offer(signed(keys[:1])), replace(BEACON, room=RELEASE.size - 1)) == "image"
    assert isinstance(both(offer(signed(keys[:1])), replace(BEACON, room=RELEASE.size)), dict)


def pss(salt: int, hash_: hashes.HashAlgorithm, mgf: hashes.HashAlgorithm):
    return padding.PSS(padding.MGF1(mgf), salt), hash_


@pytest.mark.parametrize(
    ("scheme", "hash_"),
    [
        pss(0, hashes.SHA256(), hashes.SHA256()),
        pss(20, hashes.SHA256(), hashes.SHA256()),
        pss(31, hashes.SHA256(), hashes.SHA256()),
        pss(33, hashes.SHA256(), hashes.SHA256()),
        pss(350, hashes.SHA256(), hashes.SHA256()),
        pss(32, hashes.SHA512(), hashes.SHA256()),
        pss(32, hashes.SHA256(), hashes.SHA512()),
        pss(32, hashes.SHA1(), hashes.SHA1()),
        (padding.PKCS1v15(), hashes.SHA256()),
    ],
)
def test_other_signature_schemes(both, keys, scheme, hash_):
    signature = keys[0].key.sign(wire.pae(PAYLOAD), scheme, hash_)
    assert both(offer(envelope(PAYLOAD, (keys[0], signature)))) == "signature"


def test_what_was_signed_was_not_the_pae(both, keys):
    for data in (PAYLOAD, base64.b64encode(PAYLOAD), wire.pae(PAYLOAD)[1:], wire.pae(b"")):
        assert both(offer(envelope(PAYLOAD, (keys[0], keys[0].sign(data))))) == "signature"


def test_signatures_of_other_lengths_and_ranges(both, keys):
    good = keys[0].sign(wire.pae(PAYLOAD))
    n = keys[0].public.n
    s = int.from_bytes(good)
    bent = [b"", good[:-1], good[1:], good + b"\0", b"\0" + good, b"\0" * 384, b"\xff" * 384]
    bent += [x.to_bytes(384) for x in (1, n - 1, n, n - s)]
    # The same residue above the modulus, where it fits into the bytes.
    bent += [x.to_bytes(384) for x in (s + n,) if x < 1 << 3072]
    for signature in bent:
        assert both(offer(envelope(PAYLOAD, (keys[0], signature)))) == "signature"


def test_residue_above_the_modulus(both, keys):
    """s + n is the same number modulo n: at least one payload has it fit into 384 bytes."""
    n = keys[0].public.n
    for _ in range(200):
        s = int.from_bytes(keys[0].sign(wire.pae(PAYLOAD)))
        if s + n < 1 << 3072:
            assert pow(s + n, 65537, n) == pow(s, 65537, n)
            text = envelope(PAYLOAD, (keys[0], (s + n).to_bytes(384)))
            assert both(offer(text)) == "signature"
            return
    pytest.skip("the modulus leaves no room")


def test_a_small_exponent_buys_nothing(both, device):
    """keys.json holds only the modulus: a key that was meant for e = 3 verifies nothing."""
    small = Key("small", exponent=3)
    text = envelope(PAYLOAD, (small, small.sign(wire.pae(PAYLOAD))))
    assert both(offer(text), trusted=KeySet.of([small.public])) == "signature"
    # And no exponent can be slipped in beside it.
    keys = json.loads(KeySet.of([small.public]).to_json()) | {"e": 3, "exponent": 3}
    assert device.verdict(offer(text), BEACON, json.dumps(keys).encode()) == "signature"


def test_no_signature_at_all(both):
    body = {"payload": base64.b64encode(PAYLOAD).decode(), "payloadType": wire.TYPE}
    assert both(offer(body | {"signatures": []})) == "signature"
    assert both(offer(body)) == "signature"
    assert both(offer(None)) == "signature"
    assert both(offer({})) == "signature"


def test_unknown_keys(both, keys):
    assert both(offer(signed(keys[1:2]))) == "signature"
    # Under the name of a trusted key it is no better.
    forged = dsse.pack_envelope(PAYLOAD, [(keys[0].public.keyid, keys[1].sign(wire.pae(PAYLOAD)))])
    assert both(offer(forged)) == "signature"
    # Beside a good signature it does no harm.
    assert both(offer(signed([keys[1], keys[0], keys[2]]))) == RELEASE.fields()


def test_a_bad_signature_of_one_key_does_not_spoil_another(both, keys):
    data = wire.pae(PAYLOAD)
    text = envelope(PAYLOAD, (keys[1], bytes(384)), (keys[0], keys[0].sign(data)))
    trusted = KeySet.of([keys[0].public, keys[1].public])
    assert both(offer(text), trusted=trusted) == RELEASE.fields()


def test_threshold(both, keys):
    three = KeySet.of([key.public for key in keys[:3]], threshold=2)
    assert both(offer(signed(keys[:1])), trusted=three) == "signature"
    assert both(offer(signed([keys[0], keys[3]])), trusted=three) == "signature"
    assert both(offer(signed([keys[3], keys[0], keys[2]])), trusted=three) == RELEASE.fields()
    assert both(offer(signed(keys[1:3])), trusted=three) == RELEASE.fields()
    all_three = KeySet.of(three.keys.values(), threshold=3)
    assert both(offer(signed(keys[:2])), trusted=all_three) == "signature"
    assert both(offer(signed(keys[:3])), trusted=all_three) == RELEASE.fields()


def test_the_same_key_twice_is_not_two_keys(both, keys):
    two = KeySet.of([key.public for key in keys[:2]], threshold=2)
    data = wire.pae(PAYLOAD)
    first, second = keys[0].sign(data), keys[0].sign(data)
    assert first != second
    assert both(offer(envelope(PAYLOAD, (keys[0], first), (keys[0], second))), trusted=two) == (
        "signature"
    )
    # Not under the other key's name either.
    pairs = [(keys[0].public.keyid, first), (keys[1].public.keyid, second)]
    assert both(offer(dsse.pack_envelope(PAYLOAD, pairs)), trusted=two) == "signature"


HOSTILE = {
    "a name twice": PAYLOAD.replace(b'"size":', b'"size":1,"size":'),
    "the same twice": PAYLOAD[:-1] + b',"version":"1.3.0"}',
    "another order": b'{"version":"1.3.0",' + PAYLOAD[1:].replace(b',"version":"1.3.0"', b""),
    "white space": PAYLOAD.replace(b",", b", "),
    "no commas": PAYLOAD.replace(b",", b" "),
    "a float": PAYLOAD.replace(b"1638400", b"1638400.0"),
    "an exponent": PAYLOAD.replace(b"1638400", b"16384e2"),
    "infinity": PAYLOAD.replace(b"1638400", b"1e999"),
    "NaN": PAYLOAD.replace(b"1638400", b"NaN"),
    "a huge number": PAYLOAD.replace(b"1638400", b"9" * 500),
    "a negative size": PAYLOAD.replace(b"1638400", b"-1638400"),
    "true for one": PAYLOAD.replace(b"1638400", b"true"),
    "an escape": PAYLOAD.replace(b"esp32c3", b"esp32c\\u0033"),
    "a NUL and more": PAYLOAD + b"\0{}",
    "a byte order mark": b"\xef\xbb\xbf" + PAYLOAD,
    "UTF-16": PAYLOAD.decode().encode("utf-16"),
    "not UTF-8": PAYLOAD.replace(b"esp32c3", b"esp32c\xff"),
    "deep nesting": b"[" * 900,
    "deep objects": b'{"a":' * 170 + b"1" + b"}" * 170,
    "a field more": PAYLOAD.replace(b'"core"', b'"comment":"hi","core"'),
    "an unknown cipher": PAYLOAD.replace(
        b'"expires_at"',
        b'"encryption":{"ciphertext_sha256":"%s","scheme":"rot13"},"expires_at"' % (b"ab" * 32),
    ),
    "an object as version": PAYLOAD.replace(b'"1.3.0"', b'{"a":1}'),
    "an empty object": b"{}",
    "a list": b"[]",
    "nothing": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_signed_but_not_canonical(both, keys, name):
    payload = HOSTILE[name]
    assert payload != PAYLOAD
    text = envelope(payload, (keys[0], keys[0].sign(wire.pae(payload))))
    assert both(offer(text)) == "signature"


def test_payloads_and_envelopes_without_bound(both, keys):
    big = base64.b64encode(b'{"version":"' + b"1" * 4000 + b'"}').decode()
    body = json.loads(signed(keys[:1]))
    assert both(offer(body | {"payload": big})) == "signature"
    assert both(offer(body | {"signatures": body["signatures"] * 9})) == "signature"
    assert both(offer(body | {"payload": [[]] * 100})) == "signature"
    many = [{"keyid": f"{i:016x}", "sig": "AAAA"} for i in range(9)]
    assert both(offer(body | {"signatures": many})) == "signature"


def test_another_payload_type(both, keys):
    body = json.loads(signed(keys[:1]))
    assert both(offer(body | {"payloadType": "application/vnd.in-toto+json"})) == "signature"
    # A signature that the same key made over the same bytes for another purpose.
    data = b"DSSEv1 %d %s %d %s" % (28, b"application/vnd.in-toto+json", len(PAYLOAD), PAYLOAD)
    text = envelope(PAYLOAD, (keys[0], keys[0].sign(data)))
    assert both(offer(text)) == "signature"


def test_insecure_fleets(device, keys):
    """Unsigned offers pass the rules of versions and sizes; they pass nothing else by."""
    loose = replace(BEACON, insecure=True)
    trusted = KeySet.of([keys[0].public])
    for verdict in (device.verdict, host_verdict):
        assert verdict(offer(None), BEACON, trusted) == "signature"
        assert verdict(offer(None), BEACON, None) == "signature"
        assert verdict(offer(signed(keys[:1])), BEACON, None) == "signature"
        assert isinstance(verdict(offer(None), loose, None), dict)
        assert isinstance(verdict(offer(None), loose, trusted), dict)
        assert verdict(offer(None, version="1.2.0"), loose, None) == "downgrade"
        assert verdict(offer(None, size=1 << 23), loose, None) == "image"
        assert verdict(offer(None, checksum="x"), loose, None) == "image"
        # A manifest that is there is held to the keys that are there.
        assert verdict(offer(signed(keys[1:2])), loose, trusted) == "signature"
        assert verdict(offer(signed(keys[1:2])), loose, None) == RELEASE.fields()
        assert verdict(offer(signed(keys[1:2]), size=5), loose, None) == "checksum"
        assert verdict(offer(signed(keys[1:2]), required=1), loose, None) == RELEASE.fields()


BROKEN = [
    b"",
    b"null",
    b"[]",
    b"{",
    b'{"keys":{}}',
    b'{"keys":{},"threshold":0}',
    b'{"keys":{},"threshold":1}',
    b'{"keys":[],"threshold":1}',
    b'{"keys":["0123456789abcdef"],"threshold":1}',
    b'{"keys":"0123456789abcdef","threshold":1}',
    b'{"keys":{"0123456789abcdef":"00"},"threshold":[]}',
    b'{"keys":{"0123456789abcdef":"00"},"threshold":"1"}',
    b'{"threshold":1}',
    b"\xff" * 20,
    b'{"keys":{"a":"b"},"threshold":1}' + b" " * 9000,
]


@pytest.mark.parametrize("content", BROKEN)
def test_a_damaged_keys_file_trusts_nobody(device, keys, content):
    assert device.verdict(offer(signed(keys[:1])), BEACON, content) == "signature"
    loose = replace(BEACON, insecure=True)
    assert device.verdict(offer(signed(keys[:1])), loose, content) == "signature"


@pytest.mark.parametrize("modulus", ["", "00", "zz" * 384, "0" * 768, "f" * 767, "f" * 770, 7])
def test_a_damaged_modulus_verifies_nothing(device, keys, modulus):
    content = json.dumps({"keys": {keys[0].public.keyid: modulus}, "threshold": 1}).encode()
    assert device.verdict(offer(signed(keys[:1])), BEACON, content) == "signature"
