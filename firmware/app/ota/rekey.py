# A new key travels under the old one; from the next request on it is the key.

from binascii import unhexlify

from crypto.hmac import hmac_sha256
from wire import auth


# `pad` is 64 hex digits: the new key under a mask that the old one and the last nonce make.
def apply_key(beacon, pad):
    store = beacon.store
    mask = hmac_sha256(store.blob("beacon_key"), auth.rekey_text(beacon.api.nonce))
    pad = unhexlify(pad)
    try:
        store.put("beacon_key", bytes([pad[i] ^ mask[i] for i in range(32)]))
    except OSError as error:
        beacon.journal.write("key", "not_stored", str(error))
        return  # the old one stays valid until the new one is used
    beacon.api.reload()
