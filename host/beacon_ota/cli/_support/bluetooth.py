"""Runs the work of a command that uses Bluetooth."""

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from beacon_ota.virtual.radio.selection import RadioSelection

T = TypeVar("T")


def run_with_radio(radio: "RadioSelection", work: Coroutine[Any, Any, T]) -> T:
    """Run everything that a command does by radio, in one event loop.

    A device that was found belongs to the event loop in which it was found (macOS).

    Raises:
        ReachError: ``bluetooth_off``: there is no adapter, or it has gone meanwhile. And what
            ``work`` raises.
    """
    from beacon_ota.provision.adapter_watch import watch_adapter

    async def watch_and_work() -> T:
        try:
            async with watch_adapter(radio) as adapter:
                return await adapter.run(work)
        finally:
            work.close()  # when it never began

    return asyncio.run(watch_and_work())
