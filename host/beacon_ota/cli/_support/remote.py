"""What the commands that talk to an orchestrator share: options, confirmation, watching."""

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from beacon_ota import text_files
from beacon_ota.console import output
from beacon_ota.errors import InputError, UsageError

if TYPE_CHECKING:
    from beacon_ota.client import Client

UrlOption = Annotated[
    str | None,
    typer.Option("--url", help="Orchestrator; else BEACON_OTA_URL or the configuration."),
]
TokenOption = Annotated[
    str | None,
    typer.Option("--token", help="Admin token; else BEACON_OTA_TOKEN or the configuration."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
ReasonOption = Annotated[str, typer.Option(help="Why; kept in the audit log.")]
WatchOption = Annotated[bool, typer.Option("--watch", "-w", help="Again and again, live.")]
EveryOption = Annotated[float, typer.Option(min=0.2, help="Seconds, with --watch.")]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="Data folder, to work without a server.")
]


def client(url: str | None, token: str | None) -> "Client":
    """Return a client for the server that the options, the environment or the file name."""
    from beacon_ota.client import Client

    return Client(url, token)


def known(kind: str) -> Callable[[typer.Context, str], list[str]]:
    """Return what completes names of a kind at a shell's Tab: never an error, never a long wait."""

    def names(ctx: typer.Context, incomplete: str) -> list[str]:
        from beacon_ota.client import Client
        from beacon_ota.errors import BeaconOtaError

        given = ctx.params.get("url"), ctx.params.get("token")
        try:
            found = _NAMES[kind](Client(*given, timeout_s=(0.5, 1.5)), incomplete)
        except BeaconOtaError:
            return []
        return [name for name in found if name.startswith(incomplete)]

    return names


def _releases(client: "Client", incomplete: str) -> list[str]:
    rows = client.list_firmwares()
    if "/" in incomplete:
        return [f"{row['device_type']}/{row['version']}" for row in rows]
    return list(dict.fromkeys(row["version"] for row in rows))


_NAMES: dict[str, Callable[["Client", str], list[str]]] = {
    "release": _releases,
    "rollout": lambda client, text: [
        row["rollout_id"] for row in client.list_rollouts(begins=text[:24])
    ],
    "beacon": lambda client, text: [
        row["beacon_id"]
        for row in client.call("GET", "/api/beacons", params={"search": text or None})["beacons"]
    ],
    "site": lambda client, _: [row["path"] for row in client.list_sites()],
}


def words(*those: str) -> Callable[[str], list[str]]:
    """Return what completes one of a few words."""
    return lambda incomplete: [word for word in those if word.startswith(incomplete)]


def confirm(question: str, yes: bool) -> None:
    """Ask before something that cannot be taken back; without a terminal, ``--yes`` is needed."""
    import sys

    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("not_confirmed", f"{question} Say --yes to do it.", expected="--yes")
    typer.confirm(output.make_visible(question), abort=True)


def moment(text: str | None) -> str:
    """Return a time of the API as people read it, in the local time zone."""
    if not text:
        return "–"
    return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def shorten(rows: list[dict[str, Any]], *times: str) -> list[dict[str, Any]]:
    """Return rows with their times as people read them."""
    return [{**row, **{name: moment(row.get(name)) for name in times}} for row in rows]


def ident(text: str | None) -> str:
    """Return the beginning of a digest."""
    return "–" if not text else text[:12]


def show(pairs: dict[str, Any], title: str) -> None:
    """Print names and values, one a line."""
    output.print_markup("[bold]{}[/]", title)
    width = max(map(len, pairs), default=0)
    for name, value in pairs.items():
        text = "–" if value is None or value == "" else value
        output.print_markup("  {}  {}", name.ljust(width), text)


def watch(draw: Callable[[], Any], *, every_s: float, done: Callable[[], bool]) -> None:
    """Draw again and again until there is nothing more to see, or the user has seen enough."""
    from rich.live import Live

    with Live(draw(), console=output.console, auto_refresh=False) as live:
        while not done():
            time.sleep(every_s)
            live.update(draw(), refresh=True)


def listing(
    rows: Callable[[], list[dict[str, Any]]],
    columns: Sequence[str],
    *,
    watched: bool,
    every_s: float,
) -> None:
    """Print rows as a table, once or live until interrupted."""
    if watched:
        watch(lambda: output.build_table(rows(), columns), every_s=every_s, done=lambda: False)
    else:
        output.print_rows(rows(), columns, as_json=False)


def read_table(file: Path) -> dict[str, Any]:
    """Read a TOML or JSON file (InputError ``plan_file``)."""
    import json
    import tomllib

    try:
        text = text_files.read_text(file)
        return json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError("plan_file", f"{file} cannot be read: {error}") from None
