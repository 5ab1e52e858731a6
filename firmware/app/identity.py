# The beacon's id: the one it was given, or one derived from the chip's serial number.

from binascii import hexlify

from machine import unique_id


def read(store):
    return store.text("beacon_id") or "beacon-" + hexlify(unique_id()).decode()
