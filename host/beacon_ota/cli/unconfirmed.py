"""Mirrors that have not confirmed a stop: waiting for them a moment, and naming the rest."""

import time
from collections.abc import Callable
from typing import Any

from rich.console import Group

from beacon_ota.cli._support import remote
from beacon_ota.console import output
from beacon_ota.errors import BeaconOtaError

WAIT_S = 10.0  # for mirrors to say that they act on a stop
_LOOK_S = 0.5

Rows = list[dict[str, Any]]


def wait(done: dict[str, Any], again: Callable[[], dict[str, Any]]) -> None:
    """Wait a moment for those that are in contact; ``unconfirmed`` of ``done`` follows.

    Args:
        again: asks the orchestrator once more.
    """
    end = time.monotonic() + WAIT_S
    while any(one["silent_s"] < WAIT_S for one in done.get("unconfirmed", ())):
        if time.monotonic() > end:
            return
        time.sleep(_LOOK_S)
        try:
            done["unconfirmed"] = again().get("unconfirmed", [])
        except BeaconOtaError:
            return  # the stop is done all the same; who was to confirm it last is known


def named(rows: Rows) -> Group:
    """Return them in words, one a line: since when, and for how long each may hand out."""
    return Group(
        *(
            output.fill_markup(
                "[bold red]not confirmed[/] by mirror {} (site {}) since {}: last heard {}; {}",
                one["mirror"],
                one["site"] or "everything",
                remote.moment(one["since"]),
                remote.moment(one["seen_at"]),
                _leased(one),
            )
            for one in rows
        )
    )


def _leased(one: dict[str, Any]) -> str:
    if one["hands_out_until"] is None:
        return "it may hand out for as long as it is cut off"
    until = remote.moment(one["hands_out_until"])
    if one["hands_out"]:
        return f"it may hand out until {until}"
    return f"it hands out nothing since {until}"
