# Tries the WiFi network that a client names, and stores it only once it works; the stored networks
# are kept until then. An attempt goes on when the client leaves.

import asyncio
import sys

from net.wifi import DRIVER
from wire import blufi, wifi
from wire.blufi import E_FORMAT, E_SCAN, E_STATE, BlufiError


class Network:
    def __init__(self, server):
        self._server = server
        self._ssid = b""
        self._password = b""
        self._reason = wifi.UNKNOWN_REASON
        self.state = None  # of the attempt
        self.refused = None  # "storage" when NVS did not take a network that works

    # Handles the messages about networks.
    async def handle(self, kind, data, send):
        if kind == blufi.SET_OPMODE:
            if data != bytes((wifi.OPMODE_STA,)):
                raise BlufiError(E_FORMAT)  # the beacon is no access point
        elif kind == blufi.STA_SSID:
            if not 0 < len(data) <= wifi.MAX_SSID:
                raise BlufiError(E_FORMAT)
            self._ssid = data
            self._password = b""
        elif kind == blufi.STA_PASSWORD:
            if len(data) > wifi.MAX_PASSWORD:
                raise BlufiError(E_FORMAT)
            self._password = data
        elif kind == blufi.CONNECT:
            self._connect()
        elif kind == blufi.GET_STATUS:
            send(blufi.REPORT, self.build_report())
        elif kind == blufi.GET_LIST:
            send(blufi.LIST, await self._scan())

    def _connect(self):
        if not self._ssid:
            raise BlufiError(E_FORMAT)
        if self.state == wifi.CONNECTING:
            raise BlufiError(E_STATE)
        self.state = wifi.CONNECTING
        self.refused = None
        self._server.network = self
        asyncio.create_task(self._try(self._ssid, self._password))

    # This task has no supervisor, so no exception may leave it.
    async def _try(self, ssid, password):
        beacon = self._server.beacon
        station = beacon.wifi
        store = beacon.store
        await station.claim()
        try:
            known = ssid == station.ssid == store.blob("wifi_ssid") and station.is_up()
            if known and password == store.blob("wifi_pass") or await station.join(ssid, password):
                values = {"wifi_ssid": ssid, "wifi_pass": password or None}
                if store.policy("legacy"):
                    values["policy"] = store.policy_with("legacy", 0)  # used up
                store.put_all(values)
                store.load_policy()
                self.state = wifi.CONNECTED
                self._server.check_provisioned()
                beacon.on_provisioned()
            else:
                self._reason = station.reason
                self.state = wifi.FAILED
        except OSError as error:
            print("settings:", error)
            beacon.journal.write("blufi", "storage", str(error))
            self.refused = "storage"
            self.state = wifi.FAILED
        except Exception as error:
            sys.print_exception(error)
            beacon.journal.write("blufi", "network", repr(error))
            self.state = wifi.FAILED
        station.release()
        self._server.network = None

    # A REPORT of the attempt, or of the current network when there was none.
    def build_report(self):
        station = self._server.beacon.wifi
        if self.state == wifi.CONNECTING:
            return wifi.build_report(wifi.CONNECTING, ssid=self._ssid)
        if self.state == wifi.FAILED:
            return wifi.build_report(wifi.FAILED, ssid=self._ssid, reason=self._reason)
        if not station.is_up():
            return wifi.build_report(wifi.FAILED, ssid=station.ssid, reason=station.reason)
        try:
            rssi = station.wlan.status("rssi")
        except DRIVER:
            rssi = wifi.UNKNOWN_RSSI  # the network has just been lost
        return wifi.build_report(wifi.CONNECTED, ssid=station.ssid, rssi=rssi)

    async def _scan(self):
        station = self._server.beacon.wifi
        if self.state == wifi.CONNECTING:
            raise BlufiError(E_SCAN)
        await station.claim()
        try:
            return wifi.build_list(_scan(station))
        except DRIVER as error:
            print("wifi: scan:", error)
            raise BlufiError(E_SCAN)
        finally:
            station.release()


# [(ssid, RSSI)], the strongest first, each name once. The driver blocks for 2 s, and finds nothing
# while it is joining a network; raises DRIVER when it cannot scan.
def _scan(station):
    if not station.is_up():
        station.disconnect()
    found = {}
    for one in station.wlan.scan():
        if one[0] and one[3] > found.get(one[0], -999):
            found[one[0]] = one[3]
    return sorted(found.items(), key=lambda network: -network[1])
