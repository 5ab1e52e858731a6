# Parses the address of an orchestrator, "http[s]://host[:port]". Both sides use this parser, so
# that no client stores an address that the beacon cannot use. The host is a name or an IPv4
# address: the port's network supports no other.

from . import const

_DIGITS = const("0123456789")
_NAME = "abcdefghijklmnopqrstuvwxyz_-" + _DIGITS


# (tls, host, port); ValueError with the reason. The host is lower case, without a dot at its end.
def parse(text):
    scheme, colon, rest = text.partition("://")
    scheme = scheme.lower()
    if not colon or scheme not in ("http", "https"):
        raise ValueError("it begins with http:// or https://")
    if rest[-1:] == "/":
        rest = rest[:-1]
    if rest[:1] == "[":
        raise ValueError("beacons have no IPv6")
    host, colon, port = rest.partition(":")
    host = host.lower()
    if host[-1:] == ".":
        host = host[:-1]
    labels = host.split(".")
    for label in labels:
        if not 0 < len(label) < 64 or label.strip(_NAME) or "-" in (label[0], label[-1]):
            raise ValueError("no host name")
    if len(host) > 114:  # of the 128 bytes that a beacon stores
        raise ValueError("the host name is too long")
    if not labels[-1].strip(_DIGITS) and not is_ipv4(host):
        raise ValueError("no IPv4 address")
    number = 443 if scheme == "https" else 80
    if colon:
        number = 0 if port.strip(_DIGITS) or not 0 < len(port) < 6 else int(port)
        if not 0 < number < 65536:
            raise ValueError("no port from 1 to 65535")
    return scheme == "https", host, number


# Leading zeros are refused: some systems read such numbers as octal.
def is_ipv4(host):
    labels = host.split(".")
    if len(labels) != 4:
        return False
    for label in labels:
        if not 0 < len(label) < 4 or label.strip(_DIGITS) or int(label) > 255:
            return False
        if len(label) > 1 and label[0] == "0":
            return False
    return True
