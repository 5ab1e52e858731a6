# Real sockets, but names and addresses lead through the supervisor's network: getaddrinfo
# works only while WiFi is connected, and returns the address of a proxy that can misbehave.

import _chip
import usocket
from usocket import *  # noqa: F403


def getaddrinfo(host, port, af=0, type=0, proto=0, flags=0):
    kind = type or usocket.SOCK_STREAM
    ip, real = _chip.call("resolve", host, int(port), kind)
    address = usocket.getaddrinfo(ip, real)[0][-1]
    return [(usocket.AF_INET, kind, 0, host, address)]
