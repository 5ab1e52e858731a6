# The release manifest: its signed form, its envelope, and the rules by which a beacon accepts it.
#
# * The envelope is DSSE: {"payload","payloadType","signatures":[{"keyid","sig"}]}.
# * The payload is the one canonical JSON of its fields: names sorted, no space,
#   ASCII. Readers encode it again and compare, so that two parsers cannot read
#   the same signed bytes in two ways (repeated names, lax commas).
# * Input that could cost memory is refused by its length, or by counting its
#   brackets, before a JSON parser sees it. All counts are bounded below.
# * Order of checks: envelope, signatures (elsewhere: no arithmetic in this file),
#   payload, then check_rules().

import json
from binascii import a2b_base64, b2a_base64

from . import const, versions
from .refused import Refused
from .shapes import MAX_SIZE, is_hex, is_name, is_number

TYPE = "application/vnd.beacon-ota.release+json"
SCHEME = "aes-128-ctr"

MAX_PAYLOAD = const(1024)
MAX_SIGNATURES = const(8)
MAX_SIGNATURE = const(512)  # bytes; RSA-3072 has 384
MAX_TIME = 253402300799  # the last second of the year 9999


def _bad(what):
    return Refused("signature", what)


# The field shapes. Each returns the canonical JSON of its value. No value that
# they accept needs escaping, which keeps the encoder below small.
def _hash(value):
    if not is_hex(value, 64):
        raise ValueError
    return '"%s"' % value


def _version(value):
    versions.parse(value)
    return '"%s"' % value


def _name(value):
    if not is_name(value):
        raise ValueError
    return '"%s"' % value


def _size(value):
    if not is_number(value, 1, MAX_SIZE):
        raise ValueError
    return "%d" % value


def _time(value):
    if not is_number(value, 0, MAX_TIME):
        raise ValueError
    return "%d" % value


def _flag(value):
    if value is True:
        return "true"
    if value is False:
        return "false"
    raise ValueError


def _encryption(value):
    if not isinstance(value, dict) or len(value) != 2 or value.get("scheme") != SCHEME:
        raise ValueError
    return '{"ciphertext_sha256":%s,"scheme":"%s"}' % (
        _hash(value.get("ciphertext_sha256")),
        SCHEME,
    )


# In the order in which they are written.
_FIELDS = (
    ("checksum", _hash),
    ("core", _hash),
    ("device_type", _name),
    ("encryption", _encryption),
    ("expires_at", _time),
    ("issued_at", _time),
    ("min_version", _version),
    ("required", _flag),
    ("size", _size),
    ("version", _version),
)


# Encodes a dict of fields; only "encryption" may be missing.
def encode(fields):
    parts = []
    for name, shape in _FIELDS:
        if name == "encryption" and name not in fields:
            continue
        try:
            parts.append('"%s":%s' % (name, shape(fields[name])))
        except (KeyError, ValueError):
            raise _bad("payload: " + name)
    if len(parts) != len(fields):
        raise _bad("payload: unknown field")
    if fields["expires_at"] <= fields["issued_at"]:
        raise _bad("payload: expires_at")
    return ("{" + ",".join(parts) + "}").encode()


# Decodes the fields of a payload. Its signatures have to be verified before.
def decode(payload):
    if len(payload) > MAX_PAYLOAD or b"[" in payload or payload.count(b"{") > 2:
        raise _bad("payload: not canonical")
    try:
        fields = json.loads(payload)
    except (ValueError, TypeError):
        raise _bad("payload: not JSON")
    if not isinstance(fields, dict):
        raise _bad("payload: not an object")
    if encode(fields) != payload:
        raise _bad("payload: not canonical")
    return fields


# DSSE's pre-authentication encoding: the bytes that are signed.
def pae(payload):
    kind = TYPE.encode()
    return b"DSSEv1 %d " % len(kind) + kind + b" %d " % len(payload) + payload


# (payload, [(keyid, signature)]) of an envelope, the object that an offer holds. A keyid may come
# once: that bounds the modular powers and keeps k-of-n from being k times the same one.
def unpack_envelope(envelope):
    if not isinstance(envelope, dict):
        raise _bad("envelope: not an object")
    if len(envelope) != 3 or envelope.get("payloadType") != TYPE:
        raise _bad("envelope: payloadType")
    payload = _unbase64(envelope.get("payload"), MAX_PAYLOAD)
    entries = envelope.get("signatures")
    if not isinstance(entries, list) or not 0 < len(entries) <= MAX_SIGNATURES:
        raise _bad("envelope: signatures")
    signatures = []
    seen = set()
    for entry in entries:
        if not isinstance(entry, dict) or len(entry) != 2:
            raise _bad("envelope: signatures")
        keyid = entry.get("keyid")
        if not is_hex(keyid, 16):
            raise _bad("envelope: keyid")
        if keyid in seen:
            raise _bad("envelope: keyid twice")
        seen.add(keyid)
        signatures.append((keyid, _unbase64(entry.get("sig"), MAX_SIGNATURE)))
    return payload, signatures


# Raises Refused unless the offer and the manifest describe the same release.
def check_offer(fields, offer):
    for name in ("checksum", "size", "version"):
        if offer.get(name) != fields[name]:
            raise Refused("checksum", "offer and manifest differ: " + name)


# The fields of an offer without a manifest, in the form that check_rules()
# takes; fields that only a signature could vouch for get values that pass. For
# insecure fleets only.
def unsigned_fields(offer, device_type):
    fields = {
        "checksum": offer.get("checksum"),
        "core": "00" * 32,
        "device_type": device_type,
        "expires_at": MAX_TIME,
        "issued_at": 0,
        "min_version": versions.LOWEST,
        "required": offer.get("required", False),
        "size": offer.get("size"),
        "version": offer.get("version"),
    }
    try:
        encode(fields)
    except Refused as error:
        raise Refused("image", error.detail)
    return fields


# Raises Refused unless a beacon of this type and version may install the release. `floor`
# is the highest version ever confirmed on it (None: none yet), `now` an
# authenticated time in UTC seconds (None: the clock is unset), `room` the bytes
# of the slot. Returns False when only the date could not be judged.
def check_rules(fields, device_type, running, floor, now, room):
    if fields["device_type"] != device_type:
        raise Refused("device_type", "for %s, this is %s" % (fields["device_type"], device_type))
    version = fields["version"]
    try:
        if versions.compare(version, running) <= 0:
            raise Refused("downgrade", "%s is not above running %s" % (version, running))
        if floor and versions.compare(version, floor) < 0:
            raise Refused("downgrade", "%s is below floor %s" % (version, floor))
        lowest = fields["min_version"]
        if versions.compare(running, lowest) < 0:
            raise Refused("image", "needs %s, running %s" % (lowest, running))
    except ValueError:
        raise Refused("downgrade", "own version or floor unreadable")
    if fields["size"] > room:
        raise Refused("image", "%d bytes, slot has %d" % (fields["size"], room))
    if now is None:
        return False
    if now >= fields["expires_at"]:
        raise Refused("expired", "at %d, now %d" % (fields["expires_at"], now))
    return True


# Strict base64: the decoders of both Pythons skip unknown characters.
def _unbase64(text, limit):
    try:
        if len(text) <= (limit + 2) // 3 * 4:
            data = a2b_base64(text)
            if b2a_base64(data)[:-1].decode() == text:
                return data
    except (ValueError, TypeError):
        pass
    raise _bad("envelope: base64")
