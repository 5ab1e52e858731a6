"""The WiFi station of one beacon: the state machine behind ``network.WLAN``.

Status codes and errors as in MicroPython's ``ports/esp32/network_wlan.c``. As there, the station
retries a failed or lost connection until ``disconnect()``, or as often as ``reconnects`` says. The
reason of the last failure stays until the next one or a connection; while the station retries, most
reasons are hidden behind CONNECTING.
"""

import asyncio
from collections.abc import Callable

from beacon_ota.virtual.clock import VirtualClock
from beacon_ota.virtual.flash.partition import Panic
from beacon_ota.virtual.net.link import NetworkLink
from beacon_ota.virtual.net.network import GATEWAY, AccessPoint, Network
from beacon_ota.virtual.process.channel import Operation, Value

IDLE, CONNECTING, GOT_IP = 1000, 1001, 1010
ASSOC_LEAVE, BEACON_TIMEOUT, NO_AP, AUTH_FAIL, CONNECTION_FAIL = 8, 200, 201, 202, 205
_ALWAYS_SHOWN = (NO_AP, 210, 211, 212)  # also while the station retries

NOT_STARTED = "Wifi Not Started"
BUSY = "Wifi Internal State Error"
AGAIN = "Wifi Internal Error"
NOT_CONNECTED = "Wifi Not Connected"


