# The deny list: SHA-256 of the images that failed their trial on this beacon, so that none is tried
# again, whatever the orchestrator offers.

from binascii import unhexlify

from micropython import const
from wire.shapes import is_hex

_KEY = const("bad_sha")
_SHA = const(32)
_PLACES = const(4)


def _read(store):
    blob = store.blob(_KEY, _SHA * _PLACES)
    return [blob[i : i + _SHA] for i in range(0, len(blob) - _SHA + 1, _SHA)]


def contains(store, checksum):
    return unhexlify(checksum) in _read(store)


# Puts an image first; the oldest of four is dropped. If NVS does not take it, only the
# orchestrator's limit of attempts keeps the image from being tried again.
def add(store, checksum):
    if not is_hex(checksum, 64):
        return  # there is no image, or its hash is unknown
    digest = unhexlify(checksum)
    known = _read(store)
    if digest not in known:
        store.try_put(_KEY, b"".join([digest] + known[: _PLACES - 1]))
