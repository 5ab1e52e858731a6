# What a beacon and its orchestrator sign, and how the signature travels. Both sides build the same
# bytes from the same fields here; each side computes the HMAC itself. The order of the lines, the
# hex in lower case and the strict header syntax leave exactly one spelling for every request.
# wire/auth_header.py reads the header: only the orchestrator loads that.

from . import const

MAX_ID = const(64)  # characters of a beacon's id

_ID = const("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")


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
    return "Beacon id=%s, ts=%d, nonce=%s, mac=%s" % (beacon_id, ts, nonce, mac)
