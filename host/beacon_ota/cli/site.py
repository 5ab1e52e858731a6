"""``beacon-ota site``: buildings, floors, time zones and windows."""

from typing import Annotated, Any

import typer

from beacon_ota.cli._support.display import localize_times
from beacon_ota.cli._support.options import JsonOption, Server, YesOption, expand_groups
from beacon_ota.cli._support.prompts import confirm_action
from beacon_ota.console import output

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Manage buildings, floors, time zones and windows.",
)

Path = Annotated[str, typer.Argument(help="campus/building-a/floor-2")]
NameOption = Annotated[str | None, typer.Option(help="For people.")]
KindOption = Annotated[str | None, typer.Option(help="site, building or floor.")]
ZoneOption = Annotated[str | None, typer.Option(help="IANA name: Europe/Berlin.")]
WindowOption = Annotated[str | None, typer.Option(help="Maintenance window: 03:00-05:00.")]
_COLUMNS = ("path", "name", "building", "zone", "window", "opens_at", "beacons", "mirrors")


@app.command("list")
@expand_groups
def list_sites(*, server: Server, json: JsonOption = False) -> None:
    """List the tree, with the next opening of each window, and the mirrors that serve it."""
    rows = server.client.list_sites()
    if not json:
        rows = [
            {**row, "mirrors": _format_mirrors(row)} for row in localize_times(rows, "opens_at")
        ]
    output.print_rows(rows, _COLUMNS, as_json=json)


def _format_mirrors(row: dict[str, Any]) -> str:
    return ", ".join(f"{one['name']} ({one['health']})" for one in row.get("mirrors", ()))


@app.command("add")
@expand_groups
def add_site(
    path: Path,
    name: NameOption = None,
    kind: KindOption = None,
    tz: ZoneOption = None,
    window: WindowOption = None,
    *,
    server: Server,
    json: JsonOption = False,
) -> None:
    """Add a site below its parent."""
    done = server.client.create_site(path, name=name, kind=kind, tz=tz, window=window)
    _print_done(done, "added", json)
    if tz is None and done["zone"] == "UTC" and not json:
        output.print_markup(
            "  its maintenance windows are in UTC; --tz names its own time zone: Europe/Berlin"
        )


@app.command("change")
@expand_groups
def change_site(
    path: Path,
    name: NameOption = None,
    kind: KindOption = None,
    tz: ZoneOption = None,
    window: WindowOption = None,
    *,
    server: Server,
    json: JsonOption = False,
) -> None:
    """Change a site; an empty zone or window takes the parent's."""
    given = {"name": name, "kind": kind, "tz": tz, "window": window}
    fields = {key: value for key, value in given.items() if value is not None}
    for key in ("kind", "tz", "window"):
        if fields.get(key) == "":
            fields[key] = None  # type: ignore[assignment]
    _print_done(server.client.change_site(path, **fields), "changed", json)


@app.command("remove")
@expand_groups
def remove_site(path: Path, yes: YesOption = False, *, server: Server) -> None:
    """Remove a site without beacons."""
    confirm_action(f"Remove the site {path}?", yes)
    server.client.remove_site(path)
    output.print_markup("{} removed", path)


def _print_done(done: dict, what: str, json: bool) -> None:
    if json:
        output.print_json(done)
    else:
        output.print_markup("{} {}", done["path"], what)
