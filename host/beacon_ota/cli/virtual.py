"""``beacon-ota virtual``: run virtual beacons from flash images."""

import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from beacon_ota.console import output
from beacon_ota.errors import InputError, UsageError

if TYPE_CHECKING:
    from beacon_ota.virtual.beacon import VirtualBeacon
    from beacon_ota.virtual.net.network import Network

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Run virtual beacons from flash images."
)

ScaleOption = Annotated[
    float, typer.Option("--time-scale", min=1, max=1000, help="Run their clocks so much faster.")
]
HeapOption = Annotated[int, typer.Option(min=32, max=4096, help="KiB of Python heap.")]
WifiOption = Annotated[
    list[str] | None,
    typer.Option(metavar="SSID:PASSWORD", help="An access point; without a password, an open one."),
]
HostOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=ADDRESS[:PORT]", help="Where a name leads, e.g. orchestrator.local."
    ),
]
OutsideOption = Annotated[
    bool, typer.Option("--outside", help="Resolve other names with this computer's resolver.")
]
TimingOption = Annotated[
    bool, typer.Option("--flash-timing", help="Let flash take a real chip's time.")
]
RadioOption = Annotated[
    Path | None,
    typer.Option("--radio", metavar="PATH", help="Bluetooth in the radio space at this socket."),
]
ForOption = Annotated[
    float | None, typer.Option("--for", min=0, help="End after so many real seconds.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON at the end.")]
Image = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Flash image.")]


_PRESS_S = 0.5  # of the beacon's time


def _catch_button_signal() -> threading.Event:
    """Return what SIGUSR1 sets from now on."""
    pressed = threading.Event()
    if hasattr(signal, "SIGUSR1"):  # not on Windows
        signal.signal(signal.SIGUSR1, lambda *_: pressed.set())
    return pressed


@app.command("run")
def run_beacon(
    flash: Image,
    time_scale: ScaleOption = 1,
    heap: HeapOption = 160,
    wifi: WifiOption = None,
    host: HostOption = None,
    outside: OutsideOption = False,
    flash_timing: TimingOption = False,
    mac: Annotated[
        str | None,
        typer.Option(help="Address [default: of the label that the image was built with]."),
    ] = None,
    radio: RadioOption = None,
    until: Annotated[str | None, typer.Option(help="End when this is printed.")] = None,
    seconds: ForOption = None,
    console: Annotated[bool, typer.Option(help="Show what the beacon prints.")] = True,
    json: JsonOption = False,
) -> None:
    """Run one beacon. What it writes to flash is in the file; Ctrl-C cuts its power.

    SIGUSR1 presses its button briefly.

    Exit code 1: the firmware ended in the REPL, nothing was bootable, or ``--until`` was not seen.
    """
    from beacon_ota.virtual.beacon import VirtualBeacon
    from beacon_ota.virtual.flash.nor import Flash

    chip = Flash.open(flash)
    address = _parse_mac(mac) if mac else _labelled_address(flash, chip.read(0, chip.size))
    printed: list[str] = [""]

    def show(text: str) -> None:
        printed[0] = (printed[0] + text)[-65536:]
        if console and not json:
            sys.stdout.write(text)
            sys.stdout.flush()

    network, deadline, shown = _build_network(wifi, host, outside), _deadline_after(seconds), 0
    seen = until is None
    with (
        _radio_space(radio) as space,
        VirtualBeacon(
            chip,
            mac=address,
            name=flash.stem,
            network=network,
            bluetooth=space.make_backend() if space else None,
            scale=time_scale,
            heap=heap * 1024,
            timing=flash_timing,
            console=show,
        ) as beacon,
    ):
        pressed = _catch_button_signal()
        beacon.power_on()
        try:
            while beacon.powered and time.monotonic() < deadline:
                if pressed.is_set():
                    pressed.clear()
                    beacon.press()
                    time.sleep(_PRESS_S / time_scale)
                    beacon.release()
                if not json:
                    shown = _print_boots(beacon, shown)
                if until is not None and until in printed[0]:
                    seen = True
                    break
                time.sleep(0.05)
        except KeyboardInterrupt:
            seen = until is None
        phase = beacon.phase
        beacon.power_cut()
        if not json:
            _print_boots(beacon, shown)
    chip.close()
    last = beacon.boots[-1]
    if json:
        output.print_json({"phase": phase, "boots": [boot.as_dict() for boot in beacon.boots]})
    if last.ended == "unbootable":
        raise InputError("not_bootable", f"{flash.name} does not boot: {last.detail}")
    if phase in ("repl", "corrupt"):
        raise InputError(f"beacon_{phase}", f"the firmware ended in: {phase}", found=last.slot)
    if not seen:
        raise InputError("not_printed", "the beacon did not print this", expected=until)


