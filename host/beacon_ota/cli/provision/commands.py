"""The commands of ``beacon-ota provision``."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from beacon_ota import text_files
from beacon_ota.cli._support import prompts
from beacon_ota.cli._support.bluetooth import run_with_radio
from beacon_ota.cli._support.display import print_fields
from beacon_ota.cli._support.options import JsonOption, Server, YesOption, expand_groups
from beacon_ota.cli.provision.options import (
    BeaconChoice,
    NetworkOptions,
    OpenOption,
    PositionOption,
    RadioOption,
    RegistrationOptions,
    SearchOption,
    SettingsOptions,
    TagOption,
)
from beacon_ota.console import output
from beacon_ota.errors import UsageError

if TYPE_CHECKING:
    from beacon_ota.provision.client import BlufiClient
    from beacon_ota.provision.flow import AskSecret, Outcome
    from beacon_ota.provision.scan import BeaconFinder
    from beacon_ota.provision.sighting import Sighting
    from beacon_ota.virtual.radio.selection import RadioSelection

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Bring beacons online over Bluetooth."
)

_SCAN_COLUMNS = ("name", "address", "rssi", "state", "version", "provisioned")
_BATCH_COLUMNS = (
    "line",
    "beacon",
    "result",
    "beacon_id",
    "device_type",
    "ssid",
    "ip",
    "poll",
    "seconds",
)


@app.command("scan")
def scan_beacons(
    seconds: Annotated[float, typer.Option(min=0.5, help="For how long.")] = 5.0,
    everybody: Annotated[
        bool, typer.Option("--all", help="Also beacons that cannot be provisioned now.")
    ] = False,
    radio: RadioOption = None,
    json: JsonOption = False,
) -> None:
    """List the beacons in range, the nearest first."""
    from beacon_ota.provision import scan

    opened = _open_radio(radio)
    with output.error_console.status(f"listening for {seconds:g} s …"):
        heard = run_with_radio(opened, scan.hear_beacons(opened, seconds))
    found = heard.beacons()
    rows = [one.as_dict() for one in found if everybody or one.open]
    output.print_rows(rows, _SCAN_COLUMNS, as_json=json)
    left_out = len(found) - len(rows)
    if left_out and not json:
        output.print_markup("and {} that cannot be provisioned now (--all)", left_out)
    if not heard.reports:
        output.print_markup(
            "[yellow]no Bluetooth device at all was heard: go nearer; is Bluetooth on?[/]",
            to=output.error_console,
        )


@app.command("wifi")
@expand_groups
def provision_wifi(
    *,
    choice: BeaconChoice,
    networks: NetworkOptions,
    open_network: OpenOption = False,
    settings: SettingsOptions,
    tag: TagOption = None,
    ibeacon: PositionOption = None,
    registration: RegistrationOptions,
    server: Server,
    radio: RadioOption = None,
    json: JsonOption = False,
) -> None:
    """Put a beacon on WiFi, register it, and wait until the orchestrator has heard it.

    Asks for what is not given, at a terminal. Doing it again does no harm.
    """
    from beacon_ota.provision import desired_config, flow
    from beacon_ota.provision.scan import BeaconFinder

    opened = _open_radio(radio)
    choice = choice.read_label()
    ask = choice.secret_source()
    network = None
    choose = None
    if networks.ssid is not None:
        password = prompts.ask_password(networks.ssid, networks.password_file, open_network)
        network = desired_config.Network.of(networks.ssid, password)
    elif prompts.is_terminal():
        choose = prompts.choose_network
    else:
        raise UsageError("network_missing", "which network? There is nobody to ask: --ssid")
    second = networks.second_network()
    values = {**settings.settings(), "ibeacon": ibeacon}
    registry = registration.open_registry(server, settings.site)
    values["orch_url"] = registration.beacon_url(registry)
    creds, bound = settings.read_credentials()
    desired = desired_config.DesiredConfig(
        network,
        desired_config.config_fields(values, second),
        tuple(tag or ()),
        creds,
        bound,
        desired_config.check_device_type(settings.device_type),
    )
    [desired] = registration.complete_offsets(registry, [desired])

    async def find_and_provision() -> "Outcome":
        finder = BeaconFinder(opened)
        found = await choice.find_sighting(finder, json)
        with prompts.show_steps(json) as on_step:
            return await flow.provision_beacon(
                found,
                opened,
                ask,
                desired,
                registry,
                choose=choose,
                on_step=on_step,
                online_s=registration.wait,
                finder=finder,
            )

    outcome = run_with_radio(opened, find_and_provision())
    prompts.print_outcome(outcome, json)


@app.command("status")
@expand_groups
def show_status(
    *, choice: BeaconChoice, radio: RadioOption = None, json: JsonOption = False
) -> None:
    """Say how a beacon is; with its PIN, ask the beacon itself.

    Without a PIN only what it advertises is known; with one it has to be open for provisioning.
    """
    opened = _open_radio(radio)
    choice = choice.read_label()
    name, fields = run_with_radio(opened, _find_status(opened, choice, json))
    if json:
        output.print_json(fields)
    else:
        print_fields(fields, name)


@app.command("reset")
@expand_groups
def reset_beacon(
    *,
    choice: BeaconChoice,
    radio: RadioOption = None,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Have a beacon forget network, keys and settings, as holding its button does."""
    opened = _open_radio(radio)
    choice = choice.read_label()
    found = run_with_radio(opened, _find_and_reset(opened, choice, yes, json))
    if json:
        output.print_json({"name": found.name, "address": found.address, "reset": True})
    else:
        output.print_markup("[green]✓[/] {} has forgotten what it was given", found.name)


