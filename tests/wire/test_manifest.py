from binascii import b2a_base64

from beacon_ota.wire import manifest

FIELDS = {
    "checksum": "ab" * 32,
    "core": "01" * 32,
    "device_type": "esp32c3",
    "expires_at": 1_800_000_000,
    "issued_at": 1_700_000_000,
    "min_version": "1.0.0",
    "required": False,
    "size": 1_638_400,
    "version": "1.2.3",
}
CIPHER = {"ciphertext_sha256": "cd" * 32, "scheme": "aes-128-ctr"}
CANONICAL = (
    '{"checksum":"' + "ab" * 32 + '","core":"' + "01" * 32 + '","device_type":"esp32c3",'
    '"expires_at":1800000000,"issued_at":1700000000,"min_version":"1.0.0","required":false,'
    '"size":1638400,"version":"1.2.3"}'
).encode()
KEYID = "0123456789abcdef"
SIGNATURE = bytes(range(256)) + bytes(128)


def refused(call, *args):
    try:
        call(*args)
    except manifest.Refused as error:
        assert len(error.detail) <= 200
        return error.code
    raise AssertionError("accepted")


def but(fields=None, **changes):
    new = dict(fields or FIELDS)
    for name in changes:
        new[name] = changes[name]
    return new


# -- payload


def test_canonical_form():
    assert manifest.encode(FIELDS) == CANONICAL
    assert manifest.decode(CANONICAL) == FIELDS
    sealed = but(encryption=CIPHER)
    text = manifest.encode(sealed)
    assert b'"device_type":"esp32c3","encryption":{"ciphertext_sha256":"cdcd' in text
    assert manifest.decode(text) == sealed


def test_every_field_is_needed():
    for name in FIELDS:
        fields = dict(FIELDS)
        del fields[name]
        assert refused(manifest.encode, fields) == "signature"


def test_no_field_more():
    assert refused(manifest.encode, but(channel="beta")) == "signature"
    sealed = but(encryption=dict(CIPHER))
    sealed["encryption"]["iv"] = "00"
    assert refused(manifest.encode, sealed) == "signature"


def test_types_and_ranges():
    hashes = ("", "ab", "AB" * 32, "zz" * 32, "ab" * 33, b"ab" * 32, None, 7, ["ab"] * 64, "é" * 64)
    versions = ("1.2", "v1.2.3", "1.2.3-" + "a" * 60, 1, None, b"1.2.3", "1.2.3\n", '1.2.3"')
    numbers = (-1, 0, 1.0, True, "1", None, 1 << 80, (1 << 24) + 1)
    wrong = {
        "checksum": hashes,
        "core": hashes,
        "device_type": ("", "ESP32", "a b", 'a"', "_a", "-a", "a" * 33, None, 1, b"esp32c3", "é"),
        "expires_at": (-1, 1.5, True, "1", None, manifest.MAX_TIME + 1, FIELDS["issued_at"]),
        "issued_at": (-1, 1.5, True, "1", None, 1 << 80, FIELDS["expires_at"]),
        "min_version": versions,
        "required": (0, 1, "false", None, "true"),
        "size": numbers,
        "version": versions,
        "encryption": (
            None,
            {},
            "aes-128-ctr",
            [],
            {"scheme": "aes-128-ctr"},
            but(CIPHER, scheme="none"),
            but(CIPHER, ciphertext_sha256="00"),
        ),
    }
    for name in wrong:
        for value in wrong[name]:
            assert refused(manifest.encode, but(**{name: value})) == "signature", (
                name,
                value,
            )


def test_ends_of_the_ranges():
    for changes in (
        {"size": 1},
        {"size": 1 << 24},
        {"issued_at": 0},
        {"expires_at": manifest.MAX_TIME},
        {"expires_at": FIELDS["issued_at"] + 1},
        {"device_type": "a" * 32},
        {"version": "1.2.3-" + "a" * 58},
    ):
        fields = but(**changes)
        assert manifest.decode(manifest.encode(fields)) == fields


def test_longest_payload_fits():
    fields = but(
        device_type="a" * 32,
        version="1.2.3-" + "a" * 58,
        min_version="1.2.3-" + "b" * 58,
        size=1 << 24,
        issued_at=manifest.MAX_TIME - 1,
        expires_at=manifest.MAX_TIME,
        encryption=CIPHER,
    )
    payload = manifest.encode(fields)
    assert len(payload) <= manifest.MAX_PAYLOAD


