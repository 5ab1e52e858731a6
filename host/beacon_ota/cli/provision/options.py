"""Options of ``beacon-ota provision``, in groups, and what the groups stand for."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from beacon_ota import text_files
from beacon_ota.cli._support import prompts
from beacon_ota.cli._support.options import OptionGroup, Server
from beacon_ota.console import output
from beacon_ota.errors import UsageError

if TYPE_CHECKING:
    from beacon_ota.provision.desired_config import DesiredConfig, Network
    from beacon_ota.provision.flow import AskSecret
    from beacon_ota.provision.registry import OrchestratorRegistry
    from beacon_ota.provision.scan import BeaconFinder
    from beacon_ota.provision.sighting import Sighting

_WHO, _WIFI, _MORE, _SERVER = "Which beacon", "Network", "Settings", "Orchestrator"

RadioOption = Annotated[
    str | None,
    typer.Option(
        "--radio", help="Bluetooth adapter, or room:PATH; else BEACON_OTA_RADIO, else the default."
    ),
]
SearchOption = Annotated[
    float, typer.Option("--search", min=0.5, help="Seconds to look for it.", rich_help_panel=_WHO)
]
OpenOption = Annotated[
    bool, typer.Option("--open", help="The network has no password.", rich_help_panel=_WIFI)
]
TagOption = Annotated[
    list[str] | None, typer.Option("--tag", help="Repeatable.", rich_help_panel=_MORE)
]
PositionOption = Annotated[
    str | None, typer.Option("--ibeacon", help="UUID:major:minor.", rich_help_panel=_MORE)
]


@dataclass(frozen=True)
class BeaconChoice(OptionGroup):
    """Which beacon is meant, and its secret."""

    beacon: Annotated[
        str | None,
        typer.Option(
            "--beacon",
            help="Its name, the last digits of it, or its address [default: ask, or the only one].",
            rich_help_panel=_WHO,
        ),
    ] = None
    pin: Annotated[str | None, typer.Option(help="PIN on its label.", rich_help_panel=_WHO)] = None
    pin_file: Annotated[
        Path | None, typer.Option(help="File with the PIN.", rich_help_panel=_WHO)
    ] = None
    label: Annotated[
        Path | None,
        typer.Option(
            help="CSV of provision label: name and PIN of its only row, or of --beacon's.",
            rich_help_panel=_WHO,
        ),
    ] = None
    pop: Annotated[
        str | None,
        typer.Option(help="Proof of possession, where its label has one.", rich_help_panel=_WHO),
    ] = None
    search: SearchOption = 10.0

    def read_label(self) -> "BeaconChoice":
        """Return the choice with the name and PIN of the label's file put in, if there is one.

        Raises:
            UsageError: ``options``, ``label_choice``. InputError: ``label_file``.
        """
        if self.label is None:
            return self
        from dataclasses import replace

        from beacon_ota.provision import labels

        if self.pin is not None:
            raise UsageError("options", "one of --label and --pin is enough")
        found = labels.pick_label(text_files.read_text_file(self.label), self.beacon)
        return replace(self, label=None, beacon=found.name, pin=found.pin)

    @property
    def has_secret(self) -> bool:
        """Whether a PIN or a proof of possession was given."""
        return bool(self.pin or self.pin_file or self.pop)

    def secret_source(self) -> "AskSecret":
        """Return the source of the secret: the options, or a prompt."""
        return prompts.secret_source(self.pin, self.pin_file, self.pop)

    async def find_sighting(
        self, finder: "BeaconFinder", quiet: bool, *, opened: bool = True
    ) -> "Sighting":
        """Scan until the beacon is found; at a terminal, ask which one is meant."""
        return await prompts.find_sighting(finder, self.beacon, self.search, quiet, opened=opened)


@dataclass(frozen=True)
class NetworkOptions(OptionGroup):
    """The WiFi networks that beacons join."""

    ssid: Annotated[
        str | None,
        typer.Option(help="Name of the network [default: ask].", rich_help_panel=_WIFI),
    ] = None
    password_file: Annotated[
        Path | None,
        typer.Option(help="File with its password, - for stdin.", rich_help_panel=_WIFI),
    ] = None
    ssid2: Annotated[
        str | None, typer.Option(help="A second one, should it fail.", rich_help_panel=_WIFI)
    ] = None
    password2_file: Annotated[
        Path | None, typer.Option(help="File with its password.", rich_help_panel=_WIFI)
    ] = None

    def second_network(self) -> "Network | None":
        """Return the network for when the first one fails."""
        from beacon_ota.provision.desired_config import Network

        if not self.ssid2:
            return None
        return Network.of(self.ssid2, prompts.read_first_line(self.password2_file))


@dataclass(frozen=True)
class SettingsOptions(OptionGroup):
    """Settings that a beacon stores, and its place in the fleet."""

    site: Annotated[
        str | None, typer.Option(help="Path in the site tree.", rich_help_panel=_MORE)
    ] = None
    device_type: Annotated[
        str | None,
        typer.Option(
            "--type",
            help="Board that you take it for; what it says itself counts.",
            rich_help_panel=_MORE,
        ),
    ] = None
    channel: Annotated[str | None, typer.Option(help="stable or beta.", rich_help_panel=_MORE)] = (
        None
    )
    window: Annotated[
        str | None,
        typer.Option(help="Local maintenance window, HH:MM-HH:MM.", rich_help_panel=_MORE),
    ] = None
    utc_off: Annotated[
        int | None, typer.Option(help="Minutes of local time before UTC.", rich_help_panel=_MORE)
    ] = None
    fleet_key_file: Annotated[
        Path | None,
        typer.Option(
            "--fleet-key-file", help="File with the fleet key, hex.", rich_help_panel=_MORE
        ),
    ] = None
    credentials_file: Annotated[
        Path | None,
        typer.Option(
            "--credentials-file",
            help="What opens the door: id:secret:bound in hex, one a line; id:secret for readers "
            "that do not say yet which door they mean.",
            rich_help_panel=_MORE,
        ),
    ] = None

    def settings(self) -> dict[str, str | None]:
        """Return the settings as text, by their names in NVS."""
        return {
            "site": self.site,
            "channel": self.channel,
            "window": self.window,
            "utc_off": None if self.utc_off is None else str(self.utc_off),
            "fleet_key": prompts.read_first_line(self.fleet_key_file) or None,
        }

    def read_credentials(self) -> tuple[bytes | None, frozenset[bytes]]:
        """Read the file of credentials, and warn of those that open more than one door.

        Returns:
            The credentials, None without a file, and the ids of those bound to each door.
        """
        from beacon_ota.provision.desired_config import parse_bound_ids, parse_credentials
        from beacon_ota.wire import access

        if self.credentials_file is None:
            return None, frozenset()
        text = text_files.read_text_file(self.credentials_file)
        creds, bound = parse_credentials(text), parse_bound_ids(text)
        size = access.ID + access.SECRET
        loose = sum(creds[at : at + access.ID] not in bound for at in range(0, len(creds), size))
        if loose:
            output.print_markup(
                "{} of {} credentials are not bound: whoever gets a proof of one for any door can "
                "open this one with it (docs/security.md)",
                loose,
                len(creds) // size,
                to=output.error_console,
            )
        return creds, bound


@dataclass(frozen=True)
class RegistrationOptions(OptionGroup):
    """Where beacons are registered, and where they find the orchestrator."""

    orch_url: Annotated[
        str | None,
        typer.Option(
            "--orch-url",
            help="Where the beacon finds it [default: --url, unless that is this computer].",
            rich_help_panel=_SERVER,
        ),
    ] = None
    no_register: Annotated[
        bool,
        typer.Option(
            "--no-register", help="Tell no orchestrator; print the key.", rich_help_panel=_SERVER
        ),
    ] = False
    wait: Annotated[
        float,
        typer.Option(
            "--wait", min=1, help="Seconds for its first exchange.", rich_help_panel=_SERVER
        ),
    ] = 90.0

    def open_registry(self, server: Server, site: str | None) -> "OrchestratorRegistry | None":
        """Return the registry that beacons are entered in, once it takes them at this site.

        Raises:
            BeaconOtaError: as :meth:`OrchestratorRegistry.check_access`.
        """
        if self.no_register:
            return None
        from beacon_ota.provision.registry import OrchestratorRegistry

        registry = OrchestratorRegistry(server.client)
        if self.beacon_url(registry) is None:
            output.print_markup(
                "[yellow]{} is this computer to a beacon, too: it will look for orchestrator.local "
                "and announcements on its network. --orch-url names an address[/]",
                registry.url,
                to=output.error_console,
            )
        registry.check_access(site)
        return registry

    def complete_offsets(
        self, registry: "OrchestratorRegistry | None", desired: "list[DesiredConfig]"
    ) -> "list[DesiredConfig]":
        """Give each window without an offset the one of its site; warn where that is not known."""
        found = []
        for one in desired:
            config = registry.complete_offset(one.config) if registry else one.config
            found.append(replace(one, config=config))
        if any(one.config.get("window") and "utc_off" not in one.config for one in found):
            output.print_markup(
                "a window without --utc-off and --site is UTC, until the orchestrator says how the "
                "building's clock goes",
                to=output.error_console,
            )
        return found

    def beacon_url(self, registry: "OrchestratorRegistry | None") -> str | None:
        """Return the orchestrator's URL as beacons can use it, None when none is known."""
        from beacon_ota.provision.desired_config import reachable_url

        return self.orch_url or (reachable_url(registry.url) if registry else None)
