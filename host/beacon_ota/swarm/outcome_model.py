"""What becomes of an update on a beacon: drawn, but the same for the same beacon and try."""

import hashlib
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class OutcomeShares:
    """Shares of a release's attempts that go wrong; the rest succeeds.

    Attributes:
        failed: refused after the download, ``verify/checksum``.
        rolled_back: its self-test fails, the old release comes back and says so.
        mute: comes back on the old release and says nothing of it.
        silent: goes to reboot and is never heard from again.
        dead: takes the offer, then stops for good in the middle of the download.
        ignored: the offer is not taken.
        relapse: succeeds, and is back on the old release at the next reboot, minutes later.
    """

    failed: float = 0.0
    rolled_back: float = 0.0
    mute: float = 0.0
    silent: float = 0.0
    dead: float = 0.0
    ignored: float = 0.0
    relapse: float = 0.0

    @property
    def total(self) -> float:
        """How much goes wrong in all."""
        return sum(getattr(self, field.name) for field in fields(self))


def draw_outcome(fates: OutcomeShares, *words: object) -> str:
    """Return what becomes of an attempt: a name of :class:`Fates`, or ``success``."""
    left = hash_fraction(*words)
    for field in fields(fates):
        left -= getattr(fates, field.name)
        if left < 0:
            return field.name
    return "success"


def hash_fraction(*words: object) -> float:
    """Return a number in [0, 1), the same for the same words."""
    digest = hashlib.sha256("\n".join(map(str, words)).encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
