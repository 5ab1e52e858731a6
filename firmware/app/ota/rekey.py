# Unwraps a new key that was wrapped with the old one, and uses it from the next request on.

from binascii import unhexlify

from crypto.hmac import hmac_sha256
from wire import auth


# `pad` is the new key in 64 hex digits, XORed with a mask made of the old key and the last nonce.
def apply_key(beacon, pad):
    store = beacon.store
    mask = hmac_sha256(store.blob("beacon_key"), auth.rekey_text(beacon.api.nonce))
    pad = unhexlify(pad)
    try:
        store.put("beacon_key", bytes([pad[i] ^ mask[i] for i in range(32)]))
    except OSError as error:
        beacon.journal.write("key", "not_stored", str(error))
        return  # the old key stays valid until the new one is used
    beacon.api.reload()
