# Who a beacon is: the name it was given, or one that its chip gives it.

from binascii import hexlify

from machine import unique_id


def read_id(store):
    return store.text("beacon_id") or "beacon-" + hexlify(unique_id()).decode()
