"""Authenticates the requests of beacons by their HMAC, and signs the answers.

Rules:
  * A request is signed with a key that the beacon has, or may have been given (rekey).
  * A request is accepted once; the replay guard decides that (core/replay.py).
  * An answer is signed only for a request with a right signature, also an answer that refuses.
"""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from beacon_ota.orchestrator.core.replay import ReplaySlot, ReplayVerdict
from beacon_ota.orchestrator.http.problems import Problem
from beacon_ota.wire import auth, auth_header

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
_ZERO_KEY = bytes(32)


class KeyHolder(Protocol):
    """The attributes of a beacon that authentication needs."""

    key: bytes
    next_key: bytes | None  # the key that it is to receive
    given_keys: tuple[bytes, ...]  # the beacon may use any of these by now
    replay: ReplaySlot


B = TypeVar("B", bound=KeyHolder)


@dataclass(slots=True)
class Caller(Generic[B]):
    """An authenticated beacon, and the key and nonce that its answer is signed with."""

    beacon: B
    key: bytes = field(repr=False)
    nonce: str

    def sign_response(self, status: int, digest: str) -> tuple[bytes, bytes]:
        """Return the header with the signature of an answer.

        Args:
            status: the HTTP status of the answer.
            digest: hex SHA-256 of the answer's body.
        """
        return (
            b"x-beacon-mac",
            _compute_mac(self.key, auth.answer_text(self.nonce, status, digest)),
        )


class AuthenticationError(Problem):
    """A request with a wrong or missing signature, a wrong time, or one that was made before (401).

    Attributes:
        caller: the beacon, if the signature was right. Only then may the answer be signed: with
            a signed answer, somebody without the key could make the beacon believe it.
        claimed_sender: the id of a registered beacon that the request names, "" without one.
        sign_at: UTC seconds that the answer gives as the server's time, so that the next request
            is accepted; None for the present time.
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
    """Return the beacon that signed a request.

    Args:
        find_beacon: returns a beacon by its id, None for an unknown one.
        header: the value of the Authorization header.
        method: the HTTP method.
        target: path and query, exactly as sent.
        body: the request's body.
        now: UTC seconds.

    Raises:
        AuthenticationError: ``unknown_beacon``, ``bad_mac``, ``clock_skew`` or ``nonce_used``.
            The state is unchanged, except that a right signature uses its nonce up.
        ReachError: ``storage``: the replay guard has no space to remember the nonce.
    """
    parsed = auth_header.parse_header(header)
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
        # The same work as for a known beacon, so that the time does not reveal which ids exist.
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
    verdict = beacon.replay.accept(nonce, ts, now)
    if verdict is ReplayVerdict.USED:
        raise AuthenticationError("nonce_used", "this request was made before", caller, beacon_id)
    if verdict is ReplayVerdict.SKEWED:
        sign_at = beacon.replay.time_to_sign(now)
        reason = "the clock is off, or it is too long ago"
        raise AuthenticationError("clock_skew", reason, caller, beacon_id, sign_at)
    return caller


def wrap_new_key(old_key: bytes, new_key: bytes, nonce: str) -> str:
    """Return a new key, encrypted with the old one for one answer: 64 hex digits."""
    pad = hmac.digest(old_key, auth.rekey_text(nonce), "sha256")
    return bytes(a ^ b for a, b in zip(new_key, pad, strict=True)).hex()


def _compute_mac(key: bytes, text: bytes) -> bytes:
    """Return the HMAC-SHA256 of a text as hex digits."""
    return hmac.digest(key, text, "sha256").hex().encode()
