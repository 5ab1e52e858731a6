"""``beacon-ota events``: shows events as they happen."""

import json as encoder
import sys
from typing import Annotated

import typer

from beacon_ota.cli._support.display import local_time
from beacon_ota.cli._support.options import JsonOption, Server, expand_groups
from beacon_ota.console import output

app = typer.Typer(add_completion=False, help="Follow what happens, live.")


@app.command("events")
@expand_groups
def follow_events(
    kind: Annotated[str, typer.Option(help="Only kinds beginning so: rollout, attempt.")] = "",
    after: Annotated[int | None, typer.Option(min=0, help="Begin after this event.")] = None,
    latest: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Print so many of the past, and stop.")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Stop after so many.")] = None,
    *,
    server: Server,
    json: JsonOption = False,
) -> None:
    """Follow events until interrupted; with --json one document a line."""
    client = server.client
    if latest is not None:
        for event in client.list_latest_events(latest, kind):
            _print_event(event, json)
        return
    with client.follow_events(after, kind) as stream:
        for number, event in enumerate(stream, 1):
            _print_event(event, json)
            if number == count:
                return


def _print_event(event: dict, json: bool) -> None:
    if json:
        sys.stdout.write(encoder.dumps(event, separators=(",", ":")) + "\n")
        sys.stdout.flush()
        return
    given = {key: value for key, value in event["data"].items() if value is not None}
    data = "  ".join(f"{key}={value}" for key, value in given.items())
    output.console.print(
        f"{local_time(event['at'])}  {event['kind']:22} {event['subject']}  {data}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
