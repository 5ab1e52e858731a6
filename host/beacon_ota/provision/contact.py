"""Reaches a beacon: looks for it again when what is known of it is old, connects, and tries again.

This is the only place that retries. BlueZ forgets a device that it has not heard for 30 s, a device
of CoreBluetooth belongs to its event loop, and a beacon may have gone meanwhile: therefore each
attempt but a quick first one begins with a look, and a beacon that is not seen is not waited for.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from beacon_ota.errors import ReachError
from beacon_ota.provision.client import BlufiClient
from beacon_ota.provision.scan import BeaconFinder
from beacon_ota.provision.sighting import Sighting

ATTEMPTS = 3
RETRY_DELAY_S = 0.5  # the beacon may have to end what was begun
FRESH_S = 10.0  # for which a sighting is good enough to connect at once
LOOK_AGAIN_S = 10.0
_RETRIED = ("disconnected", "no_answer", "out_of_range")

OnStep = Callable[[str, str], None]
T = TypeVar("T")


async def talk_to_beacon(
    found: Sighting,
    finder: BeaconFinder,
    talk: Callable[[BlufiClient], Awaitable[T]],
    *,
    on_step: OnStep = lambda step, detail: None,
    attempts: int = ATTEMPTS,
) -> T:
    """Connect to a beacon, and return what ``talk`` makes of the connection.

    Args:
        found: what is known of the beacon.
        talk: is called anew for each attempt.
        on_step: called with ``connecting`` and ``again``, and a detail.
        attempts: how often to begin after a connection that failed or broke.

    Raises:
        ReachError: ``out_of_range``, and what ``talk`` raises.
    """
    for attempt in range(1, attempts + 1):
        if attempt > 1 or not (found.named and _is_fresh(found)):
            found = await _look_again(found, finder)
        try:
            on_step("connecting", found.name)
            async with BlufiClient(found.device, found.name, finder.radio) as beacon:
                return await talk(beacon)
        except ReachError as error:
            if error.code not in _RETRIED or attempt == attempts:
                raise
            on_step("again", error.message)
            await asyncio.sleep(RETRY_DELAY_S)
    raise AssertionError("unreachable")


def _is_fresh(found: Sighting) -> bool:
    return found.loop is asyncio.get_running_loop() and time.monotonic() - found.seen < FRESH_S


async def _look_again(found: Sighting, finder: BeaconFinder) -> Sighting:
    # The name is part of the proof: without it a right PIN would count as a wrong guess.
    try:
        again = await finder.find(found.address, LOOK_AGAIN_S, opened=not found.named)
    except ReachError as error:
        if error.code != "no_beacon":
            raise
        raise ReachError(
            "out_of_range",
            f"{found.name} is not heard any more: go nearer, check its power",
            found=error.found,
        ) from None
    if not again.named:
        again.name, again.named = found.name, found.named
    return again
