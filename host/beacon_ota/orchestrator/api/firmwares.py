"""``/api/firmwares``: uploads, lists, promotes and withdraws releases."""

import asyncio
import hashlib
import json
from collections import Counter
from typing import Annotated

from fastapi import APIRouter, Query, Request
from sqlalchemy import Connection
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from beacon_ota.errors import UsageError
from beacon_ota.orchestrator.api import unconfirmed
from beacon_ota.orchestrator.api.access import Operator, RequireRole, Viewer
from beacon_ota.orchestrator.api.answers import json_response, listing_response
from beacon_ota.orchestrator.api.dependencies import EngineDep, ServiceDep
from beacon_ota.orchestrator.clock import format_iso
from beacon_ota.orchestrator.core.fleet_records import Release
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.db.connection import StorageError
from beacon_ota.orchestrator.db.tables import Fields, firmwares
from beacon_ota.orchestrator.http.problems import not_found
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.orchestrator.releases.serve import load_image, load_index, send_file
from beacon_ota.orchestrator.releases.upload import accept_upload as take
from beacon_ota.wire import versions

router = APIRouter(prefix="/api/firmwares", tags=["releases"])

_UPLOAD_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["device_type", "version", "binary"],
                    "properties": {
                        "device_type": {"type": "string", "examples": ["esp32c3"]},
                        "version": {"type": "string", "examples": ["1.2.3"]},
                        "binary": {"type": "string", "format": "binary"},
                        "description": {"type": "string", "maxLength": 500},
                        "channel": {"type": "string", "enum": ["beta", "stable"]},
                        "required": {"type": "boolean"},
                        "manifest": {"type": "string", "description": "DSSE envelope"},
                        "blocks": {
                            "type": "string",
                            "description": "block index of an encrypted image, base64",
                        },
                    },
                }
            }
        },
    }
}


def serialize_firmware(row: Fields) -> Fields:
    """Return a release as JSON."""
    public = {key: value for key, value in row.items() if not key.endswith("_at")}
    for key in ("uploaded_at", "promoted_at", "deprecated_at", "damaged_at", "expires_at"):
        public[key] = format_iso(row[key])
    public["info"] = json.loads(row["info"])
    public["signed"] = row["manifest"] is not None
    public["blocks"] = row["blocks"] is not None or not public["info"].get("encrypted")
    public["firmware_id"] = public.pop("id")
    del public["manifest"]
    return public


@router.post("/upload", status_code=201, openapi_extra=_UPLOAD_FORM)
async def upload_firmware(request: Request, service: ServiceDep, actor: Operator) -> Response:
    """Upload a release image; it is validated before anything is stored."""
    content_type = request.headers.get("content-type", "")

    async def may_still() -> None:
        """Check the token again: it may have been revoked during the upload."""
        await RequireRole("operator")(request)

    try:
        done = await take(service, actor, content_type, request.stream(), may_still)
    except ClientDisconnect:
        return Response(status_code=400)  # the client is gone
    return json_response(serialize_firmware(done.row), 201 if done.created else 200)


@router.get("")
async def list_firmwares(
    service: ServiceDep,
    actor: Viewer,
    device_type: Annotated[str | None, Query(max_length=64)] = None,
    state: Annotated[str | None, Query(max_length=16)] = None,
) -> Response:
    """List releases, newest first; ``previous`` marks the stable one before the current one."""
    rows = await service.db.read(firmwares.list_all, device_type, state)
    public = [serialize_firmware(row) for row in rows]
    for one, role in find_release_roles(rows).items():
        next(row for row in public if row["firmware_id"] == one)["role"] = role
    return listing_response("firmwares", public)


@router.get("/{firmware_id}")
async def show_firmware(firmware_id: str, service: ServiceDep, actor: Viewer) -> Response:
    """Show a release; a withdrawn one with the mirrors that have not confirmed the withdrawal."""
    row = await service.db.read(firmwares.get, firmware_id)
    if row is None:
        raise not_found("firmware", firmware_id)
    found = {**serialize_firmware(row), "manifest": row["manifest"] and json.loads(row["manifest"])}
    return json_response({**found, "unconfirmed": await _list_unconfirmed(service, row)})


@router.post("/{firmware_id}/promote")
async def promote_firmware(firmware_id: str, service: ServiceDep, actor: Operator) -> Response:
    """Move a release from ``testing`` to ``stable``, for beacons of all channels."""
    return await _change_state(service, actor, firmware_id, "testing", "stable", "promoted")


