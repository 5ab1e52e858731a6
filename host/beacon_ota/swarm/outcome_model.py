"""Draws the outcome of each attempt: random, but the same for the same beacon and try."""

import hashlib
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class OutcomeShares:
    """Shares, 0 to 1, of the attempts at a release with each failure; the rest succeeds.

    Attributes:
        failed: refused after the download, ``verify/checksum``.
        rolled_back: the self-test fails, and the old release reports the rollback.
        mute: the old release comes back without a report.
        silent: the beacon reboots and sends nothing any more.
        dead: the beacon stops for good in the middle of the download.
        ignored: the beacon does not take the offer.
        relapse: the attempt succeeds, and minutes later the old release runs again.
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
        """The sum of all shares."""
        return sum(getattr(self, field.name) for field in fields(self))


def draw_outcome(fates: OutcomeShares, *words: object) -> str:
    """Return the outcome of an attempt: a field of :class:`OutcomeShares`, or ``success``."""
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
