# What a client of provisioning hears of the network, whatever the driver says.

import sys

from mp import chip as c

c.modules(c.Chip(c.layout(slot=1)))
sys.modules["network"] = sys  # net.wifi is wanted for its names only

from blufi.network import Network  # noqa: E402
from wire import wifi  # noqa: E402


class Station:
    ssid = b"site"
    reason = 8

    def __init__(self, error):
        self._error = error
        self.wlan = self

    def is_up(self):
        return True

    def status(self, what):
        raise self._error


class Server:
    def __init__(self, error):
        self.beacon = self
        self.wifi = Station(error)


# What the port has no name for (no memory, say) it raises as another kind of exception. The
# client's session must not end by it.
def test_a_network_that_has_just_been_lost():
    for error in (OSError(12303), RuntimeError("Wifi Unknown Error 0x0101")):
        report = Network(Server(error)).build_report()
        assert report == wifi.build_report(wifi.CONNECTED, ssid=b"site", rssi=wifi.UNKNOWN_RSSI)
