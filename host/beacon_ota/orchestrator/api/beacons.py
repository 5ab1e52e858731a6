"""``/api/beacons``: register, list, show, move, rekey, quarantine."""

import asyncio
import json
import logging
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache, partial
from operator import itemgetter
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, field_validator
from sqlalchemy import Connection
from starlette.responses import Response

from beacon_ota.errors import UsageError
from beacon_ota.orchestrator.api.access import Admin, On, Operator, Viewer
from beacon_ota.orchestrator.api.answers import answer, page
from beacon_ota.orchestrator.clock import iso
from beacon_ota.orchestrator.core.health import standing
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.db.database import StorageError
from beacon_ota.orchestrator.db.schema import beacons as table
from beacon_ota.orchestrator.db.tables import Fields, attempts, beacons, device_types, keys, sites
from beacon_ota.orchestrator.http.problems import Problem, missing
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.wire import auth

log = logging.getLogger("beacon_ota.orchestrator")

FRESH_S = 1.0  # that a listing waits for what it shows to be written

router = APIRouter(prefix="/api/beacons", tags=["beacons"])

_TIMES = ("created_at", "first_seen", "last_seen", "quarantined_at", "refused_at")
_HIDDEN = ("id", "key", "next_key", "given_keys", "cleared_at", "tags", *_TIMES)
_PLAIN = tuple(column.name for column in table.c if column.name not in _HIDDEN)
_SHOWN = ("beacon_id", *_PLAIN)
_plain = itemgetter("id", *_PLAIN)  # a page has a thousand rows
Tag = Annotated[str, Field(min_length=1, max_length=32, pattern=r"^[A-Za-z0-9._:-]+$")]
Key = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="32 bytes in hex")]
SitePath = Annotated[str, Field(max_length=200)]


_writing: set[asyncio.Task[None]] = set()


async def _up_to_date(service: Service) -> None:
    """Have the tables say who was heard last.

    A disk that is full, or a lock that somebody holds, is no reason not to show what is there;
    the service tries again by itself, and logs why it cannot.
    """
    task = asyncio.create_task(service.flush())
    _writing.add(task)
    task.add_done_callback(_written)
    await asyncio.wait((task,), timeout=FRESH_S)


def _written(task: asyncio.Task[None]) -> None:
    _writing.discard(task)
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, StorageError):
        log.error("who was heard last is not written", exc_info=error)


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
    """What of a beacon is to change; what is absent stays."""

    model_config = ConfigDict(extra="forbid")

    site: SitePath | None = None
    channel: Literal["stable", "beta"] | None = None
    tags: Annotated[list[Tag], Field(max_length=32)] | None = None


class NewType(BaseModel):
    """The board that a beacon is to be registered as."""

    model_config = ConfigDict(extra="forbid")

    device_type: DeviceType | None = Field(None, description="absent: what the beacon says")
    reason: Annotated[str, Field(max_length=200)] = ""


class NewKey(BaseModel):
    """The key that a beacon was provisioned with anew."""

    model_config = ConfigDict(extra="forbid")

    key: Key


class Why(BaseModel):
    """The reason for what is done, kept in the audit log."""

    model_config = ConfigDict(extra="forbid")

    reason: Annotated[str, Field(max_length=200)] = ""


def shown(row: Mapping[Any, Any]) -> Fields:
    """Return a beacon as the API shows it: no key, tags as a list, times for people."""
    public = dict(zip(_SHOWN, _plain(row), strict=True))
    public["tags"] = _tags(row["tags"])
    public["refusals"] = row["refusals"] or 0
    for name in _TIMES:
        public[name] = iso(row[name])
    return public


@lru_cache(1024)
def _tags(text: str) -> list[str]:
    """Return the tags of a row; most beacons share theirs with many."""
    return json.loads(text)


@router.post("", status_code=201)
async def create(new: NewBeacon, service: On, actor: Operator) -> Response:
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

    def work(conn: Connection) -> Fields:
        if beacons.get(conn, new.beacon_id) is not None:
            raise UsageError("beacon_taken", "this beacon is registered", found=new.beacon_id)
        _check_site(conn, new.site)
        # Another beacon may have had this name: its failures are not held against this one.
        beacons.add(conn, {**row, "cleared_at": attempts.last_end(conn, new.beacon_id)})
        found = beacons.get(conn, new.beacon_id)
        assert found is not None
        return found

    stored = await service.change(
        actor.name,
        "beacon.created",
        new.beacon_id,
        work,
        then=service.view.put_beacon,
        detail={"device_type": new.device_type, "site": new.site},
    )
    public = shown(stored)
    return answer(public if new.key else {**public, "key": key.hex()}, 201)


