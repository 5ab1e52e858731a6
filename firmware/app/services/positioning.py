# Positioning: the iBeacon frame that phones and tags locate themselves by.

from micropython import const
from wire import adverts

_POWER = const(-59)  # dBm measured at one metre, the C3 boards' usual value
_IDENTITY = const(20)


# The advertising data; b"" while the beacon has no identity, for one that is made up would put
# people in the wrong place.
def build_frame(store):
    identity = store.blob("ibeacon", _IDENTITY)
    if len(identity) != _IDENTITY:
        return b""
    return adverts.build_ibeacon(identity, _POWER)
