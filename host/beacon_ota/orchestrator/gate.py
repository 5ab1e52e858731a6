"""Beacon authentication: who sent this, and proof to it that we answered.

Replays are refused by a window as in IPsec: the nonces of a beacon's last requests are
remembered, and a request older than everything remembered is refused by its time. So the memory
per beacon is bounded, and nothing is accepted twice. What was remembered is gone after a restart;
therefore nothing signed before the start is accepted, and a beacon whose clock lags is told the
time and signs again.
"""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from mmap import mmap
from typing import Generic, Protocol, TypeVar

from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.orchestrator.problems import Problem
from beacon_ota.wire import auth

EMPTY = hashlib.sha256(b"").hexdigest()
_ZERO_KEY = bytes(32)
ENTRY = 12  # bytes that a request is remembered by: nonce, ts (u32, little endian)
_ROOM = 16  # nonces, as long as no more are of use


@dataclass(slots=True)
class Nonces:
    """The requests of one beacon that must not come again: 12 bytes each, nonce and second.

    What the clock refuses by now is forgotten when the memory is full; it begins small and grows
    with what is still of use, because a large fleet is mostly beacons that ask now and then.
    """

    floor: int  # nothing signed before this second
    memory: bytearray = field(default_factory=bytearray)
    room: int = _ROOM

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self.memory) // ENTRY

    def use(self, nonce: str, ts: int, now: float) -> bool:
        """Take a nonce; False when it was used, or is too old to know."""
        wanted = bytes.fromhex(nonce)
        if ts < self.floor or remembered(self.memory, wanted, 0, len(self.memory)):
            return False
        if len(self) >= self.room:
            self._forget(int(now) - auth.MAX_SKEW)
            if ts < self.floor:
                return False
        self.memory += wanted + ts.to_bytes(4, "little")
        return True

    def _forget(self, horizon: int) -> None:
        """Make room: what the clock refuses anyway goes first, then the oldest quarter."""
        entries = [bytes(self.memory[at : at + ENTRY]) for at in range(0, len(self.memory), ENTRY)]
        kept = [entry for entry in entries if _second(entry) >= horizon]
        if len(kept) >= LIMITS.nonces:
            self.floor = sorted(map(_second, kept))[len(kept) // 4] + 1
            kept = [entry for entry in kept if _second(entry) >= self.floor]
        self.memory = bytearray(b"".join(kept))
        self.room = min(max(2 * len(kept), _ROOM), LIMITS.nonces)


def _second(entry: bytes) -> int:
    return int.from_bytes(entry[8:], "little")


def remembered(memory: bytearray | mmap, nonce: bytes, start: int, end: int) -> bool:
    """Whether one of the entries from ``start`` to ``end`` begins with a nonce."""
    found = memory.find(nonce, start, end)
    while found >= 0:
        if (found - start) % ENTRY == 0:
            return True
        found = memory.find(nonce, found + 1, end)
    return False


class Memory(Protocol):
    """What is remembered of one beacon's requests."""

    @property
    def floor(self) -> int: ...

    def use(self, nonce: str, ts: int, now: float) -> bool: ...


class Keyed(Protocol):
    """What the gate needs of a beacon."""

    key: bytes
    next_key: bytes | None
    nonces: Memory


B = TypeVar("B", bound=Keyed)


@dataclass(slots=True)
class Caller(Generic[B]):
    """An authenticated beacon and what its answer is signed with."""

    beacon: B
    key: bytes = field(repr=False)
    nonce: str

    def seal(self, status: int, digest: str) -> tuple[bytes, bytes]:
        """Return the header that proves an answer; ``digest`` is the hex SHA-256 of its body."""
        return (b"x-beacon-mac", _mac(self.key, auth.answer_text(self.nonce, status, digest)))


class Refused(Problem):
    """A request that is not who it says, with the means to seal the 401 for a known beacon."""

    def __init__(self, code: str, message: str, caller: Caller | None = None):
        super().__init__(401, code, message)
        self.caller = caller


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
    if abs(now - ts) > auth.MAX_SKEW or ts < beacon.nonces.floor:
        raise Refused("clock_skew", "the clock is off, or the request is from long ago", caller)
    if not beacon.nonces.use(nonce, ts, now):
        raise Refused("nonce_used", "this request was made before", caller)
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
