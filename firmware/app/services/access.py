# Access control: opens the door for a peer that proves to hold a credential. It must not stop
# during an update, so it does nothing that takes long, and keeps no state that grows; the
# credentials are read from NVS each time.

import asyncio
import errno
import os
import time

from crypto.hmac import equal, hmac_sha256
from micropython import const
from modules import use
from wire import access

_WRITE = const(0x0008)
_NOTIFY = const(0x0010)
_LINKS = const(4)
_AGAIN = const(60)  # ms until an answer that found no memory is sent again


class Access:
    def __init__(self, store, radio):
        import bluetooth

        self._store = store
        self._radio = radio
        self._control = self._status = 0
        self._challenges = {}  # link -> (nonce, credential id, ticks)
        self._unsent = {}  # link -> answer that found no memory
        radio.add_service(
            (
                bluetooth.UUID(access.SERVICE),
                (
                    (bluetooth.UUID(access.CONTROL), _WRITE),
                    (bluetooth.UUID(access.STATUS), _NOTIFY),
                ),
            ),
            self,
        )

    def is_up(self):
        return bool(self._control)

    # -- called by the radio

    def on_handles(self, ble, handles):
        self._control, self._status = handles

    def on_disconnect(self, link):
        self._challenges.pop(link, None)
        self._unsent.pop(link, None)

    def on_write(self, link, handle, data):
        if handle != self._control:
            return
        kind, payload = access.parse_message(data)
        if kind == access.REQUEST:
            nonce = os.urandom(access.NONCE)
            if link in self._challenges or len(self._challenges) < _LINKS:
                self._challenges[link] = (nonce, payload, time.ticks_ms())
            self.notify(link, access.build_challenge(nonce))
        elif kind == access.PROOF:
            granted = self._check_proof(self._challenges.pop(link, None), payload)
            self.notify(link, bytes((access.GRANTED if granted else access.REFUSED,)))
            if granted:
                self._radio.renew_timeouts(link)
                use("services.strike", "open", self._store)

    # A challenge is good for one answer. An unknown id takes as long to refuse as a wrong secret.
    def _check_proof(self, opened, proof):
        if not opened:
            return False
        nonce, ident, since = opened
        size = access.MAX_CREDENTIALS * (access.ID + access.SECRET)
        secret = access.find_secret(self._store.blob("creds", size), ident)
        held = secret or bytes(access.SECRET)
        good = False
        name = use("identity", "read", self._store)
        for key in (held, access.door_key(hmac_sha256, held, name)):
            good = equal(hmac_sha256(key, nonce)[: access.SECRET], proof) or good
        late = not 0 <= time.ticks_diff(time.ticks_ms(), since) <= access.LIFETIME
        return good and bool(secret) and not late

    # NimBLE may have no memory at the moment: it is asked once more.
    def notify(self, link, message):
        if self._send(link, message) == errno.ENOMEM:
            if link not in self._unsent:
                asyncio.create_task(self._send_again(link))
            self._unsent[link] = message

    async def _send_again(self, link):
        await asyncio.sleep_ms(_AGAIN)
        if link in self._unsent:
            self._send(link, self._unsent.pop(link))

    def _send(self, link, message):
        try:
            self._radio.notify(link, self._status, message)
        except OSError as error:
            print("access:", error)  # the reader has gone, or will try again
            return error.errno
