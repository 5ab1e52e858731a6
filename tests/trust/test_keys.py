"""Public keys and key sets: what they are on paper, and what is refused as one."""

import hashlib
import json
import subprocess

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from beacon_ota.errors import InputError, UsageError
from beacon_ota.trust import KeySet, PublicKey
from tests.trust.lab import Key
from tests.trust.test_dsse import needs_openssl
from tests.wire.test_manifest_prop import JSON


def code(call, *args, **named) -> str:
    with pytest.raises((InputError, UsageError)) as caught:
        call(*args, **named)
    return caught.value.code


def test_keyid_is_the_hash_of_the_der(keys):
    der = (
        keys[0]
        .key.public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    assert keys[0].public.keyid == hashlib.sha256(der).hexdigest()[:16]


@needs_openssl
def test_keyid_by_openssl(keys, tmp_path):
    (tmp_path / "pub").write_bytes(keys[0].public.pem())
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", "pub", "-outform", "DER"],
        cwd=tmp_path,
        capture_output=True,
        timeout=30,
        check=True,
    ).stdout
    assert keys[0].public.keyid == hashlib.sha256(der).hexdigest()[:16]


def test_pem_and_back(keys):
    assert PublicKey.from_pem(keys[0].public.pem()) == keys[0].public


@pytest.mark.parametrize("bits", [1024, 2048, 3071, 3073, 4096])
def test_only_3072_bits(bits):
    assert code(PublicKey, (1 << bits - 1) | 1) == "key_unsuitable"


def test_an_even_modulus_is_none():
    assert code(PublicKey, 1 << 3071) == "key_unsuitable"


def test_other_exponents_and_kinds():
    small = rsa.generate_private_key(3, 3072)
    assert code(PublicKey.of, small) == "key_unsuitable"
    curve = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = curve.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert code(PublicKey.from_pem, pem) == "key_unsuitable"
    for other in (b"", b"hello", pem[:60], pem.replace(b"PUBLIC", b"PRIVATE")):
        assert code(PublicKey.from_pem, other) == "key_file"


def test_set_round_trip(keys):
    publics = [key.public for key in keys]
    two = KeySet.of(publics, threshold=2)
    data = two.to_json()
    assert KeySet.parse(data) == two
    assert KeySet.parse(data + b"\n") == two
    assert data == KeySet.of(reversed(publics), threshold=2).to_json()
    assert json.loads(data) == {"keys": {k.keyid: k.modulus for k in publics}, "threshold": 2}
    assert b" " not in data


def test_the_same_key_counts_once(keys):
    assert len(KeySet.of([keys[0].public] * 3).keys) == 1
    assert code(KeySet.of, [keys[0].public] * 3, 2) == "keys_threshold"


def test_thresholds_that_nothing_meets(keys):
    publics = [key.public for key in keys]
    for threshold in (0, -1, 5):
        assert code(KeySet.of, publics, threshold) == "keys_threshold"
    assert code(KeySet.of, []) == "keys_count"
    many = {f"{i:016x}": publics[0] for i in range(9)}
    assert code(KeySet, many) == "keys_count"


def test_files_that_are_no_key_set(keys):
    good = json.loads(KeySet.of([keys[0].public]).to_json())
    keyid, n = next(iter(good["keys"].items()))
    other = keys[1].public
    for value in (
        None,
        [],
        {},
        {"keys": good["keys"]},
        {"threshold": 1},
        good | {"more": 1},
        good | {"threshold": 0},
        good | {"threshold": 2},
        good | {"threshold": "1"},
        good | {"threshold": True},
        good | {"threshold": 1.0},
        good | {"keys": {}},
        good | {"keys": [n]},
        good | {"keys": {keyid: int(n, 16)}},
        good | {"keys": {keyid: n.upper()}},
        good | {"keys": {keyid: n[:-2]}},
        good | {"keys": {keyid: "zz" * 384}},
        good | {"keys": {keyid: "00" + n[2:]}},
        good | {"keys": {keyid: n[:-1] + "0"}},
        good | {"keys": {keyid: other.modulus}},
        good | {"keys": {keyid: n, other.keyid: n}},
        good | {"keys": {keyid: n, keyid.upper(): n}},
    ):
        assert code(KeySet.parse, json.dumps(value)) == "keys_file", value
    for data in (b"", b"\xff\xfe", b"[" * 8000, b" " * 9000, b'{"keys":NaN}'):
        assert code(KeySet.parse, data) == "keys_file"


@given(JSON.map(json.dumps) | st.binary(max_size=200) | st.text(max_size=200))
def test_any_file_is_a_key_set_or_named(data):
    assert code(KeySet.parse, data) == "keys_file"


def test_eight_keys_fit_into_what_a_beacon_reads():
    eight = KeySet.of([Key(str(i)).public for i in range(8)], threshold=8)
    assert len(eight.to_json()) < 8192
    assert KeySet.parse(eight.to_json()) == eight
