"""``beacon-ota beacon``: list, show and manage beacons."""

from itertools import islice
from typing import Annotated, Any

import typer

from beacon_ota.cli._support.completion import complete_names, complete_words
from beacon_ota.cli._support.display import local_time, localize_times, print_fields, print_listing
from beacon_ota.cli._support.options import (
    EveryOption,
    JsonOption,
    ReasonOption,
    Server,
    WatchOption,
    YesOption,
    expand_groups,
)
from beacon_ota.cli._support.prompts import confirm_action
from beacon_ota.console import output
from beacon_ota.errors import UsageError

app = typer.Typer(add_completion=False, no_args_is_help=True, help="List, show and manage beacons.")

Id = Annotated[str, typer.Argument(help="Beacon id.", autocompletion=complete_names("beacon"))]
SiteOption = Annotated[
    str | None, typer.Option(help="Path in the site tree.", autocompletion=complete_names("site"))
]
ChannelOption = Annotated[
    str | None,
    typer.Option(help="stable or beta.", autocompletion=complete_words("stable", "beta")),
]
TagOption = Annotated[list[str] | None, typer.Option("--tag", help="Repeatable.")]
_COLUMNS = (
    "beacon_id",
    "device_type",
    "version",
    "standing",
    "channel",
    "site",
    "tags",
    "last_seen",
    "quarantined",
    "insecure",
)
_OPTIONAL = ("tags", "quarantined", "insecure")
_ATTEMPT = ("offered_at", "version", "n", "result", "failed_in", "code", "detail", "ended_at")
_JOURNAL = ("seq", "at", "stage", "code", "detail")


