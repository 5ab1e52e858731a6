# Requests to the orchestrator: every request is signed, and every answer's signature is checked
# before its content is used (docs/contracts.md, section 2). Authenticated answers set the clock.

import json
import os
import time
from binascii import hexlify
from hashlib import sha256

from crypto.hmac import equal, hmac_sha256
from micropython import const
from modules import unload, use
from wire import auth

from net import clock, http
from net.http import HttpError

DEFAULT = "http://orchestrator.local:8080"
_TOTAL = const(45000)  # ms for a call that is no download
_STALL = const(15000)
_OFFER = const(10240)  # bytes: wire.offer.MAX_BODY
_WORD = const(2048)  # bytes of any other answer, which may arrive during a download
_BRACKETS = const(48)  # of a JSON answer: bounds nesting and memory
_STUBBORN = const(3)  # name failures before the port's own, blocking resolver is asked


def _hex(data):
    return hexlify(data).decode()


# The answer was not authenticated. `refused` is True when it reads like an orchestrator that does
# not know this beacon, "stranger" when something else answers (a captive portal, another server),
# False for a failing server. It is journalled, so that operators learn of it when the orchestrator
# is back.
class Unsealed(HttpError):
    pass


class Api:
    def __init__(self, store, wifi):
        self._store = store
        self._wifi = wifi
        self._address = None
        self._address_proven = False  # whether the last exchange was authentic
        self._failed_lookups = 0
        self.nonce = ""  # of the last request; a new key is wrapped with it
        self.reload()

    # Called after provisioning and after a new key.
    def reload(self):
        self.id = self._store.text("beacon_id")
        self._key = self._store.blob("beacon_key")
        self._address = None
        self._address_proven = False
        text = self._store.text("orch_url", DEFAULT)
        self._is_default = text == DEFAULT
        # Earlier releases took a path behind the host, and never used it.
        end = text.find("/", 8)
        try:
            self._server = use("wire.url", "parse", text if end < 0 else text[:end])
        except ValueError as error:
            self._server = None
            print("orch_url:", error)

    # With False, an authentic answer ended badly, so its sender is doubtful: the name is looked up
    # again before the next request.
    def trust_address(self, valid):
        self._address_proven = valid

    # Whether this beacon has the id and the key that a signature takes.
    def can_sign(self):
        return auth.is_valid_id(self.id) and len(self._key) == 32

    # Returns (status, decoded JSON or None, seconds of Retry-After or None) of an authenticated
    # answer. Raises HttpError. `build(*args)` makes the object that is sent; no variable holds that
    # beside its JSON.
    async def call(self, method, target, build=None, *args):
        for again in (True, False):
            body = json.dumps(build(*args)).encode() if build else b""
            status, answer, retry = await self._exchange(method, target, body)
            # The answer has set the clock. Only one repetition, or clocks that disagree would loop.
            if not (again and status == 401 and is_clock_skew(answer)):
                return status, answer, retry

    async def _exchange(self, method, target, body):
        deadline = time.ticks_add(time.ticks_ms(), _TOTAL)
        limit = _WORD if body else _OFFER
        return await self.read_answer(
            await self.open_request(method, target, body, (), _STALL, deadline), limit
        )

    # Reads a small answer: (status, decoded JSON or None, seconds of Retry-After or None).
    async def read_answer(self, connection, limit=_WORD):
        status = connection.status
        answer = b""
        try:
            # A stranger's page may be long, and only a 401 can say whether it is one.
            if status == 401 or "x-beacon-mac" in connection.headers:
                answer = await connection.read(limit)
        finally:
            connection.close()
        self.check_mac(connection, _hex(sha256(answer).digest()), answer)
        return (
            status,
            parse_answer(answer) if answer else None,
            _parse_retry_after(connection),
        )

    # Raises Unsealed unless the orchestrator signed this status and `digest`.
    def check_mac(self, connection, digest, answer=b""):
        status = connection.status
        given = connection.headers.get("x-beacon-mac", "")
        text = auth.answer_text(self.nonce, status, digest)
        if not equal(hexlify(hmac_sha256(self._key, text)), given.encode()):
            # A failing server (5xx) may be unable to sign; 511 is a captive portal's.
            refused = (status < 500 or status == 511) and "stranger"
            if status == 401 and (b'"unknown_beacon"' in answer or b'"bad_mac"' in answer):
                refused = True
            raise Unsealed("http", "status %d, not authentic" % status, refused)
        self._address_proven = True

    async def open_request(self, method, target, body, headers, idle_timeout_ms, deadline):
        if self._server is None:
            raise HttpError("connect", "bad orch_url")
        tls, host, port = self._server
        if not self._address_proven:
            await self._resolve_server(host, port)
        # Only an authentic answer proves the address. After silence, a stranger's answer or half an
        # answer the orchestrator may have moved.
        self._address_proven = False
        pinned = None
        if tls:
            from net import https

            pinned = https.Pinned()
        while True:
            try:
                return await http.request(
                    self._address,
                    "%s:%d" % (host, port),
                    method,
                    target,
                    (self._sign(method, target, body),) + headers,
                    body,
                    pinned,
                    idle_timeout_ms,
                    deadline,
                )
            except HttpError:
                if not (pinned and pinned.retry_later_date()):
                    raise

    # The header that authenticates a request. Its nonce binds the answer to the request.
    def _sign(self, method, target, body):
        self.nonce = _hex(os.urandom(8))
        ts = clock.unchecked()
        digest = _hex(sha256(body).digest())
        text = auth.request_text(method, target, self.id, ts, self.nonce, digest)
        mac = _hex(hmac_sha256(self._key, text))
        return "Authorization", auth.build_header(self.id, ts, self.nonce, mac)

    # Names are looked up rarely: the modules for that are unloaded afterwards.
    async def _resolve_server(self, host, port):
        from net import locate

        try:
            self._address = await locate.find(
                host,
                port,
                self._wifi.nameserver,
                self._is_default,
                self._failed_lookups % _STUBBORN == _STUBBORN - 1,
            )
            self._failed_lookups = 0
        except OSError as error:
            self._failed_lookups += 1
            # The name cannot be resolved now: the previous address is tried again.
            if self._address is None:
                raise HttpError("connect", str(error))
        finally:
            locate = None
            unload("net.locate net.dns wire.url")


# The JSON object of an authentic answer; sets the clock by it.
def parse_answer(answer):
    doc = _decode_json(answer)
    clock.set(doc.get("server_time"), is_clock_skew(doc))
    return doc


# Whether a request was refused because of its time.
def is_clock_skew(doc):
    return doc is not None and doc.get("code") == "clock_skew"


# Seconds of the Retry-After header. The header is not signed, so callers have to bound it.
def _parse_retry_after(connection):
    value = connection.headers.get("retry-after", "")
    return int(value) if 0 < len(value) < 8 and not value.strip("0123456789") else None


# Decodes the JSON object of an authentic answer; even that must not exhaust the heap.
def _decode_json(answer):
    try:
        if answer.count(b"[") + answer.count(b"{") <= _BRACKETS:
            doc = json.loads(answer)
            if isinstance(doc, dict):
                return doc
    except (ValueError, MemoryError):
        pass  # raised below
    raise HttpError("http", "answer is not a small JSON object")
