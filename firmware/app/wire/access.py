# The messages of access control over GATT: a reader writes them, a beacon notifies them. A
# credential is an id of 4 bytes and a secret of 16 bytes, which is never sent over the air:
#
#   reader  01 id             request
#   beacon  01 nonce          challenge, 16 bytes, good for one answer within 5 s
#   reader  02 proof          HMAC-SHA256(key, nonce), the first 16 bytes
#   beacon  02                granted
#           03                refused: unknown, wrong or late, without telling which
#
# The key is derived from the secret for this one door (door_key), so that a proof made for one door
# is worthless at another. The reader takes the door's id from its own list, never from the air. A
# door stores only that key of a bound credential. Of an unbound one it stores the secret itself,
# and also accepts a proof made with the secret as the key.

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

# Longer than a nonce, so that no proof an old reader can be asked for is a door's key.
_DOOR = const(b"beacon-ota access to the door ")


# The key with which a credential opens the door of this beacon.
def door_key(hmac_sha256, secret, beacon_id):
    return hmac_sha256(secret, _DOOR, beacon_id.encode())[:SECRET]


# Sent by the beacon.
def build_challenge(nonce):
    return bytes((CHALLENGE,)) + nonce


# A message of either side as (kind, payload); (0, b"") for any other bytes.
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
