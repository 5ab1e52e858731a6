# Builds the iBeacon frame by which phones and tags find their position.

from micropython import const
from wire import adverts

_POWER = const(-59)  # dBm measured at one metre, the C3 boards' usual value
_IDENTITY = const(20)


# The advertising data; b"" while the beacon has no iBeacon identity, because an invented one would
# show people at a wrong place.
def frame(store):
    identity = store.blob("ibeacon", _IDENTITY)
    if len(identity) != _IDENTITY:
        return b""
    return adverts.build_ibeacon(identity, _POWER)
