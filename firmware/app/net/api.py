# Talking with the orchestrator: every request signed, every answer's signature checked before a
# byte of it is believed (docs/contracts.md, section 2). The clock follows authenticated answers.

import json
import os
import time
from binascii import hexlify
from hashlib import sha256

from crypto.hmac import equal, hmac_sha256
from micropython import const
from modules import unload
from wire import auth

from net import clock, http
from net.http import HttpError

DEFAULT = "http://orchestrator.local:8080"
_TOTAL = const(45000)  # ms for a call that is no download
_STALL = const(15000)
_OFFER = const(10240)  # bytes: wire.offer.MAX_BODY
_WORD = const(2048)  # of every other answer, which may come beside a download
_BRACKETS = const(48)
_STUBBORN = const(3)  # name failures before the port's own, blocking resolver is asked


def _hex(data):
    return hexlify(data).decode()


# Somebody answered who is not the orchestrator, or one that does not know this beacon: whoever
# looks after the site wants to hear of it as soon as the real one is back.
class Unsealed(HttpError):
    pass


class Api:
    def __init__(self, store, wifi):
        self._store = store
        self._wifi = wifi
        self._address = None
        self._address_proven = False  # was the orchestrator there, the last time?
        self._failed_lookups = 0
        self.nonce = ""  # of the last request: a new key is tied to it
        self.reload()

    # After provisioning, or under a new key.
    def reload(self):
        self.id = self._store.text("beacon_id")
        self._key = self._store.blob("beacon_key")
        self._address = None
        self._address_proven = False
        text = self._store.text("orch_url", DEFAULT)
        self._is_default = text == DEFAULT
        from wire import url

        # Earlier releases took a path behind the host, and never used it.
        end = text.find("/", 8)
        try:
            self._server = url.parse_url(text if end < 0 else text[:end])
        except ValueError as error:
            self._server = None
            print("orch_url:", error)
        url = None
        unload("wire.url")

    # What came of an answer that began well makes it doubtful who gives it: the name is looked up
    # again before the next one.
    def distrust_address(self):
        self._address_proven = False

    # Can this beacon sign at all?
    def can_sign(self):
        return auth.is_valid_id(self.id) and len(self._key) == 32

    # (status, decoded JSON or None, seconds of Retry-After or None). Raises HttpError; every
    # status that it returns is the orchestrator's own word.
    async def call(self, method, target, doc=None):
        body = b"" if doc is None else json.dumps(doc).encode()
        if doc and "clock_unset" not in doc:
            doc = None
        for again in (True, False):
            status, answer, retry = await self._exchange(method, target, body)
            # The answer brought the right time; only once, or two clocks that disagree loop.
            if not (again and status == 401 and is_clock_skew(answer)):
                break
            if doc:  # it was written before that
                del doc["clock_unset"]
                doc["updated_at"] = clock.utc()
                body = json.dumps(doc).encode()
        return status, answer, retry

    async def _exchange(self, method, target, body):
        deadline = time.ticks_add(time.ticks_ms(), _TOTAL)
        limit = _WORD if body else _OFFER
        return await self.read_answer(
            await self.open_request(method, target, body, (), _STALL, deadline), limit
        )

    # A small answer, whole: (status, decoded JSON or None, seconds of Retry-After or None).
    async def read_answer(self, connection, limit=_WORD):
        try:
            answer = await connection.read(limit)
        finally:
            connection.close()
        self.check_mac(connection, _hex(sha256(answer).digest()))
        return (
            connection.status,
            _parse_answer(answer) if answer else None,
            _parse_retry_after(connection),
        )

    # `digest` as the orchestrator signed it, or nobody knows who this was.
    def check_mac(self, connection, digest):
        status = connection.status
        given = connection.headers.get("x-beacon-mac", "")
        text = auth.answer_text(self.nonce, status, digest)
        if not equal(hexlify(hmac_sha256(self._key, text)), given.encode()):
            # A server in trouble may not get as far as signing; anything else is a stranger, or
            # a beacon that the orchestrator does not know.
            raise Unsealed("http", "status %d, not authentic" % status, status < 500)
        self._address_proven = True

    async def open_request(self, method, target, body, headers, idle_timeout_ms, deadline):
        if self._server is None:
            raise HttpError("connect", "bad orch_url")
        tls, host, port = self._server
        if not self._address_proven:
            await self._resolve_server(host, port)
        # Only an authentic answer says that it is there still. Silence, a stranger's answer and
        # half of an answer do not: it may have moved.
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

    # The header that proves who asks. Its nonce ties the answer to it.
    def _sign(self, method, target, body):
        self.nonce = _hex(os.urandom(8))
        ts = clock.unchecked()
        digest = _hex(sha256(body).digest())
        text = auth.request_text(method, target, self.id, ts, self.nonce, digest)
        mac = _hex(hmac_sha256(self._key, text))
        return "Authorization", auth.build_header(self.id, ts, self.nonce, mac)

    # Names are looked up once in a long while: the modules for it go again.
    async def _resolve_server(self, host, port):
        from net import locate

        try:
            self._address = await locate.find_orchestrator(
                host,
                port,
                self._wifi.nameserver,
                self._is_default,
                self._failed_lookups % _STUBBORN == _STUBBORN - 1,
            )
            self._failed_lookups = 0
        except OSError as error:
            self._failed_lookups += 1
            # Nobody knows the name now: where it led before is as good as ever.
            if self._address is None:
                raise HttpError("connect", str(error))
        finally:
            locate = None
            unload("net.locate net.dns wire.url")


# The document of an authentic answer; the clock follows what it says.
def _parse_answer(answer):
    doc = _decode_json(answer)
    server_time = doc.get("server_time")
    clock.set(server_time, is_clock_skew(doc))
    return doc


# Was a request refused for its time?
def is_clock_skew(doc):
    return doc is not None and doc.get("code") == "clock_skew"


# Seconds of the Retry-After header; nothing signs it, so whoever uses it puts bounds on it.
def _parse_retry_after(connection):
    value = connection.headers.get("retry-after", "")
    return int(value) if 0 < len(value) < 8 and not value.strip("0123456789") else None


# The JSON object of an authenticated answer. Even a friend's JSON may not pile up on this heap.
def _decode_json(answer):
    try:
        if answer.count(b"[") + answer.count(b"{") <= _BRACKETS:
            doc = json.loads(answer)
            if isinstance(doc, dict):
                return doc
    except (ValueError, MemoryError):
        pass  # said below
    raise HttpError("http", "answer is not a small JSON object")
