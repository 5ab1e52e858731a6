"""Completes names of beacons, rollouts, releases and sites when the shell's Tab is pressed.

The names come from the server. Completion never fails and never waits long: if the server does not
answer, nothing is completed.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from beacon_ota.client import Client

_TIMEOUT_S = (0.5, 1.5)  # to connect, and between two bytes of the answer


def complete_names(kind: str) -> Callable[[typer.Context, str], list[str]]:
    """Return a completer of names that the server knows.

    Args:
        kind: ``beacon``, ``release``, ``rollout`` or ``site``.
    """

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        from beacon_ota.client import Client
        from beacon_ota.errors import BeaconOtaError

        given = ctx.params.get("url"), ctx.params.get("token")
        try:
            names = _LISTERS[kind](Client(*given, timeout_s=_TIMEOUT_S), incomplete)
        except BeaconOtaError:
            return []
        return [name for name in names if name.startswith(incomplete)]

    return complete


def complete_words(*words: str) -> Callable[[str], list[str]]:
    """Return a completer of a few fixed words."""
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


def _list_releases(client: "Client", incomplete: str) -> list[str]:
    rows = client.list_firmwares()
    if "/" in incomplete:
        return [f"{row['device_type']}/{row['version']}" for row in rows]
    return list(dict.fromkeys(row["version"] for row in rows))


def _list_rollouts(client: "Client", incomplete: str) -> list[str]:
    return [row["rollout_id"] for row in client.list_rollouts(begins=incomplete[:24])]


def _list_beacons(client: "Client", incomplete: str) -> list[str]:
    page = client.call("GET", "/api/beacons", params={"search": incomplete or None})
    return [row["beacon_id"] for row in page["beacons"]]


def _list_sites(client: "Client", _incomplete: str) -> list[str]:
    return [row["path"] for row in client.list_sites()]


_LISTERS: dict[str, Callable[["Client", str], list[str]]] = {
    "release": _list_releases,
    "rollout": _list_rollouts,
    "beacon": _list_beacons,
    "site": _list_sites,
}
