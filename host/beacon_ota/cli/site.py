"""``beacon-ota site``: buildings, floors, time zones and windows."""

from typing import Annotated, Any

import typer

from beacon_ota.cli._support import remote
from beacon_ota.cli._support.remote import JsonOption, TokenOption, UrlOption, YesOption
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
def listing(url: UrlOption = None, token: TokenOption = None, json: JsonOption = False) -> None:
    """List the tree, with the next opening of each window, and the mirrors that serve it."""
    rows = remote.client(url, token).list_sites()
    if not json:
        rows = [{**row, "mirrors": _serving(row)} for row in remote.shorten(rows, "opens_at")]
    output.print_rows(rows, _COLUMNS, as_json=json)


def _serving(row: dict[str, Any]) -> str:
    return ", ".join(f"{one['name']} ({one['health']})" for one in row.get("mirrors", ()))


@app.command()
def add(
    path: Path,
    name: NameOption = None,
    kind: KindOption = None,
    tz: ZoneOption = None,
    window: WindowOption = None,
    url: UrlOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Add a site below its parent."""
    done = remote.client(url, token).create_site(path, name=name, kind=kind, tz=tz, window=window)
    _told(done, "added", json)


@app.command()
def change(
    path: Path,
    name: NameOption = None,
    kind: KindOption = None,
    tz: ZoneOption = None,
    window: WindowOption = None,
    url: UrlOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Change a site; an empty zone or window takes the parent's."""
    given = {"name": name, "kind": kind, "tz": tz, "window": window}
    fields = {key: value for key, value in given.items() if value is not None}
    for key in ("kind", "tz", "window"):
        if fields.get(key) == "":
            fields[key] = None  # type: ignore[assignment]
    _told(remote.client(url, token).change_site(path, **fields), "changed", json)


@app.command()
def remove(
    path: Path, yes: YesOption = False, url: UrlOption = None, token: TokenOption = None
) -> None:
    """Remove a site without beacons."""
    remote.confirm(f"Remove the site {path}?", yes)
    remote.client(url, token).remove_site(path)
    output.print_markup("{} removed", path)


def _told(done: dict, what: str, json: bool) -> None:
    if json:
        output.print_json(done)
    else:
        output.print_markup("{} {}", done["path"], what)
