# What a beacon and its orchestrator sign, and how the signature travels. Both sides build the same
# bytes from the same fields here; the HMAC itself is each side's own. The order of the lines, the
# hex in lower case and the strict header syntax leave exactly one spelling for every request.

try:
    from micropython import const
except ImportError:  # CPython

    def const(value):
        return value


SCHEME = "Beacon"
MAX_SKEW = const(300)  # seconds that a request's ts may be off
MAX_ID = const(64)
MAX_HEADER = const(256)
NONCE_HEX = const(16)
MAC_HEX = const(64)

_HEX = "0123456789abcdef"
_DIGITS = "0123456789"
_ID = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"


# An identifier goes into URLs, headers and the signed lines: nothing that needs escaping.
def valid_id(text):
    return 0 < len(text) <= MAX_ID and not text.strip(_ID)


# The bytes whose HMAC authenticates a request. `target` is the path with its query exactly as sent;
# `digest` is the hex SHA-256 of the body, of b"" when there is none.
def request_text(method, target, beacon_id, ts, nonce, digest):
    return "\n".join((method, target, beacon_id, str(ts), nonce, digest)).encode()


# The bytes whose HMAC authenticates an answer. The nonce ties it to the request; for a download
# `digest` is the checksum of the whole file served, so that the header can go out first.
def answer_text(nonce, status, digest):
    return "\n".join((nonce, str(status), digest)).encode()


# HMAC(old key, this) is the pad under which a new key travels in an answer.
def rekey_text(nonce):
    return ("rekey\n" + nonce).encode()


# The value of the Authorization header.
def header(beacon_id, ts, nonce, mac):
    return "%s id=%s, ts=%d, nonce=%s, mac=%s" % (SCHEME, beacon_id, ts, nonce, mac)


# The header's (beacon_id, ts, nonce, mac), or None unless it is spelled as above. The nonce and the
# mac are still hex, checked for length and alphabet; ts has at most 11 digits.
def parse(value):
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
    if not valid_id(beacon_id) or not 0 < len(ts) < 12 or ts.strip(_DIGITS):
        return None
    if len(nonce) != NONCE_HEX or nonce.strip(_HEX) or len(mac) != MAC_HEX or mac.strip(_HEX):
        return None
    return beacon_id, int(ts), nonce, mac
