"""``/api/tokens``: administrators' access."""

from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection
from starlette.responses import Response

from beacon_ota.errors import UsageError
from beacon_ota.orchestrator.api.access import Admin, On, Viewer
from beacon_ota.orchestrator.api.answers import answer, page
from beacon_ota.orchestrator.clock import format_iso
from beacon_ota.orchestrator.db.tables import Fields, tokens
from beacon_ota.orchestrator.http.problems import missing

router = APIRouter(prefix="/api/tokens", tags=["tokens"])


class NewToken(BaseModel):
    """A token to make."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=64)]
    role: Literal["viewer", "operator", "admin"] = "viewer"
    days: Annotated[float | None, Field(gt=0, le=3650)] = None


def shown(row: Fields) -> Fields:
    """Return a token as the API shows it."""
    return {key: format_iso(row[key]) if key.endswith("_at") else row[key] for key in row}


@router.get("/me")
async def me(service: On, actor: Viewer) -> Response:
    """Tell whose token this is."""
    return answer(actor._asdict())


@router.get("")
async def listing(service: On, actor: Admin) -> Response:
    """List tokens; the tokens themselves are known to nobody but their holders."""
    return page("tokens", [shown(row) for row in await service.db.read(tokens.list_all)])


@router.post("", status_code=201)
async def create(new: NewToken, service: On, actor: Admin) -> Response:
    """Make a token; the answer is the only place where it is ever shown."""
    now = service.clock.now()
    expires_at = None if new.days is None else now + new.days * 86400

    def work(conn: Connection) -> tuple[Fields, str]:
        return tokens.create(conn, new.name, new.role, now, expires_at)

    row, token = await service.change_audited(
        actor.name, "token.created", new.name, work, detail={"role": new.role}
    )
    return answer({**shown(row), "token": token}, 201)


@router.delete("/{token_id}")
async def revoke(token_id: str, service: On, actor: Admin) -> Response:
    """Revoke a token, for good. The last usable admin token stays."""

    now = service.clock.now()

    def work(conn: Connection) -> Fields:
        row = tokens.revoke(conn, token_id, now)
        if row is None:
            raise missing("token", token_id)
        if not tokens.usable_admins(conn, now):
            raise UsageError("last_admin", "this is the last admin token: nobody could make others")
        return row

    return answer(shown(await service.change_audited(actor.name, "token.revoked", token_id, work)))
