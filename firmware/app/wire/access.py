# Access control over GATT: what a reader writes and a beacon notifies. A credential is an id of 4
# bytes, which says whose it is, and a secret of 16, which never goes over the air:
#
#   reader  01 id             request
#   beacon  01 nonce          challenge, 16 bytes, good for one answer within 5 s
#   reader  02 proof          HMAC-SHA256(key, nonce), the first 16 bytes
#   beacon  02                granted
#           03                refused: unknown, wrong or late, and it does not say which
#
# The key is the credential's for this one door (door_key), so that a proof made for one door is
# worth nothing at another. The reader has the door's id from a list of its own, never off the air.
# A door holds that key and nothing more of a credential that is bound. Of one that is not it holds
# the secret itself, and takes the old proof too, whose key is the secret.

from . import const

SERVICE = "b3ac0001-6f1d-4c0a-9b52-0e7a54d1c559"
CONTROL = "b3ac0002-6f1d-4c0a-9b52-0e7a54d1c559"  # written by the reader
STATUS = "b3ac0003-6f1d-4c0a-9b52-0e7a54d1c559"  # notified by the beacon

REQUEST = const(1)
PROOF = const(2)
CHALLENGE = const(1)
GRANTED = const(2)
REFUSED = const(3)

ID = const(4)  # bytes
SECRET = const(16)
NONCE = const(16)
LIFETIME = const(5000)  # ms of a challenge
MAX_CREDENTIALS = const(32)

# Longer than a nonce: whatever an old reader can be asked to prove, it is never a door's key.
_DOOR = const(b"beacon-ota access to the door ")


# The key with which a credential opens the door of this beacon.
def door_key(hmac_sha256, secret, beacon_id):
    return hmac_sha256(secret, _DOOR, beacon_id.encode())[:SECRET]


# What the reader sends.
def build_request(ident):
    return bytes((REQUEST,)) + ident


def build_proof(mac):
    return bytes((PROOF,)) + mac[:SECRET]


# What the beacon sends.
def build_challenge(nonce):
    return bytes((CHALLENGE,)) + nonce


# A message either way as (kind, payload); (0, b"") for one that is none of the above.
def parse_message(data):
    if len(data) == 1 + ID and data[0] == REQUEST:
        return REQUEST, data[1:]
    if len(data) == 1 + SECRET and data[0] in (CHALLENGE, PROOF):
        return data[0], data[1:]
    if len(data) == 1 and data[0] in (GRANTED, REFUSED):
        return data[0], b""
    return 0, b""


# The secret that belongs to an id, b"" for none. `blob` holds ids and secrets one after the other.
def find_secret(blob, ident):
    step = ID + SECRET
    for at in range(0, len(blob) - step + 1, step):
        if blob[at : at + ID] == ident:
            return blob[at + ID : at + step]
    return b""
