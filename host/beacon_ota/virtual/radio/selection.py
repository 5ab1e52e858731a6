"""Selects the radio of a central: an adapter of the computer, or a simulated radio space.

A selection is written `hci1` (an adapter by name), `room:PATH` (the socket of a space), or nothing
(the default adapter of the computer). `BEACON_OTA_RADIO` in the environment is the default.
"""

import os
import sys
from dataclasses import dataclass, field
from typing import Any

from beacon_ota.errors import UsageError

RADIO_VARIABLE = "BEACON_OTA_RADIO"
SPACE_PREFIX = "room:"


@dataclass(frozen=True)
class RadioSelection:
    """Arguments for bleak: ``BleakScanner(**radio.scanner)``, ``BleakClient(d, **radio.client)``.

    Args:
        name: the selection as people write it.
        scanner: arguments for ``BleakScanner``.
        client: arguments for ``BleakClient``.
        virtual: whether it is a simulated space.
        adapter: the adapter that was named, "" for the default one.
    """

    name: str
    scanner: dict[str, Any] = field(default_factory=dict)
    client: dict[str, Any] = field(default_factory=dict)
    virtual: bool = False
    adapter: str = ""

    @property
    def on_bluez(self) -> bool:
        """Whether bleak talks to BlueZ."""
        return not self.virtual and sys.platform == "linux"

    @property
    def renews(self) -> bool:
        """Whether a scan has to begin anew now and then, with any real adapter.

        BlueZ and CoreBluetooth may report a beacon once per scan; and where nothing tells that the
        adapter was switched off, the next start does.
        """
        return not self.virtual

    @property
    def remembers(self) -> bool:
        """Whether a report may hold what a beacon has stopped to send: BlueZ and CoreBluetooth."""
        return not self.virtual and sys.platform in ("linux", "darwin")


# Windows remembers the services of a device, and those of an earlier release are wrong.
_UNCACHED = {"winrt": {"use_cached_services": False}}


def select_radio(choice: str | None = None) -> RadioSelection:
    """Parse a selection; by default, the one in the environment.

    Raises:
        UsageError: ``radio_choice`` when the text names neither an adapter nor a space.
    """
    text = (choice if choice is not None else os.environ.get(RADIO_VARIABLE, "")).strip()
    if not text:
        return RadioSelection("the default adapter", client=dict(_UNCACHED))
    if text.startswith(SPACE_PREFIX):
        path = text.removeprefix(SPACE_PREFIX)
        if not path:
            raise UsageError("radio_choice", "room: needs the path of a socket.", found=text)
        from beacon_ota.virtual.radio.client import SpaceClient, SpaceScanner

        return RadioSelection(
            text,
            scanner={"backend": SpaceScanner, "space": path},
            client={"backend": SpaceClient, "space": path},
            virtual=True,
        )
    if "/" in text or ":" in text:
        raise UsageError(
            "radio_choice", "Not a radio.", found=text, expected="hci0, room:PATH or nothing"
        )
    adapter = {"bluez": {"adapter": text}}
    return RadioSelection(text, scanner=adapter, client=adapter | _UNCACHED, adapter=text)
