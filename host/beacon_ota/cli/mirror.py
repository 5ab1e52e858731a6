"""``beacon-ota mirror``: adds, lists and removes mirrors, the orchestrators on sites."""

from pathlib import Path
from typing import Annotated

import typer

from beacon_ota.cli._support.display import localize_times
from beacon_ota.cli._support.options import JsonOption, Server, YesOption, expand_groups
from beacon_ota.cli._support.prompts import confirm_action
from beacon_ota.console import output
from beacon_ota.errors import InputError

_WELL = ("ok", "never_seen")

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Manage distribution points on sites."
)

_COLUMNS = (
    "name",
    "site",
    "health",
    "unhealthy_since",
    "silent_s",
    "backlog",
    "lag_s",
    "skew_s",
    "hands_out_until",
    "version",
    "url",
    "mirror_id",
)


@app.command("add")
@expand_groups
def add_mirror(
    name: Annotated[str, typer.Argument(help="What it is called.")],
    site: Annotated[str, typer.Option(help='The site it serves, with all below; "" is all.')],
    token_file: Annotated[
        Path | None,
        typer.Option(help="Where its token goes (mode 0600), instead of being printed."),
    ] = None,
    *,
    server: Server,
    json: JsonOption = False,
) -> None:
    """Make a mirror; its token is shown once, for `serve --upstream-token-file`."""
    from beacon_ota.trust import files

    client = server.client
    if token_file is not None:  # before there is a token that could not be kept
        files.write_file(token_file, b"", mode=0o600, replace=False)
    try:
        done = client.create_mirror(name, site)
    except BaseException:
        if token_file is not None:
            token_file.unlink(missing_ok=True)
        raise
    if token_file is not None:
        try:
            files.write_file(token_file, (done.pop("token") + "\n").encode(), mode=0o600)
        except BaseException:  # the token is lost: withdraw the mirror
            client.remove_mirror(done["mirror_id"])
            raise
    if json:
        output.print_json(done)
    elif token_file is not None:
        output.print_markup("mirror {} made; its token is in {}", name, token_file)
    else:
        output.console.print(done["token"], highlight=False, soft_wrap=True)


@app.command("list")
@expand_groups
def list_mirrors(*, server: Server, json: JsonOption = False) -> None:
    """List mirrors: what each serves, how it is and since when, how far it lags."""
    rows = server.client.list_mirrors()
    if json:
        output.print_json(rows)
        return
    shown = [
        {
            **row,
            "health": row["health"] if row["health"] in _WELL else output.alert_cell(row["health"]),
        }
        for row in localize_times(rows, "unhealthy_since", "hands_out_until")
    ]
    output.print_rows(shown, _COLUMNS, as_json=False)
    for row in rows:
        if row["problem"]:
            output.print_markup("[bold]{}[/]  {}", row["name"], row["problem"])


@app.command("remove")
@expand_groups
def remove_mirror(
    name: Annotated[str, typer.Argument(help="Its name, or its id.")],
    yes: YesOption = False,
    *,
    server: Server,
) -> None:
    """Give a mirror up: its token works no more, and its beacons are the primary's."""
    client = server.client
    found = [one for one in client.list_mirrors() if name in (one["name"], one["mirror_id"])]
    if not found:
        raise InputError("mirror_unknown", "there is no such mirror", found=name)
    confirm_action(f"Give up the mirror {name}?", yes)
    client.remove_mirror(found[0]["mirror_id"])
    output.print_markup("{} removed", name)
