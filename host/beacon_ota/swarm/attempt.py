"""The record of one attempt of a simulated beacon, and the ways in which an attempt breaks off."""

from dataclasses import dataclass
from typing import Any


class AttemptCancelled(Exception):
    """The orchestrator has ended this attempt."""


class BeaconDead(Exception):
    """The beacon is dead: it sends nothing any more."""


@dataclass(slots=True)
class AttemptRecord:
    """The record of an attempt in NVS."""

    id: str
    firmware: str
    version: str
    checksum: str
    size: int
    url: str
    previous: str
    outcome: str
    status: str = "downloading"
    why: tuple[str, str] = ("", "")
    got: int = 0
    trials: int = 0
    fetched: int = 0
    kept: int = 0
    written: int = 0


def report_fields(attempt: AttemptRecord, word: str) -> dict[str, Any]:
    """Return the fields that an attempt adds to a report with the status ``word``."""
    fields: dict[str, Any] = {
        "previous_version": attempt.previous,
        "attempt_id": attempt.id,
        "firmware_id": attempt.firmware,
        "bytes": attempt.got,
        "trials": attempt.trials,
        "bytes_fetched": attempt.fetched,
        "sectors_kept": attempt.kept,
        "sectors_written": attempt.written,
    }
    if word not in ("success", "rolled_back"):
        fields["firmware_version"] = attempt.version
    if word == "downloading":
        fields["progress"] = 0
    if word in ("failed", "rolled_back"):
        fields["stage"], fields["code"] = attempt.why
    return fields
