"""What the swarm knows by itself of what happened: to be held against the orchestrator's books."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Try:
    """One attempt, as its beacon lived it."""

    beacon: str
    firmware: str
    taken: bool = False  # a download or a report of it was answered
    rebooting: bool = False  # acknowledged
    said: str = ""  # the final word, acknowledged or not
    recorded: str = ""  # how the orchestrator took it: first, repeated, late
    over: bool = False  # called off by the orchestrator


@dataclass(slots=True)
class Standing:
    """What a beacon last said that it runs."""

    version: str
    image: str
    sure: bool = False  # the orchestrator has answered, and heard nothing else since


@dataclass(slots=True)
class Ledger:
    """Attempts by id, standings by beacon."""

    tries: dict[str, Try] = field(default_factory=dict)
    standings: dict[str, Standing] = field(default_factory=dict)

    def offered(self, attempt: str, beacon: str, firmware: str) -> Try:
        """Note an offer; the same one may come again."""
        return self.tries.setdefault(attempt, Try(beacon, firmware))

    def counts(self) -> dict[str, int]:
        """Return how many attempts stand where, by this side's knowledge."""
        words = ("offered", "taken", "success", "failed", "rolled_back", "over")
        found: dict[str, int] = dict.fromkeys(words, 0)
        found["offered"] = len(self.tries)
        for one in self.tries.values():
            found["taken"] += one.taken
            found["over"] += one.over
            if one.recorded:
                found[one.said] += 1
        return found
