"""Describes whom a rollout keeps waiting though it has reached them, and until when."""

from collections import Counter

from beacon_ota.orchestrator.clock import format_iso
from beacon_ota.orchestrator.core.fleet_state import FleetState
from beacon_ota.orchestrator.db.tables import Fields
from beacon_ota.orchestrator.rollout.decide import decide
from beacon_ota.orchestrator.rollout.types import Reason

MAX_BEACONS = 50_000  # of a device type: more are not asked one by one
MAX_GROUPS = 50
_NO_WAIT = {  # reached later, under way, or done
    Reason.OFFER,
    Reason.UP_TO_DATE,
    Reason.NO_RELEASE,
    Reason.SCHEDULED,
    Reason.WAVE,
    Reason.STAGE,
    Reason.TRIAL,
    Reason.REBOOTING,
    Reason.HALTED,
    Reason.ABORTED,
}


def describe_waits(view: FleetState, rollout_id: str, now: float) -> list[Fields] | None:
    """Return how many beacons wait for what, most first; may be called from any thread.

    ``reason`` is a word of docs/rollouts.md. With ``window`` and ``retry`` ``at`` is when that is
    over, and ``zone`` with ``window`` the time zone of the buildings. None: too many to ask.
    """
    entry = view.rollouts.get(rollout_id)
    if entry is None:
        return []
    device_type = entry.rollout.plan.release.device_type
    lives = [
        live
        for live in view.build_active_rollouts(device_type)
        if live.rollout.plan.rollout_id == rollout_id
    ]
    nodes = [
        node for node in view.beacons.copy().values() if node.beacon.device_type == device_type
    ]
    if len(nodes) > MAX_BEACONS:
        return None
    groups: Counter[tuple[str, float | None, str | None]] = Counter()
    for node in nodes:
        if entry.rollout.wave_of(node.beacon) is None:
            continue
        place = view.place_of(node)
        found = decide(lives, node.beacon, now, attempts=tuple(node.attempts), place=place)
        if found.reason in _NO_WAIT:
            continue
        zone = entry.rollout.window_in(place.window).zone
        in_window = found.reason is Reason.WINDOW
        groups[found.reason.value, found.again_at, zone if in_window else None] += 1
    ordered = sorted(groups.items(), key=lambda one: (-one[1], one[0][0], one[0][1] or 0.0))
    return [
        {"reason": reason, "beacons": count, "at": format_iso(at), "zone": zone}
        for (reason, at, zone), count in ordered[:MAX_GROUPS]
    ]
