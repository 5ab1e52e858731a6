"""``beacon-ota provision``: bring beacons online over Bluetooth."""

from beacon_ota.cli.provision.commands import app

__all__ = ["app"]
