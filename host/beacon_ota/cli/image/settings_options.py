"""Settings of a beacon in its flash image: the options of ``image flash``, and their NVS values."""

import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from beacon_ota import text_files
from beacon_ota.cli._support.options import OptionGroup
from beacon_ota.cli.image.files import parse_pair, read_hex
from beacon_ota.console import output
from beacon_ota.errors import UsageError

NEW = "new"  # in place of a key: draw one
_PANEL = "Settings"


@dataclass(frozen=True)
class SettingsOptions(OptionGroup):
    """What a beacon finds in its NVS."""

    beacon_id: Annotated[
        str | None, typer.Option(help="The beacon's name.", rich_help_panel=_PANEL)
    ] = None
    beacon_key: Annotated[
        str | None,
        typer.Option(help="Its key: 64 hex, a file of it, or: new.", rich_help_panel=_PANEL),
    ] = None
    fleet_key: Annotated[
        str | None, typer.Option(help="Fleet key: 32 hex, or a file of it.", rich_help_panel=_PANEL)
    ] = None
    orch_url: Annotated[
        str | None,
        typer.Option(help="The orchestrator: http[s]://host:port.", rich_help_panel=_PANEL),
    ] = None
    wifi_ssid: Annotated[str | None, typer.Option(help="Network.", rich_help_panel=_PANEL)] = None
    wifi_pass: Annotated[str | None, typer.Option(help="Its password.", rich_help_panel=_PANEL)] = (
        None
    )
    wifi_pass_file: Annotated[
        Path | None, typer.Option(help="File with its password.", rich_help_panel=_PANEL)
    ] = None
    wifi2_ssid: Annotated[
        str | None, typer.Option(help="A second network.", rich_help_panel=_PANEL)
    ] = None
    wifi2_pass: Annotated[
        str | None, typer.Option(help="Its password.", rich_help_panel=_PANEL)
    ] = None
    wifi2_pass_file: Annotated[
        Path | None, typer.Option(help="File with its password.", rich_help_panel=_PANEL)
    ] = None
    site: Annotated[str | None, typer.Option(help="Where it hangs.", rich_help_panel=_PANEL)] = None
    channel: Annotated[str | None, typer.Option(help="stable or beta.", rich_help_panel=_PANEL)] = (
        None
    )
    window: Annotated[
        str | None,
        typer.Option(help="Local maintenance window, HH:MM-HH:MM.", rich_help_panel=_PANEL),
    ] = None
    utc_off: Annotated[
        int | None, typer.Option(help="Minutes of local time before UTC.", rich_help_panel=_PANEL)
    ] = None
    label: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="CSV of provision label: PIN, name and proof of possession of the only row, or of "
            "the one that --ble-name names.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    pin: Annotated[
        str | None, typer.Option(help="PIN of its label; needs --ble-name.", rich_help_panel=_PANEL)
    ] = None
    ibeacon: Annotated[
        str | None,
        typer.Option(help="UUID:major:minor that it advertises.", rich_help_panel=_PANEL),
    ] = None
    ble_name: Annotated[
        str | None,
        typer.Option(help="BLUFI_ and the last 6 digits of its address.", rich_help_panel=_PANEL),
    ] = None
    pop: Annotated[
        str | None,
        typer.Option(
            help="Proof of possession of its label, 8 to 64 characters.", rich_help_panel=_PANEL
        ),
    ] = None
    nvs: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Any other setting: text, hex:…, i32:….",
            rich_help_panel=_PANEL,
        ),
    ] = None

    def draw_secrets(self) -> tuple["SettingsOptions", dict[str, object]]:
        """Draw the beacon's key where ``new`` is asked for, and read the label's file.

        Returns:
            The options with the values put in, and those of the values that have to be shown.

        Raises:
            UsageError: ``options``, ``label_choice``. InputError: ``label_file``.
        """
        found, shown = self, {}
        if self.beacon_key == NEW:
            shown["beacon_key"] = secrets.token_hex(32)
            found = replace(found, beacon_key=shown["beacon_key"])
        if self.label is not None:
            from beacon_ota.provision import labels

            if self.pin is not None or self.pop is not None:
                raise UsageError("options", "--label brings PIN and proof of possession itself")
            label = labels.pick_label(text_files.read_text_file(self.label), self.ble_name)
            found = replace(found, ble_name=label.name, pin=label.pin, pop=label.pop or None)
            shown["ble_name"] = label.name
            if label.mac:
                shown["mac"] = label.mac
        return found, shown

    def warn_of_utc(self) -> None:
        """Say that a window is UTC where no offset is given."""
        if self.window and self.utc_off is None:
            output.print_markup(
                "a window without --utc-off is UTC, until the orchestrator says how the building's "
                "clock goes",
                to=output.error_console,
            )

    def parse_values(self) -> dict[str, int | bytes]:
        """Return the NVS values.

        Raises:
            UsageError: ``options``, ``setting_value``, ``pin``, ``ble_name``.
        """
        from beacon_ota.images import settings
        from beacon_ota.provision.desired_config import parse_position

        values = {
            "beacon_id": self.beacon_id,
            "beacon_key": read_hex(self.beacon_key, 64),
            "fleet_key": read_hex(self.fleet_key, 32),
            "orch_url": self.orch_url,
            "wifi_ssid": self.wifi_ssid,
            "wifi_pass": _read_password("wifi", self.wifi_pass, self.wifi_pass_file),
            "wifi2_ssid": self.wifi2_ssid,
            "wifi2_pass": _read_password("wifi2", self.wifi2_pass, self.wifi2_pass_file),
            "site": self.site,
            "channel": self.channel,
            "window": self.window,
            "utc_off": None if self.utc_off is None else str(self.utc_off),
            "pin_w": _enroll_pin(self.pin, self.ble_name),
            "pop": self.pop,
            "ibeacon": None if self.ibeacon is None else parse_position(self.ibeacon).hex(),
            **dict(parse_pair(text, "--nvs") for text in self.nvs or ()),
        }
        return settings.parse_settings(
            {key: value for key, value in values.items() if value is not None}
        )


def _read_password(name: str, value: str | None, file: Path | None) -> str | None:
    """Return a network's password as given, or from its file."""
    if value is not None and file is not None:
        raise UsageError("options", f"--{name}-pass and --{name}-pass-file exclude each other")
    return value if file is None else text_files.read_line(file)


def _enroll_pin(pin: str | None, name: str | None) -> str | None:
    """Return what the beacon stores in place of its PIN, hex."""
    if pin is None:
        return None
    if name is None:
        raise UsageError("options", "--pin needs --ble-name: the PIN is bound to it")
    from beacon_ota.provision import labels, session

    return session.enroll_pin(labels.check_pin(pin), labels.check_name(name).encode()).hex()
