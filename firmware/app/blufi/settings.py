# Handles a client's requests once there is a session: networks, settings, credentials. Sends the
# beacon's state, and its changes while the settings are tried.

import asyncio
from binascii import unhexlify

import factory_reset
import identity
import machine
from micropython import const
from services import positioning
from wire import blufi, tlv, wifi
from wire.blufi import E_SECURITY, BlufiError

from blufi.network import Network

_FAREWELL = const(1000)  # ms between the last message and the reset


class Settings:
    # `trusted`: the client has proved a secret. Espressif's app has not: networks only.
    def __init__(self, server, trusted):
        self._server = server
        self._beacon = server.beacon
        self._trusted = trusted
        self._network = server.network or Network(server)
        self._reported = self._network.state
        self._sent = None  # the last STATE that was sent unasked
        self._watched = False

    async def handle(self, message, send):
        kind = message.type
        if kind != blufi.CUSTOM:
            await self._network.handle(kind, message.data, send)
            self._watched = self._watched or kind == blufi.CONNECT
        elif not self._trusted:
            raise BlufiError(E_SECURITY)
        else:
            send(blufi.CUSTOM, self._handle(message.data))

    # Sends changes that the client waits for.
    def push(self, send):
        if self._network.refused:
            self._push(send)  # the reason of a failed report
        state = self._network.state
        if state != self._reported:
            self._reported = state
            send(blufi.REPORT, self._network.build_report())
        self._push(send)

    def _push(self, send):
        if self._watched and self._trusted:
            state = self._build_state(self._network.refused)
            if state != self._sent:
                self._sent = state
                send(blufi.CUSTOM, state)

    # The client has left. The window stays open unless the new settings work.
    def close(self):
        if not self._watched or not self._trusted:
            return
        joined = self._network.state in (None, wifi.CONNECTED)
        self._server.open_window(not joined or self._beacon.agent.last_poll_result != "ok")

    # -- custom data: a message, and the STATE that answers it

    def _handle(self, data):
        try:
            kind, fields = tlv.decode(data)
            if kind == tlv.CONFIG:
                self._configure(fields)
            elif kind == tlv.CREDENTIALS:
                self._beacon.store.put("creds", fields["creds"] or None)
            elif kind == tlv.FORGET:
                self._forget()
            elif kind != tlv.QUERY:
                return self._build_state("message")
        except tlv.TlvError as error:
            return self._build_state(error.field or "message")
        except OSError as error:
            print("settings:", error)
            return self._build_state("storage")
        return self._build_state()

    # Stores all settings or none; an empty value erases its setting.
    def _configure(self, fields):
        beacon = self._beacon
        values = {}
        for name in fields:
            value = fields[name]
            values[name] = value.encode() if isinstance(value, str) else value
            if values[name] == b"":
                values[name] = None
        if "wifi2_ssid" in fields and "wifi2_pass" not in fields:
            values["wifi2_pass"] = None
        if "beacon_key" in fields and not beacon.store.text("beacon_id"):
            values["beacon_id"] = identity.read(beacon.store).encode()
        beacon.store.put_all(values)
        if "ibeacon" in fields:
            beacon.radio.set_ibeacon(positioning.frame(beacon.store))
        self._watched = True
        self._server.check_provisioned()
        beacon.on_provisioned()

    def _forget(self):
        self._beacon.journal.write("blufi", "forgot")
        factory_reset.erase(self._beacon.store)
        asyncio.create_task(_reset())

    def _build_state(self, refused=None):
        beacon = self._beacon
        up = beacon.wifi.state == "got_ip"
        return tlv.encode(
            tlv.STATE,
            {
                "beacon_id": identity.read(beacon.store),
                "version": beacon.version[:64],
                "image": unhexlify(beacon.image_sha256) if beacon.image_sha256 else None,
                "ip": beacon.wifi.wlan.ifconfig()[0] if up else None,
                "poll": beacon.agent.last_poll_result,
                "device_type": beacon.device_type,
                "refused": refused,
            },
        )


async def _reset():
    await asyncio.sleep_ms(_FAREWELL)
    machine.reset()