@app.command("batch")
@expand_groups
def provision_batch(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="CSV file.")],
    *,
    networks: NetworkOptions,
    settings: SettingsOptions,
    registration: RegistrationOptions,
    search: SearchOption = 15.0,
    jobs: Annotated[int, typer.Option(min=1, max=8, help="At a time.")] = 1,
    server: Server,
    radio: RadioOption = None,
    json: JsonOption = False,
) -> None:
    """Provision many: columns beacon, pin (or pop), and any of ssid, password, site, … .

    What is the same for all can be given as options. Exit code 1 when any failed; run it again
    for those, the others are left alone.
    """
    from beacon_ota.provision import batch

    registry = registration.open_registry(server, settings.site)
    common = {
        "ssid": networks.ssid,
        "password": prompts.read_first_line(networks.password_file),
        "ssid2": networks.ssid2,
        "password2": prompts.read_first_line(networks.password2_file),
        **settings.settings(),
        "type": settings.device_type,
        "orch_url": registration.beacon_url(registry),
    }
    creds, bound = settings.read_credentials()
    rows = batch.parse_rows(text_files.read_text_file(file, batch.MAX_BYTES), common, creds, bound)
    wanted = registration.complete_offsets(registry, [row.desired for row in rows])
    rows = [replace(row, desired=one) for row, one in zip(rows, wanted, strict=True)]
    with prompts.show_batch_progress(len(rows), json) as (on_start, on_result):
        results = asyncio.run(  # each row sees for itself whether the adapter has gone
            batch.provision_rows(
                rows,
                _open_radio(radio),
                registry,
                jobs=jobs,
                search_s=search,
                online_s=registration.wait,
                on_start=on_start,
                on_result=on_result,
            )
        )
    more = ("key", "detail") if registration.no_register else ("detail",)
    columns = (*_BATCH_COLUMNS, *more)
    output.print_rows([one.as_dict() for one in results], columns, as_json=json)
    if not all(one.ok for one in results):
        raise typer.Exit(1)


@app.command("label")
def draw_labels(
    address: Annotated[
        list[str], typer.Argument(help="The chip's address, as beacon-ota flash prints it.")
    ],
    json: JsonOption = False,
) -> None:
    """Draw PINs for beacons' labels. Prints CSV: keep it, batch reads it."""
    from beacon_ota.provision import labels

    rows = [labels.make_label(one).as_dict() for one in address]
    if json:
        output.print_json(rows)
        return
    output.print_csv(rows)


def _open_radio(name: str | None) -> "RadioSelection":
    from beacon_ota.virtual.radio.selection import select_radio

    return select_radio(name)


async def _find_status(
    radio: "RadioSelection", choice: BeaconChoice, quiet: bool
) -> tuple[str, dict[str, object]]:
    """Return a beacon's name and what it advertises; with a secret also what it tells itself."""
    from beacon_ota.provision.scan import BeaconFinder

    finder = BeaconFinder(radio)
    found = await choice.find_sighting(finder, quiet, opened=False)
    fields = found.as_dict()
    if choice.has_secret:
        fields |= await _query_status(found, finder, choice.secret_source())
    return found.name, fields


async def _query_status(
    found: "Sighting", finder: "BeaconFinder", ask: "AskSecret"
) -> dict[str, object]:
    """Return the fields that a beacon tells of itself and its WiFi once the secret is proved."""
    from beacon_ota.provision import contact, flow

    prover = flow.SecretProver(ask)
    await prover.ready()

    async def talk(beacon: "BlufiClient") -> dict[str, object]:
        await prover.prove(beacon)
        state = await beacon.query_state()
        report = await beacon.wifi_status()
        return {
            **state.as_dict(),
            "wifi": report.word,
            "ssid": report.ssid.decode("utf-8", "replace") or None,
            "wifi_rssi": report.rssi,
            "wifi_reason": report.reason or None,
        }

    return await contact.talk_to_beacon(found, finder, talk)


async def _find_and_reset(
    radio: "RadioSelection", choice: BeaconChoice, yes: bool, quiet: bool
) -> "Sighting":
    """Find a beacon, prove the secret, and have the beacon forget its settings."""
    from beacon_ota.provision import contact, flow
    from beacon_ota.provision.scan import BeaconFinder

    finder = BeaconFinder(radio)
    found = await choice.find_sighting(finder, quiet)
    prompts.confirm_action(f"{found.name} will forget its network, keys and settings.", yes)
    prover = flow.SecretProver(choice.secret_source())
    await prover.ready()

    async def talk(beacon: "BlufiClient") -> None:
        await prover.prove(beacon)
        await beacon.forget()

    await contact.talk_to_beacon(found, finder, talk)
    return found
