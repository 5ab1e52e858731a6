"""``beacon-ota image``: build and inspect release and flash images."""

from beacon_ota.cli.image.commands import app

__all__ = ["app"]
