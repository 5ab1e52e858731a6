# `network`: WiFi as the esp32 port has it; the state machine lives in the supervisor.

import _chip
from micropython import const

STA_IF = const(0)
AP_IF = const(1)
STAT_IDLE = const(1000)
STAT_CONNECTING = const(1001)
STAT_GOT_IP = const(1010)
STAT_NO_AP_FOUND = const(201)
STAT_WRONG_PASSWORD = const(202)
STAT_BEACON_TIMEOUT = const(200)
STAT_CONNECT_FAIL = const(203)
STAT_ASSOC_FAIL = const(203)
STAT_HANDSHAKE_TIMEOUT = const(204)
STAT_NO_AP_FOUND_W_COMPATIBLE_SECURITY = const(210)
STAT_NO_AP_FOUND_IN_AUTHMODE_THRESHOLD = const(211)
STAT_NO_AP_FOUND_IN_RSSI_THRESHOLD = const(212)
AUTH_OPEN = const(0)
AUTH_WEP = const(1)
AUTH_WPA_PSK = const(2)
AUTH_WPA2_PSK = const(3)
AUTH_WPA_WPA2_PSK = const(4)
AUTH_WPA3_PSK = const(6)
AUTH_WPA2_WPA3_PSK = const(7)


class WLAN:
    IF_STA = 0
    IF_AP = 1
    SEC_OPEN = 0
    SEC_WEP = 1
    SEC_WPA = 2
    SEC_WPA2 = 3
    SEC_WPA_WPA2 = 4
    SEC_WPA3 = 6
    SEC_WPA2_WPA3 = 7
    PM_NONE = 0
    PM_PERFORMANCE = 1
    PM_POWERSAVE = 2

    def __init__(self, interface=0):
        if interface not in (0, 1):
            raise ValueError("invalid WLAN interface identifier")
        self._if = interface

    def active(self, on=None):
        return _chip.call("wlan_active", self._if, None if on is None else bool(on))

    def connect(self, ssid=None, key=None, *, bssid=None):
        _chip.call("wlan_connect", _bytes(ssid), _bytes(key), _bytes(bssid))

    def disconnect(self):
        _chip.call("wlan_disconnect")

    def isconnected(self):
        return _chip.call("wlan_connected", self._if)

    def status(self, param=None):
        return _chip.call("wlan_status", self._if, param)

    def scan(self):
        return list(_chip.call("wlan_scan"))

    def config(self, *args, **kwargs):
        if args and kwargs:
            raise TypeError("either pos or kw args are allowed")
        if kwargs:
            for name in kwargs:
                value = kwargs[name]
                if isinstance(value, float):
                    value = int(value * 4)  # txpower, in quarter dBm as ESP-IDF counts
                elif name == "txpower":
                    value *= 4
                _chip.call("wlan_set", self._if, name, value)
            return
        if len(args) != 1:
            raise TypeError("can query only one param")
        value = _chip.call("wlan_get", self._if, args[0])
        return value * 0.25 if args[0] == "txpower" else value

    def ifconfig(self, config=None):
        if config is not None:
            _chip.call("wlan_ifconfig", config if isinstance(config, str) else tuple(config))
            return
        return _chip.call("wlan_ifconfig", None)

    def ipconfig(self, *args, **kwargs):
        if kwargs:
            return
        ip, mask, gateway, _ = _chip.call("wlan_ifconfig", None)
        if args[0] == "addr4":
            return ip, mask
        if args[0] == "gw4":
            return gateway
        if args[0] == "has_dhcp4":
            return ip != "0.0.0.0"
        if args[0] == "dhcp4":
            return True
        raise ValueError("unexpected key")


def _bytes(x):
    return x.encode() if isinstance(x, str) else x


def hostname(name=None):
    return _chip.call("hostname", name)


def country(code=None):
    return "XX" if code is None else None


def ipconfig(*args, **kwargs):
    if kwargs:
        return
    if args[0] == "dns":
        return _chip.call("wlan_ifconfig", None)[3]
    raise ValueError("unexpected key")
