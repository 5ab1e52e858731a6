"""``beacon-ota monitor``: the beacons in Bluetooth range, live."""

import json as encoder
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from beacon_ota.cli._support.bluetooth import run_with_radio
from beacon_ota.cli._support.options import JsonOption
from beacon_ota.cli.provision.options import RadioOption
from beacon_ota.console import output

if TYPE_CHECKING:
    from rich.table import Table

    from beacon_ota.provision.scan import BeaconScanner
    from beacon_ota.provision.sighting import Sighting
    from beacon_ota.virtual.radio.selection import RadioSelection

app = typer.Typer(add_completion=False, help="Watch beacons in Bluetooth range.")

_POLL_INTERVAL_S = 0.1  # seconds between looks
_REDRAW_INTERVAL_S = 0.25
_STYLES = {
    "updating": "cyan",
    "rebooting": "cyan",
    "failed": "bold red",
    "locked": "bold red",
    "trial": "yellow",
    "new": "green",
    "open": "green",
}


@app.command("monitor")
def monitor_beacons(
    beacon: Annotated[
        str | None, typer.Option(help="Only this one: name, last digits, or address.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Stop after so many.")] = None,
    radio: RadioOption = None,
    json: JsonOption = False,
) -> None:
    """Show beacons in range: how far updates are, versions, signal. Until interrupted.

    With --json a line whenever something changes: found, changed, gone.
    """
    from beacon_ota.virtual.radio.selection import select_radio as choose

    end = time.monotonic() + seconds if seconds is not None else float("inf")
    opened = choose(radio)
    run_with_radio(opened, (_print_changes if json else _show_live)(opened, beacon, end))


def _select_sightings(watch: "BeaconScanner", wanted: str | None) -> "list[Sighting]":
    from beacon_ota.provision import scan

    return [one for one in watch.beacons() if wanted is None or scan.matches_name(one, wanted)]


async def _print_changes(radio: "RadioSelection", wanted: str | None, end: float) -> None:
    from beacon_ota.provision import scan
    from beacon_ota.provision.monitor import ChangeTracker

    changes = ChangeTracker()
    async with scan.open_scanner(radio) as watch:
        while time.monotonic() < end:
            for found in changes.update(_select_sightings(watch, wanted), time.monotonic()):
                sys.stdout.write(encoder.dumps(found, separators=(",", ":")) + "\n")
            sys.stdout.flush()
            await watch.wait(_POLL_INTERVAL_S)


async def _show_live(radio: "RadioSelection", wanted: str | None, end: float) -> None:
    from rich.live import Live

    from beacon_ota.provision import scan

    async with scan.open_scanner(radio) as watch:
        with Live(console=output.console, auto_refresh=False) as live:
            while True:
                live.update(
                    _build_table(_select_sightings(watch, wanted), time.monotonic()), refresh=True
                )
                if time.monotonic() >= end:
                    return
                await watch.wait(_REDRAW_INTERVAL_S)


def _build_table(beacons: "list[Sighting]", now: float) -> "Table":
    """Draw the beacons, by name: rows that change places cannot be read."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    from beacon_ota.provision.monitor import GONE_AFTER_S

    table = Table(box=None, pad_edge=False, header_style="dim", title=None)
    for name in ("name", "dBm", "state", "", "version", "notes", "seen"):
        table.add_column(name, justify="right" if name in ("dBm", "seen") else "left")
    for one in sorted(beacons, key=lambda one: one.name):
        facts = one.as_dict()
        silent = now - one.seen
        percent = facts["progress"]
        bar = ProgressBar(100, float(str(percent)), width=20) if percent is not None else ""
        notes = [name for name in ("trial", "insecure", "locked") if facts[name]]
        if facts["provisioned"] is False:
            notes.append("not provisioned")
        table.add_row(
            Text(one.name),
            "–" if one.rssi is None else str(one.rssi),
            Text(one.state if percent is None else f"{percent:3} %", _STYLES.get(one.state, "")),
            bar,
            Text(one.version or "–"),
            ", ".join(notes),
            f"{silent:.0f} s" if silent >= 1 else "now",
            style="dim" if silent > GONE_AFTER_S else "",
        )
    if not beacons:
        table.add_row("[dim]nobody yet[/]")
    return table
