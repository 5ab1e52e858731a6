"""Records that the requests of a beacon are refused, and publishes it when that repeats.

Only authenticated, new requests count. A wrong signature or a replayed request may come from a
stranger: it is kept in memory (``BeaconState.claim``), and writes nothing.
"""

from beacon_ota.orchestrator.core.fleet_records import BeaconState
from beacon_ota.orchestrator.core.health import REFUSED_AFTER
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.db.tables import events

REPEAT_EVENT_S = 3600.0  # between two events about one beacon


def record_refusal(service: Service, node: BeaconState, code: str) -> None:
    """Record one refusal; from ``REFUSED_AFTER`` in a row on, publish ``beacon.refused``."""
    now = service.clock.now()
    service.fleet.contacts.mark_refused(node, now, code)
    published_at = node.refusal_told_at
    if node.refusals < REFUSED_AFTER or (
        published_at is not None and 0 <= now - published_at < REPEAT_EVENT_S
    ):
        return
    node.refusal_told_at = now
    beacon_id, data = node.beacon.id, {"code": code}
    service.db.write(events.add, now, "beacon.refused", beacon_id, data, then=service.hub.publish)
