"""Beacon authentication: who sent this, and proof to it that we answered.

That nothing is accepted twice is the replay guard's work (core/replay.py). An answer is sealed
for a request whose mac was right, and for no other; also a refusal that comes after that.
"""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from beacon_ota.orchestrator.core.replay import Slot, Verdict
from beacon_ota.orchestrator.http.problems import Problem
from beacon_ota.wire import auth

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
_ZERO_KEY = bytes(32)


class KeyHolder(Protocol):
    """What the gate needs of a beacon."""

    key: bytes
    next_key: bytes | None  # the one that it is to have
    given_keys: tuple[bytes, ...]  # any of these may be the beacon's by now
    replay: Slot


B = TypeVar("B", bound=KeyHolder)


@dataclass(slots=True)
class Caller(Generic[B]):
    """An authenticated beacon and what its answer is signed with."""

    beacon: B
    key: bytes = field(repr=False)
    nonce: str

    def sign_response(self, status: int, digest: str) -> tuple[bytes, bytes]:
        """Return the header that proves an answer; ``digest`` is the hex SHA-256 of its body."""
        return (
            b"x-beacon-mac",
            _compute_mac(self.key, auth.answer_text(self.nonce, status, digest)),
        )


class AuthenticationError(Problem):
    """A request that is not who it says, or comes at the wrong time, or again.

    Attributes:
        caller: whose mac was right: it alone can be answered with a seal. Whoever has no key must
            not get the seal of one, whatever it covers: the beacon would believe it.
        claimed_sender: the registered beacon that it says it is from, "" when there is none.
        sign_at: the time that the beacon is told, and its next request is accepted with; None
            for the present.
    """

    def __init__(
        self,
        code: str,
        message: str,
        caller: Caller | None = None,
        claimed_sender: str = "",
        sign_at: int | None = None,
    ):
        super().__init__(401, code, message)
        self.caller = caller
        self.claimed_sender = claimed_sender
        self.sign_at = sign_at


def authenticate_request(
    find_beacon: Callable[[str], B | None],
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
        ReachError: ``storage``: there is no room to remember it.
    """
    parsed = auth.parse(header)
    if parsed is None:
        raise AuthenticationError(
            "unknown_beacon", "the Authorization header is missing or malformed"
        )
    beacon_id, ts, nonce, mac = parsed
    beacon = find_beacon(beacon_id)
    digest = hashlib.sha256(body).hexdigest() if body else EMPTY_SHA256
    text = auth.request_text(method, target, beacon_id, ts, nonce, digest)
    given = mac.encode()
    if beacon is None:
        # The same work as for a known one, so that ids cannot be told apart by time.
        hmac.compare_digest(_compute_mac(_ZERO_KEY, text), given)
        raise AuthenticationError("unknown_beacon", f"no beacon {beacon_id!r} is registered")
    for key in (beacon.key, *beacon.given_keys):
        if hmac.compare_digest(_compute_mac(key, text), given):
            break
    else:
        raise AuthenticationError(
            "bad_mac", "the signature does not fit the key", claimed_sender=beacon_id
        )
    caller = Caller(beacon, key, nonce)
    verdict = beacon.replay.use(nonce, ts, now)
    if verdict is Verdict.USED:
        raise AuthenticationError("nonce_used", "this request was made before", caller, beacon_id)
    if verdict is Verdict.SKEWED:
        sign_at = beacon.replay.time_to_sign(now)
        reason = "the clock is off, or it is too long ago"
        raise AuthenticationError("clock_skew", reason, caller, beacon_id, sign_at)
    return caller


def wrap_new_key(old_key: bytes, new_key: bytes, nonce: str) -> str:
    """Return a new key as it travels to the beacon that holds the old one."""
    pad = hmac.digest(old_key, auth.rekey_text(nonce), "sha256")
    return bytes(a ^ b for a, b in zip(new_key, pad, strict=True)).hex()


def _compute_mac(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, text, "sha256").hex().encode()
