"""What the swarm knows by itself of what happened: to be held against the orchestrator's books."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class ExpectedAttempt:
    """One attempt, as its beacon lived it."""

    beacon: str
    firmware: str
    taken: bool = False  # a download or a report of it was answered
    rebooting: bool = False  # acknowledged
    final_status: str = ""  # the final word, acknowledged or not
    recorded: str = ""  # how the orchestrator took it: first, repeated, late
    over: bool = False  # called off by the orchestrator


@dataclass(slots=True)
class ReportedVersion:
    """What a beacon last said that it runs."""

    version: str
    image: str
    sure: bool = False  # the orchestrator has answered, and heard nothing else since


@dataclass(slots=True)
class ExpectedCounts:
    """Attempts by id, standings by beacon."""

    attempts: dict[str, ExpectedAttempt] = field(default_factory=dict)
    reported_versions: dict[str, ReportedVersion] = field(default_factory=dict)

    def add_offer(self, attempt: str, beacon: str, firmware: str) -> ExpectedAttempt:
        """Note an offer; the same one may come again."""
        return self.attempts.setdefault(attempt, ExpectedAttempt(beacon, firmware))

    def count_attempts(self) -> dict[str, int]:
        """Return how many attempts stand where, by this side's knowledge."""
        words = ("offered", "taken", "success", "failed", "rolled_back", "over")
        found: dict[str, int] = dict.fromkeys(words, 0)
        found["offered"] = len(self.attempts)
        for one in self.attempts.values():
            found["taken"] += one.taken
            found["over"] += one.over
            if one.recorded:
                found[one.final_status] += 1
        return found
