"""The health label of a beacon: one word that the dashboard shows and the metrics count."""

from collections.abc import Mapping

from beacon_ota.orchestrator.core.fleet_records import BeaconState, Release
from beacon_ota.orchestrator.rollout.decide import OUTCOMES
from beacon_ota.orchestrator.rollout.types import Attempt, Result

SILENT_AFTER_S = 3600.0
REFUSED_AFTER = 2  # in a row: one alone may be an accident

# The first label that applies is used: reasons for missing knowledge come before known facts.
HEALTH_LABELS = {
    "quarantined": "withheld from updates by hand",
    "refused": "its polls are refused",
    "board": "says that it is another board than it is registered as; offered nothing",
    "unseen": "registered, never heard from",
    "silent": "not heard from for an hour",
    "updating": "an update is under way",
    "trial": "runs a release that is not confirmed yet",
    "failed": "its latest update failed; it runs what it ran before",
    "valid": "runs a confirmed release",
}


def health_label(node: BeaconState, releases: Mapping[str, Release], now: float) -> str:
    """Return the health label of a beacon."""
    facts = node.beacon
    if facts.quarantined:
        return "quarantined"
    if node.refusals >= REFUSED_AFTER and now - (node.refused_at or 0.0) <= SILENT_AFTER_S:
        return "refused"
    if facts.questioned and not _is_silent(node, now):
        return "board"
    if node.last_seen is None:
        return "unseen"
    if _is_silent(node, now):
        return "silent"
    attempts = tuple(node.attempts)
    if any(one.result is None and one.taken_at is not None for one in attempts):
        return "updating"
    if facts.on_trial:
        return "trial"
    return "valid" if unresolved_failure(node, attempts, releases) is None else "failed"


def _is_silent(node: BeaconState, now: float) -> bool:
    return node.last_seen is not None and now - node.last_seen > SILENT_AFTER_S


def unresolved_failure(
    node: BeaconState, attempts: tuple[Attempt, ...], releases: Mapping[str, Release]
) -> Attempt | None:
    """Return a beacon's last outcome if it is a failure not resolved or cleared since; or None."""
    latest = None
    for one in attempts:
        if one.result in OUTCOMES and (latest is None or one.final_at > latest.final_at):
            latest = one
    if latest is None or (latest.result is Result.SUCCESS and latest.undone_at is None):
        return None
    if latest.final_at <= node.beacon.cleared_at:
        return None
    release = releases.get(latest.firmware_id)
    runs = release is not None and node.beacon.image == release.row["checksum"]
    return None if runs else latest