@router.get("")
async def listing(
    service: On,
    actor: Viewer,
    after: Annotated[str, Query(max_length=64, description="the last id of the page before")] = "",
    limit: Annotated[int, Query(ge=1, le=LIMITS.page)] = 100,
    site: Annotated[str | None, Query(max_length=200)] = None,
    version: Annotated[str | None, Query(max_length=64)] = None,
    device_type: Annotated[str | None, Query(max_length=64)] = None,
    channel: Annotated[str | None, Query(max_length=16)] = None,
    tag: Annotated[str | None, Query(max_length=32)] = None,
    search: Annotated[str | None, Query(max_length=64)] = None,
    quarantined: bool | None = None,
    questioned: Annotated[
        bool | None, Query(description="says that it is another board than it is registered as")
    ] = None,
    refused: Annotated[
        bool | None, Query(description="was refused since its last poll that was answered")
    ] = None,
    silent_s: Annotated[float | None, Query(ge=0, description="not heard from for so long")] = None,
) -> Response:
    """List beacons by id; ``next`` is where the following page begins."""
    await _up_to_date(service)
    filters: Fields = {
        "after": after,
        "limit": limit,
        "site": site,
        "version": version,
        "device_type": device_type,
        "channel": channel,
        "tag": tag,
        "search": search,
        "quarantined": quarantined,
        "questioned": questioned,
        "refused": refused,
        "silent_since": None if silent_s is None else service.clock.now() - silent_s,
    }

    standing_of = partial(_standing, service)  # looks at the view from a reader's thread

    def read(conn: Connection) -> Response:  # a full page is some work: not on the event loop
        total, rows = beacons.page(conn, **filters)
        more = rows[-1]["id"] if len(rows) == limit and total > limit else None
        found = [{**shown(row), "standing": standing_of(row["id"])} for row in rows]
        return page("beacons", found, total=total, next=more)

    return await service.db.read(read)


@router.get("/{beacon_id}")
async def show(
    beacon_id: str,
    service: On,
    actor: Viewer,
    limit: Annotated[int, Query(ge=1, le=LIMITS.page)] = 50,
) -> Response:
    """Show a beacon: its attempts, reports and journal, newest first."""
    await _up_to_date(service)
    versions = {key: one.row["version"] for key, one in service.view.releases.items()}

    def read(conn: Connection) -> Fields | None:
        row = beacons.get(conn, beacon_id)
        if row is None:
            return None
        tries = []
        for one in attempts.of_beacon(conn, beacon_id, limit):
            for key in (
                "offered_at",
                "taken_at",
                "rebooting_at",
                "ended_at",
                "late_at",
                "blamed_at",
            ):
                one[key] = iso(one[key])
            tries.append({**one, "version": versions.get(one["firmware_id"])})
        reports = [
            {**one, "at": iso(one["at"])} for one in beacons.reports_of(conn, beacon_id, limit)
        ]
        entries = [
            {key: one[key] for key in ("seq", "stage", "code", "detail")}
            | {"at": iso(one["utc"] or None), "stored_at": iso(one["stored_at"])}
            for one in beacons.journal_of(conn, beacon_id, limit)
        ]
        return {
            **shown(row),
            "rekeying": row["next_key"] is not None,
            "attempts": tries,
            "reports": reports,
            "journal": entries,
        }

    found = await service.db.read(read)
    if found is None:
        raise missing("beacon", beacon_id)
    now = {"standing": _standing(service, beacon_id), "unproven": _claim(service, beacon_id)}
    return answer({**found, **now})


@router.patch("/{beacon_id}")
async def change(beacon_id: str, wanted: Change, service: On, actor: Operator) -> Response:
    """Move a beacon, change its channel or its tags."""
    values: Fields = wanted.model_dump(exclude_unset=True)
    if "channel" in values and values["channel"] is None:
        raise Problem(422, "request_invalid", "channel: stable or beta", found="channel")
    detail = dict(values)
    if "tags" in values:
        values["tags"] = json.dumps(sorted(set(values["tags"] or [])))

    def work(conn: Connection) -> Fields:
        _check_site(conn, values.get("site"))
        return _change(conn, beacon_id, values)

    return await _do(service, actor, "beacon.changed", beacon_id, work, detail=detail)


