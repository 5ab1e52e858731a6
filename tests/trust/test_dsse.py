"""Envelopes as text, and who signed them; OpenSSL agrees about what a signature is."""

import base64
import json
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beacon_ota.errors import InputError, UsageError
from beacon_ota.trust import KeySet, dsse
from beacon_ota.wire import manifest as wire
from tests.trust.lab import RELEASE, Key, signed
from tests.wire.test_manifest_prop import JSON

PSS = ("-sha256", "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:32")
needs_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl command")

PAYLOAD = RELEASE.payload()
PAIRS = [("0123456789abcdef", bytes(range(256)) + bytes(128))]
SIGNATURES = st.lists(
    st.tuples(st.binary(min_size=8, max_size=8).map(bytes.hex), st.binary(max_size=512)),
    min_size=1,
    max_size=8,
    unique_by=lambda pair: pair[0],
)


def refused(value):
    with pytest.raises(wire.Refused) as caught:
        dsse.unpack_envelope(value)
    assert caught.value.code == "signature"
    return caught.value.detail


@given(st.binary(max_size=1024), SIGNATURES)
def test_text_and_back(payload, signatures):
    text = dsse.pack_envelope(payload, signatures)
    assert len(text) <= dsse.MAX_TEXT
    for form in (text, text.encode(), json.loads(text)):
        assert dsse.unpack_envelope(form) == (payload, signatures)


@given(st.text(max_size=400) | st.binary(max_size=400) | JSON | JSON.map(json.dumps))
def test_anything_else_is_refused(value):
    refused(value)


@given(st.data())
def test_a_bent_text_is_another_envelope_or_none(data):
    text = dsse.pack_envelope(PAYLOAD, PAIRS)
    at = data.draw(st.integers(0, len(text)))
    cut = data.draw(st.integers(0, 4))
    put = data.draw(st.text(alphabet='{}[]",:\\ \nAb=0é', max_size=4))
    bent = text[:at] + put + text[at + cut :]
    try:
        found = dsse.unpack_envelope(bent)
    except wire.Refused as error:
        assert error.code == "signature"
    else:
        assert dsse.pack_envelope(*found) == bent


def test_text_has_one_form():
    text = dsse.pack_envelope(PAYLOAD, PAIRS)
    body = json.loads(text)
    for other in (
        text + "\n",
        " " + text,
        text + "\0",
        "\ufeff" + text,
        text.replace(":", ": ", 1),
        text.replace(",", " ", 1),
        text.replace('{"payload"', '{"payload":"AAAA","payload"'),
        text.replace('{"keyid"', '{"keyid":"0123456789abcdef","keyid"'),
        text.replace('"sig"', '"sig":"","sig"'),
        text.replace('"sig"', '"s\\u0069g"'),
        json.dumps(body),
        json.dumps(dict(reversed(body.items())), separators=(",", ":")),
        text[:-1],
        "[" * 7000,
        '{"a":' * 1400,
        "\ud800",
    ):
        assert other != text
        refused(other)
    refused(text.encode("utf-16"))
    refused(b"\xff" + text.encode())


def test_length_comes_first():
    text = dsse.pack_envelope(PAYLOAD, PAIRS)
    assert "long" in refused(text + " " * 1_000_000)
    assert "long" in refused(b"[" * 1_000_000)


def test_signatures_add_up(keys):
    one = signed(keys[:1])
    two = dsse.add_signatures(one, keys[1:2])
    payload, signatures = dsse.unpack_envelope(two)
    assert payload == PAYLOAD
    assert signatures[0] == dsse.unpack_envelope(one)[1][0]
    everybody = KeySet.of([key.public for key in keys])
    assert dsse.valid_signers(payload, signatures, everybody) == [k.public.keyid for k in keys[:2]]
    # Signing again replaces: a keyid comes once.
    again = dsse.unpack_envelope(dsse.add_signatures(two, keys[:1]))[1]
    assert [k for k, _ in again] == [k for k, _ in signatures]
    assert again != signatures
    only = KeySet.of([keys[1].public])
    assert dsse.valid_signers(payload, [*signatures, *signatures], only) == [keys[1].public.keyid]


def test_an_envelope_carries_few_signatures(keys):
    full = dsse.pack_envelope(PAYLOAD, [(f"{i:016x}", b"") for i in range(wire.MAX_SIGNATURES)])
    with pytest.raises(UsageError) as caught:
        dsse.add_signatures(full, keys[:1])
    assert caught.value.code == "signatures_count"
    with pytest.raises(UsageError) as caught:
        dsse.sign_payload(PAYLOAD, [])
    assert caught.value.code == "signatures_count"


def test_what_a_signer_returns_is_checked(keys):
    class Liar(Key):
        def __init__(self, answer):
            object.__setattr__(self, "name", "liar")
            object.__setattr__(self, "public", keys[0].public)
            object.__setattr__(self, "answer", answer)

        def sign(self, data):
            return self.answer  # type: ignore[attr-defined]

    good = keys[0].sign(wire.pae(PAYLOAD))
    for answer in (b"", good[:-1], keys[1].sign(wire.pae(PAYLOAD)), keys[0].sign(PAYLOAD)):
        with pytest.raises(InputError) as caught:
            dsse.sign_payload(PAYLOAD, [Liar(answer)])
        assert caught.value.code == "signer_wrong"
    assert dsse.sign_payload(PAYLOAD, [Liar(good)])


@needs_openssl
def test_openssl_verifies_what_we_sign(keys, tmp_path):
    payload, [(_, signature)] = dsse.unpack_envelope(signed(keys[:1]))
    (tmp_path / "pae").write_bytes(wire.pae(payload))
    (tmp_path / "sig").write_bytes(signature)
    (tmp_path / "pub").write_bytes(keys[0].public.pem())
    assert openssl_verifies(tmp_path)
    (tmp_path / "pae").write_bytes(wire.pae(payload + b" "))
    assert not openssl_verifies(tmp_path)


def openssl_verifies(folder) -> bool:
    done = subprocess.run(
        ["openssl", "dgst", *PSS, "-verify", "pub", "-signature", "sig", "pae"],
        cwd=folder,
        capture_output=True,
        timeout=30,
        check=False,
    )
    return done.returncode == 0


def test_pae_and_envelope_by_the_standard_library():
    kind = b"application/vnd.beacon-ota.release+json"
    assert wire.pae(PAYLOAD) == b" ".join(
        [b"DSSEv1", b"%d" % len(kind), kind, b"%d" % len(PAYLOAD), PAYLOAD]
    )
    body = json.loads(dsse.pack_envelope(PAYLOAD, PAIRS))
    assert base64.b64decode(body["payload"], validate=True) == PAYLOAD
    assert body["payloadType"] == kind.decode()
    assert list(body) == ["payload", "payloadType", "signatures"]
