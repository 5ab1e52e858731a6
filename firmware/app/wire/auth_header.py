# What the header of a beacon's request says, for whoever receives one.

from .auth import MAC_HEX, MAX_HEADER, NONCE_HEX, is_valid_id

_HEX = "0123456789abcdef"
_DIGITS = "0123456789"


# The header's (beacon_id, ts, nonce, mac), or None unless it is spelled as auth.build_header does. The
# nonce and the mac are still hex, checked for length and alphabet; ts has at most 11 digits.
def parse_header(value):
    if len(value) > MAX_HEADER or not value.startswith("Beacon id="):
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
    if len(nonce) != NONCE_HEX or nonce.strip(_HEX) or len(mac) != MAC_HEX or mac.strip(_HEX):
        return None
    return beacon_id, int(ts), nonce, mac
