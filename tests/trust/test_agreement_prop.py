"""The host's implementation and the firmware's own say the same about whatever comes in."""

import json
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beacon_ota.trust import KeySet, Manifest, Situation, dsse
from beacon_ota.wire import manifest as wire
from tests.trust.lab import BEACON, NOW, RELEASE, host_verdict, offer, signed
from tests.wire.test_manifest_prop import JSON, MANIFEST, VERSION

# The interpreter is one process for the session; each example asks it anew.
again = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

SITUATION = st.builds(
    Situation,
    device_type=st.sampled_from(["esp32c3", "esp32c3-8mb"]),
    running=st.sampled_from(["1.0.0", "1.2.0", "1.3.0-rc.1", "1.3.0", "2.0.0"]) | VERSION,
    floor=st.none() | st.sampled_from(["", "1.2.0", "1.3.0", "1.3.1"]) | VERSION,
    now=st.none() | st.integers(NOW - 10, NOW + 10),
    room=st.sampled_from([RELEASE.size - 1, RELEASE.size, 0x1C0000]),
    insecure=st.booleans(),
)
RELEASES = st.builds(
    lambda version, lowest, expires, device_type: replace(
        RELEASE,
        version=version,
        min_version=lowest,
        expires_at=expires,
        device_type=device_type,
    ),
    st.sampled_from(["1.2.0", "1.3.0", "1.3.0-rc.1", "2.0.0"]) | VERSION,
    st.sampled_from(["0.0.0-0", "1.2.0"]) | VERSION,
    st.integers(NOW - 10, NOW + 10),
    st.sampled_from(["esp32c3", "esp32c3-8mb"]),
)


def agree(device, offer, beacon, trusted):
    host = host_verdict(offer, beacon, trusted)
    assert device.verdict(offer, beacon, trusted) == host
    return host


@again
@given(RELEASES, SITUATION, st.sets(st.integers(0, 3)), st.sets(st.integers(0, 3)), st.data())
def test_any_release_for_any_beacon(device, keys, release, beacon, signers, known, data):
    trusted = None
    if known:
        threshold = data.draw(st.integers(1, len(known)))
        trusted = KeySet.of([keys[i].public for i in known], threshold)
    envelope = signed([keys[i] for i in signers], release) if signers else None
    agree(device, offer(envelope, release), beacon, trusted)


@again
@given(st.data())
def test_bent_payloads_that_were_signed(device, keys, data):
    payload = bytearray(RELEASE.payload())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(payload)))
        cut = data.draw(st.integers(0, 3))
        payload[at : at + cut] = data.draw(st.binary(max_size=3))
    payload = bytes(payload[:1024])
    text = dsse.pack_envelope(payload, [(keys[0].public.keyid, keys[0].sign(wire.pae(payload)))])
    agree(device, offer(text), BEACON, KeySet.of([keys[0].public]))


@again
@given(st.binary(max_size=64) | JSON.map(lambda v: json.dumps(v).encode()[:1024]))
def test_any_bytes_that_were_signed(device, keys, payload):
    text = dsse.pack_envelope(payload, [(keys[0].public.keyid, keys[0].sign(wire.pae(payload)))])
    assert agree(device, offer(text), BEACON, KeySet.of([keys[0].public])) == "signature"


@again
@given(MANIFEST)
def test_any_manifest_that_was_signed(device, keys, fields):
    payload = wire.encode(fields)
    release = Manifest.of(fields)
    text = dsse.pack_envelope(payload, [(keys[0].public.keyid, keys[0].sign(wire.pae(payload)))])
    beacon = replace(BEACON, device_type=release.device_type, now=None, room=1 << 24, floor=None)
    agree(device, offer(text, release), beacon, KeySet.of([keys[0].public]))


@again
@given(st.integers(0, 3071), st.binary(max_size=400))
def test_bent_signatures(device, keys, bit, other):
    payload = RELEASE.payload()
    good = keys[0].sign(wire.pae(payload))
    for signature in ((int.from_bytes(good) ^ 1 << bit).to_bytes(384), other):
        text = dsse.pack_envelope(payload, [(keys[0].public.keyid, signature)])
        assert agree(device, offer(text), BEACON, KeySet.of([keys[0].public])) == "signature"


def paths(value, here=()):
    """Every place in a JSON value."""
    yield here
    if isinstance(value, dict):
        for name in value:
            yield from paths(value[name], (*here, name))
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from paths(item, (*here, i))


@again
@given(st.data(), JSON)
def test_any_value_anywhere_in_the_offer(device, keys, data, value):
    bent = offer(signed(keys[:2]))
    where = data.draw(st.sampled_from([p for p in paths(bent) if p]))
    inside = bent
    for step in where[:-1]:
        inside = inside[step]  # type: ignore[index]
    inside[where[-1]] = value  # type: ignore[index]
    # What JSON cannot carry, no offer holds.
    text = json.dumps(bent, allow_nan=False) if _finite(bent) else "null"
    bent = json.loads(text)
    if isinstance(bent, dict):
        trusted = KeySet.of([key.public for key in keys[:2]], data.draw(st.integers(1, 2)))
        agree(device, bent, BEACON, trusted)


def _finite(value) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True
