"""``beacon-ota audit``: lists the audit log, and verifies its chain of hashes."""

from typing import Annotated

import typer

from beacon_ota.cli._support.display import localize_times
from beacon_ota.cli._support.options import DataOption, JsonOption, Server, expand_groups
from beacon_ota.console import output

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Show and verify the audit log.")

_COLUMNS = ("seq", "time", "actor", "action", "target", "reason")


@app.command("list")
@expand_groups
def list_entries(
    action: Annotated[str | None, typer.Option(help="Or its beginning: rollout.")] = None,
    by: Annotated[str | None, typer.Option(help="Who.")] = None,
    target: Annotated[str | None, typer.Option(help="What.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 50,
    after: Annotated[
        int | None, typer.Option(min=0, help="In order after this entry [default: the newest].")
    ] = None,
    data: DataOption = None,
    *,
    server: Server,
    json: JsonOption = False,
) -> None:
    """List entries; without --after the newest first."""
    newest = after is None
    if data is None:
        rows = server.client.list_audit_entries(
            action=action, by=by, target=target, limit=limit, after=after or 0, newest=newest
        )
    else:
        from beacon_ota.orchestrator.api.audit import serialize_entry
        from beacon_ota.orchestrator.db.schema_version import open_offline
        from beacon_ota.orchestrator.db.tables import audit

        with open_offline(data) as conn:
            found = audit.list_entries(
                conn,
                after=after or 0,
                limit=limit,
                action=action,
                actor=by,
                target=target,
                newest=newest,
            )
        rows = [serialize_entry(entry) for entry in found]
    output.print_rows(rows if json else localize_times(rows, "time"), _COLUMNS, as_json=json)


@app.command("verify")
@expand_groups
def verify_chain(
    head: Annotated[
        str | None, typer.Option(help="Hash noted earlier, which must still be there.")
    ] = None,
    data: DataOption = None,
    *,
    server: Server,
    json: JsonOption = False,
) -> None:
    """Verify the chain of hashes; note the head that is printed, and ask for it next time."""
    if data is None:
        result = server.client.verify_audit(head)
    else:
        from beacon_ota.orchestrator.db.schema_version import open_offline
        from beacon_ota.orchestrator.db.tables import audit

        with open_offline(data) as conn:
            result = audit.verify_chain(conn, head)
    if json:
        output.print_json(result)
        return
    output.print_markup("[green]whole[/]  {} entries", result["entries"])
    output.print_markup("  head  {}", result["head"], soft_wrap=True)
