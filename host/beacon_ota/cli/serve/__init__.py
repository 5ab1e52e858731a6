"""``beacon-ota serve``: run the orchestrator, or a mirror of one."""

from beacon_ota.cli.serve.commands import app

__all__ = ["app"]
