"""``beacon-ota provision``: bring beacons online over Bluetooth."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from beacon_ota import text_files
from beacon_ota.cli._support import prompts, remote
from beacon_ota.cli._support.remote import JsonOption, TokenOption, UrlOption, YesOption
from beacon_ota.console import output
from beacon_ota.errors import UsageError

if TYPE_CHECKING:
    from beacon_ota.provision.flow import AskSecret
    from beacon_ota.provision.registry import OrchestratorRegistry
    from beacon_ota.provision.scan import Sighting
    from beacon_ota.virtual.radio.selection import RadioSelection

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Bring beacons online over Bluetooth."
)

T = TypeVar("T")
_WHO, _WIFI, _MORE, _SERVER = "Which beacon", "Network", "Settings", "Orchestrator"
_COLUMNS = ("name", "address", "rssi", "state", "version", "provisioned")

RadioOption = Annotated[
    str | None,
    typer.Option(
        "--radio", help="Bluetooth adapter, or room:PATH; else BEACON_OTA_RADIO, else the default."
    ),
]
BeaconOption = Annotated[
    str | None,
    typer.Option(
        "--beacon",
        help="Its name, the last digits of it, or its address [default: ask, or the only one].",
        rich_help_panel=_WHO,
    ),
]
PinOption = Annotated[str | None, typer.Option(help="PIN on its label.", rich_help_panel=_WHO)]
LabelOption = Annotated[
    Path | None,
    typer.Option(
        help="CSV of provision label: name and PIN of its only row, or of --beacon's.",
        rich_help_panel=_WHO,
    ),
]
PinFileOption = Annotated[
    Path | None, typer.Option(help="File with the PIN.", rich_help_panel=_WHO)
]
PopOption = Annotated[
    str | None,
    typer.Option(help="Proof of possession, where its label has one.", rich_help_panel=_WHO),
]
SearchOption = Annotated[
    float, typer.Option("--search", min=0.5, help="Seconds to look for it.", rich_help_panel=_WHO)
]
SsidOption = Annotated[
    str | None,
    typer.Option(help="Name of the network [default: ask].", rich_help_panel=_WIFI),
]
PasswordFileOption = Annotated[
    Path | None,
    typer.Option(help="File with its password, - for stdin.", rich_help_panel=_WIFI),
]
Ssid2Option = Annotated[
    str | None, typer.Option(help="A second one, should it fail.", rich_help_panel=_WIFI)
]
Password2FileOption = Annotated[
    Path | None, typer.Option(help="File with its password.", rich_help_panel=_WIFI)
]
OpenOption = Annotated[
    bool, typer.Option("--open", help="The network has no password.", rich_help_panel=_WIFI)
]
SiteOption = Annotated[
    str | None, typer.Option(help="Path in the site tree.", rich_help_panel=_MORE)
]
ChannelOption = Annotated[str | None, typer.Option(help="stable or beta.", rich_help_panel=_MORE)]
TagOption = Annotated[
    list[str] | None, typer.Option("--tag", help="Repeatable.", rich_help_panel=_MORE)
]
TypeOption = Annotated[
    str | None,
    typer.Option(
        "--type",
        help="Board that you take it for; what it says itself counts.",
        rich_help_panel=_MORE,
    ),
]
WindowOption = Annotated[
    str | None,
    typer.Option(help="Local maintenance window, HH:MM-HH:MM.", rich_help_panel=_MORE),
]
UtcOption = Annotated[
    int | None, typer.Option(help="Minutes of local time before UTC.", rich_help_panel=_MORE)
]
PositionOption = Annotated[
    str | None, typer.Option("--ibeacon", help="UUID:major:minor.", rich_help_panel=_MORE)
]
FleetOption = Annotated[
    Path | None,
    typer.Option("--fleet-key-file", help="File with the fleet key, hex.", rich_help_panel=_MORE),
]
CredsOption = Annotated[
    Path | None,
    typer.Option(
        "--credentials-file",
        help="What opens the door: id:secret:bound in hex, one a line; id:secret for readers that "
        "do not say yet which door they mean.",
        rich_help_panel=_MORE,
    ),
]
OrchOption = Annotated[
    str | None,
    typer.Option(
        "--orch-url",
        help="Where the beacon finds it [default: --url, unless that is this computer].",
        rich_help_panel=_SERVER,
    ),
]
NoRegisterOption = Annotated[
    bool,
    typer.Option(
        "--no-register", help="Tell no orchestrator; print the key.", rich_help_panel=_SERVER
    ),
]
WaitOption = Annotated[
    float,
    typer.Option("--wait", min=1, help="Seconds for its first exchange.", rich_help_panel=_SERVER),
]


@app.command()
def scan(
    seconds: Annotated[float, typer.Option(min=0.5, help="For how long.")] = 5.0,
    everybody: Annotated[
        bool, typer.Option("--all", help="Also beacons that cannot be provisioned now.")
    ] = False,
    radio: RadioOption = None,
    json: JsonOption = False,
) -> None:
    """List the beacons in range, the nearest first."""
    from beacon_ota.provision import scan as scans

    found = _run(scans.collect_sightings(_radio(radio), seconds))
    rows = [one.as_dict() for one in found if everybody or one.open]
    output.print_rows(rows, _COLUMNS, as_json=json)
    others = len(found) - len(rows)
    if others and not json:
        output.print_markup("and {} that cannot be provisioned now (--all)", others)


@app.command()
def wifi(
    beacon: BeaconOption = None,
    pin: PinOption = None,
    pin_file: PinFileOption = None,
    label: LabelOption = None,
    pop: PopOption = None,
    search: SearchOption = 10.0,
    ssid: SsidOption = None,
    password_file: PasswordFileOption = None,
    open_network: OpenOption = False,
    ssid2: Ssid2Option = None,
    password2_file: Password2FileOption = None,
    site: SiteOption = None,
    device_type: TypeOption = None,
    channel: ChannelOption = None,
    tag: TagOption = None,
    window: WindowOption = None,
    utc_off: UtcOption = None,
    ibeacon: PositionOption = None,
    fleet_key_file: FleetOption = None,
    credentials_file: CredsOption = None,
    orch_url: OrchOption = None,
    no_register: NoRegisterOption = False,
    wait: WaitOption = 90.0,
    url: UrlOption = None,
    token: TokenOption = None,
    radio: RadioOption = None,
    json: JsonOption = False,
) -> None:
    """Put a beacon on WiFi, register it, and wait until the orchestrator has heard it.

    Asks for what is not given, at a terminal. Doing it again does no harm.
    """
    from beacon_ota.provision import flow
    from beacon_ota.provision.desired_config import DesiredConfig, Network, config_fields
    from beacon_ota.provision.desired_config import check_device_type as wanted_type

    chosen = _radio(radio)
    beacon, pin = _labelled(label, beacon, pin)
    ask = prompts.secret(pin, pin_file, pop)
    network = None
    choose = None
    if ssid is not None:
        network = Network.of(ssid, prompts.password(ssid, password_file, open_network))
    elif prompts.terminal():
        choose = prompts.choose
    else:
        raise UsageError("network_missing", "which network? There is nobody to ask: --ssid")
    second = Network.of(ssid2, prompts.line(password2_file)) if ssid2 else None
    values = {
        "site": site,
        "channel": channel,
        "window": window,
        "utc_off": None if utc_off is None else str(utc_off),
        "ibeacon": ibeacon,
        "fleet_key": prompts.line(fleet_key_file) or None,
    }
    registry = None if no_register else _orchestrator(url, token, site)
    values["orch_url"] = _address(orch_url, registry)
    creds, bound = _credentials(credentials_file)
    board = wanted_type(device_type)
    wanted = DesiredConfig(
        network, config_fields(values, second), tuple(tag or ()), creds, bound, board
    )
    found = prompts.find(chosen, beacon, search, json)
    with prompts.steps(json) as tell:
        outcome = _run(
            flow.provision_beacon(
                found, chosen, ask, wanted, registry, choose=choose, tell=tell, online_s=wait
            )
        )
    prompts.report(outcome, json)


@app.command()
def status(
    beacon: BeaconOption = None,
    pin: PinOption = None,
    pin_file: PinFileOption = None,
    label: LabelOption = None,
    pop: PopOption = None,
    search: SearchOption = 10.0,
    radio: RadioOption = None,
    json: JsonOption = False,
) -> None:
    """Say how a beacon is; with its PIN, ask the beacon itself.

    Without a PIN only what it advertises is known; with one it has to be open for provisioning.
    """
    chosen = _radio(radio)
    beacon, pin = _labelled(label, beacon, pin)
    found = prompts.find(chosen, beacon, search, json, opened=False)
    facts = found.as_dict()
    if pin or pin_file or pop:
        facts |= _run(_ask_status(found, chosen, prompts.secret(pin, pin_file, pop)))
    if json:
        output.print_json(facts)
    else:
        remote.show(facts, found.name)


@app.command()
def reset(
    beacon: BeaconOption = None,
    pin: PinOption = None,
    pin_file: PinFileOption = None,
    label: LabelOption = None,
    pop: PopOption = None,
    search: SearchOption = 10.0,
    radio: RadioOption = None,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Have a beacon forget network, keys and settings, as holding its button does."""
    chosen = _radio(radio)
    beacon, pin = _labelled(label, beacon, pin)
    found = prompts.find(chosen, beacon, search, json)
    remote.confirm(f"{found.name} will forget its network, keys and settings.", yes)
    _run(_forget(found, chosen, prompts.secret(pin, pin_file, pop)))
    if json:
        output.print_json({"name": found.name, "address": found.address, "reset": True})
    else:
        output.print_markup("[green]✓[/] {} has forgotten what it was given", found.name)


