# EC1's exchange on one connection: counts guesses, and spreads the computing over the main loop so
# that doors still open meanwhile.

import asyncio
import time

from crypto.exchange import Responder
from micropython import const
from wire import ec1

_LONGEST = const(8)  # 2^8 s
_ENROLLED = const(160)
_SUITES = (ec1.SPAKE2, ec1.ECDH)


# Seconds from the n-th failure until the next guess is heard: 1, 2, 4, … 256. Ten guesses take
# eight minutes at least, and there is no eleventh.
def guess_delay_s(failures):
    return 1 << min(failures - 1, _LONGEST) if failures > 0 else 0


class Handshake:
    def __init__(self, server, used):
        self._server = server
        self._used = used  # this connection has keys already
        self._responder = None
        self.keys = None  # once the client has proved a secret
        self.fatal = False  # there is nothing more to be said

    # The answer to a message of the client's. Once an answer to C_HELLO is out, work() is due.
    async def handle_message(self, message):
        try:
            if self._used:
                raise ec1.Abort(ec1.A_STATE)
            return self._fin(message) if self._responder else await self._hello(message)
        except ec1.Abort as abort:
            self._responder = None
            self.fatal = self._used or abort.by_peer or abort.code == ec1.A_LOCKED
            suite = message[3] if len(message) > 3 else ec1.SPAKE2
            return None if abort.by_peer else ec1.build_abort(abort, suite)

    async def _hello(self, message):
        server = self._server
        ec1.parse_message(message, ec1.C_HELLO, _SUITES)  # before anything is computed for it
        if server.is_locked():
            server.beacon.journal.write("blufi", "locked")
            raise ec1.Abort(ec1.A_LOCKED, False, server.failures)
        wait = self._seconds_left()
        if wait:
            raise ec1.Abort(ec1.A_WAIT, False, server.failures, wait)
        blob = server.beacon.store.blob
        try:
            responder = Responder(
                server.beacon.radio.name, blob("pin_w", _ENROLLED) or None, blob("pop") or None
            )
        except ValueError as error:
            print("blufi: PIN record:", error)
            raise ec1.Abort(ec1.A_SUITE)
        await self._run_steps(responder.prepare())
        if server.client_gone:
            raise ec1.Abort(ec1.A_STATE, True)
        reply = responder.hello(message)
        # An answer goes out that serves to guess: it counts as wrong until it is proved right, so
        # that no power cut and no disconnection gives a guess for nothing. One that NVS cannot
        # count would be for nothing, too.
        if not self._store_failures(server.failures + 1):
            raise ec1.Abort(ec1.A_STATE)
        self._responder = responder
        return reply

    def _fin(self, message):
        server = self._server
        try:
            reply = self._responder.finish(message)
        except ec1.Abort as abort:
            if abort.code == ec1.A_CONFIRM:
                server.last_failure = time.ticks_ms()
                abort.failures, abort.wait = server.failures, self._seconds_left()
            raise
        self._store_failures(0)
        self.keys = self._responder.keys
        return reply

    # Fewer failures than NVS keeps are forgotten with the power: that errs on the safe side.
    def _store_failures(self, failures):
        server = self._server
        kept = server.beacon.store.try_put("pin_fail", failures or None)
        if kept or not failures:
            server.failures = failures
            server.last_failure = time.ticks_ms()
            server.beacon.advertise_status()
        return kept

    # Until the next guess is heard.
    def _seconds_left(self):
        passed = time.ticks_diff(time.ticks_ms(), self._server.last_failure) // 1000
        wait = guess_delay_s(self._server.failures)
        return wait - passed if 0 <= passed < wait else 0

    # Is a C_FIN to be waited for?
    def awaits_fin(self):
        return self._responder is not None and self.keys is None

    # The client computes meanwhile, too.
    async def compute_keys(self):
        await self._run_steps(self._responder.work())

    # 5 to 15 ms a step. Nobody computes for a client who has left: the next one waits.
    async def _run_steps(self, steps):
        for _ in steps:
            await asyncio.sleep_ms(0)
            if self._server.client_gone:
                return
