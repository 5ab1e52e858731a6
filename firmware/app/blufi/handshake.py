# The EC1 exchange on one connection: counts guesses at the PIN, and computes in short steps of the
# main loop, so that doors still open meanwhile.

import asyncio
import time

from crypto.exchange import Responder
from micropython import const
from wire import ec1

_LONGEST = const(8)  # 2^8 s
_ENROLLED = const(160)
_SUITES = (ec1.SPAKE2, ec1.ECDH)


# Seconds from the n-th failure until the next guess is accepted: 1, 2, 4, … 256. Ten guesses take
# at least eight minutes, and there is no eleventh.
def delay_s(failures):
    return 1 << min(failures - 1, _LONGEST) if failures > 0 else 0


class Handshake:
    def __init__(self, server, used):
        self._server = server
        self._used = used  # whether this connection has keys already
        self._responder = None
        self.keys = None  # once the client has proved a secret
        self.fatal = False  # the session has to end

    # The answer to a client's message, None for none. After the answer to C_HELLO was sent,
    # compute() has to be called.
    async def handle(self, message):
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
        ec1.parse_message(message, ec1.C_HELLO, _SUITES)  # checked before anything is computed
        if server.is_locked():
            server.beacon.journal.write("blufi", "locked")
            raise ec1.Abort(ec1.A_LOCKED, False, server.failures)
        wait = self.seconds_left()
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
        await self.run_steps(responder.prepare())
        if server.client_gone:
            raise ec1.Abort(ec1.A_STATE, True)
        reply = responder.hello(message)
        # With this answer the client can make a guess. It counts as wrong until it is proved right,
        # so that neither a power cut nor a disconnection gives a free guess. If NVS cannot count
        # it, no answer is sent.
        if not self._count(server.failures + 1):
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
                abort.failures, abort.wait = server.failures, self.seconds_left()
            raise
        self._count(0)
        self.keys = self._responder.keys
        return reply

    # When NVS does not take a lower number, the higher one is back after a reset: the safe side.
    def _count(self, failures):
        server = self._server
        kept = server.beacon.store.try_put("pin_fail", failures or None)
        if kept or not failures:
            server.failures = failures
            server.last_failure = time.ticks_ms()
            server.beacon.advertise_status()
        return kept

    # Seconds until the next guess is accepted.
    def seconds_left(self):
        passed = time.ticks_diff(time.ticks_ms(), self._server.last_failure) // 1000
        wait = delay_s(self._server.failures)
        return wait - passed if 0 <= passed < wait else 0

    # Whether the client's C_FIN is the next message.
    def awaits_fin(self):
        return self._responder is not None and self.keys is None

    # Computes the keys, while the client computes them as well.
    async def compute(self):
        await self.run_steps(self._responder.work())

    # A step takes 5 to 15 ms. Stops when the client has left, because the next one waits.
    async def run_steps(self, steps):
        for _ in steps:
            await asyncio.sleep_ms(0)
            if self._server.client_gone:
                return
