"""``/api/tokens``: creates, lists and revokes the tokens of administrators."""

from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection
from starlette.responses import Response

from beacon_ota.errors import UsageError
from beacon_ota.orchestrator.api.access import Admin, Viewer
from beacon_ota.orchestrator.api.answers import json_response, listing_response
from beacon_ota.orchestrator.api.dependencies import ServiceDep
from beacon_ota.orchestrator.clock import format_iso
from beacon_ota.orchestrator.db.tables import Fields, tokens
from beacon_ota.orchestrator.http.problems import not_found

router = APIRouter(prefix="/api/tokens", tags=["tokens"])


class NewToken(BaseModel):
    """A token to create."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=64)]
    role: Literal["viewer", "operator", "admin"] = "viewer"
    days: Annotated[float | None, Field(gt=0, le=3650)] = None


def serialize_token(row: Fields) -> Fields:
    """Return a token as JSON, without its secret."""
    return {key: format_iso(row[key]) if key.endswith("_at") else row[key] for key in row}


@router.get("/me")
async def show_own_token(service: ServiceDep, actor: Viewer) -> Response:
    """Show name and role of the token that makes the request."""
    return json_response(actor._asdict())


@router.get("")
async def list_tokens(service: ServiceDep, actor: Admin) -> Response:
    """List tokens, without their secrets, which are not stored."""
    return listing_response(
        "tokens", [serialize_token(row) for row in await service.db.read(tokens.list_all)]
    )


@router.post("", status_code=201)
async def create_token(new: NewToken, service: ServiceDep, actor: Admin) -> Response:
    """Create a token; only this answer shows its secret."""
    now = service.clock.now()
    expires_at = None if new.days is None else now + new.days * 86400

    def insert_token(conn: Connection) -> tuple[Fields, str]:
        return tokens.create(conn, new.name, new.role, now, expires_at)

    row, token = await service.change_audited(
        actor.name, "token.created", new.name, insert_token, detail={"role": new.role}
    )
    return json_response({**serialize_token(row), "token": token}, 201)


@router.delete("/{token_id}")
async def revoke_token(token_id: str, service: ServiceDep, actor: Admin) -> Response:
    """Revoke a token for good. The last usable admin token cannot be revoked."""

    now = service.clock.now()

    def mark_revoked(conn: Connection) -> Fields:
        row = tokens.revoke(conn, token_id, now)
        if row is None:
            raise not_found("token", token_id)
        if not tokens.usable_admins(conn, now):
            raise UsageError("last_admin", "this is the last admin token: nobody could make others")
        return row

    return json_response(
        serialize_token(
            await service.change_audited(actor.name, "token.revoked", token_id, mark_revoked)
        )
    )
