# One provisioning client's session, from its first frame to its end. Its state decides which
# messages are allowed:
#
#   at first         version, negotiation, disconnect; other messages in the clear end the session
#   EC1              the client has proved a secret: all messages, but only sealed ones
#   Espressif's own  (policy `legacy`) networks only; names and passwords never in the clear
#
# Frames are handled one at a time in the main loop, so none can overtake another.

import asyncio
import errno

from micropython import const
from modules import unload
from wire import blufi
from wire.blufi import (
    E_DECRYPT,
    E_FORMAT,
    E_SECURITY,
    ERROR,
    NEGOTIATE,
    BlufiError,
    Link,
)

# Modules that are needed until there are keys, and all that a session may leave behind.
_EXCHANGE = const(
    "blufi.handshake crypto.exchange crypto.p256 crypto.base crypto.hkdf wire.ec1 wire.spake2"
)
MODULES = _EXCHANGE + (
    " blufi.session blufi.settings blufi.network crypto.blufi_v1 crypto.ccm factory_reset identity "
    "wire.blufi wire.records wire.url wire.tlv wire.wifi"
)

_CLEAR = const(0)
_EC1 = const(1)
_V1 = const(2)

_MAGIC = const(0xEC)  # wire.ec1 is loaded when it is needed
_SEALED = const(0x22)
_LOOK = const(250)  # ms between checks for changes to report
_MISTAKES = const(8)  # malformed frames that end a session
_STRANGER = const(60_000)  # ms of a session before a secret is proved
_SHARE = const(15_000)  # the same while another client waits
_FRIEND = const(300_000)  # ms of silence afterwards: people look for passwords
_LONGEST = const(1_800_000)  # ms of a session with a proved secret
_TRIES = const(250)  # to get a notification out, 20 ms apart


class Session:
    def __init__(self, server, link):
        self._server = server
        self._peer = link
        self._link = Link(True)
        self._level = _CLEAR
        self._exchange = None
        self._negotiation = None
        self._settings = None
        self._mistakes = 0
        self._ended = False

    async def run(self):
        radio = self._server.beacon.radio
        self._legacy = self._server.beacon.store.policy("legacy") == 1
        # With Espressif's app, people type passwords before the first message, and prove no secret:
        # they get the longer time.
        if self._legacy:
            radio.set_idle_timeout(self._peer, _FRIEND, _FRIEND, _STRANGER)
        else:
            radio.set_idle_timeout(self._peer, _STRANGER, _STRANGER, _SHARE)
        while not self._ended and not self._server.client_gone:
            frame = await self._server.next_frame(_LOOK)
            self._server.update_window()
            if frame is None:
                if self._settings:
                    self._settings.push(self.send)
            else:
                await self._receive(frame)
            await self._flush()
            await asyncio.sleep_ms(0)  # waiting frames must not stop other tasks
        if self._settings:
            self._settings.close()

    async def _receive(self, frame):
        try:
            message = self._link.receive(frame)
        except BlufiError as error:
            # After a frame that does not decrypt, no later one will: the session is over.
            self._error(error.code, error.code == E_DECRYPT)
            return
        if message is None:
            return
        kind = message.type
        if not self._permits(message):
            self._error(E_SECURITY, True)
        elif kind == NEGOTIATE:
            await self._negotiate(message.data)
        elif kind == blufi.SET_SECURITY:
            if self._level == _V1 and len(message.data) == 1:
                self._link.protect(message.data[0])
        elif kind == blufi.GET_VERSION:
            self.send(blufi.VERSION, blufi.PROTOCOL)
        elif kind == blufi.DISCONNECT_BLE:
            self._ended = True
        elif kind not in (blufi.ACK, ERROR):
            await self._handle(message)

    def _permits(self, message):
        kind = message.type
        if self._level == _EC1:
            return message.sealed or kind in (blufi.ACK, ERROR, NEGOTIATE)
        if blufi.in_clear(kind):
            return True
        # Espressif's app encrypts names and passwords, but not every request.
        return self._level == _V1 and (
            message.sealed or kind in (blufi.CONNECT, blufi.GET_STATUS, blufi.GET_LIST)
        )

    # Reports a mistake of the client, and ends the session when it is fatal or one too many.
    def _error(self, code, fatal=False):
        self.send(ERROR, bytes((code,)))
        self._count_failure(fatal)

    def _count_failure(self, fatal):
        self._mistakes += 1
        if fatal or self._mistakes > _MISTAKES:
            self._ended = True

    def send(self, kind, data=b""):
        self._link.send(kind, data)

    # Sends the queued frames. Each has to be sent once, in the order in which they were made.
    async def _flush(self):
        radio = self._server.beacon.radio
        self._link.mtu = radio.mtu(self._peer)
        while not self._server.client_gone:
            frame = self._link.transmit()
            if frame is None:
                return
            for _ in range(_TRIES):
                try:
                    radio.notify(self._peer, self._server.tx_handle, frame)
                    break
                except OSError as error:
                    if error.errno != errno.ENOMEM:
                        self._ended = True
                        return
                await asyncio.sleep_ms(20)
            else:
                self._ended = True
                return

    # -- agreeing on a key

    async def _negotiate(self, data):
        if data and data[0] == _MAGIC:
            await self._run_ec1(data)
        elif self._legacy and self._level != _EC1:
            await self._run_v1(data)
        elif data and data[0] <= 4:
            # Espressif's app would send the password in the clear after this, unless it is stopped.
            self._error(E_SECURITY, True)
            self.send(NEGOTIATE, b"\0")
        else:
            self._error(E_FORMAT)

    async def _run_ec1(self, data):
        if self._exchange is None:
            from blufi.handshake import Handshake

            self._exchange = Handshake(self._server, self._level != _CLEAR)
        exchange = self._exchange
        reply = await exchange.handle(data)
        if reply:
            self.send(NEGOTIATE, reply)
            await self._flush()
        if exchange.awaits_fin():
            await exchange.compute()
            return
        if exchange.keys:
            from crypto.ccm import Ccm
            from wire.records import Records

            self._link.protect(_SEALED, Records(Ccm, exchange.keys, True))
            self._level = _EC1
            self._trust()
        else:
            self._count_failure(exchange.fatal)
        self._exchange = exchange = None
        unload(_EXCHANGE)

    # The client has proved the secret and gets more time; waiting clients are disconnected, because
    # none would wait for so long.
    def _trust(self):
        server = self._server
        radio = server.beacon.radio
        server.client_proved = True
        radio.set_idle_timeout(self._peer, _FRIEND, _LONGEST, _LONGEST)
        for link, _ in server.queue:
            radio.disconnect(link)

    async def _run_v1(self, data):
        if self._negotiation is None:
            from crypto.blufi_v1 import Negotiation

            self._negotiation = Negotiation()
        try:
            public = self._negotiation.receive(data)
        except BlufiError as error:
            self._error(error.code)
            return
        if public:
            self.send(NEGOTIATE, public)
            await self._flush()
            self._link.protect(0, self._negotiation.cipher)
            self._level = _V1

    # -- settings

    async def _handle(self, message):
        if self._settings is None:
            from blufi.settings import Settings

            self._settings = Settings(self._server, self._level == _EC1)
        try:
            await self._settings.handle(message, self.send)
        except BlufiError as error:
            self._error(error.code)
