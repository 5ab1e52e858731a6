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

_ID = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"


# An identifier goes into URLs, headers and the signed lines: nothing that needs escaping.
def is_valid_id(text):
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
def build_header(beacon_id, ts, nonce, mac):
    return "%s id=%s, ts=%d, nonce=%s, mac=%s" % (SCHEME, beacon_id, ts, nonce, mac)


# See auth_header: the orchestrator's half, which a beacon does not load.
def parse_header(value):
    from . import auth_header

    return auth_header.parse_header(value)
