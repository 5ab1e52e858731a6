# What a beacon says to everybody: the AD structures of its advertisements.

from struct import pack

_FLAGS = b"\x02\x01\x06"  # general discoverable, no BR/EDR
_MANUFACTURER = 0xFF
_APPLE = b"\x4c\x00\x02\x15"  # company 0x004C, iBeacon, 21 bytes follow
_PROGRESS = b"\x59\x00"  # company 0x0059


# One AD structure: length, kind, data.
def structure(kind, data):
    return bytes((len(data) + 1, kind)) + data


# Advertising data with an iBeacon frame: `identity` is UUID, major and minor (20 bytes), `power`
# the level in dBm measured at one metre.
def ibeacon(identity, power):
    return _FLAGS + structure(_MANUFACTURER, _APPLE + identity + pack("b", power))


# Scan response with an update's progress: percent, 0xFE failed, 0xFF rebooting.
def progress(value):
    return structure(_MANUFACTURER, _PROGRESS + bytes((value,)))
