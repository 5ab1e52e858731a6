# Reads the Authorization header of a beacon's request: the orchestrator's half of wire/auth.py,
# which no beacon loads.

from . import const
from .auth import is_valid_id

MAX_SKEW = const(300)  # seconds by which a request's ts may differ from the orchestrator's clock

_MAX_HEADER = const(256)  # characters
_NONCE = const(16)  # hex digits
_MAC = const(64)
_HEX = const("0123456789abcdef")
_DIGITS = const("0123456789")


# The header's (beacon_id, ts, nonce, mac), or None unless it is spelled exactly as
# auth.build_header spells it. The nonce and the mac are still hex, checked for length and alphabet;
# ts has at most 11 digits.
def parse_header(value):
    if len(value) > _MAX_HEADER or not value.startswith("Beacon id="):
        return None
    parts = value[10:].split(", ")
    if len(parts) != 4:
        return None
    beacon_id, ts, nonce, mac = parts
    if not (ts.startswith("ts=") and nonce.startswith("nonce=") and mac.startswith("mac=")):
        return None
    ts = ts[3:]
    nonce = nonce[6:]
    mac = mac[4:]
    if not is_valid_id(beacon_id) or not 0 < len(ts) < 12 or ts.strip(_DIGITS):
        return None
    if len(nonce) != _NONCE or nonce.strip(_HEX) or len(mac) != _MAC or mac.strip(_HEX):
        return None
    return beacon_id, int(ts), nonce, mac
