# The beacon's part of EC1 (wire/ec1.py) for one client and one exchange. Costly steps are
# generators, which have to be run to their end before the next call; between their steps other
# tasks can run:
#
#   prepare()  before the first message     base point, 0.1 s
#   hello()    C_HELLO -> S_HELLO           at once
#   work()     while the client computes    one multiplication, 0.25 s
#   finish()   C_FIN -> S_FIN, then `keys`  at once
#
# An Abort ends the exchange. A client that got an S_HELLO and sent no good C_FIN has made a guess
# at the PIN, which the caller has to count.

from os import urandom

from micropython import const
from wire import ec1

from . import base, p256
from .hkdf import hkdf
from .hmac import equal, hmac_sha256

_FRESH = const(0)
_PREPARED = const(1)
_GREETED = const(2)
_WORKED = const(3)
_OVER = const(4)

_STORED = const(160)


# The record that a beacon stores in place of its PIN: w, w·M and w·N. For this beacon's name it is
# worth as much as the PIN, so it is stored with the keys.
def enroll(pin, name):
    from wire import spake2

    w = int.from_bytes(ec1.derive_password(hkdf, pin, name), "big") % p256.N
    stored = w.to_bytes(32, "big")
    for point in (spake2.M, spake2.N):
        stored += p256.encode(p256.multiply(w, p256.decode(point)))
    return stored


# `stored` allows suite 21, `pop` suite 11. `random(n)` gives n bytes: 32 for the scalar (again when
# they are no scalar), then 16 for the nonce.
class Responder:
    def __init__(self, name, stored=None, pop=None, random=urandom):
        self._name = name
        self._suites = []
        self._random = random
        self._state = _FRESH
        self.keys = None
        if stored is not None:
            if len(stored) != _STORED:
                raise ValueError("stored password")
            self._w = stored[:32]
            self._wm = p256.decode(stored[32:96])
            self._wn = p256.decode(stored[96:])
            self._suites.append(ec1.SPAKE2)
        if pop is not None:
            if not ec1.MIN_POP <= len(pop) <= ec1.MAX_POP:
                raise ValueError("proof of possession")
            self._pop = pop
            self._suites.append(ec1.ECDH)

    # Makes the beacon's scalar, its point and its nonce, fresh for each exchange.
    def prepare(self):
        if self._state != _FRESH:
            raise ValueError("used")
        y = 0
        while not 0 < y < p256.N:
            y = int.from_bytes(self._random(32), "big")
        self._nonce = self._random(ec1.NONCE)
        self._public = yield from base.steps(y)
        self._y = y
        self._state = _PREPARED

    def hello(self, message):
        body = self._expect(message, ec1.C_HELLO, _PREPARED)
        self._suites = [message[3]]
        try:
            peer = p256.decode(body[ec1.NONCE :])
        except ValueError:
            self._abort(ec1.A_POINT)
        public = self._public
        if message[3] == ec1.SPAKE2:
            public = p256.add(public, self._wn)
            peer = p256.add(peer, p256.negate(self._wm))
        if public is None or peer is None:
            self._abort(ec1.A_POINT)
        self._peer = peer
        self._client = bytes(message)
        self._server = ec1.build_message(ec1.S_HELLO, message[3], self._nonce + p256.encode(public))
        self._state = _GREETED
        return self._server

    def work(self):
        if self._state != _GREETED:
            raise ValueError("no hello")
        y = self._y
        self._y = None
        shared = p256.encode((yield from p256.steps(y, self._peer)))
        if self._suites[0] == ec1.SPAKE2:
            tt, root = ec1.derive_spake2(self._name, self._client, self._server, shared, self._w)
        else:
            tt, root = ec1.derive_ecdh(hkdf, self._client, self._server, shared[:32], self._pop)
        self._derived = ec1.derive_keys(hkdf, hmac_sha256, self._client, self._server, tt, root)
        self._state = _WORKED

    def finish(self, message):
        tag = self._expect(message, ec1.C_FIN, _WORKED)
        client, server, keys = self._derived
        if not equal(tag, client):
            self._abort(ec1.A_CONFIRM)
        self._state = _OVER
        self.keys = keys
        return ec1.build_message(ec1.S_FIN, message[3], server)

    # The body of the message that is expected now; any other message ends the exchange.
    def _expect(self, message, type_, state):
        try:
            if self._state != state:
                raise ec1.Abort(ec1.A_STATE)
            return ec1.parse_message(message, type_, self._suites)
        except ec1.Abort:
            self._state = _OVER
            raise

    def _abort(self, code):
        self._state = _OVER
        raise ec1.Abort(code)