@router.post("/{firmware_id}/deprecate")
async def deprecate_firmware(
    firmware_id: str,
    service: ServiceDep,
    actor: Operator,
    engine: EngineDep,
    reason: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    """Withdraw a release: beacons are not offered it any more, and running attempts are called off.

    If the database does not store that in time, its rollouts are halted in memory, and the answer
    is 503.
    """
    withdrawing = asyncio.ensure_future(
        _change_state(service, actor, firmware_id, None, "deprecated", "deprecated", reason)
    )
    await asyncio.wait((withdrawing,), timeout=LIMITS.stop_patience)
    if withdrawing.done() and not isinstance(withdrawing.exception(), StorageError):
        return withdrawing.result()
    halted = engine.stop_manager.halt_release(firmware_id, actor.name)
    withdrawing.add_done_callback(lambda done: done.exception())
    raise StorageError(
        "storage",
        f"the database has not taken that; {halted} rollouts of the release are halted. Say it "
        "again when the database is back",
    )


async def _change_state(
    service, actor, firmware_id: str, before: str | None, after: str, action: str, reason: str = ""
) -> Response:
    now = service.clock.now()

    def write_state(conn: Connection) -> Fields:
        row = firmwares.get(conn, firmware_id)
        if row is None:
            raise not_found("firmware", firmware_id)
        if row["state"] == after or (before is not None and row["state"] != before):
            raise UsageError(
                "firmware_state",
                f"a {row['state']} release cannot be {action}",
                found=row["state"],
                expected=before,
            )
        changed = firmwares.update_columns(conn, firmware_id, state=after, **{f"{action}_at": now})
        assert changed is not None
        return changed

    row = await service.change_audited(
        actor.name,
        f"firmware.{action}",
        firmware_id,
        write_state,
        then=service.fleet.put_release,
        reason=reason,
    )
    return json_response(
        {**serialize_firmware(row), "unconfirmed": await _list_unconfirmed(service, row)}
    )


async def _list_unconfirmed(service: Service, row: Fields) -> list[Fields]:
    return await service.db.read(unconfirmed.list_for_release, row, service.clock.now())


def find_release_roles(rows: list[Fields]) -> dict[str, str]:
    """Return by id the ``current`` and ``previous`` release of each board."""
    stable: dict[str, list[Fields]] = {}
    for row in rows:
        if row["state"] == "stable" and row["damaged_at"] is None:
            stable.setdefault(row["device_type"], []).append(row)
    found = {}
    for those in stable.values():
        those.sort(key=lambda row: versions.parse(row["version"]), reverse=True)
        for row, role in zip(those, ("current", "previous"), strict=False):
            found[row["id"]] = role
    return found


download_router = APIRouter(tags=["releases"])


class FileResponse(Response):
    """An image or a block index, sent in the same way as to beacons.

    Args:
        digest: SHA-256 of the bytes.
        counter: as ``send_file``'s.
    """

    def __init__(self, service: Service, data: bytes, digest: str, counter: Counter):
        super().__init__()
        self._parts = (service, data, digest, counter)

    async def __call__(self, scope, receive, send) -> None:
        service, data, digest, counter = self._parts
        await send_file(service, scope, send, data, digest, None, counter)


async def image_response(service: Service, release: Release) -> FileResponse:
    """Return the image of a release (Problem 410 ``firmware_damaged``)."""
    data = await load_image(service, release)
    return FileResponse(service, data, release.row["blob"], service.counts.downloads)


async def index_response(service: Service, release: Release) -> FileResponse:
    """Return the block index of a release (Problem 404 ``blocks_missing``)."""
    data = await load_index(service, release)
    digest = hashlib.sha256(data).hexdigest()
    return FileResponse(service, data, digest, service.counts.block_indexes)


@download_router.get("/firmwares/{firmware_id}/download")
async def download_firmware(firmware_id: str, service: ServiceDep, actor: Viewer) -> Response:
    """Download the image that beacons get, with a bearer token instead of a beacon's key."""
    release = service.fleet.releases.get(firmware_id)
    if release is None:
        raise not_found("firmware", firmware_id)
    return await image_response(service, release)


@download_router.get("/firmwares/{firmware_id}/blocks")
async def download_blocks(firmware_id: str, service: ServiceDep, actor: Viewer) -> Response:
    """Download the block index: 8 bytes of the SHA-256 of each 4,096 bytes of the plain image."""
    release = service.fleet.releases.get(firmware_id)
    if release is None:
        raise not_found("firmware", firmware_id)
    return await index_response(service, release)
