"""``/api/webhooks``: creates, changes, tests and removes webhooks, and shows their deliveries."""

import json
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection
from starlette.responses import Response

from beacon_ota.errors import UsageError
from beacon_ota.orchestrator.api.access import Admin
from beacon_ota.orchestrator.api.answers import json_response, listing_response
from beacon_ota.orchestrator.api.dependencies import DispatcherDep, ServiceDep
from beacon_ota.orchestrator.clock import format_iso
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.db import tables
from beacon_ota.orchestrator.db.tables import Fields, events, webhooks
from beacon_ota.orchestrator.db.tables.tokens import Actor
from beacon_ota.orchestrator.http.problems import not_found
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.orchestrator.webhooks.dispatcher import ALERTS, WebhookDispatcher
from beacon_ota.orchestrator.webhooks.sender import WebhookTarget, new_secret, parse_target

router = APIRouter(prefix="/api/webhooks", tags=["webhooks"])

_TIMES = ("created_at", "disabled_at", "failing_since")
Kind = Annotated[str, Field(max_length=48, pattern=r"^(\*|[a-z_]+\.[a-z_]*)$")]
Kinds = Annotated[list[Kind], Field(min_length=1, max_length=32, examples=[list(ALERTS)])]
Name = Annotated[str, Field(min_length=1, max_length=64)]
Url = Annotated[str, Field(max_length=1024, examples=["https://chat.example.org/hooks/beacons"])]