def test_only_the_canonical_payload_is_read():
    for payload in (
        b"",
        b"{}",
        b"[]",
        b"null",
        b"1",
        b'"a"',
        CANONICAL[:-1],
        CANONICAL + b"\n",
        CANONICAL + b"\0",
        CANONICAL + b"\0trailing",
        b" " + CANONICAL,
        b"\xef\xbb\xbf" + CANONICAL,
        CANONICAL.decode().encode("utf-8").replace(b":", b": "),
        CANONICAL.replace(b",", b",,", 1),
        CANONICAL.replace(b",", b" ", 1),
        CANONICAL.replace(b"}", b",}"),
        CANONICAL.replace(b"1638400", b"1638400.0"),
        CANONICAL.replace(b"1638400", b"1.6384e6"),
        CANONICAL.replace(b"1638400", b"01638400"),
        CANONICAL.replace(b"1638400", b"1e999"),
        CANONICAL.replace(b"1638400", b"9" * 400),
        CANONICAL.replace(b"esp32c3", b"\\u0065sp32c3"),
        CANONICAL.replace(b"esp32c3", b"\xff\xfe"),
        CANONICAL.replace(b'"size":1638400', b'"size":1,"size":1638400'),
        CANONICAL.replace(b'"size":1638400', b'"size":1638400,"size":1638400'),
        CANONICAL.replace(b"false", b"null"),
        CANONICAL.replace(b'"core"', b"1"),
        b'{"version":"1.2.3",' + CANONICAL[1:].replace(b',"version":"1.2.3"', b""),
        b"{" * 1000,
        b"[" * 1000,
        b'{"a":' * 200 + b"1" + b"}" * 200,
        b'{"a":"' + b"a" * 2000 + b'"}',
        b'{"a":{"b":{"c":1}}}',
    ):
        assert refused(manifest.decode, payload) == "signature", payload


def test_length_is_judged_before_anything_else():
    big = "A" * 20_000
    assert refused(manifest.decode, b'{"a":"' + big.encode()) == "signature"
    assert refused(manifest.unpack_envelope, envelope(payload=big)) == "signature"


# -- what is signed


def test_pae_is_that_of_dsse():
    # The encoding of DSSE's protocol page, with our type.
    assert manifest.pae(b"hello world") == (
        b"DSSEv1 39 application/vnd.beacon-ota.release+json 11 hello world"
    )
    assert manifest.pae(b"") == b"DSSEv1 39 application/vnd.beacon-ota.release+json 0 "
    assert manifest.pae(bytes(range(256))).endswith(b" 256 " + bytes(range(256)))


# -- envelope


def base64(data):
    return b2a_base64(data)[:-1].decode()


def pack(payload, signatures):
    entries = [{"keyid": keyid, "sig": base64(signature)} for keyid, signature in signatures]
    return {"payload": base64(payload), "payloadType": manifest.TYPE, "signatures": entries}


def envelope(**changes):
    value = pack(CANONICAL, [(KEYID, SIGNATURE)])
    for name in changes:
        value[name] = changes[name]
    return value


def test_envelopes():
    two = [(KEYID, SIGNATURE), ("f" * 16, b"\1")]
    for signatures in (two, two[:1], two[1:]):
        assert manifest.unpack_envelope(pack(CANONICAL, signatures)) == (CANONICAL, signatures)
    full = [(f"{i:016x}", bytes(manifest.MAX_SIGNATURE)) for i in range(manifest.MAX_SIGNATURES)]
    payload = bytes(manifest.MAX_PAYLOAD)
    assert manifest.unpack_envelope(pack(payload, full)) == (payload, full)


