"""Shows what a release costs the beacons of its board, as the orchestrator estimates it."""

from typing import TYPE_CHECKING

from beacon_ota.console import output
from beacon_ota.errors import BeaconOtaError

if TYPE_CHECKING:
    from beacon_ota.client import Client, Json

_COLUMNS = ("runs", "other_slot", "beacons", "fetches", "writes", "seconds", "changed")
_NAMED = 4  # files that are named


def read_cost(client: "Client", firmware_id: str) -> "Json | None":
    """Return the estimate, None if the orchestrator cannot make one: an older one does not."""
    try:
        return client.estimate_cost(firmware_id)
    except BeaconOtaError:
        return None


def print_cost(client: "Client", firmware_id: str) -> None:
    """Print what a release costs a beacon, by what the fleet runs, and all of them together."""
    found = read_cost(client, firmware_id)
    if found is None:
        return
    if not found["beacons"]:
        have = found["have"]
        if have:
            runs = "1 runs" if have == 1 else f"{have:,} run"
            output.print_markup("no beacon needs it: {} it already", runs)
        else:
            output.print_markup("no beacon of this board is known yet")
        return
    rows = [_describe_group(one) for one in found["groups"]]
    output.print_rows(rows, _COLUMNS, as_json=False, title="what it costs a beacon")
    full = found["full"]
    output.print_markup(
        "{} {:,} bytes; in full it would be {:,} ({:,} bytes, {} sectors and {} s each)",
        "1 beacon fetches" if found["beacons"] == 1 else f"{found['beacons']:,} beacons fetch",
        found["bytes"],
        found["bytes_in_full"],
        full["bytes"],
        full["sectors_written"],
        full["seconds"],
    )
    if not found["block_index"]:
        output.print_markup(
            "[yellow]It has no block index: beacons fetch the whole app, or everything.[/]"
        )


def _describe_group(one: "Json") -> "Json":
    changed = one["changed"]
    if changed is None:
        files = None
    elif len(changed) <= _NAMED:
        files = ", ".join(changed)
    else:
        files = f"{', '.join(changed[:_NAMED])} and {len(changed) - _NAMED} more"
    return {
        "runs": one["version"] or None,
        "other_slot": one["other_version"],
        "beacons": one["beacons"],
        "fetches": f"{one['bytes']:,}",
        "writes": one["sectors_written"],
        "seconds": one["seconds"],
        "changed": files,
    }
