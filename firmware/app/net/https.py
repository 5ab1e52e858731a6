# HTTPS with a pinned certificate: /app/ca.der is the orchestrator's own, or that of the authority
# that signs it. Loaded where orch_url says https.
#
# mbedTLS on the port holds certificates' dates against the chip's clock. After a power cut that
# says 2000, and only an authenticated answer sets it, which an https beacon would never get. So the
# check of dates waits for the clock: until then it is made at a date on which the certificates
# that are shown had begun. Who signed them, and for which name, is checked as ever.

import tls
from micropython import const

from net import clock
from net.http import HttpError

_CA = const("/app/ca.der")
_LONGEST = const(4096)  # bytes
_SEQUENCE = const(0x30)
_VERSION = const(0xA0)
_UTC_TIME = const(0x17)  # two digits of the year; the other way of writing it has four


# What a connection is wrapped in.
class Pinned:
    def __init__(self):
        try:
            with open(_CA, "rb") as f:
                pinned = f.read(_LONGEST)
        except OSError:
            raise HttpError("connect", "https needs ca.der in the app")
        self._context = tls.SSLContext(tls.PROTOCOL_TLS_CLIENT)
        self._context.verify_mode = tls.CERT_REQUIRED
        try:
            self._context.load_verify_locations(pinned)
        except (ValueError, OSError) as error:
            raise HttpError("connect", "ca.der: %s" % error)
        self._begun = 0
        self._retried = False
        self._on_certificate(pinned, 0)
        self._context.verify_callback = self._on_certificate
        # Always from the pinned one's date: what a stranger showed the last time moves nothing.
        clock.set_guess(self._begun)

    def wrap_socket(self, sock, name):
        return self._context.wrap_socket(sock, server_hostname=name, do_handshake_on_connect=False)

    # mbedTLS shows each certificate after it has judged it; 0: nothing to add.
    def _on_certificate(self, cert, depth):
        try:
            self._begun = max(self._begun, read_not_before(cert))
        except (ValueError, IndexError):
            pass  # not one that mbedTLS would believe
        return 0

    # Was a certificate shown that begins after the date it was judged at? Then, once, it is worth
    # another try; whoever made it up is found out by the signatures.
    def retry_later_date(self):
        if self._retried or clock.utc() or self._begun <= clock.unchecked():
            return False
        self._retried = True
        clock.set_guess(self._begun)
        return True


# When a certificate in DER begins (RFC 5280, section 4.1.2.5), UTC seconds since 1970. ValueError
# or IndexError for what is no certificate.
def read_not_before(der):
    at, _ = _find_content(der, 0, _SEQUENCE)
    at, _ = _find_content(der, at, _SEQUENCE)
    if der[at] == _VERSION:
        _, at = _find_content(der, at)
    for _ in range(3):  # serial number, signature's algorithm, issuer
        _, at = _find_content(der, at)
    at, _ = _find_content(der, at, _SEQUENCE)
    begin, end = _find_content(der, at)
    text = bytes(der[begin:end])
    if der[at] == _UTC_TIME:
        text = (b"20" if text[:1] < b"5" else b"19") + text
    if len(text) != 15 or text[14:] != b"Z":
        raise ValueError
    month = int(text[4:6])
    year = int(text[:4]) - (month < 3)  # that begins with March, so that a leap day is its last
    days = 365 * year + year // 4 - year // 100 + year // 400
    days += (153 * ((month + 9) % 12) + 2) // 5 + int(text[6:8]) - 719469
    return days * 86400 + int(text[8:10]) * 3600 + int(text[10:12]) * 60 + int(text[12:14])


# Where the content of the value at `at` begins and ends.
def _find_content(der, at, tag=None):
    size = der[at + 1]
    if tag not in (None, der[at]):
        raise ValueError
    at += 2
    if size & 0x80:
        count = size & 0x7F
        if not 0 < count < 3:
            raise ValueError
        size = int.from_bytes(bytes(der[at : at + count]), "big")
        at += count
    if at + size > len(der):
        raise ValueError
    return at, at + size
