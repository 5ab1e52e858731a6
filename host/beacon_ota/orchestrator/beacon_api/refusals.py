"""Beacons whose own requests are refused: noted at the beacon, and told when it goes on.

A request counts when it was authenticated and is new. What may be a stranger's, a signature that
does not fit or a request that was heard on the wire and sent again, is kept in memory beside it
(``View.claimed``) and writes nothing.
"""

from beacon_ota.orchestrator.core.health import REFUSED_FROM
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.core.view import Node
from beacon_ota.orchestrator.db.tables import events

REPEAT_EVENT_S = 3600.0  # between two events about one beacon


def record_refusal(service: Service, node: Node, code: str) -> None:
    """Note that a beacon was refused; once it is so again and again, tell of it."""
    now = service.clock.now()
    service.view.refused(node, now, code)
    published_at = node.refusal_told_at
    if node.refusals < REFUSED_FROM or (
        published_at is not None and 0 <= now - published_at < REPEAT_EVENT_S
    ):
        return
    node.refusal_told_at = now
    beacon_id, data = node.facts.id, {"code": code}
    service.db.write(events.add, now, "beacon.refused", beacon_id, data, then=service.hub.publish)
