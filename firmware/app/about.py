# Reads what this release says about itself: from app.json in its filesystem or, when the app is
# frozen into the core, from the core's description.

import json

from esp32 import Partition
from micropython import const

_DESCRIPTION = const(48)  # offset of an image's version text


# Returns (version, device type, whether it accepts unsigned releases).
def read():
    try:
        with open("/app/app.json") as f:
            about = json.load(f)
    except OSError:
        raw = bytearray(32)
        Partition(Partition.RUNNING).readblocks(0, raw, _DESCRIPTION)
        kind, _, version = bytes(raw).split(b"\0")[0].decode().partition(" ")
        about = {"device_type": kind, "version": version}
    return about["version"], about["device_type"], about.get("insecure") is True
