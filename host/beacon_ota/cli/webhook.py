"""``beacon-ota webhook``: who is told what happens, and whether it arrived."""

from typing import Annotated, Any

import typer

from beacon_ota.cli._support import remote
from beacon_ota.cli._support.remote import JsonOption, TokenOption, UrlOption, YesOption
from beacon_ota.console import output
from beacon_ota.errors import InputError

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
def listing(url: UrlOption = None, token: TokenOption = None, json: JsonOption = False) -> None:
    """List webhooks, and how many of their deliveries are in which state."""
    rows = remote.client(url, token).list_webhooks()
    output.print_rows(rows if json else [_row(row) for row in rows], _COLUMNS, as_json=json)


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="For people.")],
    to: Annotated[str, typer.Argument(metavar="ADDRESS", help="https://…")],
    kind: KindOption = None,
    url: UrlOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Make a webhook; the secret that it signs with is printed once."""
    done = remote.client(url, token).create_webhook(name, to, kind)
    if json:
        output.print_json(done)
    else:
        output.console.print(done["secret"], highlight=False, soft_wrap=True)


@app.command()
def change(
    webhook: Hook,
    name: Annotated[str | None, typer.Option(help="For people.")] = None,
    to: Annotated[str | None, typer.Option(metavar="ADDRESS", help="https://…")] = None,
    kind: KindOption = None,
    enable: Annotated[
        bool | None,
        typer.Option("--enable/--disable", help="Enabled, it hears of what happens from then on."),
    ] = None,
    url: UrlOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Change a webhook."""
    client = remote.client(url, token)
    fields = {"name": name, "url": to, "kinds": kind, "enabled": enable}
    done = client.change_webhook(_id(client, webhook), **fields)
    if json:
        output.print_json(done)
    else:
        remote.show(_row(done), done["name"])


@app.command()
def remove(
    webhook: Hook, yes: YesOption = False, url: UrlOption = None, token: TokenOption = None
) -> None:
    """Remove a webhook and its log; what was not delivered is not."""
    client = remote.client(url, token)
    webhook_id = _id(client, webhook)
    remote.confirm(f"Remove the webhook {webhook}?", yes)
    client.remove_webhook(webhook_id)
    output.print_markup("{} removed", webhook)


@app.command()
def deliveries(
    webhook: Hook,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="The newest so many.")] = 50,
    url: UrlOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """List what was delivered, what waits, and what was given up."""
    client = remote.client(url, token)
    rows = client.get_webhook(_id(client, webhook), limit)["log"]
    if not json:
        rows = [{**row, "answer": row["status"] or row["error"]} for row in rows]
        rows = remote.shorten(rows, "created_at", "next_at")
    output.print_rows(rows, _LOG, as_json=json)


@app.command()
def retry(
    webhook: Hook,
    delivery_id: Annotated[
        str | None, typer.Argument(help="One of its deliveries; else all that were given up.")
    ] = None,
    url: UrlOption = None,
    token: TokenOption = None,
) -> None:
    """Try again what was given up."""
    client = remote.client(url, token)
    webhook_id = _id(client, webhook)
    wanted = (
        [delivery_id] if delivery_id else _given_up(client.get_webhook(webhook_id, 1000)["log"])
    )
    for one in wanted:
        client.retry_delivery(webhook_id, one)
    output.print_markup("{} queued again", len(wanted))


@app.command()
def test(webhook: Hook, url: UrlOption = None, token: TokenOption = None) -> None:
    """Deliver something that did not happen, to see whether it arrives."""
    client = remote.client(url, token)
    done = client.post_webhook_action(_id(client, webhook), "test")
    output.print_markup("{} queued", done["delivery_id"])


@app.command()
def rotate(
    webhook: Hook,
    yes: YesOption = False,
    url: UrlOption = None,
    token: TokenOption = None,
) -> None:
    """Give a webhook a new secret, at once; it is printed once."""
    client = remote.client(url, token)
    webhook_id = _id(client, webhook)
    remote.confirm(f"What knows the secret of {webhook} now refuses what comes. Rotate?", yes)
    done = client.post_webhook_action(webhook_id, "rotate")
    output.console.print(done["secret"], highlight=False, soft_wrap=True)


def _id(client: Any, named: str) -> str:
    found = [
        row["webhook_id"]
        for row in client.list_webhooks()
        if named in (row["webhook_id"], row["name"])
    ]
    if len(found) != 1:
        why = "no such webhook" if not found else "several webhooks have this name"
        raise InputError("webhook_unknown", why, found=named)
    return found[0]


def _given_up(log: list[dict[str, Any]]) -> list[str]:
    return [row["delivery_id"] for row in log if row["state"] == "given_up"]


def _row(row: dict[str, Any]) -> dict[str, Any]:
    state = "disabled" if not row["enabled"] else "failing" if row["failing_since"] else "enabled"
    return {**row, "kinds": " ".join(row["kinds"]), "state": state, **row["deliveries"]}