def test_envelope_refusals():
    good = envelope()
    entry = good["signatures"][0]
    payload = good["payload"]
    for value in (
        None,
        1,
        [],
        "",
        "{}",
        b"{}",
        [good],
        {},
        envelope(payloadType="application/vnd.in-toto+json"),
        envelope(payloadType=None),
        envelope(more=1),
        envelope(payload=None),
        envelope(payload=1),
        envelope(payload=["A"]),
        envelope(payload={"A": 1}),
        envelope(payload=payload + "="),
        envelope(payload=payload + "AAAA===="),
        envelope(payload=payload + "\n"),
        envelope(payload=" " + payload),
        envelope(payload=payload[:-1]),
        envelope(payload="é" + payload[1:]),
        envelope(payload="A" * 1372),
        envelope(payload="AB=="),
        envelope(signatures=None),
        envelope(signatures=[]),
        envelope(signatures={}),
        envelope(signatures=entry),
        envelope(signatures=[None]),
        envelope(signatures=["a"]),
        envelope(signatures=[[]]),
        envelope(signatures=[{}]),
        envelope(signatures=[entry, entry]),
        envelope(signatures=[entry, but(entry, sig="AAAA")]),
        envelope(signatures=[but(entry, more=1)]),
        envelope(signatures=[but(entry, keyid=None)]),
        envelope(signatures=[but(entry, keyid=1)]),
        envelope(signatures=[but(entry, keyid="")]),
        envelope(signatures=[but(entry, keyid=KEYID.upper())]),
        envelope(signatures=[but(entry, keyid=KEYID + "00")]),
        envelope(signatures=[but(entry, keyid=[])]),
        envelope(signatures=[but(entry, sig=None)]),
        envelope(signatures=[but(entry, sig=1)]),
        envelope(signatures=[but(entry, sig="A")]),
        envelope(signatures=[but(entry, sig="A" * 688)]),
        envelope(signatures=[but(entry, keyid=f"{i:016x}") for i in range(9)]),
    ):
        assert refused(manifest.unpack_envelope, value) == "signature", value


def test_empty_payload_and_signature_are_envelopes_still():
    # Nothing is signed by nothing: the signature check and decode() refuse these.
    assert manifest.unpack_envelope(envelope(payload="")) == (b"", [(KEYID, SIGNATURE)])
    short = [{"keyid": KEYID, "sig": ""}]
    assert manifest.unpack_envelope(envelope(signatures=short)) == (CANONICAL, [(KEYID, b"")])


# -- rules


def judge(fields=FIELDS, **changes):
    situation = {
        "device_type": "esp32c3",
        "running": "1.2.2",
        "floor": None,
        "now": 1_750_000_000,
        "room": 0x1C0000,
    }
    for name in changes:
        situation[name] = changes[name]
    return manifest.check_rules(fields, **situation)


def judged(fields=FIELDS, **changes):
    return refused(lambda: judge(fields, **changes))


def test_accepted():
    assert judge() is True
    assert judge(floor="1.2.3") is True
    assert judge(floor="") is True
    assert judge(running="1.0.0") is True
    assert judge(room=1_638_400) is True
    assert judge(now=1_799_999_999) is True


def test_clock_unset_is_accepted_and_told():
    assert judge(now=None) is False


def test_refused():
    assert judged(device_type="esp32c3-8mb") == "device_type"
    assert judged(running="1.2.3") == "downgrade"
    assert judged(running="1.2.3+build") == "downgrade"
    assert judged(running="1.2.4-security") == "downgrade"
    assert judged(running="10.0.0") == "downgrade"
    assert judged(floor="1.2.4-security") == "downgrade"
    assert judged(running="1.0.0-rc.1") == "image"
    assert judged(room=1_638_399) == "image"
    assert judged(now=1_800_000_000) == "expired"
    assert judged(now=1 << 40) == "expired"


def test_expiry_is_told_last():
    # A wrong clock must not hide what is really the matter.
    assert judged(device_type="x", now=1 << 40) == "device_type"
    assert judged(running="1.2.3", now=1 << 40) == "downgrade"


def test_unreadable_own_version_is_a_named_refusal():
    for own in ("", "dev", None, "1.2"):
        assert judged(running=own) == "downgrade"
    assert judged(floor="broken") == "downgrade"


def test_offer_and_manifest_have_to_agree():
    offer = {"checksum": FIELDS["checksum"], "size": FIELDS["size"], "version": "1.2.3", "x": 1}
    assert manifest.check_offer(FIELDS, offer) is None
    for name in ("checksum", "size", "version"):
        assert refused(manifest.check_offer, FIELDS, but(offer, **{name: "cd" * 32})) == "checksum"
        less = dict(offer)
        del less[name]
        assert refused(manifest.check_offer, FIELDS, less) == "checksum"


def test_unsigned_offer_meets_the_same_rules():
    offer = {"checksum": "ab" * 32, "size": 4096, "version": "1.2.3", "required": True}
    fields = manifest.unsigned_fields(offer, "esp32c3")
    assert judge(fields) is True
    assert fields["required"] is True
    assert judged(fields, running="1.2.3") == "downgrade"
    assert judged(fields, room=4095) == "image"
    for name in ("checksum", "size", "version"):
        assert refused(manifest.unsigned_fields, but(offer, **{name: None}), "esp32c3") == "image"
    assert refused(manifest.unsigned_fields, {}, "esp32c3") == "image"