@app.command("fleet")
def run_fleet(
    count: Annotated[int, typer.Argument(min=1, max=1000, help="How many beacons.")],
    flash: Annotated[
        list[Path], typer.Argument(exists=True, dir_okay=False, help="Flash images, taken in turn.")
    ],
    prefix: Annotated[str, typer.Option(help="Ids are this and a number.")] = "virtual-",
    setting: Annotated[
        list[str] | None,
        typer.Option("--nvs", metavar="KEY=VALUE", help="A setting for all, e.g. wifi_ssid=…"),
    ] = None,
    roster: Annotated[
        Path | None, typer.Option(help="Write ids, keys and addresses to this JSON file.")
    ] = None,
    boxed: Annotated[
        bool, typer.Option("--boxed", help="Out of the box: a PIN each (in the roster), no key.")
    ] = False,
    time_scale: ScaleOption = 1,
    heap: HeapOption = 160,
    wifi: WifiOption = None,
    host: HostOption = None,
    outside: OutsideOption = False,
    flash_timing: TimingOption = False,
    radio: RadioOption = None,
    seconds: ForOption = None,
    json: JsonOption = False,
) -> None:
    """Run many beacons, each with a copy of an image, an id, a key and an address of its own."""
    from beacon_ota.fleet.fleet import VirtualFleet

    network, deadline = _build_network(wifi, host, outside), _deadline_after(seconds)
    with (
        _radio_space(radio) as space,
        VirtualFleet(
            flash,
            count,
            prefix=prefix,
            network=network,
            space=space,
            settings=dict(_parse_pair(text, "--nvs") for text in setting or ()),
            boxed=boxed,
            scale=time_scale,
            heap=heap * 1024,
            timing=flash_timing,
        ) as beacons,
    ):
        if roster is not None:
            _write_private(roster, [member.as_dict() for member in beacons.members])
        beacons.power_on()
        try:
            _show_rows(beacons.status_rows, deadline, quiet=json)
        except KeyboardInterrupt:
            pass
        rows = beacons.status_rows()
    if json:
        output.print_json(rows)


_COLUMNS = ("beacon", "phase", "slot", "boots", "ended_before", "wifi", "received")


def _show_rows(
    list_rows: Callable[[], list[dict[str, object]]], deadline: float, *, quiet: bool
) -> None:
    """Show the rows, again and again, until the deadline (``time.monotonic()``)."""
    from rich.live import Live

    if quiet:
        while time.monotonic() < deadline:
            time.sleep(0.05)
        return
    with Live(console=output.console, refresh_per_second=4) as live:
        while time.monotonic() < deadline:
            live.update(output.build_table(list_rows(), _COLUMNS))
            time.sleep(0.25)
        live.update(output.build_table(list_rows(), _COLUMNS))


def _print_boots(beacon: "VirtualBeacon", shown: int) -> int:
    """Print the boots' events since the last call; returns the number of events printed so far."""
    told: list[str] = []
    for boot in beacon.boots:
        if boot.slot:
            told.append(f"boot {boot.number} from {boot.slot}, reset cause {boot.cause}")
        if boot.ended:
            told.append(f"boot {boot.number} ended: {boot.ended} {boot.detail}".rstrip())
    for line in told[shown:]:
        output.print_markup("[dim]── {}[/]", line, to=output.error_console)
    return len(told)


def _build_network(wifi: list[str] | None, host: list[str] | None, outside: bool) -> "Network":
    from beacon_ota.virtual.net.network import Network

    network = Network(outside=outside)
    for text in wifi or ():
        ssid, _, password = text.partition(":")
        if not ssid:
            raise UsageError("wifi_option", "--wifi needs a name", found=text)
        network.add_access_point(ssid, password)
    for text in host or ():
        name, address = _parse_pair(text, "--host")
        where, _, port = address.partition(":")
        if port and not port.isdecimal():
            raise UsageError("host_option", "a port is a number", found=text)
        network.set_host(name, where, int(port) if port else None)
        if name == "orchestrator.local" and port:
            network.services["_beacon-ota._tcp"] = (name, int(port))
    return network


def _parse_pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError("pair_option", f"{option} takes NAME=VALUE", found=text)
    return name, value


def _parse_mac(text: str) -> bytes:
    try:
        mac = bytes.fromhex(text.replace(":", "").replace("-", ""))
    except ValueError:
        mac = b""
    if len(mac) != 6:
        raise UsageError("mac_option", "an address has six bytes", found=text)
    return mac


def _labelled_address(file: Path, image: bytes) -> bytes:
    """Return the address of the label in an image, else one that belongs to the file's name."""
    from beacon_ota.fleet import fleet
    from beacon_ota.images.flash import read_address

    drawn = fleet.mac_from_name(str(file.resolve()))
    try:
        found = read_address(image)
    except InputError:
        found = b""  # the bootloader says what is wrong
    return drawn[: 6 - len(found)] + found


def _radio_space(path: Path | None):
    """Join or start the radio space at a path; nothing without a path."""
    if path is None:
        return nullcontext()
    from contextlib import closing

    from beacon_ota.virtual.radio.space import open_space

    return closing(open_space(path))


def _deadline_after(seconds: float | None) -> float:
    return float("inf") if seconds is None else time.monotonic() + seconds


def _write_private(path: Path, value: object) -> None:
    """Write a JSON file with mode 0600: it holds keys."""
    import json
    import os

    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
