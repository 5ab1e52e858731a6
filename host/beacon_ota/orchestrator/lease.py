"""The lease of a mirror: for how long it may hand out releases without its primary.

A halt cannot reach a mirror that is cut off. So a mirror hands out nothing new when it has been out
of step with its primary for longer than its lease. Updates that have begun go on, and reports are
accepted. The lease runs from the moment when the mirror *sent* the last question whose answer it
has written down. The primary counts from the moment when that question arrived, so it never takes
the lease to be over too early.
"""

import json
import time
from collections.abc import Callable

from beacon_ota.orchestrator.clock import JUMP_S, Clock

DAY_S = 86400.0
MIN_LEASE_S, MAX_LEASE_S = 60.0, 30 * DAY_S  # what a lease may be
SAVE_INTERVAL_S = 60.0  # how far it has run is written down this often


class Lease:
    """A lease of ``span_s`` seconds. It is over until it is renewed for the first time.

    Setting the clock back makes it no longer: the time that this process runs is counted by a
    clock that nobody sets, and what earlier ones have used is written down.

    Args:
        clock: UTC. steady: seconds of a clock that nobody sets.
    """

    def __init__(self, span_s: float, clock: Clock, steady: Callable[[], float] = time.monotonic):
        self.span_s = span_s
        self._clock, self._steady = clock, steady
        self._contact: float | None = None
        self._used, self._since = 0.0, steady()  # seconds before, and from when it goes on
        self._not_before = 0.0  # what was written down last; an earlier clock is not right
        self._kept = 0.0
        self.ended = ""  # the code by which the primary has given this mirror up

    @property
    def contact(self) -> float | None:
        """UTC seconds from which the lease runs; None: it was never granted."""
        return self._contact

    def restore(self, kept: str | None) -> None:
        """Go on with a lease as an earlier process has written it down."""
        if kept is None:
            return
        fields = json.loads(kept)
        self._contact = fields["contact"]
        self._not_before = fields["at"]
        self._used = fields["used"] + max(self._clock.now() - fields["at"], 0.0)
        self._since = self._steady()
        self.ended = fields["ended"]

    def renew(self, at: float) -> None:
        """The primary's word was asked for at ``at`` (UTC seconds), and is in force here."""
        self._contact = at
        self._used, self._since = max(self._clock.now() - at, 0.0), self._steady()
        self._not_before = 0.0
        self.ended = ""

    def revoke(self, code: str) -> None:
        """The primary has given this mirror up: nothing is handed out until it takes it back."""
        if self.ended != code:
            self.ended, self._kept = code, 0.0

    def used_s(self) -> float | None:
        """Return for how long the lease has run; UTC counts unless somebody has set it back."""
        if self._contact is None:
            return None
        ran = self._used + (self._steady() - self._since) * self._clock.scale
        return max(self._clock.now() - self._contact, ran - JUMP_S)

    def left_s(self) -> float:
        """Return the seconds for which releases may be handed out; 0: none may."""
        used = self.used_s()
        if used is None or self.ended or self._clock.now() < self._not_before - JUMP_S:
            return 0.0
        return max(self.span_s - used, 0.0)

    def is_over(self) -> bool:
        """Tell whether nothing new may be handed out."""
        used = self.used_s()
        return (
            used is None
            or bool(self.ended)
            or used > self.span_s
            or self._clock.now() < self._not_before - JUMP_S
        )

    def dump_if_due(self) -> str | None:
        """Return what is to be written down, None while that would say nothing new."""
        used = self.used_s()
        now = self._clock.now()
        if used is None or (self._kept and abs(now - self._kept) < SAVE_INTERVAL_S):
            return None
        self._kept = now
        return json.dumps({"contact": self._contact, "used": used, "at": now, "ended": self.ended})
