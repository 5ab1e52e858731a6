"""``/api/audit``: lists the audit log, and verifies its chain of hashes."""

import json
from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy import Connection
from starlette.responses import Response

from beacon_ota.orchestrator.api.access import Admin
from beacon_ota.orchestrator.api.answers import json_response, listing_response
from beacon_ota.orchestrator.api.dependencies import ServiceDep
from beacon_ota.orchestrator.api.numbers import RowId
from beacon_ota.orchestrator.clock import format_iso
from beacon_ota.orchestrator.db.tables import Fields, audit
from beacon_ota.orchestrator.limits import LIMITS

router = APIRouter(prefix="/api/audit", tags=["audit"])


def serialize_entry(entry: Fields) -> Fields:
    """Return an entry as JSON; ``at`` stays exact, because the hash covers it."""
    return {**entry, "time": format_iso(entry["at"]), "detail": json.loads(entry["detail"])}


@router.get("")
async def list_audit_entries(
    service: ServiceDep,
    actor: Admin,
    after: RowId = 0,
    limit: Annotated[int, Query(ge=1, le=LIMITS.page)] = 100,
    action: Annotated[str | None, Query(max_length=48, description="or its beginning")] = None,
    by: Annotated[str | None, Query(max_length=64)] = None,
    target: Annotated[str | None, Query(max_length=128)] = None,
    newest: bool = False,
) -> Response:
    """List entries in order, or the newest first."""

    def read_entries(conn: Connection) -> list[Fields]:
        return audit.list_entries(
            conn,
            after=after,
            limit=limit,
            action=action,
            actor=by,
            target=target,
            newest=newest,
        )

    return listing_response(
        "entries", [serialize_entry(entry) for entry in await service.db.read(read_entries)]
    )


@router.get("/verify")
async def verify_audit_log(
    service: ServiceDep,
    actor: Admin,
    head: Annotated[str | None, Query(pattern=r"^[0-9a-f]{64}$")] = None,
) -> Response:
    """Verify the chain; ``head`` is an earlier hash that must still be in it."""
    return json_response(await service.db.read(audit.verify_chain, head))
