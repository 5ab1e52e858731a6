"""Provisions all beacons of the demonstration over the virtual radio, several at a time."""

import asyncio
import threading

from beacon_ota.client import Client
from beacon_ota.demo.display import Display
from beacon_ota.errors import ReachError
from beacon_ota.provision import batch
from beacon_ota.provision.registry import OrchestratorRegistry
from beacon_ota.virtual.radio.selection import RadioSelection

JOBS = 6
PATIENCE_S = 180.0  # real seconds, for one scene


def provision_all(
    rows: list[batch.Row], radio: RadioSelection, client: Client, display: Display
) -> list[float]:
    """Provision beacons in a thread while the display goes on; return the seconds of each.

    Raises:
        ReachError: ``demo_provision`` when a beacon was not provisioned.
    """
    done: list[batch.RowResult] = []
    failure: list[BaseException] = []

    def provision() -> None:
        try:
            asyncio.run(
                batch.provision_rows(
                    rows,
                    radio,
                    OrchestratorRegistry(client),
                    jobs=JOBS,
                    search_s=60,
                    online_s=60,
                    on_result=done.append,
                )
            )
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=provision, name="laptop", daemon=True)
    thread.start()
    shown = 0

    def show_progress() -> None:
        nonlocal shown
        if len(done) - shown >= max(1, len(rows) // 5):
            shown = len(done)
            display.add_line(f"{shown} of {len(rows)} provisioned over Bluetooth, and online")

    display.wait_until(lambda: not thread.is_alive(), PATIENCE_S, show_progress)
    bad = [one for one in done if not one.ok]
    if failure or bad or len(done) < len(rows):
        why = failure or [f"{one.beacon}: {one.result}: {one.detail}" for one in bad]
        raise ReachError("demo_provision", f"not all beacons were provisioned: {why[:3]}")
    return [one.outcome.seconds for one in done if one.outcome]
