"""Any bytes, any JSON: out comes a manifest or a named refusal; there is one way to write it."""

import json

from hypothesis import given
from hypothesis import strategies as st

from beacon_ota.wire import manifest, versions

HASH = st.binary(min_size=32, max_size=32).map(bytes.hex)
NUMBER = st.integers(0, 10**6).map(str)
LABEL = st.from_regex(r"0|[1-9][0-9]{0,3}|[0-9]*[a-zA-Z-][0-9a-zA-Z-]{0,5}", fullmatch=True)
LABELS = st.lists(LABEL, min_size=1, max_size=3).map(".".join)
VERSION = st.builds(
    lambda core, pre, build: ".".join(core) + pre + build,
    st.tuples(NUMBER, NUMBER, NUMBER),
    st.just("") | LABELS.map("-{}".format),
    st.just("") | LABELS.map("+{}".format),
).filter(lambda text: len(text) <= versions.MAX)
TIMES = st.lists(st.integers(0, manifest.MAX_TIME), min_size=2, max_size=2, unique=True).map(sorted)
MANIFEST = st.builds(
    lambda times, sealed, **fields: (
        fields
        | {"issued_at": times[0], "expires_at": times[1]}
        | ({"encryption": {"scheme": "aes-128-ctr", "ciphertext_sha256": sealed}} if sealed else {})
    ),
    times=TIMES,
    sealed=st.none() | HASH,
    checksum=HASH,
    core=HASH,
    device_type=st.from_regex(r"[a-z0-9][a-z0-9_-]{0,31}", fullmatch=True),
    min_version=VERSION,
    version=VERSION,
    required=st.booleans(),
    size=st.integers(1, 1 << 24),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


@given(MANIFEST)
def test_round_trip_is_canonical_json(fields):
    payload = manifest.encode(fields)
    assert manifest.decode(payload) == fields
    assert payload == json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    assert len(payload) <= manifest.MAX_PAYLOAD


@given(MANIFEST, st.data())
def test_a_changed_byte_is_another_manifest_or_none(fields, data):
    payload = bytearray(manifest.encode(fields))
    payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = manifest.decode(bytes(payload))
    except manifest.Refused as error:
        assert error.code == "signature"
    else:
        assert manifest.encode(found) == payload


@given(st.binary(max_size=1200) | JSON.map(lambda v: json.dumps(v).encode()))
def test_any_payload(payload):
    try:
        fields = manifest.decode(payload)
    except manifest.Refused as error:
        assert error.code == "signature"
    else:
        assert manifest.encode(fields) == payload


@given(MANIFEST, st.sampled_from(["checksum", "size", "version", "required", "encryption"]), JSON)
def test_any_value_in_a_field(fields, name, value):
    try:
        payload = manifest.encode(fields | {name: value})
    except manifest.Refused:
        return
    assert manifest.decode(payload) == fields | {name: value}


@given(JSON)
def test_any_envelope(value):
    try:
        payload, signatures = manifest.unpack_envelope(value)
    except manifest.Refused as error:
        assert error.code == "signature"
    else:
        assert len(payload) <= manifest.MAX_PAYLOAD
        assert 0 < len(signatures) <= manifest.MAX_SIGNATURES


@given(MANIFEST, MANIFEST.map(lambda m: m["version"]), st.none() | VERSION, st.integers(0, 1 << 25))
def test_the_rules_never_let_a_version_down(fields, running, floor, room):
    try:
        dated = manifest.check_rules(fields, fields["device_type"], running, floor, None, room)
    except manifest.Refused as error:
        assert error.code in ("downgrade", "image")
        return
    assert dated is False
    assert versions.compare(fields["version"], running) > 0
    assert floor is None or versions.compare(fields["version"], floor) >= 0
    assert versions.compare(fields["min_version"], running) <= 0
    assert fields["size"] <= room


@given(VERSION, VERSION, VERSION)
def test_versions_are_a_total_order(a, b, c):
    assert versions.compare(a, b) == -versions.compare(b, a)
    if versions.compare(a, b) <= 0 and versions.compare(b, c) <= 0:
        assert versions.compare(a, c) <= 0


@given(st.text(max_size=80))
def test_any_text_is_a_version_or_a_value_error(text):
    try:
        versions.parse(text)
    except ValueError:
        return
    assert text.isascii()
    assert len(text) <= versions.MAX
