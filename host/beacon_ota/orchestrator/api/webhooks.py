"""``/api/webhooks``: who is told what happens."""

import json
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection
from starlette.responses import Response

from beacon_ota.errors import UsageError
from beacon_ota.orchestrator.api.access import Admin, On
from beacon_ota.orchestrator.api.answers import answer, page
from beacon_ota.orchestrator.clock import format_iso
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.db import tables
from beacon_ota.orchestrator.db.tables import Fields, events, webhooks
from beacon_ota.orchestrator.db.tables.tokens import Actor
from beacon_ota.orchestrator.http.problems import missing
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.orchestrator.webhooks.dispatcher import ALERTS, Webhooks
from beacon_ota.orchestrator.webhooks.sender import Target, new_secret, target

router = APIRouter(prefix="/api/webhooks", tags=["webhooks"])

_TIMES = ("created_at", "disabled_at", "failing_since")
Kind = Annotated[str, Field(max_length=48, pattern=r"^(\*|[a-z_]+\.[a-z_]*)$")]
Kinds = Annotated[list[Kind], Field(min_length=1, max_length=32, examples=[list(ALERTS)])]
Name = Annotated[str, Field(min_length=1, max_length=64)]
Url = Annotated[str, Field(max_length=1024, examples=["https://chat.example.org/hooks/beacons"])]


def told_of(request: Request) -> Webhooks:
    """Return what delivers, of the orchestrator that a request came to."""
    return request.app.state.webhooks


Telling = Annotated[Webhooks, Depends(told_of)]


