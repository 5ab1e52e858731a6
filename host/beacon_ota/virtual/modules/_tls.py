# `tls` as on the esp32 port: mbedTLS checks a certificate's dates by the chip's clock, which begins
# in 2000. The host's `tls` checks them by the host's clock, so the chip's is asked here, too.

import time as _time

import tls as _host  # names that `from tls import *` does not take along
from micropython import const
from tls import *  # noqa: F403

_FAILED = const(-0x2700)  # MBEDTLS_ERR_X509_CERT_VERIFY_FAILED


class SSLContext:
    def __init__(self, protocol):
        self._real = _host.SSLContext(protocol)
        self._real.verify_callback = self._verify
        self.verify_callback = None

    def __getattr__(self, name):
        return getattr(self._real, name)

    @property
    def verify_mode(self):
        return self._real.verify_mode

    @verify_mode.setter
    def verify_mode(self, mode):
        self._real.verify_mode = mode

    def _verify(self, cert, depth):
        given = self.verify_callback(cert, depth) if self.verify_callback else 0
        if given:
            return given
        first, last = _validity(cert)
        now = _time.gmtime()
        now = "%04d%02d%02d%02d%02d%02d" % tuple(now[:6])
        if first <= now <= last:
            return 0
        print("tls: good from", first, "to", last, "and it is", now)
        return _FAILED


# The two dates as yyyymmddhhmmss: the first SEQUENCE of two times in the certificate.
def _validity(cert):
    cert = bytes(cert)
    for at in range(len(cert) - 34):
        if cert[at] == 0x30 and cert[at + 2] in (0x17, 0x18):
            first, end = _date(cert, at + 2)
            if cert[end] in (0x17, 0x18):
                last, end = _date(cert, end)
                if end == at + 2 + cert[at + 1]:
                    return first, last
    return "", ""


def _date(cert, at):
    end = at + 2 + cert[at + 1]
    text = "".join([chr(byte) for byte in cert[at + 2 : end - 1]])
    if cert[at] == 0x17:
        text = ("20" if text < "5" else "19") + text
    return text, end