@app.command()
def batch(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="CSV file.")],
    ssid: SsidOption = None,
    password_file: PasswordFileOption = None,
    ssid2: Ssid2Option = None,
    password2_file: Password2FileOption = None,
    site: SiteOption = None,
    device_type: TypeOption = None,
    channel: ChannelOption = None,
    window: WindowOption = None,
    utc_off: UtcOption = None,
    fleet_key_file: FleetOption = None,
    credentials_file: CredsOption = None,
    orch_url: OrchOption = None,
    no_register: NoRegisterOption = False,
    wait: WaitOption = 90.0,
    search: SearchOption = 15.0,
    jobs: Annotated[int, typer.Option(min=1, max=8, help="At a time.")] = 1,
    url: UrlOption = None,
    token: TokenOption = None,
    radio: RadioOption = None,
    json: JsonOption = False,
) -> None:
    """Provision many: columns beacon, pin (or pop), and any of ssid, password, site, … .

    What is the same for all can be given as options. Exit code 1 when any failed; run it again
    for those, the others are left alone.
    """
    from beacon_ota.provision import batch as batches

    registry = None if no_register else _orchestrator(url, token, site)
    common = {
        "ssid": ssid,
        "password": prompts.line(password_file),
        "ssid2": ssid2,
        "password2": prompts.line(password2_file),
        "site": site,
        "type": device_type,
        "channel": channel,
        "window": window,
        "utc_off": None if utc_off is None else str(utc_off),
        "fleet_key": prompts.line(fleet_key_file) or None,
        "orch_url": _address(orch_url, registry),
    }
    creds, bound = _credentials(credentials_file)
    rows = batches.parse_rows(text_files.read_text(file, batches.MAX_BYTES), common, creds, bound)
    with prompts.counting(len(rows), json) as (begun, done):
        results = _run(
            batches.provision_rows(
                rows,
                _radio(radio),
                registry,
                jobs=jobs,
                search_s=search,
                online_s=wait,
                begun=begun,
                done=done,
            )
        )
    columns = ("line", "beacon", "result", "beacon_id", "device_type")
    columns = (*columns, "ssid", "ip", "poll", "seconds", "detail")
    if no_register:
        columns = (*columns[:-1], "key", "detail")
    output.print_rows([one.as_dict() for one in results], columns, as_json=json)
    if not all(one.ok for one in results):
        raise typer.Exit(1)