@app.command("list")
@expand_groups
def list_beacons(
    site: SiteOption = None,
    version: Annotated[str | None, typer.Option(help="Running version.")] = None,
    device_type: Annotated[str | None, typer.Option(help="Only these.")] = None,
    channel: ChannelOption = None,
    tag: Annotated[str | None, typer.Option(help="With this tag.")] = None,
    search: Annotated[str | None, typer.Option(help="Part of the id.")] = None,
    quarantined: Annotated[
        bool | None, typer.Option("--quarantined/--not-quarantined", help="Only those.")
    ] = None,
    questioned: Annotated[
        bool, typer.Option("--questioned", help="That say they are another board.")
    ] = False,
    refused: Annotated[
        bool, typer.Option("--refused", help="That were refused when they asked last.")
    ] = False,
    silent: Annotated[
        float | None, typer.Option(help="Not heard from for so many minutes.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 1000,
    watch: WatchOption = False,
    every: EveryOption = 2.0,
    *,
    server: Server,
    json: JsonOption = False,
) -> None:
    """List beacons by id."""
    client = server.client

    def found() -> list[dict[str, Any]]:
        rows = client.list_beacons(
            site=site,
            version=version,
            device_type=device_type,
            channel=channel,
            tag=tag,
            search=search,
            quarantined=quarantined,
            questioned=questioned or None,
            refused=refused or None,
            silent_s=None if silent is None else silent * 60,
            limit=min(limit, 1000),
        )
        return list(islice(rows, limit))

    if json:
        output.print_json(found())
        return
    print_listing(
        lambda: [_format_row(row) for row in found()],
        _COLUMNS,
        watch=watch,
        every_s=every,
        optional=_OPTIONAL,
    )


@app.command("show")
@expand_groups
def show_beacon(
    beacon_id: Id,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Rows of each history.")] = 20,
    *,
    server: Server,
    json: JsonOption = False,
) -> None:
    """Show a beacon with its attempts and its error journal."""
    found = server.client.get_beacon(beacon_id, limit)
    if json:
        output.print_json(found)
        return
    plain = {key: value for key, value in found.items() if not isinstance(value, list)}
    for key in ("created_at", "first_seen", "last_seen", "quarantined_at", "refused_at"):
        plain[key] = local_time(plain[key])
    plain["tags"] = " ".join(found["tags"])
    claim = plain.pop("unproven")
    print_fields(plain, beacon_id)
    _print_warnings(found, claim)
    attempts = localize_times(found["attempts"], "offered_at", "ended_at")
    output.print_rows(attempts, _ATTEMPT, as_json=False, title="attempts")
    journal = localize_times(found["journal"], "at")
    output.print_rows(journal, _JOURNAL, as_json=False, title="journal")


@app.command("add")
@expand_groups
def add_beacon(
    beacon_id: Id,
    device_type: Annotated[str, typer.Option(help="Board.")] = "esp32c3",
    key: Annotated[
        str | None, typer.Option(help="64 hex digits, as provisioned [default: a new one].")
    ] = None,
    site: SiteOption = None,
    channel: ChannelOption = None,
    tag: TagOption = None,
    *,
    server: Server,
    json: JsonOption = False,
) -> None:
    """Register a beacon; a key that is made here is printed once."""
    done = server.client.create_beacon(
        beacon_id, device_type, key=key, site=site, channel=channel, tags=tag or None
    )
    if json:
        output.print_json(done)
        return
    output.print_markup("[green]registered[/] {}", beacon_id)
    if "key" in done:
        output.print_markup("  key, shown this once  {}", done["key"])


@app.command("change")
@expand_groups
def change_beacon(
    beacon_id: Id,
    site: SiteOption = None,
    no_site: Annotated[bool, typer.Option("--no-site", help="Take it out of its site.")] = False,
    channel: ChannelOption = None,
    tag: TagOption = None,
    no_tags: Annotated[bool, typer.Option("--no-tags", help="Take all tags away.")] = False,
    *,
    server: Server,
    json: JsonOption = False,
) -> None:
    """Move a beacon, change its channel or its tags."""
    fields: dict[str, object] = {}
    if site is not None or no_site:
        fields["site"] = site
    if channel is not None:
        fields["channel"] = channel
    if tag or no_tags:
        fields["tags"] = tag or []
    _print_done(server.client.change_beacon(beacon_id, **fields), "changed", json)


@app.command("retype")
@expand_groups
def retype_beacon(
    beacon_id: Annotated[
        str | None, typer.Argument(help="Beacon id.", autocompletion=complete_names("beacon"))
    ] = None,
    device_type: Annotated[
        str | None, typer.Option("--type", help="Board [default: what the beacon says].")
    ] = None,
    questioned: Annotated[
        bool, typer.Option("--questioned", help="All that say they are another board.")
    ] = False,
    reason: ReasonOption = "",
    yes: YesOption = False,
    *,
    server: Server,
    json: JsonOption = False,
) -> None:
    """Register a beacon as the board that it says it is, or as another one.

    What it has begun as the other board is called off, unless it is rebooting into it.
    """
    client = server.client
    if (beacon_id is None) != questioned or (questioned and device_type is not None):
        raise UsageError("options", "give either a beacon, or --questioned without --type")
    if beacon_id is not None:
        done = [client.retype_beacon(beacon_id, device_type, reason)]
    else:
        rows = list(client.list_beacons(questioned=True, limit=1000))
        if not json:
            output.print_rows(rows, ("beacon_id", "device_type", "said_type"), as_json=False)
        if rows:
            confirm_action(f"Register these {len(rows)} as what they say?", yes)
        done = [client.retype_beacon(row["beacon_id"], row["said_type"], reason) for row in rows]
    if json:
        output.print_json(done[0] if beacon_id is not None else done)
        return
    for one in done:
        output.print_markup("{} is registered as {}", one["beacon_id"], one["device_type"])


@app.command("rekey")
@expand_groups
def rekey_beacon(beacon_id: Id, *, server: Server, json: JsonOption = False) -> None:
    """Give a beacon a new key with its next report."""
    _print_done(server.client.post_beacon_action(beacon_id, "rekey"), "will be rekeyed", json)


@app.command("quarantine")
@expand_groups
def quarantine_beacon(
    beacon_id: Id,
    reason: ReasonOption = "",
    *,
    server: Server,
    json: JsonOption = False,
) -> None:
    """Offer a beacon nothing until it is released again; stop what is not rebooting yet."""
    done = server.client.post_beacon_action(beacon_id, "quarantine", reason)
    _print_done(done, "in quarantine", json)


@app.command("unquarantine")
@expand_groups
def release_beacon(
    beacon_id: Id,
    reason: ReasonOption = "",
    *,
    server: Server,
    json: JsonOption = False,
) -> None:
    """Release a beacon and forgive what failed so far: it may try again."""
    done = server.client.post_beacon_action(beacon_id, "unquarantine", reason)
    _print_done(done, "released", json)


@app.command("remove")
@expand_groups
def remove_beacon(beacon_id: Id, yes: YesOption = False, *, server: Server) -> None:
    """Forget a beacon and its key."""
    confirm_action(f"Forget the beacon {beacon_id} and its key?", yes)
    server.client.remove_beacon(beacon_id)
    output.print_markup("{} removed", beacon_id)


def _print_warnings(found: dict[str, Any], claim: dict[str, Any] | None) -> None:
    """Say what is wrong with a beacon that may look fine otherwise."""
    if found["said_type"] not in (None, found["device_type"]):
        output.print_markup(
            "[yellow]it says that it is {}, and is registered as {}: it is offered nothing[/]",
            found["said_type"],
            found["device_type"],
        )
        output.print_markup(
            "  beacon-ota beacon retype {}   accepts what it says", found["beacon_id"]
        )
    if found["refusals"]:
        output.print_markup(
            "[yellow]refused {} times since its last poll that was answered: {}[/]",
            found["refusals"],
            found["refused_code"],
        )
    if claim is not None:
        output.print_markup(
            "[yellow]{} requests in its name since it was heard, the last {} ({}) from {}: "
            "another key, another clock, or somebody else[/]",
            claim["count"],
            claim["code"],
            local_time(claim["at"]),
            claim["address"],
        )


def _format_row(row: dict[str, Any]) -> dict[str, Any]:
    return {
        **row,
        "tags": " ".join(row["tags"]),
        "last_seen": local_time(row["last_seen"]),
        "quarantined": row["quarantined_at"] is not None,
        "insecure": output.alert_cell("insecure") if row["insecure"] else None,
    }


def _print_done(done: dict, what: str, json: bool) -> None:
    if json:
        output.print_json(done)
    else:
        output.print_markup("{} {}", done["beacon_id"], what)
