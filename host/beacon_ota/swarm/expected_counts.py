"""The counts of the swarm itself, which are compared with those of the orchestrator."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class ExpectedAttempt:
    """One attempt, from the view of its beacon."""

    beacon: str
    firmware: str
    taken: bool = False  # a download or a report was answered
    rebooting: bool = False  # acknowledged
    final_status: str = ""  # reported, acknowledged or not
    recorded: str = ""  # answer of the orchestrator: first, repeated, late
    over: bool = False  # called off by the orchestrator


@dataclass(slots=True)
class ReportedVersion:
    """The version that a beacon reported last."""

    version: str
    image: str
    sure: bool = False  # acknowledged, and nothing else was sent since


@dataclass(slots=True)
class ExpectedCounts:
    """Attempts by id, reported versions by beacon."""

    attempts: dict[str, ExpectedAttempt] = field(default_factory=dict)
    reported_versions: dict[str, ReportedVersion] = field(default_factory=dict)

    def add_offer(self, attempt: str, beacon: str, firmware: str) -> ExpectedAttempt:
        """Add an offer; the same offer may come again."""
        return self.attempts.setdefault(attempt, ExpectedAttempt(beacon, firmware))

    def count_attempts(self) -> dict[str, int]:
        """Return the number of attempts in each state."""
        words = ("offered", "taken", "success", "failed", "rolled_back", "over")
        found: dict[str, int] = dict.fromkeys(words, 0)
        found["offered"] = len(self.attempts)
        for one in self.attempts.values():
            found["taken"] += one.taken
            found["over"] += one.over
            if one.recorded:
                found[one.final_status] += 1
        return found