@app.command("label")
def labels(
    address: Annotated[
        list[str], typer.Argument(help="The chip's address, as beacon-ota flash prints it.")
    ],
    json: JsonOption = False,
) -> None:
    """Draw PINs for beacons' labels. Prints CSV: keep it, batch reads it."""
    from beacon_ota.provision import labels as making

    rows = [making.make_label(one).as_dict() for one in address]
    if json:
        output.print_json(rows)
        return
    output.print_csv(rows)


def _labelled(
    file: Path | None, beacon: str | None, pin: str | None
) -> tuple[str | None, str | None]:
    """Return a beacon's name and PIN: as given, else as its label's file has them."""
    if file is None:
        return beacon, pin
    from beacon_ota.provision import labels

    if pin is not None:
        raise UsageError("options", "one of --label and --pin is enough")
    found = labels.pick_label(text_files.read_text(file), beacon)
    return found.name, found.pin


def _run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def _radio(choice: str | None) -> "RadioSelection":
    from beacon_ota.virtual.radio.selection import select_radio

    return select_radio(choice)


def _orchestrator(url: str | None, token: str | None, site: str | None) -> "OrchestratorRegistry":
    from beacon_ota.provision.registry import OrchestratorRegistry

    registry = OrchestratorRegistry(remote.client(url, token))
    registry.check_access(site)
    return registry


def _credentials(file: Path | None) -> tuple[bytes | None, frozenset[bytes]]:
    """Read a file of credentials: what they are, and which of them are bound to each door."""
    from beacon_ota.provision.desired_config import parse_bound_ids, parse_credentials
    from beacon_ota.wire import access

    if file is None:
        return None, frozenset()
    text = text_files.read_text(file)
    creds, only = parse_credentials(text), parse_bound_ids(text)
    size = access.ID + access.SECRET
    loose = sum(creds[at : at + access.ID] not in only for at in range(0, len(creds), size))
    if loose:
        output.print_markup(
            "{} of {} credentials are not bound: whoever gets a proof of one for any door can open "
            "this one with it (docs/security.md)",
            loose,
            len(creds) // size,
            to=output.error_console,
        )
    return creds, only


def _address(given: str | None, registry: "OrchestratorRegistry | None") -> str | None:
    from beacon_ota.provision.desired_config import reachable_url

    return given or (reachable_url(registry.url) if registry else None)


async def _ask_status(
    found: "Sighting", radio: "RadioSelection", ask: "AskSecret"
) -> dict[str, object]:
    from beacon_ota.provision import flow
    from beacon_ota.provision.client import BlufiClient

    prover = flow.SecretProver(ask)
    await prover.ready()
    async with BlufiClient(found.device, found.name, radio) as beacon:
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


async def _forget(found: "Sighting", radio: "RadioSelection", ask: "AskSecret") -> None:
    from beacon_ota.provision import flow
    from beacon_ota.provision.client import BlufiClient

    prover = flow.SecretProver(ask)
    await prover.ready()
    async with BlufiClient(found.device, found.name, radio) as beacon:
        await prover.prove(beacon)
        await beacon.forget()
