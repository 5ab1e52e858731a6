# Verifies an offer before a byte of the image is downloaded, and returns the fields of its signed
# manifest: from then on its checksum and size count, not the offer's. The trusted keys are part of
# the running app, so they change only with a release. Every refusal is a wire.refused.Refused with
# a code of stage "verify".

import asyncio
import json
import os
from binascii import unhexlify
from hashlib import sha256

from crypto import pss
from micropython import const
from net import clock
from wire import manifest, versions
from wire.refused import Refused
from wire.shapes import is_hex

from ota import denylist

KEYS = "/app/keys.json"
_NEEDED = const(("size", "checksum", "encryption", "core"))
_MAX_KEYS = const(8192)  # bytes of the file: eight keys and some to spare


# Verifies an offer against this beacon's state. Returns the manifest's fields for the download.
async def verify_offer(beacon, offer):
    if denylist.contains(beacon.store, offer["checksum"]):
        raise Refused("known_bad", "rolled back on this beacon before")
    fields = await verify_manifest(
        offer,
        beacon.device_type,
        beacon.version,
        _read_floor(beacon.store),
        clock.utc() or None,
        beacon.slots.max_capacity(),
        beacon.insecure,
    )
    beacon.measure_heap()
    return {name: fields[name] for name in _NEEDED if name in fields}


# The highest version ever confirmed on this beacon, None for none. An unreadable floor counts as
# none: it must not block updates for ever, and the next confirmed version replaces it.
def _read_floor(store):
    floor = store.text("floor")
    try:
        versions.parse(floor)
    except ValueError:
        return None
    return floor


# The manifest fields of the offer, once the signatures, the rules and the offer itself agree. The
# envelope is taken out of the offer, so that memory does not hold it beside what was decoded.
# `floor`, `now` and `room` are those of wire.manifest.check_rules(). An insecure app accepts
# an offer without a manifest, and, as long as it holds no keys, one whose signatures it cannot
# judge.
async def verify_manifest(offer, device_type, running, floor, now, room, insecure=False, keys=KEYS):
    envelope = offer.pop("manifest", None)
    if envelope is None:
        if not insecure:
            raise Refused("signature", "no manifest")
        fields = manifest.unsigned_fields(offer, device_type)
    else:
        payload, signatures = manifest.unpack_envelope(envelope)
        envelope = None
        missing, pairs = _match_keys(keys, signatures, insecure)
        signatures = None
        await _check_signatures(payload, missing, pairs)
        fields = manifest.decode(payload)
        manifest.check_offer(fields, offer)
    manifest.check_rules(fields, device_type, running, floor, now, room)
    return fields


# The keys of the running app, or None when it was built without.
def _load_keys(path):
    try:
        size = os.stat(path)[6]
    except OSError:
        return None
    try:
        if size > _MAX_KEYS:
            raise ValueError
        with open(path) as f:
            trusted = json.loads(f.read(size))
        keys = trusted["keys"]
        if not isinstance(keys, dict) or not 0 < trusted["threshold"] <= len(keys):
            raise ValueError
    except (ValueError, KeyError, TypeError, OSError):
        raise Refused("signature", "keys.json unreadable")
    return trusted


# Returns (number of good signatures needed, [(modulus, signature)] of the trusted keys that are
# named). unpack_envelope() accepts a keyid once only, so counting signatures counts keys.
def _match_keys(keys, signatures, insecure):
    trusted = _load_keys(keys)
    if not trusted:
        if not insecure:
            raise Refused("signature", "the app holds no keys")
        return 0, ()
    pairs = []
    for keyid, signature in signatures:
        n = trusted["keys"].get(keyid)
        if is_hex(n, 768):
            pairs.append((unhexlify(n), signature))
    return trusted["threshold"], pairs


# Raises Refused unless `missing` of the signatures are good.
async def _check_signatures(payload, missing, pairs):
    digest = sha256(manifest.pae(payload)).digest()
    for n, signature in pairs:
        if not missing:
            return
        if await _verify_signature(n, digest, signature):
            missing -= 1
    if missing:
        raise Refused("signature", "%d more good signatures needed" % missing)


# The modular power takes a fifth of a second on the chip: other tasks run between its steps.
async def _verify_signature(n, digest, signature):
    good = False
    for verdict in pss.steps(n, digest, signature):
        good = verdict
        await asyncio.sleep(0)
    return good
