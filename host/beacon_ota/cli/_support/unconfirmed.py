"""Waits for mirrors to confirm a stop, and names those that have not confirmed it in time."""

import time
from collections.abc import Callable
from typing import Any

from rich.console import Group

from beacon_ota.cli._support.display import local_time
from beacon_ota.console import output
from beacon_ota.errors import BeaconOtaError

WAIT_S = 10.0  # for mirrors to say that they act on a stop
_POLL_INTERVAL_S = 0.5

Rows = list[dict[str, Any]]


def wait_for_mirrors(done: dict[str, Any], again: Callable[[], dict[str, Any]]) -> None:
    """Wait up to ``WAIT_S`` for the mirrors in contact; keeps ``done["unconfirmed"]`` current.

    Args:
        again: fetches the object from the orchestrator once more.
    """
    end = time.monotonic() + WAIT_S
    while any(one["silent_s"] < WAIT_S for one in done.get("unconfirmed", ())):
        if time.monotonic() > end:
            return
        time.sleep(_POLL_INTERVAL_S)
        try:
            done["unconfirmed"] = again().get("unconfirmed", [])
        except BeaconOtaError:
            return  # the stop holds all the same; the last known list is shown


def describe_waiting(rows: Rows) -> Group:
    """Return a line for each mirror: unconfirmed since when, and until when it may hand out."""
    return Group(
        *(
            output.fill_markup(
                "[bold red]not confirmed[/] by mirror {} (site {}) since {}: last heard {}; {}",
                one["mirror"],
                one["site"] or "everything",
                local_time(one["since"]),
                local_time(one["seen_at"]),
                _describe_lease(one),
            )
            for one in rows
        )
    )


def _describe_lease(one: dict[str, Any]) -> str:
    if one["hands_out_until"] is None:
        return "it may hand out for as long as it is cut off"
    until = local_time(one["hands_out_until"])
    if one["hands_out"]:
        return f"it may hand out until {until}"
    return f"it hands out nothing since {until}"
