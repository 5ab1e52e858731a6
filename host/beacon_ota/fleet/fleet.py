"""Many virtual beacons from a few flash images, each with an identity of its own."""

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from beacon_ota.errors import InputError, UsageError
from beacon_ota.images import settings
from beacon_ota.provision import labels
from beacon_ota.virtual.beacon import ESPRESSIF_OUI, VirtualBeacon
from beacon_ota.virtual.flash import bootloader
from beacon_ota.virtual.flash.bootloader import NotBootable
from beacon_ota.virtual.flash.esp_errors import EspError
from beacon_ota.virtual.flash.nor import Flash
from beacon_ota.virtual.flash.nvs import Nvs
from beacon_ota.virtual.net.network import Network
from beacon_ota.virtual.radio.vhci import BluetoothBackend

if TYPE_CHECKING:
    from beacon_ota.virtual.radio.space import RadioSpace, RemoteSpace


@dataclass(frozen=True)
class FleetMember:
    """Who a beacon is: what an orchestrator has to know of it, and where its flash came from.

    ``pin`` is what its label says, when it comes out of a box: it has no key yet then.
    """

    beacon_id: str
    beacon_key: bytes = field(repr=False)
    mac: bytes
    image: str
    pin: str | None = field(default=None, repr=False)

    def as_dict(self) -> dict[str, str]:
        """Return the fields for a roster; the key in hex."""
        return {
            "beacon_id": self.beacon_id,
            "beacon_key": self.beacon_key.hex(),
            "mac": self.mac.hex(":"),
            "image": self.image,
            **({"pin": self.pin, "name": self.label.name} if self.pin else {}),
        }

    @property
    def label(self) -> labels.Label:
        """What is printed on it: its address, the name that it is provisioned under, its PIN."""
        return labels.make_label(self.mac.hex(), self.pin or "")


def write_settings(flash: Flash, values: Mapping[str, str]) -> None:
    """Put settings into a flash image's NVS, keeping what else is there.

    Args:
        flash: the image.
        values: as :func:`beacon_ota.images.settings.parse_settings` reads them.

    Raises:
        InputError: ``flash_no_nvs`` (no table or no NVS in it), ``nvs_full``.
        UsageError: ``setting_value``.
    """
    wanted = settings.parse_settings(values)
    try:
        part = bootloader.read_table(flash).nvs
    except NotBootable as error:
        raise InputError("flash_no_nvs", f"not a flash image: {error}") from error
    if part is None:
        raise InputError("flash_no_nvs", "the partition table has no NVS")
    nvs = Nvs(flash, part, faithful=False)
    namespace = nvs.open_namespace(settings.NAMESPACE)
    try:
        for key, value in wanted.items():
            nvs.set(namespace, key, value)
    except EspError as error:
        raise InputError("nvs_full", f"the settings do not fit into NVS: {error}") from error


def mac_from_name(name: str) -> bytes:
    """Return the MAC address that a name always has."""
    return ESPRESSIF_OUI + hashlib.sha256(name.encode()).digest()[:3]


def _make_member(name: str, image: str, boxed: bool) -> FleetMember:
    mac = mac_from_name(name)
    if not boxed:
        return FleetMember(name, secrets.token_bytes(32), mac, image)
    return FleetMember(name, b"", mac, image, labels.make_label(mac.hex()).pin)


def _unique_settings(member: FleetMember) -> dict[str, str]:
    """Return the settings that no other beacon has."""
    if member.pin is None:
        return {"beacon_id": member.beacon_id, "beacon_key": member.beacon_key.hex()}
    from beacon_ota.provision.session import enroll_pin

    secret = enroll_pin(member.pin, member.label.name.encode())
    return {"beacon_id": member.beacon_id, "pin_w": secret.hex()}


class VirtualFleet:
    """Virtual beacons that share a network, and a room if there is one.

    Args:
        images: flash images; the beacons take them in turn, each a copy of its own.
        count: how many beacons.
        prefix: beacon ids are the prefix and a number, e.g. ``virtual-07``.
        network: what their WiFi finds.
        room: whose radios their Bluetooth uses.
        settings: written into every NVS, besides ``beacon_id`` and ``beacon_key``.
        boxed: they come out of a box: with a PIN of their own instead of a key.
        options: further arguments of :class:`VirtualBeacon`, e.g. ``scale``.

    Raises:
        InputError: an image that is none.
        UsageError: no images, or no beacons.
    """

    def __init__(
        self,
        images: Sequence[Path],
        count: int,
        *,
        prefix: str = "virtual-",
        network: Network | None = None,
        room: "RadioSpace | RemoteSpace | None" = None,
        settings: Mapping[str, str] | None = None,
        boxed: bool = False,
        **options,
    ):
        if not images or count < 1:
            raise UsageError("fleet_empty", "a fleet has an image and a beacon, or more")
        self.members: list[FleetMember] = []
        self.beacons: list[VirtualBeacon] = []
        self._flashes: list[Flash] = []
        network = network or Network()
        contents = [image.read_bytes() for image in images]
        width = len(str(count))
        try:
            for number in range(1, count + 1):
                index = (number - 1) % len(images)
                name = f"{prefix}{number:0{width}}"
                member = _make_member(name, images[index].name, boxed)
                flash = Flash(contents[index])
                self._flashes.append(flash)
                write_settings(flash, {**(settings or {}), **_unique_settings(member)})
                backend: BluetoothBackend | None = room.make_backend() if room is not None else None
                beacon = VirtualBeacon(
                    flash,
                    mac=member.mac,
                    name=name,
                    network=network,
                    bluetooth=backend,
                    **options,
                )
                self.members.append(member)
                self.beacons.append(beacon)
        except BaseException:
            self.close()
            raise

    def power_on(self) -> None:
        """Power all of them on."""
        for beacon in self.beacons:
            beacon.power_on()

    def status_rows(self) -> list[dict[str, object]]:
        """Return one row per beacon: what it is doing."""
        return [describe_beacon(beacon) for beacon in self.beacons]

    def close(self) -> None:
        """Cut the power and give everything back."""
        for beacon in self.beacons:
            beacon.close()
        for flash in self._flashes:
            flash.close()

    def __enter__(self) -> "VirtualFleet":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def describe_beacon(beacon: VirtualBeacon) -> dict[str, object]:
    """Return what a beacon is doing, as a row for people and for JSON."""
    boot = beacon.boot
    before = beacon.boots[-2] if len(beacon.boots) > 1 else None
    point = beacon.wlan.access_point
    return {
        "beacon": beacon.name,
        "phase": beacon.phase,
        "slot": boot.slot if boot else None,
        "boots": boot.number if boot else 0,
        "ended_before": before.ended if before else None,
        "wifi": point.ssid.decode("utf-8", "replace") if point else None,
        "received": beacon.link.received,
        "flash_operations": beacon.flash.ops,
        "clock": round(beacon.clock.now(), 1),
    }
