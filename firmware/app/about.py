# What this release says of itself: in its filesystem, or, with the app frozen into the core, in the
# core's description.

import json

from esp32 import Partition
from micropython import const

_DESCRIPTION = const(48)  # where an image keeps its version text


# (version, device type, is it built without signatures?)
def read_release():
    try:
        with open("/app/app.json") as f:
            about = json.load(f)
    except OSError:
        raw = bytearray(32)
        Partition(Partition.RUNNING).readblocks(0, raw, _DESCRIPTION)
        kind, _, version = bytes(raw).split(b"\0")[0].decode().partition(" ")
        about = {"device_type": kind, "version": version}
    return about["version"], about["device_type"], about.get("insecure") is True
