"""``beacon-ota token``: makes, lists and revokes tokens, through a server or in a data folder."""

import time
from pathlib import Path
from typing import Annotated

import typer

from beacon_ota.cli._support.completion import complete_words
from beacon_ota.cli._support.display import localize_times
from beacon_ota.cli._support.options import DataOption, JsonOption, Server, YesOption, expand_groups
from beacon_ota.cli._support.prompts import confirm_action
from beacon_ota.console import output
from beacon_ota.errors import InputError

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Make and revoke administrator tokens."
)

_COLUMNS = ("id", "name", "role", "created_at", "expires_at", "revoked_at")
_OFFLINE = "command line"


@app.command("new")
@expand_groups
def make_token(
    name: Annotated[str, typer.Argument(help="Whose, or what for.")],
    role: Annotated[
        str,
        typer.Option(
            help="viewer, operator or admin.",
            autocompletion=complete_words("viewer", "operator", "admin"),
        ),
    ] = "viewer",
    days: Annotated[float | None, typer.Option(min=0.001, help="Expires after so many.")] = None,
    data: DataOption = None,
    *,
    server: Server,
    json: JsonOption = False,
) -> None:
    """Make a token; it is printed once and kept nowhere."""
    if data is None:
        done = server.client.create_token(name, role, days)
    else:
        done = _make_offline(data, name, role, days)
    if json:
        output.print_json(done)
    else:
        output.console.print(done["token"], highlight=False, soft_wrap=True)


@app.command("list")
@expand_groups
def list_tokens(
    data: DataOption = None,
    *,
    server: Server,
    json: JsonOption = False,
) -> None:
    """List tokens, without anything that could be used as one."""
    if data is None:
        rows = server.client.list_tokens()
    else:
        from beacon_ota.orchestrator.api.tokens import serialize_token
        from beacon_ota.orchestrator.db.schema_version import open_offline
        from beacon_ota.orchestrator.db.tables import tokens

        with open_offline(data) as conn:
            rows = [serialize_token(row) for row in tokens.list_all(conn)]
    times = ("created_at", "expires_at", "revoked_at")
    output.print_rows(rows if json else localize_times(rows, *times), _COLUMNS, as_json=json)


@app.command("revoke")
@expand_groups
def revoke_token(
    token_id: Annotated[str, typer.Argument(help="The id in the list.")],
    yes: YesOption = False,
    data: DataOption = None,
    *,
    server: Server,
) -> None:
    """Revoke a token, for good; a running server refuses it from now on."""
    confirm_action(f"Revoke the token {token_id}?", yes)
    if data is None:
        server.client.revoke_token(token_id)
    else:
        _revoke_offline(data, token_id)
    output.print_markup("{} revoked", token_id)


def _make_offline(data: Path, name: str, role: str, days: float | None) -> dict:
    from beacon_ota.orchestrator.api.tokens import serialize_token
    from beacon_ota.orchestrator.db.schema_version import open_offline
    from beacon_ota.orchestrator.db.tables import audit, tokens

    now = time.time()
    with open_offline(data) as conn:
        row, made = tokens.create(conn, name, role, now, days and now + days * 86400)
        audit.append(conn, now, _OFFLINE, "token.created", name, "", {"role": role})
    return {**serialize_token(row), "token": made}


def _revoke_offline(data: Path, token_id: str) -> None:
    from beacon_ota.orchestrator.db.schema_version import open_offline
    from beacon_ota.orchestrator.db.tables import audit, tokens

    now = time.time()
    with open_offline(data) as conn:
        if tokens.revoke(conn, token_id, now) is None:
            raise InputError("token_unknown", "there is no such token", found=token_id)
        audit.append(conn, now, _OFFLINE, "token.revoked", token_id)