class NewWebhook(BaseModel):
    """A webhook to make; kinds are ``rollout.halted``, or ``rollout.`` for a group, or ``*``."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    url: Url
    kinds: Kinds = list(ALERTS)


class Change(BaseModel):
    """What of a webhook is to change; what is absent stays."""

    model_config = ConfigDict(extra="forbid")

    name: Name | None = None
    url: Url | None = None
    kinds: Kinds | None = None
    enabled: bool | None = None


def shown(row: Fields) -> Fields:
    """Return a webhook as the API shows it, without its secret."""
    public = {key: row[key] for key in ("name", "url", "kinds", "created_by")}
    public |= {key: format_iso(row[key]) for key in _TIMES}
    counts = row["counts"]
    return {
        "webhook_id": row["id"],
        **public,
        "enabled": row["disabled_at"] is None,
        "deliveries": {
            state: counts[state]
            for state in (webhooks.PENDING, webhooks.DELIVERED, webhooks.GIVEN_UP)
        },
    }


def shown_delivery(row: Fields) -> Fields:
    """Return a delivery as the API shows it."""
    public = {key: row[key] for key in ("kind", "state", "tries", "status", "error", "took_ms")}
    for key in ("created_at", "next_at", "ended_at"):
        public[key] = format_iso(row[key])
    return {"delivery_id": row["id"], **public, "body": json.loads(row["body"])}


@router.get("")
async def listing(service: On, actor: Admin) -> Response:
    """List webhooks, and how many of their deliveries are in which state."""
    return page("webhooks", [shown(row) for row in await service.db.read(webhooks.list_all)])


@router.post("", status_code=201)
async def create(new: NewWebhook, service: On, telling: Telling, actor: Admin) -> Response:
    """Make a webhook for what happens from now on. Its secret is shown this once."""
    where = target(new.url, local=service.settings.webhook_local)
    row: Fields = {
        "id": tables.new_id(),
        "name": new.name,
        "url": new.url,
        "secret": new_secret(),
        "kinds": json.dumps(new.kinds),
        "created_at": service.clock.now(),
        "created_by": actor.name,
    }

    def work(conn: Connection) -> Fields:
        webhooks.add(conn, {**row, "seen": events.last_id(conn)})
        return _found(conn, row["id"])

    detail = {"name": new.name, "to": _place(where), "kinds": new.kinds}
    made = await _do(service, telling, actor, "created", row["id"], work, detail)
    return answer({**shown(made), "secret": row["secret"]}, 201)


@router.get("/{webhook_id}")
async def show(
    webhook_id: str,
    service: On,
    actor: Admin,
    limit: Annotated[int, Query(ge=1, le=LIMITS.page)] = 50,
) -> Response:
    """Show a webhook and its newest deliveries."""

    def read(conn: Connection) -> Fields:
        row = _found(conn, webhook_id)
        log = [shown_delivery(one) for one in webhooks.list_deliveries(conn, webhook_id, limit)]
        return {**shown(row), "log": log}

    return answer(await service.db.read(read))


@router.patch("/{webhook_id}")
async def change(
    webhook_id: str, wanted: Change, service: On, telling: Telling, actor: Admin
) -> Response:
    """Change a webhook; one that is enabled again hears of what happens from now on."""
    values: Fields = {k: v for k, v in wanted.model_dump().items() if v is not None}
    detail = {key: value for key, value in values.items() if key != "url"}
    if "url" in values:
        detail["to"] = _place(target(values["url"], local=service.settings.webhook_local))
    if "kinds" in values:
        values["kinds"] = json.dumps(values["kinds"])
    enabled = values.pop("enabled", None)
    now = service.clock.now()

    def work(conn: Connection) -> Fields:
        row = _found(conn, webhook_id)
        changed = dict(values)  # it is run again when another change of its transaction fails
        if enabled is False:
            changed["disabled_at"] = row["disabled_at"] or now
        elif enabled and row["disabled_at"] is not None:
            changed.update(
                disabled_at=None, failing_since=None, rests_until=None, seen=events.last_id(conn)
            )
        if changed:
            webhooks.update_columns(conn, webhook_id, **changed)
        return _found(conn, webhook_id)

    return answer(shown(await _do(service, telling, actor, "changed", webhook_id, work, detail)))


@router.post("/{webhook_id}/rotate")
async def rotate(webhook_id: str, service: On, telling: Telling, actor: Admin) -> Response:
    """Give a webhook a new secret, at once. It is shown this once."""
    secret = new_secret()

    def work(conn: Connection) -> Fields:
        _found(conn, webhook_id)
        webhooks.update_columns(conn, webhook_id, secret=secret)
        return _found(conn, webhook_id)

    row = await _do(service, telling, actor, "rotated", webhook_id, work)
    return answer({**shown(row), "secret": secret})


@router.post("/{webhook_id}/test", status_code=202)
async def test(webhook_id: str, service: On, telling: Telling, actor: Admin) -> Response:
    """Deliver something that did not happen, to see whether it arrives."""
    now = service.clock.now()
    body = {"type": "webhook.test", "timestamp": format_iso(now), "data": {"by": actor.name}}

    def work(conn: Connection) -> Fields:
        if _found(conn, webhook_id)["disabled_at"] is not None:
            raise UsageError("webhook_disabled", "the webhook is disabled", found=webhook_id)
        webhooks.update_columns(conn, webhook_id, rests_until=None)
        return webhooks.enqueue_test(conn, webhook_id, json.dumps(body), now)

    row = await service.change_audited(actor.name, "webhook.tested", webhook_id, work, event=False)
    telling.wake()
    return answer({"delivery_id": row["id"]}, 202)


@router.post("/{webhook_id}/deliveries/{delivery_id}/retry", status_code=202)
async def retry(
    webhook_id: str, delivery_id: str, service: On, telling: Telling, actor: Admin
) -> Response:
    """Try a delivery again that was given up."""
    now = service.clock.now()

    def work(conn: Connection) -> Fields:
        _found(conn, webhook_id)
        row = webhooks.retry_delivery(conn, webhook_id, delivery_id, now)
        if row is None:
            raise missing("delivery", delivery_id)
        return row

    detail = {"delivery": delivery_id}
    row = await service.change_audited(
        actor.name, "webhook.retried", webhook_id, work, event=False, detail=detail
    )
    telling.wake()
    return answer({"delivery_id": row["id"]}, 202)


@router.delete("/{webhook_id}", status_code=204)
async def remove(webhook_id: str, service: On, telling: Telling, actor: Admin) -> Response:
    """Remove a webhook and its log; what was not delivered is not."""

    def work(conn: Connection) -> Fields:
        row = _found(conn, webhook_id)
        webhooks.remove(conn, webhook_id)
        return row

    await _do(service, telling, actor, "removed", webhook_id, work)
    return Response(status_code=204)


def _place(where: Target) -> str:
    """Return where a webhook goes, for the audit log: its path and query may be a secret."""
    return f"{where.scheme}://{where.host}:{where.port}"


def _found(conn: Connection, webhook_id: str) -> Fields:
    rows = [row for row in webhooks.list_all(conn) if row["id"] == webhook_id]
    if not rows:
        raise missing("webhook", webhook_id)
    return rows[0]


async def _do(
    service: Service,
    telling: Webhooks,
    actor: Actor,
    verb: str,
    webhook_id: str,
    work,
    detail: Fields | None = None,
) -> Fields:
    def both(conn: Connection) -> tuple[Fields, list[Fields]]:
        return work(conn), webhooks.list_all(conn)

    row, _ = await service.change_audited(
        actor.name,
        f"webhook.{verb}",
        webhook_id,
        both,
        then=lambda done: telling.reload(done[1]),
        detail=detail,
    )
    return row
