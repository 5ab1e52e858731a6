"""``beacon-ota webhook``: manages webhooks, and shows and repeats their deliveries."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from beacon_ota.cli._support.display import localize_times, print_fields
from beacon_ota.cli._support.options import JsonOption, Server, YesOption, expand_groups
from beacon_ota.cli._support.prompts import confirm_action
from beacon_ota.console import output
from beacon_ota.errors import InputError

if TYPE_CHECKING:
    from beacon_ota.client import Client

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Tell other systems what happens."
)

Hook = Annotated[str, typer.Argument(metavar="WEBHOOK", help="Its name, or its id in the list.")]
KindOption = Annotated[
    list[str] | None,
    typer.Option(
        "--kind",
        help="rollout.halted, or rollout. for all of its kind, or '*'; again for more. "
        "[default: halts, completions; updates lost or undone; beacons quarantined, withheld, "
        "refused or of another board; unhealthy mirrors]",
    ),
]
_COLUMNS = ("webhook_id", "name", "url", "kinds", "state", "delivered", "pending", "given_up")
_LOG = ("delivery_id", "created_at", "kind", "state", "tries", "answer", "next_at")


@app.command("list")
@expand_groups
def list_webhooks(*, server: Server, json: JsonOption = False) -> None:
    """List webhooks, and how many of their deliveries are in which state."""
    rows = server.client.list_webhooks()
    output.print_rows(rows if json else [_format_row(row) for row in rows], _COLUMNS, as_json=json)


@app.command("add")
@expand_groups
def add_webhook(
    name: Annotated[str, typer.Argument(help="For people.")],
    to: Annotated[str, typer.Argument(metavar="ADDRESS", help="https://…")],
    kind: KindOption = None,
    *,
    server: Server,
    json: JsonOption = False,
) -> None:
    """Make a webhook; the secret that it signs with is printed once."""
    done = server.client.create_webhook(name, to, kind)
    if json:
        output.print_json(done)
    else:
        output.console.print(done["secret"], highlight=False, soft_wrap=True)


@app.command("change")
@expand_groups
def change_webhook(
    webhook: Hook,
    name: Annotated[str | None, typer.Option(help="For people.")] = None,
    to: Annotated[str | None, typer.Option(metavar="ADDRESS", help="https://…")] = None,
    kind: KindOption = None,
    enable: Annotated[
        bool | None,
        typer.Option("--enable/--disable", help="Enabled, it hears of what happens from then on."),
    ] = None,
    *,
    server: Server,
    json: JsonOption = False,
) -> None:
    """Change a webhook."""
    client = server.client
    fields = {"name": name, "url": to, "kinds": kind, "enabled": enable}
    done = client.change_webhook(_find_webhook_id(client, webhook), **fields)
    if json:
        output.print_json(done)
    else:
        print_fields(_format_row(done), done["name"])


@app.command("remove")
@expand_groups
def remove_webhook(webhook: Hook, yes: YesOption = False, *, server: Server) -> None:
    """Remove a webhook and its log; what was not delivered is not."""
    client = server.client
    webhook_id = _find_webhook_id(client, webhook)
    confirm_action(f"Remove the webhook {webhook}?", yes)
    client.remove_webhook(webhook_id)
    output.print_markup("{} removed", webhook)


@app.command("deliveries")
@expand_groups
def list_deliveries(
    webhook: Hook,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="The newest so many.")] = 50,
    *,
    server: Server,
    json: JsonOption = False,
) -> None:
    """List what was delivered, what waits, and what was given up."""
    client = server.client
    rows = client.get_webhook(_find_webhook_id(client, webhook), limit)["log"]
    if not json:
        rows = [{**row, "answer": row["status"] or row["error"]} for row in rows]
        rows = localize_times(rows, "created_at", "next_at")
    output.print_rows(rows, _LOG, as_json=json)


@app.command("retry")
@expand_groups
def retry_deliveries(
    webhook: Hook,
    delivery_id: Annotated[
        str | None, typer.Argument(help="One of its deliveries; else all that were given up.")
    ] = None,
    *,
    server: Server,
) -> None:
    """Try again what was given up."""
    client = server.client
    webhook_id = _find_webhook_id(client, webhook)
    wanted = (
        [delivery_id]
        if delivery_id
        else _list_given_up(client.get_webhook(webhook_id, 1000)["log"])
    )
    for one in wanted:
        client.retry_delivery(webhook_id, one)
    output.print_markup("{} queued again", len(wanted))


@app.command("test")
@expand_groups
def test_webhook(webhook: Hook, *, server: Server) -> None:
    """Deliver something that did not happen, to see whether it arrives."""
    client = server.client
    done = client.post_webhook_action(_find_webhook_id(client, webhook), "test")
    output.print_markup("{} queued", done["delivery_id"])


@app.command("rotate")
@expand_groups
def rotate_secret(
    webhook: Hook,
    yes: YesOption = False,
    *,
    server: Server,
) -> None:
    """Give a webhook a new secret, at once; it is printed once."""
    client = server.client
    webhook_id = _find_webhook_id(client, webhook)
    confirm_action(f"What knows the secret of {webhook} now refuses what comes. Rotate?", yes)
    done = client.post_webhook_action(webhook_id, "rotate")
    output.console.print(done["secret"], highlight=False, soft_wrap=True)


def _find_webhook_id(client: "Client", named: str) -> str:
    found = [
        row["webhook_id"]
        for row in client.list_webhooks()
        if named in (row["webhook_id"], row["name"])
    ]
    if len(found) != 1:
        why = "no such webhook" if not found else "several webhooks have this name"
        raise InputError("webhook_unknown", why, found=named)
    return found[0]


def _list_given_up(log: list[dict[str, Any]]) -> list[str]:
    return [row["delivery_id"] for row in log if row["state"] == "given_up"]


def _format_row(row: dict[str, Any]) -> dict[str, Any]:
    state = "disabled" if not row["enabled"] else "failing" if row["failing_since"] else "enabled"
    return {**row, "kinds": " ".join(row["kinds"]), "state": state, **row["deliveries"]}
