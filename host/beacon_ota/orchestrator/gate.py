"""Beacon authentication: who sent this, and proof to it that we answered.

That nothing is accepted twice is the replay guard's work (replay.py).
"""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from beacon_ota.orchestrator.problems import Problem
from beacon_ota.orchestrator.replay import Slot, Verdict
from beacon_ota.wire import auth

EMPTY = hashlib.sha256(b"").hexdigest()
_ZERO_KEY = bytes(32)


class Keyed(Protocol):
    """What the gate needs of a beacon."""

    key: bytes
    next_key: bytes | None
    replay: Slot


B = TypeVar("B", bound=Keyed)


@dataclass(slots=True)
class Caller(Generic[B]):
    """An authenticated beacon and what its answer is signed with."""

    beacon: B
    key: bytes
    nonce: str

    def seal(self, status: int, digest: str) -> tuple[bytes, bytes]:
        """Return the header that proves an answer; ``digest`` is the hex SHA-256 of its body."""
        return (b"x-beacon-mac", _mac(self.key, auth.answer_text(self.nonce, status, digest)))


class Refused(Problem):
    """A request that is not who it says, with the means to seal the 401 for a known beacon.

    Attributes:
        sign_at: the time that the beacon is told, and its next request is accepted with; None
            for the present.
    """

    def __init__(
        self, code: str, message: str, caller: Caller | None = None, sign_at: int | None = None
    ):
        super().__init__(401, code, message)
        self.caller = caller
        self.sign_at = sign_at


def identify(
    find: Callable[[str], B | None],
    header: str,
    method: str,
    target: str,
    body: bytes,
    now: float,
) -> Caller[B]:
    """Return who signed a request.

    Args:
        find: a beacon by its id.
        header: the Authorization header's value.
        target: the path with its query as sent.
        now: UTC seconds.

    Raises:
        Refused: ``unknown_beacon``, ``bad_mac``, ``clock_skew`` or ``nonce_used``. Nothing has
            changed, except that a request with a right mac has used its nonce.
        Problem: 503 ``storage``: there is no room to remember it.
    """
    parsed = auth.parse(header)
    if parsed is None:
        raise Refused("unknown_beacon", "the Authorization header is missing or malformed")
    beacon_id, ts, nonce, mac = parsed
    beacon = find(beacon_id)
    digest = hashlib.sha256(body).hexdigest() if body else EMPTY
    text = auth.request_text(method, target, beacon_id, ts, nonce, digest)
    given = mac.encode()
    if beacon is None:
        # The same work as for a known one, so that ids cannot be told apart by time.
        hmac.compare_digest(_mac(_ZERO_KEY, text), given)
        raise Refused("unknown_beacon", f"no beacon {beacon_id!r} is registered")
    key = beacon.key
    if not hmac.compare_digest(_mac(key, text), given):
        if beacon.next_key is None or not hmac.compare_digest(_mac(beacon.next_key, text), given):
            raise Refused(
                "bad_mac", "the signature does not fit the key", Caller(beacon, key, nonce)
            )
        key = beacon.next_key
    caller = Caller(beacon, key, nonce)
    verdict = beacon.replay.use(nonce, ts, now)
    if verdict is Verdict.USED:
        raise Refused("nonce_used", "this request was made before", caller)
    if verdict is Verdict.SKEWED:
        sign_at = beacon.replay.time_to_sign(now)
        raise Refused("clock_skew", "the clock is off, or it is too long ago", caller, sign_at)
    return caller


def claimed(find: Callable[[str], B | None], header: str) -> Caller[B] | None:
    """Return whom a request says it is from, for sealing a refusal that needs no proof of it."""
    parsed = auth.parse(header)
    beacon = None if parsed is None else find(parsed[0])
    return None if parsed is None or beacon is None else Caller(beacon, beacon.key, parsed[2])


def rekey(old_key: bytes, new_key: bytes, nonce: str) -> str:
    """Return a new key as it travels to the beacon that holds the old one."""
    pad = hmac.digest(old_key, auth.rekey_text(nonce), "sha256")
    return bytes(a ^ b for a, b in zip(new_key, pad, strict=True)).hex()


def _mac(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, text, "sha256").hex().encode()