class WlanStation:
    """The station interface.

    Args:
        network: the access points in range.
        link: the network link that is up while the station is connected.
        clock: the time of the beacon.
        mac: address, 6 bytes.
        bluetooth: returns whether Bluetooth is on (WiFi with it forbids ``pm=PM_NONE``).
        changed: called after every change of state.
    """

    def __init__(
        self,
        network: Network,
        link: NetworkLink,
        clock: VirtualClock,
        mac: bytes,
        bluetooth: Callable[[], bool],
        changed: Callable[[], None],
    ):
        self._network, self._link, self._clock, self._mac = network, link, clock, mac
        self._bluetooth, self._changed = bluetooth, changed
        self._task: asyncio.Task | None = None
        self.hostname = "mpy-esp32c3"
        self.reset()

    @property
    def operations(self) -> dict[str, Operation]:
        """The operations that the ``network`` stub calls."""
        return {
            "wlan_active": self._set_active,
            "wlan_connect": self._connect,
            "wlan_disconnect": self._disconnect,
            "wlan_connected": lambda interface: interface == 0 and self.connected,
            "wlan_status": self._get_status,
            "wlan_scan": self._scan_networks,
            "wlan_get": self._get_config,
            "wlan_set": self._set_config,
            "wlan_ifconfig": self._get_ifconfig,
            "hostname": self._set_hostname,
        }

    @property
    def connected(self) -> bool:
        """Associated, with an address."""
        return self.access_point is not None

    @property
    def _connecting(self) -> bool:
        return self._task is not None and not self._task.done()

    def reset(self) -> None:
        """Return to the state after a reset of the chip."""
        self._stop_joining()
        self.access_point: AccessPoint | None = None
        self.on = [False, False]
        self._credentials: tuple[bytes, bytes, bytes | None] | None = None
        self._connect_requested = False
        self._reason = 0
        self._limit = 0  # failures until the station gives up; 0: never
        self._failures = 0
        self._refusals = 0
        self._settings: dict[str, Value] = {"pm": 1, "txpower": 80, "protocol": 7, "channel": 1}
        self._link.set_up(False)
        self._changed()

    def lose_connection(self, reason: int = BEACON_TIMEOUT) -> None:
        """Break the connection, as when the access point falls silent."""
        if self.connected:
            self._set_disconnected(reason)
            if self._connect_requested and not self._limit:
                self._start_joining()

    def _set_disconnected(self, reason: int) -> None:
        self.access_point = None
        self._reason = reason
        self._link.set_up(False)
        self._changed()

    def _stop_joining(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def _start_joining(self) -> None:
        self._stop_joining()
        self._task = asyncio.get_running_loop().create_task(self._join_network())

    async def _join_network(self) -> None:
        """Try to join until it succeeds, or as often as ``reconnects`` allows."""
        while True:
            await asyncio.sleep(self._clock.real_seconds(self._network.join_time))
            assert self._credentials is not None
            ssid, key, bssid = self._credentials
            found = self._network.find_access_point(ssid, bssid)
            if found is not None and found.missed:
                found.missed -= 1
                found = None
            if found is not None and found.accepts(key):
                self.access_point = found
                self._reason = 0
                self._link.set_up(True)
                self._changed()
                return
            if found is None:
                self._reason = NO_AP
            else:
                self._reason = found.refusals[self._refusals % len(found.refusals)]
                self._refusals += 1
            self._changed()
            if self._limit:
                self._failures += 1
                if self._failures >= self._limit:
                    return

    def _set_active(self, interface: int, on: bool | None) -> bool:
        if on is not None and on != self.on[interface]:
            self.on[interface] = on
            if interface == 0 and not on:
                self._stop_joining()
                self._connect_requested = False
                self._set_disconnected(ASSOC_LEAVE)
            self._changed()
        return self.on[interface]

    def _connect(self, ssid: bytes | None, key: bytes | None, bssid: bytes | None) -> None:
        if not any(self.on):
            raise OSError(NOT_STARTED)
        if ssid is None:
            self._failures = 0
        if self._connecting:
            raise OSError(BUSY if ssid is not None else AGAIN)
        if ssid is not None:
            if bssid is not None and len(bssid) != 6:
                raise ValueError
            self._credentials = (ssid[:32], (key or b"")[:64], bssid)
            self._failures = 0
        if self.connected:
            raise OSError(AGAIN)
        if self._credentials is None:
            raise OSError("Wifi SSID Invalid")
        self._connect_requested = True
        self._start_joining()

    def _disconnect(self) -> None:
        self._connect_requested = False
        if not any(self.on):
            raise OSError(NOT_STARTED)
        busy = self._connecting or self.connected
        self._stop_joining()
        if busy:  # otherwise the driver has nothing to say, and the last reason stays
            self._set_disconnected(ASSOC_LEAVE)

    def _get_status(self, interface: int, param: str | None) -> Value:
        if param == "rssi":
            if interface:
                raise OSError("STA required")
            if self.access_point is None:
                raise OSError(NOT_CONNECTED)
            return self.access_point.rssi
        if param == "stations" and interface:
            return ()
        if param is not None:
            raise ValueError("unknown status param")
        if interface:
            return None
        if self.connected:
            return GOT_IP
        if self._reason in _ALWAYS_SHOWN:
            return self._reason
        if self._reason in (AUTH_FAIL, CONNECTION_FAIL):
            return AUTH_FAIL
        if self._reason == ASSOC_LEAVE:
            return IDLE
        if self._connect_requested and not (self._limit and self._failures >= self._limit):
            return CONNECTING
        return self._reason or IDLE

    async def _scan_networks(self) -> Value:
        if not self.on[0]:
            raise OSError("STA must be active")
        if self._connecting:
            return ()
        await asyncio.sleep(self._clock.real_seconds(self._network.scan_time))
        return tuple(
            (point.ssid, point.bssid, point.channel, point.rssi, point.security, False)
            for point in self._network.visible
        )

    def _get_config(self, interface: int, name: str) -> Value:
        if name == "mac":
            return self._mac if not interface else self._mac[:5] + bytes([self._mac[5] + 1 & 255])
        if name in ("ssid", "essid"):
            return (self._credentials or (b"", b"", None))[0].decode("utf-8", "replace")
        if name in ("hostname", "dhcp_hostname"):
            return self.hostname
        if name == "reconnects":
            return self._limit - 1
        if name == "channel" and self.access_point is not None:
            return self.access_point.channel
        if name not in self._settings:
            raise ValueError("unknown config param")
        return self._settings[name]

    def _set_config(self, interface: int, name: str, value: Value) -> None:
        if name in ("hostname", "dhcp_hostname"):
            self.hostname = str(value)
        elif name == "reconnects" and isinstance(value, int):
            self._limit = value + 1
        elif name == "mac" and isinstance(value, bytes):
            if len(value) != 6:
                raise ValueError("invalid buffer length")
            self._mac = value
        elif name in self._settings:
            if name == "pm" and value == 0 and self.on[0] and self._bluetooth():
                raise Panic("abort(): WiFi and Bluetooth together need modem sleep")
            self._settings[name] = value
        elif name not in ("ssid", "essid", "key", "password", "security", "authmode", "hidden"):
            raise ValueError("unknown config param")

    def _get_ifconfig(self, config: Value) -> Value:
        if config is not None:
            return None
        if not self.connected:
            return ("0.0.0.0", "0.0.0.0", "0.0.0.0", "0.0.0.0")
        return (self._link.address, "255.255.0.0", GATEWAY, GATEWAY)

    def _set_hostname(self, name: str | None) -> str | None:
        if name is None:
            return self.hostname
        if len(name) > 32:
            raise ValueError
        self.hostname = name
        return None
