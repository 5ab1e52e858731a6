"""``beacon-ota rollout``: plan, start, watch and stop rollouts."""

from beacon_ota.cli.rollout.commands import app

__all__ = ["app"]
