# The images that failed their trial on this beacon: their SHA-256, so that none of them is tried a
# second time, whatever the orchestrator offers.

from binascii import unhexlify

from micropython import const
from wire.shapes import is_hex

_KEY = const("bad_sha")
_SHA = const(32)
_PLACES = const(4)


def _read_digests(store):
    blob = store.blob(_KEY, _SHA * _PLACES)
    return [blob[i : i + _SHA] for i in range(0, len(blob) - _SHA + 1, _SHA)]


def contains(store, checksum):
    return unhexlify(checksum) in _read_digests(store)


# The newest first; the oldest of four makes room. Where NVS does not take it, the orchestrator's
# limit of attempts has to do.
def add(store, checksum):
    if not is_hex(checksum, 64):
        return  # there was no image, or nobody knows which
    digest = unhexlify(checksum)
    known = _read_digests(store)
    if digest not in known:
        store.try_put(_KEY, b"".join([digest] + known[: _PLACES - 1]))
