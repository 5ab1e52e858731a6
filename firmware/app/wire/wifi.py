# BluFi's payloads about WiFi from beacon to client: the state of the connection, and the networks
# in range. wire/wifi_reader.py reads them.

from . import const
from .blufi import MAX_MESSAGE

OPMODE_STA = const(1)

# The station's state in a report.
CONNECTED = const(0)  # and has an address
FAILED = const(1)
CONNECTING = const(2)
NO_ADDRESS = const(3)

MAX_SSID = const(32)
MAX_PASSWORD = const(64)

UNKNOWN_REASON = const(255)
UNKNOWN_RSSI = const(-128)

_BSSID = const(0x01)
_SSID = const(0x02)
_RETRIES = const(0x14)
_REASON = const(0x15)
_RSSI = const(0x16)


# A REPORT payload; fields that are None are left out. The password, which also has a code, is never
# sent back.
def build_report(state, bssid=None, ssid=None, retries=None, reason=None, rssi=None):
    out = bytearray((OPMODE_STA, state, 0))
    for code, value in (
        (_BSSID, bssid),
        (_SSID, ssid),
        (_RETRIES, _byte(retries)),
        (_REASON, _byte(reason)),
        (_RSSI, _byte(rssi)),
    ):
        if value is not None:
            out += bytes((code, len(value)))
            out += value
    return bytes(out)


def _byte(number):
    return None if number is None else bytes((number & 0xFF,))


# A LIST payload from (ssid, rssi) pairs: as many as one message holds, so the strongest come first.
def build_list(networks):
    out = bytearray()
    for ssid, rssi in networks:
        ssid = ssid[:MAX_SSID]
        if len(out) + 2 + len(ssid) > MAX_MESSAGE:
            break
        out += bytes((len(ssid) + 1, rssi & 0xFF))
        out += ssid
    return bytes(out)