class NewWebhook(BaseModel):
    """A webhook to create; kinds are ``rollout.halted``, ``rollout.`` for a group, or ``*``."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    url: Url
    kinds: Kinds = list(ALERTS)


class Change(BaseModel):
    """The fields of a webhook to change; absent fields stay."""

    model_config = ConfigDict(extra="forbid")

    name: Name | None = None
    url: Url | None = None
    kinds: Kinds | None = None
    enabled: bool | None = None


def serialize_webhook(row: Fields) -> Fields:
    """Return a webhook as JSON, without its secret."""
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


def serialize_delivery(row: Fields) -> Fields:
    """Return a delivery as JSON."""
    public = {key: row[key] for key in ("kind", "state", "tries", "status", "error", "took_ms")}
    for key in ("created_at", "next_at", "ended_at"):
        public[key] = format_iso(row[key])
    return {"delivery_id": row["id"], **public, "body": json.loads(row["body"])}


@router.get("")
async def list_webhooks(service: ServiceDep, actor: Admin) -> Response:
    """List webhooks with their numbers of deliveries by state."""
    return listing_response(
        "webhooks", [serialize_webhook(row) for row in await service.db.read(webhooks.list_all)]
    )


@router.post("", status_code=201)
async def create_webhook(
    new: NewWebhook, service: ServiceDep, dispatcher: DispatcherDep, actor: Admin
) -> Response:
    """Create a webhook for events from now on. Its secret is shown this once."""
    where = parse_target(new.url, local=service.settings.webhook_local)
    row: Fields = {
        "id": tables.new_id(),
        "name": new.name,
        "url": new.url,
        "secret": new_secret(),
        "kinds": json.dumps(new.kinds),
        "created_at": service.clock.now(),
        "created_by": actor.name,
    }

    def insert_webhook(conn: Connection) -> Fields:
        webhooks.add(conn, {**row, "seen": events.last_id(conn)})
        return _get_webhook(conn, row["id"])

    detail = {"name": new.name, "to": _describe_target(where), "kinds": new.kinds}
    made = await _apply_change(
        service, dispatcher, actor, "created", row["id"], insert_webhook, detail
    )
    return json_response({**serialize_webhook(made), "secret": row["secret"]}, 201)


@router.get("/{webhook_id}")
async def show_webhook(
    webhook_id: str,
    service: ServiceDep,
    actor: Admin,
    limit: Annotated[int, Query(ge=1, le=LIMITS.page)] = 50,
) -> Response:
    """Show a webhook and its newest deliveries."""

    def read_webhook(conn: Connection) -> Fields:
        row = _get_webhook(conn, webhook_id)
        log = [serialize_delivery(one) for one in webhooks.list_deliveries(conn, webhook_id, limit)]
        return {**serialize_webhook(row), "log": log}

    return json_response(await service.db.read(read_webhook))


@router.patch("/{webhook_id}")
async def change_webhook(
    webhook_id: str, changes: Change, service: ServiceDep, dispatcher: DispatcherDep, actor: Admin
) -> Response:
    """Change a webhook; when it is enabled again, it gets events from now on."""
    values: Fields = {k: v for k, v in changes.model_dump().items() if v is not None}
    detail = {key: value for key, value in values.items() if key != "url"}
    if "url" in values:
        detail["to"] = _describe_target(
            parse_target(values["url"], local=service.settings.webhook_local)
        )
    if "kinds" in values:
        values["kinds"] = json.dumps(values["kinds"])
    enabled = values.pop("enabled", None)
    now = service.clock.now()

    def write_change(conn: Connection) -> Fields:
        row = _get_webhook(conn, webhook_id)
        changed = dict(values)  # this function may run again, alone, if its group of changes fails
        if enabled is False:
            changed["disabled_at"] = row["disabled_at"] or now
        elif enabled and row["disabled_at"] is not None:
            changed.update(
                disabled_at=None, failing_since=None, rests_until=None, seen=events.last_id(conn)
            )
        if changed:
            webhooks.update_columns(conn, webhook_id, **changed)
        return _get_webhook(conn, webhook_id)

    return json_response(
        serialize_webhook(
            await _apply_change(
                service, dispatcher, actor, "changed", webhook_id, write_change, detail
            )
        )
    )


@router.post("/{webhook_id}/rotate")
async def rotate_webhook_secret(
    webhook_id: str, service: ServiceDep, dispatcher: DispatcherDep, actor: Admin
) -> Response:
    """Give a webhook a new secret at once. The secret is shown this once."""
    secret = new_secret()

    def write_secret(conn: Connection) -> Fields:
        _get_webhook(conn, webhook_id)
        webhooks.update_columns(conn, webhook_id, secret=secret)
        return _get_webhook(conn, webhook_id)

    row = await _apply_change(service, dispatcher, actor, "rotated", webhook_id, write_secret)
    return json_response({**serialize_webhook(row), "secret": secret})


@router.post("/{webhook_id}/test", status_code=202)
async def test_webhook(
    webhook_id: str, service: ServiceDep, dispatcher: DispatcherDep, actor: Admin
) -> Response:
    """Deliver a test event."""
    now = service.clock.now()
    body = {"type": "webhook.test", "timestamp": format_iso(now), "data": {"by": actor.name}}

    def enqueue_test(conn: Connection) -> Fields:
        if _get_webhook(conn, webhook_id)["disabled_at"] is not None:
            raise UsageError("webhook_disabled", "the webhook is disabled", found=webhook_id)
        webhooks.update_columns(conn, webhook_id, rests_until=None)
        return webhooks.enqueue_test(conn, webhook_id, json.dumps(body), now)

    row = await service.change_audited(
        actor.name, "webhook.tested", webhook_id, enqueue_test, event=False
    )
    dispatcher.wake()
    return json_response({"delivery_id": row["id"]}, 202)


@router.post("/{webhook_id}/deliveries/{delivery_id}/retry", status_code=202)
async def retry_delivery(
    webhook_id: str, delivery_id: str, service: ServiceDep, dispatcher: DispatcherDep, actor: Admin
) -> Response:
    """Try a delivery again that was given up."""
    now = service.clock.now()

    def requeue_delivery(conn: Connection) -> Fields:
        _get_webhook(conn, webhook_id)
        row = webhooks.retry_delivery(conn, webhook_id, delivery_id, now)
        if row is None:
            raise not_found("delivery", delivery_id)
        return row

    detail = {"delivery": delivery_id}
    row = await service.change_audited(
        actor.name, "webhook.retried", webhook_id, requeue_delivery, event=False, detail=detail
    )
    dispatcher.wake()
    return json_response({"delivery_id": row["id"]}, 202)


@router.delete("/{webhook_id}", status_code=204)
async def remove_webhook(
    webhook_id: str, service: ServiceDep, dispatcher: DispatcherDep, actor: Admin
) -> Response:
    """Remove a webhook and its log; pending deliveries are dropped."""

    def delete_webhook(conn: Connection) -> Fields:
        row = _get_webhook(conn, webhook_id)
        webhooks.remove(conn, webhook_id)
        return row

    await _apply_change(service, dispatcher, actor, "removed", webhook_id, delete_webhook)
    return Response(status_code=204)


def _describe_target(where: WebhookTarget) -> str:
    """Return scheme, host and port of a webhook for the audit log; the path may be a secret."""
    return f"{where.scheme}://{where.host}:{where.port}"


def _get_webhook(conn: Connection, webhook_id: str) -> Fields:
    rows = [row for row in webhooks.list_all(conn) if row["id"] == webhook_id]
    if not rows:
        raise not_found("webhook", webhook_id)
    return rows[0]


async def _apply_change(
    service: Service,
    dispatcher: WebhookDispatcher,
    actor: Actor,
    verb: str,
    webhook_id: str,
    write,
    detail: Fields | None = None,
) -> Fields:
    def write_and_list(conn: Connection) -> tuple[Fields, list[Fields]]:
        return write(conn), webhooks.list_all(conn)

    row, _ = await service.change_audited(
        actor.name,
        f"webhook.{verb}",
        webhook_id,
        write_and_list,
        then=lambda done: dispatcher.reload(done[1]),
        detail=detail,
    )
    return row
