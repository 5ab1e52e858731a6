"""``GET /api/firmwares/{firmware_id}/cost``: what a release costs the beacons of its board."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from beacon_ota.orchestrator.api.access import Viewer
from beacon_ota.orchestrator.api.answers import json_response
from beacon_ota.orchestrator.api.dependencies import ServiceDep
from beacon_ota.orchestrator.db.tables import firmwares
from beacon_ota.orchestrator.http.background import BackgroundPool
from beacon_ota.orchestrator.http.problems import not_found
from beacon_ota.orchestrator.releases.cost import estimate_fleet_cost

router = APIRouter(prefix="/api/firmwares", tags=["releases"])
_POOL = BackgroundPool("costs")


@router.get("/{firmware_id}/cost")
async def show_cost(
    request: Request, firmware_id: str, service: ServiceDep, actor: Viewer
) -> Response:
    """Estimate bytes, sectors and seconds per beacon, by what the fleet runs today."""
    row = await service.db.read(firmwares.get, firmware_id)
    if row is None:
        raise not_found("firmware", firmware_id)
    found = await _POOL.run(
        request.is_disconnected, estimate_fleet_cost, service.db.read_now, service.blobs, row
    )
    return json_response({"firmware_id": firmware_id, **found.as_json()})
