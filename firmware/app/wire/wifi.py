# BluFi's payloads about WiFi, beacon to client: how the connection stands, what networks there are.
# Readers take fields in any order and skip codes they do not know, as the phone apps do.

from . import const
from .blufi import E_FORMAT, MAX_MESSAGE, BlufiError

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


# A REPORT payload: what is None is left away. The password has a code, too; nobody needs it back.
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


# The report's fields by name: opmode, state, clients, and bssid, ssid, retries, reason, rssi as far
# as they are there. Refused when a field is cut off or has a length that its code cannot have.
def parse_report(data):
    if len(data) < 3:
        raise BlufiError(E_FORMAT)
    found = {"opmode": data[0], "state": data[1], "clients": data[2]}
    at = 3
    while at < len(data):
        if at + 2 > len(data) or at + 2 + data[at + 1] > len(data):
            raise BlufiError(E_FORMAT)
        code = data[at]
        value = bytes(data[at + 2 : at + 2 + data[at + 1]])
        at += 2 + len(value)
        if code == _SSID and len(value) <= MAX_SSID:
            found["ssid"] = value
        elif code == _BSSID and len(value) == 6:
            found["bssid"] = value
        elif code in (_RETRIES, _REASON, _RSSI) and len(value) == 1:
            name = ("retries", "reason", "rssi")[code - _RETRIES]
            found[name] = _signed(value[0]) if code == _RSSI else value[0]
        elif code in (_SSID, _BSSID, _RETRIES, _REASON, _RSSI):
            raise BlufiError(E_FORMAT)
    return found


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


def parse_list(data):
    networks = []
    at = 0
    while at < len(data):
        end = at + 1 + data[at]
        if end > len(data) or not 1 <= data[at] <= MAX_SSID + 1:
            raise BlufiError(E_FORMAT)
        networks.append((bytes(data[at + 2 : end]), _signed(data[at + 1])))
        at = end
    return networks


def _signed(byte):
    return byte - 256 if byte > 127 else byte
