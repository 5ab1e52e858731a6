"""``beacon-ota mirror``: distribution points on sites."""

from typing import Annotated

import typer

from beacon_ota.cli import output, remote
from beacon_ota.cli.remote import JsonOption, TokenOption, UrlOption, YesOption
from beacon_ota.errors import InputError

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Manage distribution points on sites."
)

_COLUMNS = ("name", "site", "connected", "silent_s", "backlog", "lag_s", "url", "mirror_id")


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="What it is called.")],
    site: Annotated[str, typer.Option(help='The site it serves, with all below; "" is all.')],
    url: UrlOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Make a mirror; its token is printed once, for `serve --upstream-token-file`."""
    done = remote.client(url, token).create_mirror(name, site)
    if json:
        output.dump(done)
    else:
        output.console.print(done["token"], highlight=False, soft_wrap=True)


@app.command("list")
def listing(url: UrlOption = None, token: TokenOption = None, json: JsonOption = False) -> None:
    """List mirrors: what each serves, when it was last heard from, how far it lags."""
    output.emit(remote.client(url, token).mirrors(), _COLUMNS, as_json=json)


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="Its name, or its id.")],
    yes: YesOption = False,
    url: UrlOption = None,
    token: TokenOption = None,
) -> None:
    """Give a mirror up: its token works no more, and its beacons are the primary's."""
    client = remote.client(url, token)
    found = [one for one in client.mirrors() if name in (one["name"], one["mirror_id"])]
    if not found:
        raise InputError("mirror_unknown", "there is no such mirror", found=name)
    remote.confirm(f"Give up the mirror {name}?", yes)
    client.remove_mirror(found[0]["mirror_id"])
    output.say("{} removed", name)
