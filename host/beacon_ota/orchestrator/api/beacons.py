"""``/api/beacons``: registers, changes, rekeys, quarantines and removes beacons."""

import json
import secrets
from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, field_validator
from sqlalchemy import Connection
from starlette.responses import Response

from beacon_ota.errors import UsageError
from beacon_ota.orchestrator.api.access import Admin, Operator
from beacon_ota.orchestrator.api.answers import json_response
from beacon_ota.orchestrator.api.beacon_views import flush_last_seen, serialize_beacon
from beacon_ota.orchestrator.api.dependencies import ServiceDep
from beacon_ota.orchestrator.db.tables import Fields, attempts, beacons, device_types, keys, sites
from beacon_ota.orchestrator.http.problems import Problem, not_found
from beacon_ota.wire import auth

router = APIRouter(prefix="/api/beacons", tags=["beacons"])

Tag = Annotated[str, Field(min_length=1, max_length=32, pattern=r"^[A-Za-z0-9._:-]+$")]
Key = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="32 bytes in hex")]
SitePath = Annotated[str, Field(max_length=200)]


DeviceType = Annotated[str, Field(min_length=1, max_length=32, pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class NewBeacon(BaseModel):
    """A beacon to register, with the key that it was provisioned with."""

    model_config = ConfigDict(extra="forbid")

    beacon_id: Annotated[str, Field(max_length=64)]
    key: Key | None = Field(None, description="absent: one is made, and returned this once")
    device_type: DeviceType
    site: SitePath | None = None
    channel: Literal["stable", "beta"] = "stable"
    tags: Annotated[list[Tag], Field(max_length=32)] = []

    @field_validator("beacon_id")
    @classmethod
    def _valid(cls, value: str) -> str:
        if not auth.is_valid_id(value):
            raise ValueError("letters, digits, dot, dash and underscore, at most 64")
        return value


class Change(BaseModel):
    """The fields of a beacon to change; absent fields stay."""

    model_config = ConfigDict(extra="forbid")

    site: SitePath | None = None
    channel: Literal["stable", "beta"] | None = None
    tags: Annotated[list[Tag], Field(max_length=32)] | None = None


class NewType(BaseModel):
    """The device type that a beacon is to be registered as."""

    model_config = ConfigDict(extra="forbid")

    device_type: DeviceType | None = Field(None, description="absent: what the beacon says")
    reason: Annotated[str, Field(max_length=200)] = ""


class NewKey(BaseModel):
    """The key that a beacon was provisioned with again."""

    model_config = ConfigDict(extra="forbid")

    key: Key


class Why(BaseModel):
    """A reason, kept in the audit log."""

    model_config = ConfigDict(extra="forbid")

    reason: Annotated[str, Field(max_length=200)] = ""


@router.post("", status_code=201)
async def register_beacon(new: NewBeacon, service: ServiceDep, actor: Operator) -> Response:
    """Register a beacon. Its key is never shown again."""
    key = bytes.fromhex(new.key) if new.key else secrets.token_bytes(32)
    now = service.clock.now()
    row: Fields = {
        "id": new.beacon_id,
        "key": key,
        "device_type": new.device_type,
        "site": new.site,
        "tags": json.dumps(sorted(set(new.tags))),
        "channel": new.channel,
        "created_at": now,
    }

    def insert_beacon(conn: Connection) -> Fields:
        if beacons.get(conn, new.beacon_id) is not None:
            raise UsageError("beacon_taken", "this beacon is registered", found=new.beacon_id)
        _require_site(conn, new.site)
        # Failures of a former beacon with this name do not count against the new one.
        beacons.add(conn, {**row, "cleared_at": attempts.last_end_of(conn, new.beacon_id)})
        found = beacons.get(conn, new.beacon_id)
        assert found is not None
        return found

    stored = await service.change_audited(
        actor.name,
        "beacon.created",
        new.beacon_id,
        insert_beacon,
        then=service.fleet.put_beacon,
        detail={"device_type": new.device_type, "site": new.site},
    )
    public = serialize_beacon(stored)
    return json_response(public if new.key else {**public, "key": key.hex()}, 201)


@router.patch("/{beacon_id}")
async def change_beacon(
    beacon_id: str, changes: Change, service: ServiceDep, actor: Operator
) -> Response:
    """Move a beacon, change its channel or its tags."""
    values: Fields = changes.model_dump(exclude_unset=True)
    if "channel" in values and values["channel"] is None:
        raise Problem(422, "request_invalid", "channel: stable or beta", found="channel")
    detail = dict(values)
    if "tags" in values:
        values["tags"] = json.dumps(sorted(set(values["tags"] or [])))

    def write_change(conn: Connection) -> Fields:
        _require_site(conn, values.get("site"))
        return _change_row(conn, beacon_id, values)

    return await _apply_change(
        service, actor, "beacon.changed", beacon_id, write_change, detail=detail
    )


@router.post("/{beacon_id}/retype")
async def retype_beacon(
    beacon_id: str, new: NewType, service: ServiceDep, actor: Operator
) -> Response:
    """Register a beacon as another board: the one that it reports, or the type given.

    Attempts that it began as the former board are called off, unless it is rebooting already.
    """
    await flush_last_seen(service)
    now = service.clock.now()

    def write_type(conn: Connection) -> tuple[Fields, Fields]:
        row = beacons.get(conn, beacon_id)
        if row is None:
            raise not_found("beacon", beacon_id)
        return device_types.retype(conn, row, new.device_type, now, actor.name, new.reason)

    def publish_type(done: tuple[Fields, Fields]) -> None:
        row, event = done
        service.fleet.put_beacon(row)
        service.hub.publish(event)

    row, _event = await service.db.write(write_type, then=publish_type)
    return json_response(serialize_beacon(row))


@router.post("/{beacon_id}/rekey")
async def rekey_beacon(beacon_id: str, service: ServiceDep, actor: Admin) -> Response:
    """Give a beacon a new key, which it receives in the answer to its next report.

    The answer is signed and encrypted with the present key. Keys that were given before are valid
    until the beacon has used a later one.
    """
    new = secrets.token_bytes(32)

    def write_key(conn: Connection) -> Fields:
        return _give_key(conn, beacon_id, new)

    return await _apply_change(service, actor, "beacon.rekey", beacon_id, write_key)


@router.put("/{beacon_id}/key")
async def record_provisioned_key(
    beacon_id: str, new: NewKey, service: ServiceDep, actor: Admin
) -> Response:
    """Record the key that a beacon was provisioned with again.

    The holder of a beacon's key can speak as that beacon, so this needs an administrator, like
    rekey. The beacon's other keys stay valid until its first request with this one: if provisioning
    was interrupted, the beacon is still heard, and receives the new key.
    """
    key = bytes.fromhex(new.key)

    def write_key(conn: Connection) -> Fields:
        return _give_key(conn, beacon_id, key)

    return await _apply_change(service, actor, "beacon.provisioned", beacon_id, write_key)


@router.post("/{beacon_id}/quarantine")
async def quarantine_beacon(
    beacon_id: str, why: Why, service: ServiceDep, actor: Operator
) -> Response:
    """Offer a beacon nothing until it is released; call off an attempt that is not rebooting."""
    values = {"quarantined_at": service.clock.now(), "quarantine_reason": why.reason}

    def write_quarantine(conn: Connection) -> Fields:
        return _change_row(conn, beacon_id, values)

    return await _apply_change(
        service, actor, "beacon.quarantined", beacon_id, write_quarantine, reason=why.reason
    )


@router.post("/{beacon_id}/unquarantine")
async def unquarantine_beacon(
    beacon_id: str, why: Why, service: ServiceDep, actor: Operator
) -> Response:
    """Release a beacon and forgive its failures until now, so that it may try again."""
    values = {"quarantined_at": None, "quarantine_reason": None}

    def clear_quarantine(conn: Connection) -> Fields:
        forgiven = attempts.last_end_of(conn, beacon_id)
        return _change_row(conn, beacon_id, {**values, "cleared_at": forgiven})

    return await _apply_change(
        service, actor, "beacon.unquarantined", beacon_id, clear_quarantine, reason=why.reason
    )


@router.delete("/{beacon_id}", status_code=204)
async def remove_beacon(beacon_id: str, service: ServiceDep, actor: Admin) -> Response:
    """Remove a beacon; the results of its attempts stay counted."""

    def delete_beacon(conn: Connection) -> None:
        if not beacons.remove(conn, beacon_id):
            raise not_found("beacon", beacon_id)

    await service.change_audited(
        actor.name,
        "beacon.removed",
        beacon_id,
        delete_beacon,
        then=lambda _none: service.fleet.drop_beacon(beacon_id),
    )
    return Response(status_code=204)


def _change_row(conn: Connection, beacon_id: str, values: Fields) -> Fields:
    if beacons.get(conn, beacon_id) is None:
        raise not_found("beacon", beacon_id)
    row = (
        beacons.update_columns(conn, beacon_id, **values)
        if values
        else beacons.get(conn, beacon_id)
    )
    assert row is not None
    return row


def _give_key(conn: Connection, beacon_id: str, key: bytes) -> Fields:
    """Add a key to those that a beacon may have; it becomes the next one."""
    row = beacons.get(conn, beacon_id)
    found = None if row is None else keys.add_key(conn, row, key)
    if found is None:
        raise not_found("beacon", beacon_id)
    return found


async def _apply_change(service, actor, action: str, beacon_id: str, write, **more) -> Response:
    row = await service.change_audited(
        actor.name, action, beacon_id, write, then=service.fleet.put_beacon, **more
    )
    return json_response(serialize_beacon(row))


def _require_site(conn: Connection, site: str | None) -> None:
    """Refuse a site that does not exist (422 ``site_unknown``)."""
    if site is not None and sites.get(conn, site) is None:
        raise Problem(422, "site_unknown", "there is no such site; add it first", found=site)
