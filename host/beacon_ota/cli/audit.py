"""``beacon-ota audit``: who did what, and whether the log is whole."""

from typing import Annotated

import typer

from beacon_ota.cli._support import remote
from beacon_ota.cli._support.remote import DataOption, JsonOption, TokenOption, UrlOption
from beacon_ota.console import output

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Show and verify the audit log.")

_COLUMNS = ("seq", "time", "actor", "action", "target", "reason")


@app.command("list")
def listing(
    action: Annotated[str | None, typer.Option(help="Or its beginning: rollout.")] = None,
    by: Annotated[str | None, typer.Option(help="Who.")] = None,
    target: Annotated[str | None, typer.Option(help="What.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 50,
    after: Annotated[
        int | None, typer.Option(min=0, help="In order after this entry [default: the newest].")
    ] = None,
    data: DataOption = None,
    url: UrlOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """List entries; without --after the newest first."""
    newest = after is None
    if data is None:
        rows = remote.client(url, token).list_audit_entries(
            action=action, by=by, target=target, limit=limit, after=after or 0, newest=newest
        )
    else:
        from beacon_ota.orchestrator.api.audit import serialize_entry
        from beacon_ota.orchestrator.db.database import open_offline
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
    output.print_rows(rows if json else remote.shorten(rows, "time"), _COLUMNS, as_json=json)


@app.command()
def verify(
    head: Annotated[
        str | None, typer.Option(help="Hash noted earlier, which must still be there.")
    ] = None,
    data: DataOption = None,
    url: UrlOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Verify the chain of hashes; note the head that is printed, and ask for it next time."""
    if data is None:
        found = remote.client(url, token).verify_audit(head)
    else:
        from beacon_ota.orchestrator.db.database import open_offline
        from beacon_ota.orchestrator.db.tables import audit

        with open_offline(data) as conn:
            found = audit.verify_chain(conn, head)
    if json:
        output.print_json(found)
        return
    output.print_markup("[green]whole[/]  {} entries", found["entries"])
    output.print_markup("  head  {}", found["head"], soft_wrap=True)
