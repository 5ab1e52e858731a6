"""Signed releases, from the orchestrator over WiFi into the slot of a chip, and running."""

import pytest

from tests.chip.scene import OLD

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_an_update(scene):
    """Installed, tried, confirmed, reported: flash, orchestrator and console say the same."""
    new = scene.shelf.release("1.1.0")
    beacon = scene.beacon()
    beacon.runs(OLD)
    firmware = scene.publish(new, beacon)
    done = beacon.ended(firmware)
    assert (done["result"], done["trials"], done["bytes"]) == ("success", 1, len(new.image)), done
    beacon.runs("1.1.0")
    beacon.settled()
