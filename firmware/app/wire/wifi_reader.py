# Reads the payloads of wire/wifi.py: the client's half, which no beacon loads. Fields are accepted
# in any order and unknown codes are skipped, as the phone apps do.

from . import const
from .blufi import E_FORMAT, BlufiError
from .wifi import MAX_SSID

_BSSID = const(0x01)
_SSID = const(0x02)
_RETRIES = const(0x14)
_REASON = const(0x15)
_RSSI = const(0x16)


# The fields of a REPORT by name: opmode, state, clients, and those of bssid, ssid, retries, reason
# and rssi that it contains. Raises BlufiError for a field that is cut off or has a wrong length.
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


# The (ssid, rssi) pairs of a LIST. Raises BlufiError when it is malformed.
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
