"""``beacon-ota release``: sign, verify, upload, promote, deprecate and republish releases."""

from beacon_ota.cli.release.commands import app

__all__ = ["app"]
