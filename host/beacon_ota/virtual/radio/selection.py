"""Which radio a central uses: the computer's adapter, or a room of virtual beacons.

A choice is written `hci1` (an adapter by name), `room:PATH` (a room's socket), or nothing (the
computer's default adapter). `BEACON_OTA_RADIO` in the environment is the default.
"""

import os
from dataclasses import dataclass, field
from typing import Any

from beacon_ota.errors import UsageError

RADIO_VARIABLE = "BEACON_OTA_RADIO"
SPACE_PREFIX = "room:"


@dataclass(frozen=True)
class RadioSelection:
    """What to hand to bleak: ``BleakScanner(**radio.scanner)``, ``BleakClient(d, **radio.client)``.

    Args:
        name: the choice, for people.
        scanner: arguments for ``BleakScanner``.
        client: arguments for ``BleakClient``.
        virtual: whether it is a room.
    """

    name: str
    scanner: dict[str, Any] = field(default_factory=dict)
    client: dict[str, Any] = field(default_factory=dict)
    virtual: bool = False


def select_radio(choice: str | None = None) -> RadioSelection:
    """Make sense of a choice; without one the environment decides.

    Raises:
        UsageError: ``radio_choice`` when it is neither an adapter's name nor a room.
    """
    text = (choice if choice is not None else os.environ.get(RADIO_VARIABLE, "")).strip()
    if not text:
        return RadioSelection("default adapter")
    if text.startswith(SPACE_PREFIX):
        path = text.removeprefix(SPACE_PREFIX)
        if not path:
            raise UsageError("radio_choice", "room: needs the path of a socket.", found=text)
        from beacon_ota.virtual.radio.client import SpaceClient, SpaceScanner

        return RadioSelection(
            text,
            scanner={"backend": SpaceScanner, "room": path},
            client={"backend": SpaceClient, "room": path},
            virtual=True,
        )
    if "/" in text or ":" in text:
        raise UsageError(
            "radio_choice", "Not a radio.", found=text, expected="hci0, room:PATH or nothing"
        )
    adapter = {"bluez": {"adapter": text}}
    return RadioSelection(text, scanner=adapter, client=adapter)