@router.post("/{beacon_id}/retype")
async def retype(beacon_id: str, new: NewType, service: On, actor: Operator) -> Response:
    """Register a beacon as another board: as what it says itself, or as the type given.

    What it has begun as the other board is called off, unless it is rebooting into it.
    """
    await _up_to_date(service)
    now = service.clock.now()

    def work(conn: Connection) -> tuple[Fields, Fields]:
        row = beacons.get(conn, beacon_id)
        if row is None:
            raise missing("beacon", beacon_id)
        return device_types.retype(conn, row, new.device_type, now, actor.name, new.reason)

    def then(done: tuple[Fields, Fields]) -> None:
        row, event = done
        service.view.put_beacon(row)
        service.hub.publish(event)

    row, _event = await service.db.write(work, then=then)
    return answer(shown(row))


@router.post("/{beacon_id}/rekey")
async def rekey(beacon_id: str, service: On, actor: Admin) -> Response:
    """Give a beacon a new key; it learns it with its next report, under the one that it has.

    One that was given before and may have arrived is good until the beacon has used a later one.
    """
    new = secrets.token_bytes(32)

    def work(conn: Connection) -> Fields:
        return _give(conn, beacon_id, new)

    return await _do(service, actor, "beacon.rekey", beacon_id, work)


@router.put("/{beacon_id}/key")
async def provisioned(beacon_id: str, new: NewKey, service: On, actor: Admin) -> Response:
    """Take note of the key that a beacon was provisioned with again.

    Whoever knows a beacon's key speaks as that beacon: so this is for administrators, like rekey.
    The others that it may have are good until the first request under this one: when provisioning
    breaks off in between, the beacon can still be heard, and is told the new key.
    """
    key = bytes.fromhex(new.key)

    def work(conn: Connection) -> Fields:
        return _give(conn, beacon_id, key)

    return await _do(service, actor, "beacon.provisioned", beacon_id, work)


@router.post("/{beacon_id}/quarantine")
async def quarantine(beacon_id: str, why: Why, service: On, actor: Operator) -> Response:
    """Offer a beacon nothing until it is released again, and stop what is not rebooting yet."""
    values = {"quarantined_at": service.clock.now(), "quarantine_reason": why.reason}

    def work(conn: Connection) -> Fields:
        return _change(conn, beacon_id, values)

    return await _do(service, actor, "beacon.quarantined", beacon_id, work, reason=why.reason)


@router.post("/{beacon_id}/unquarantine")
async def unquarantine(beacon_id: str, why: Why, service: On, actor: Operator) -> Response:
    """Release a beacon, and forgive what failed until now: it may try again."""
    values = {"quarantined_at": None, "quarantine_reason": None}

    def work(conn: Connection) -> Fields:
        forgiven = attempts.last_end(conn, beacon_id)
        return _change(conn, beacon_id, {**values, "cleared_at": forgiven})

    return await _do(service, actor, "beacon.unquarantined", beacon_id, work, reason=why.reason)


@router.delete("/{beacon_id}", status_code=204)
async def remove(beacon_id: str, service: On, actor: Admin) -> Response:
    """Forget a beacon; what came of its attempts stays counted."""

    def work(conn: Connection) -> None:
        if not beacons.remove(conn, beacon_id):
            raise missing("beacon", beacon_id)

    await service.change(
        actor.name,
        "beacon.removed",
        beacon_id,
        work,
        then=lambda _none: service.view.drop_beacon(beacon_id),
    )
    return Response(status_code=204)


def _standing(service: Service, beacon_id: str) -> str | None:
    """Return the word for a beacon; None for one that is just being registered or removed."""
    node = service.view.nodes.get(beacon_id)
    return None if node is None else standing(node, service.view.releases, service.clock.now())


def _claim(service: Service, beacon_id: str) -> Fields | None:
    """Return what came in a beacon's name since it was heard, and may be somebody else's."""
    node = service.view.nodes.get(beacon_id)
    if node is None or node.claim is None:
        return None
    return {**asdict(node.claim), "at": iso(node.claim.at)}


def _change(conn: Connection, beacon_id: str, values: Fields) -> Fields:
    if beacons.get(conn, beacon_id) is None:
        raise missing("beacon", beacon_id)
    row = beacons.change(conn, beacon_id, **values) if values else beacons.get(conn, beacon_id)
    assert row is not None
    return row


def _give(conn: Connection, beacon_id: str, key: bytes) -> Fields:
    row = beacons.get(conn, beacon_id)
    found = None if row is None else keys.give(conn, row, key)
    if found is None:
        raise missing("beacon", beacon_id)
    return found


async def _do(service, actor, action: str, beacon_id: str, work, **more) -> Response:
    row = await service.change(
        actor.name, action, beacon_id, work, then=service.view.put_beacon, **more
    )
    return answer(shown(row))


def _check_site(conn: Connection, site: str | None) -> None:
    if site is not None and sites.get(conn, site) is None:
        raise Problem(422, "site_unknown", "there is no such site; add it first", found=site)
